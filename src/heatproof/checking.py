"""``heatproof check``: the house's tests of one explainer, anywhere, with nothing but the package and its small models.

What holds for every method of the house is asked of the outsider's: it suits a model or says why not; its answers have
the right sizes, are finite, and are the same again, alone, in another order and whatever the global generators hold; and
it leaves model, images and generators as it found them. What is wrong is said with its line where one can be found.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from heatproof import blame, shelf
from heatproof.errors import Refused
from heatproof.shelf import Place
from heatproof.spec import Part
from heatproof.trial import MANY, SIDE, Finding, Trial

MODELS = ("small_cnn", "small_vit", "small_clip", "small_captioner")


def check(use: str, cwd: Path) -> tuple[list[str], bool]:
    """What is right and what is wrong with an explainer, in lines; and whether nothing is wrong."""
    place, name = Place(cwd, cwd), use.partition(":")[0]
    try:
        cls = shelf.find("explainers", use, place, "heatproof check")
    except Refused as refused:
        if refused.__cause__ is None:
            raise
        line = blame.raised((cwd / name).resolve(), refused.__cause__)
        said = f"cannot be imported: {type(refused.__cause__).__name__}: {refused.__cause__}"
        return _told([Finding("wrong", said, line)], Path(name).name), False
    file = shelf.file_of(cls)
    text = blame.Text(file)
    found = [_declared(cls, text)]
    settings, cut = _settings(cls, place)
    while True:
        head = f"{file.name}: {cls.__name__}{_cut(cut)}, {MANY} cases a model"
        made = _instance(cls, **settings, **cut)
        tried = list(_trials(Part(cls.__name__, "explainers", use, "method", made), place, text))
        if not cut or all(f.level != "wrong" or f.said in SIDE.values() for f in tried):
            break
        cut = {}  # what a setting cut down may have broken is asked again as it is meant
    found += tried
    return [head, *_told(found, file.name)], all(f.level != "wrong" for f in found)


def _trials(part: Part, place: Place, text: blame.Text) -> Iterable[Finding]:
    if part.made is None:
        return [Finding("wrong", "cannot be made: every setting needs a default", text.defined(part.name))]
    found = [f for name in MODELS for f in Trial(part, name, place, text).findings()]
    if all(f.level == "dash" for f in found):
        found.append(Finding("warn", "suits none of the small models: nothing of it was tried"))
    return found


def _cut(cut: dict[str, Any]) -> str:
    return f" with {', '.join(f'{k} = {v}' for k, v in cut.items())} to be quick" if cut else ""


def _told(found: Sequence[Finding], file: str) -> list[str]:
    """Lines; what holds for several models is said once."""
    models: dict[Finding, list[str]] = {}
    for one in found:
        models.setdefault(dataclasses.replace(one, model=""), []).append(one.model)
    out = []
    for one, names in models.items():
        where = f"{file}:{one.line}: " if one.line else ""
        who = ", ".join(filter(None, names))
        out.append(f"{one.level:<5}  {where}{who}{': ' if who else ''}{one.said}")
    wrong = sum(one.level == "wrong" for one in models)
    return [*out, f"{wrong} wrong" if wrong else "nothing is wrong"]


def _declared(cls: type, text: blame.Text) -> Finding:
    line, doc = text.defined(cls.__name__), cls.__doc__ or ""
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return Finding("wrong", "settings are part of a number's key: write @dataclass(frozen=True)", line)
    if not doc or doc.startswith(f"{cls.__name__}("):
        return Finding("wrong", "no docstring: its first line stands in every report", line)
    return Finding("right", "a frozen dataclass with a docstring")


def _settings(cls: type, place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a class needs to be made, and its whole numbers of more than a few, cut down."""
    hints = typing.get_type_hints(cls)
    needed, cut = {}, {}
    for one in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if getattr(hints[one.name], "__name__", "") == "Explainer":
            needed[one.name] = shelf.find("explainers", "gradcam", place, "heatproof check")()
        elif type(one.default) is int and one.default > MANY and one.init:
            cut[one.name] = MANY
    return needed, cut


def _instance(cls: type, **settings: Any) -> Any:
    try:
        return cls(**settings)
    except (TypeError, ValueError, Refused):
        return None
