"""A benchmark's TOML, read strictly: every unknown key, part or value is named with what would be right."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heatproof import shelf
from heatproof.errors import Refused, unknown
from heatproof.fields import fits, readable, settings_of, typed
from heatproof.shelf import Place

KINDS = ("instrument", "photographs", "replay")
FAMILIES = ("classifier", "dual", "captioner")
KEYS = {
    "title", "kind", "paper", "seed", "dataset", "fit", "data", "targets", "models", "explainers",
    "metrics", "controls", "headline", "against", "modes", "published", "stand_in", "tolerances", "chunk",
}  # fmt: skip
MODES = ("corrected", "as_released")
BASELINES = (
    "mean",
    "blur",
    "inpaint",
)  # of a metric that removes pixels and names none: the choice can decide a ranking
TARGETS = {"classifier": "label", "dual": "caption 0", "captioner": "said objects"}


@dataclass(frozen=True)
class Part:
    """One named part of a spec: a class, its settings, and where it comes from."""

    name: str
    shelf: str
    use: str
    role: str  # dataset | fit | model | method | control | metric
    made: Any  # the instance: a frozen dataclass
    replicate: int = 0
    sample: int | None = None  # data sets: how many samples are drawn, where the class has no such field
    entry: Mapping[str, Any] = field(default_factory=dict)  # as the spec has it, folders not filled in

    @property
    def file(self) -> Path:
        return shelf.file_of(type(self.made))

    @property
    def source(self) -> str:
        """A hash of the part's file and of every local module it imports."""
        return shelf.source(self.file)

    @property
    def settings(self) -> dict[str, Any]:
        """Every field with its value, nested parts too; a folder of [data] stays a name: "{maps}"."""
        named = {k: v for k, v in self.entry.items() if isinstance(v, str) and "{" in v}
        return {k: named.get(k, v) for k, v in settings_of(self.made).items()}

    @property
    def summary(self) -> str:
        return (type(self.made).__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Spec:
    """What is asked: one table."""

    name: str
    path: Path
    workspace: Path
    text: str
    title: str
    kind: str
    seed: int
    dataset: Part
    fit: Part | None
    targets: Mapping[str, str]
    models: tuple[Part, ...]
    explainers: tuple[Part, ...]  # methods first, then controls
    metrics: tuple[Part, ...]
    headline: tuple[str, ...]
    against: Mapping[str, str] = field(default_factory=dict)  # a model, and the one it is held against
    chunk: int = 8
    paper: str = ""
    modes: tuple[str, ...] = ("corrected",)
    published: tuple[Mapping[str, Any], ...] = ()
    tolerances: Mapping[str, float] = field(default_factory=dict)
    stand_in: bool = False

    @property
    def place(self) -> Place:
        return Place(self.path.parent, self.workspace)


def read(
    name: str,
    cwd: Path | None = None,
    *,
    sets: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    stand_in: bool = False,
) -> Spec:
    """A benchmark by name or path, with the command line's changes applied, fully checked."""
    name, path, workspace = shelf.locate(name, cwd or Path.cwd())
    raw = shelf.read_toml(path)
    if stand_in:
        if "stand_in" not in raw:
            raise Refused(f"{path.name}: --stand-in, but the spec has no [stand_in] table")
        raw |= raw["stand_in"]
    for change in sets:
        _set(raw, change, path.name)
    return _Reader(name, path, workspace, raw, dict(data or {}), stand_in).spec()


def _set(raw: dict[str, Any], change: str, where: str) -> None:
    """Apply ``metrics.deletion.steps=50`` or ``seed=1``: the value is TOML, a bare word a string."""
    target, sep, text = change.partition("=")
    if not sep:
        raise Refused(f"--set {change}: found no '='; write for example metrics.deletion.steps=50")
    value = typed(text)
    head, *rest = target.split(".")
    if head not in KEYS:
        raise unknown(f"--set {change}", "key of a spec", head, KEYS)
    if not rest:
        raw[head] = value
    elif isinstance(raw.get(head), list):
        if len(rest) != 2:
            raise Refused(f"--set {change}: write {head}.NAME.FIELD=VALUE")
        entries = [e if isinstance(e, dict) else {"use": e} for e in raw[head]]
        hit = [e for e in entries if e.get("as", e["use"]) == rest[0]]
        if not hit:
            raise unknown(
                f"--set {change}", head[:-1], rest[0], [str(e.get("as", e["use"])) for e in entries]
            )
        hit[0][rest[1]] = value
        raw[head] = entries
    else:
        inner = raw.get(head, {})
        raw[head] = {**(inner if isinstance(inner, dict) else {"use": inner}), ".".join(rest): value}


class _Reader:
    """Turns one parsed file into a Spec; every method answers with a Refused that names file and field."""

    def __init__(
        self,
        name: str,
        path: Path,
        workspace: Path,
        raw: dict[str, Any],
        data: dict[str, str],
        stand_in: bool,
    ) -> None:
        self.name, self.path, self.workspace, self.raw, self.stand_in = name, path, workspace, raw, stand_in
        self.place = Place(path.parent, workspace)
        self.folders = self._folders(data)
        self.parts: dict[str, Any] = {}  # explainers made so far, by name: `of` may mean one of them

    def spec(self) -> Spec:
        raw, where = self.raw, self.path.name
        for key in raw:
            if key not in KEYS:
                raise unknown(where, "key", key, KEYS)
        for key in ("title", "dataset", "models", "explainers", "metrics"):
            if key not in raw:
                raise Refused(f"{where}: `{key}` is missing; see benchmarks/demo.toml for one that is whole")
        kind = self._typed("kind", str, "instrument")
        if kind not in KINDS:
            raise unknown(f"{where}: kind", "kind", kind, KINDS)
        targets = {**TARGETS, **self._table("targets", str)}
        for family in targets:
            if family not in FAMILIES:
                raise unknown(f"{where}: targets", "family", family, FAMILIES)
        modes = tuple(self._list("modes", str) or MODES[:1])
        for mode in modes:
            if mode not in MODES:
                raise unknown(f"{where}: modes", "mode", mode, MODES)
        methods = self._parts("explainers", "method", modes)
        controls = [p for e in self._list("controls") for p in self._control(e, methods)]
        metrics = self._parts("metrics", "metric", modes)
        self._unique([*methods, *controls])
        columns = {f"{m.name}.{v.name}" for m in metrics for v in m.made.measures}
        headline = self._list("headline", str) or sorted(columns)[:1]
        tolerances = self._table("tolerances", float)
        for column in [*headline, *tolerances]:
            if column not in columns:
                raise unknown(f"{where}: headline or tolerances", "column", column, columns)
        chunk = self._typed("chunk", int, 8)
        if chunk < 1:
            raise Refused(f"{where}: chunk: found {chunk}, accepted is 1 or more")
        models = self._unique(self._parts("models", "model"))
        against = self._table("against", str)
        for model in [*against, *against.values()]:
            if model not in (names := sorted({part.name for part in models})):
                raise unknown(f"{where}: against", "model", model, names)
        dataset = self._part("datasets", "dataset", raw["dataset"], "dataset")
        fit = self._part("datasets", "fit", raw["fit"], "fit") if "fit" in raw else None
        return Spec(
            name=self.name,
            path=self.path,
            workspace=self.workspace,
            text=self.path.read_text(encoding="utf-8"),
            title=self._typed("title", str, ""),
            kind=kind,
            seed=self._typed("seed", int, 0),
            dataset=dataset,
            fit=fit,
            targets=targets,
            models=tuple(models),
            explainers=(*methods, *controls),
            metrics=tuple(self._unique(metrics)),
            headline=tuple(headline),
            against=against,
            chunk=chunk,
            paper=self._typed("paper", str, ""),
            modes=modes,
            published=tuple(self._list("published", dict)),
            tolerances=tolerances,
            stand_in=self.stand_in,
        )

    # ---------------------------------------------------------------- pieces of the file

    def _typed(self, key: str, kind: type, default: Any) -> Any:
        return self._checked(self.raw.get(key, default), kind, key)

    def _checked(self, value: Any, kind: Any, key: str) -> Any:
        if not fits(value, kind):
            raise Refused(f"{self.path.name}: {key}: found {value!r}, accepted is {readable(kind)}")
        return value

    def _list(self, key: str, kind: Any = Any) -> list[Any]:
        return [self._checked(value, kind, key) for value in self._typed(key, list, [])]

    def _table(self, key: str, kind: Any = Any) -> dict[str, Any]:
        table = self._typed(key, dict, {})
        return {name: self._checked(value, kind, f"{key}: {name}") for name, value in table.items()}

    def _folders(self, given: dict[str, str]) -> dict[str, str]:
        """[data] NAME = default folder, relative to the spec; HEATPROOF_DATA_NAME and --data go before."""
        table = self._table("data", str)
        for name in given:
            if name not in table:
                raise unknown(f"--data {name}", "data of this benchmark", name, table)
        folders = {}
        for name, default in table.items():
            chosen = given.get(name) or os.environ.get(f"HEATPROOF_DATA_{name.upper()}")
            folders[name] = str(Path(chosen).resolve() if chosen else (self.path.parent / default).resolve())
        return folders

    def _fill(self, value: Any, where: str) -> Any:
        """'{shared}/images/x.zip' -> the path that [data] gives 'shared'."""
        if isinstance(value, list):
            return [self._fill(v, where) for v in value]
        if not isinstance(value, str):
            return value
        for name in re.findall(r"\{(\w+)\}", value):
            if name not in self.folders:
                raise unknown(where, "folder of [data]", name, self.folders)
        return value.format(**self.folders) if "{" in value else value

    # ---------------------------------------------------------------- parts

    def _parts(self, key: str, role: str, modes: tuple[str, ...] = ()) -> list[Part]:
        entries = [_entry(entry, f"{self.path.name}: {key}") for entry in self._list(key)]
        return [self._part(key, key, e, role) for entry in entries for e in self._meant(key, entry, modes)]

    def _meant(self, key: str, entry: dict[str, Any], modes: tuple[str, ...]) -> list[dict[str, Any]]:
        """What an entry stands for: itself, under each baseline where it names none, and in each of the modes."""
        if not modes:
            return [entry]
        cls = shelf.find(key, entry["use"], self.place, f"{self.path.name}: {key}")
        fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
        name, meant = entry.get("as", _short(entry["use"])), [entry]
        if key == "metrics" and "baseline" in fields - set(entry):
            meant = [
                {**entry, "baseline": b, "as": name if b == "mean" else f"{name}-{b}"} for b in BASELINES
            ]
        if "as_released" not in fields - set(entry):
            return meant
        found = []
        for mode in modes:
            for one in meant:
                tag = "" if mode == "corrected" else " (as released)"
                found.append({**one, "as_released": bool(tag), "as": f"{one.get('as', name)}{tag}"})
        return found

    def _part(self, shelf_name: str, key: str, entry: Any, role: str) -> Part:
        where = f"{self.path.name}: {key}"
        entry = _entry(entry, where)
        given = {k: self._fill(v, where) for k, v in entry.items()}
        use, name = given.pop("use"), given.pop("as", None)
        replicate, sample = given.pop("replicate", 0), None
        if shelf_name == "models" and use in self.place.trained() and ":" not in use:
            from heatproof.models.recipe import Recipe

            made: Any = Recipe(use, str(self.place.recipes()[use]), **given)
        else:
            cls = shelf.find(shelf_name, use, self.place, where)
            fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
            if role in ("dataset", "fit") and "sample" not in fields:
                sample = given.pop("sample", None)
            made = self._make(cls, given, f"{where}: {name or use}")
        part = Part(
            name or _short(use),
            shelf_name,
            use,
            role,
            made,
            replicate,
            sample,
            entry,
        )
        if shelf_name == "explainers":
            self.parts[part.name] = made
        return part

    def _control(self, entry: Any, methods: list[Part]) -> list[Part]:
        """A control of other methods (`of`) makes one row for each; where none is named, for every method."""
        where = f"{self.path.name}: controls"
        entry = _entry(entry, where)
        cls = shelf.find("explainers", entry["use"], self.place, where)
        if "of" not in {f.name for f in dataclasses.fields(cls)}:
            return [self._part("explainers", "controls", entry, "control")]
        named = entry.get("of", [m.name for m in methods])
        base, made = entry.get("as", entry["use"]), []
        for of in named if isinstance(named, list) else [named]:
            name = of if isinstance(of, str) else _entry(of, f"{where}: {base}.of")["use"]
            changed = {**entry, "of": of, "as": f"{base}({name})"}
            made.append(self._part("explainers", "controls", changed, "control"))
        return made

    def _make(self, cls: type, given: dict[str, Any], where: str) -> Any:
        if not dataclasses.is_dataclass(cls):
            if given:
                raise Refused(f"{where}: {cls.__name__} has no settings, found {sorted(given)}")
            return cls()
        hints = typing.get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls) if f.init}
        for key in given:
            if key not in fields:
                raise unknown(where, "setting", key, fields)
        values = {k: self._value(v, hints[k], f"{where}.{k}") for k, v in given.items()}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise Refused(f"{where}: {error}") from error

    def _value(self, value: Any, hint: Any, where: str) -> Any:
        """A TOML value as the field's type wants it; fields typed as a part take a name of the spec."""
        if getattr(hint, "__name__", "") == "Explainer":
            return self._named(value, where)
        if isinstance(value, list):
            value = tuple(value)
        if not fits(value, hint):
            raise Refused(f"{where}: found {value!r}, accepted is {readable(hint)}")
        return value

    def _named(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and value in self.parts:
            return self.parts[value]
        entry = dict(_entry(value, where))
        use = entry.pop("use")
        return self._make(shelf.find("explainers", use, self.place, where, self.parts), entry, where)

    def _unique(self, parts: list[Part]) -> list[Part]:
        seen: set[tuple[str, int]] = set()
        for part in parts:
            if (part.name, part.replicate) in seen:
                raise Refused(
                    f"{self.path.name}: {part.shelf}: {part.name!r} stands twice; give one a name of its own: "
                    'as = "..."'
                )
            seen.add((part.name, part.replicate))
        return parts


def _short(use: str) -> str:
    """What a part is called that has no `as`."""
    return use.rsplit("/", maxsplit=1)[-1].removesuffix(".py")


def _entry(entry: Any, where: str) -> dict[str, Any]:
    """How a part is written: a name, or a table with `use`."""
    if isinstance(entry, str):
        return {"use": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
        raise Refused(f'{where}: found {entry!r}, accepted is "name" or {{ use = "name", setting = value }}')
    return entry
