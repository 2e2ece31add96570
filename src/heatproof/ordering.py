"""A benchmark made of what is typed: a captioner, a data set and explainers, each a name or an inline table of TOML."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heatproof import spec
from heatproof.errors import Refused, listed
from heatproof.fields import typed
from heatproof.records import write_whole
from heatproof.spec import Spec

EXPLAINERS = ("lrp", "gradcam", "attention", '{ use = "guided:GuidedGradCam", as = "guided-gradcam" }')
EXAMPLE = '{ use = "scenes", partner = 0.5 }'


def entry(text: str, what: str) -> dict[str, Any]:
    """A part as it is typed, as a spec has it.

    >>> entry("scenes", "DATA"), entry('{ use = "scenes", partner = 0.5 }', "DATA")
    ({'use': 'scenes'}, {'use': 'scenes', 'partner': 0.5})
    """
    if not text.lstrip().startswith("{"):
        return {"use": text}
    found = typed(text)
    if not isinstance(found, dict) or not isinstance(found.get("use"), str):
        raise Refused(f"{what}: found {text!r}, accepted is a name or an inline table as '{EXAMPLE}'")
    return found


def folders(typed: Iterable[str]) -> dict[str, str]:
    """``NAME=DIR`` as often as it was typed."""
    pairs: dict[str, str] = {}
    for text in typed:
        name, sep, folder = text.partition("=")
        if not sep:
            raise Refused(f"--data {text}: found no '='; write NAME=DIR")
        pairs[name] = folder
    return pairs


def shown(path: Path) -> str:
    """A path as one would type it here."""
    cwd, path = Path.cwd().resolve(), path.resolve()
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def benchmark(
    model: str,
    dataset: str,
    explainers: Sequence[str] = (),
    sample: int | None = None,
    data: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Models, data set and explainers of a spec; ``{NAME}`` in them is a folder of ``data`` (NAME=DIR), else of the environment."""
    parts = {"MODEL": entry(model, "MODEL"), "DATA": entry(dataset, "DATA")}
    asked = [entry(text, "--explainer") for text in explainers or EXPLAINERS]
    if sample is not None:
        parts["DATA"].setdefault("sample", sample)
    named = re.findall(r"\{(\w+)\}", json.dumps([*parts.values(), *asked]))
    places = folders(data)
    for name in places:
        if name not in named:
            raise Refused(
                f"--data {name}: nothing of what was typed says {{{name}}}, as in images = '{{{name}}}/x.zip'"
            )
    found = {
        "title": f"{called(parts['MODEL'])} on {called(parts['DATA'])}",
        "seed": seed,
        "dataset": parts["DATA"],
        "models": [parts["MODEL"]],
        "explainers": asked,
        "metrics": [],
    }
    return (
        {**found, "data": {name: _folder(name, places) for name in dict.fromkeys(named)}} if named else found
    )


def called(part: Mapping[str, Any]) -> str:
    """What a part is called, fit for a file's name.

    >>> called({"use": "./mine.py:Mine"}), called({"use": "guided:GuidedGradCam"})
    ('Mine', 'GuidedGradCam')
    """
    use = str(part.get("as", part["use"]))
    return re.sub(r"[^\w-]+", "-", re.split(r"[:/]", use)[-1].removesuffix(".py"))


def _folder(name: str, data: Mapping[str, str]) -> str:
    variables = f"HEATPROOF_DATA_{name.upper()}", "HEATPROOF_DATA"
    found = data.get(name) or next(filter(None, map(os.environ.get, variables)), "")
    if not found:
        raise Refused(
            f"{{{name}}}: no folder of that name was given. Type: --data {name}=DIR, or set {' or '.join(variables)}"
        )
    return str(Path(found).resolve())


def toml(raw: Mapping[str, Any]) -> str:
    """A spec's entries as TOML, one a line.

    >>> print(toml({"seed": 0, "models": [{"use": "a", "beam": 1}], "on": True}), end="")
    seed = 0
    models = [{ use = "a", beam = 1 }]
    on = true
    """
    return "".join(f"{key} = {_inline(value)}\n" for key, value in raw.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_inline(v)}" for key, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value, ensure_ascii=False)


def passing(raw: Mapping[str, Any], cwd: Path, command: str) -> Spec:
    """The spec of something that leaves no benchmark behind; names and paths are looked up in ``cwd`` as ever."""
    with tempfile.NamedTemporaryFile(
        "w", dir=cwd, prefix=".typed-", suffix=".toml", encoding="utf-8"
    ) as file:
        file.write(toml(raw))
        file.flush()
        try:
            return spec.read(file.name, cwd)
        except Refused as refused:
            said = str(refused).replace(Path(file.name).name, command)
            needed = re.findall(r"'(\w+)'", str(refused.__cause__)) if "missing" in said else []
            hint = f"; write an inline table with {listed(needed)}, as '{EXAMPLE}'" if needed else ""
            raise Refused(said + hint) from refused


def keep(raw: Mapping[str, Any], path: Path, head: str) -> None:
    """Write a benchmark that a command made, under a line that says so; a file without that line is not written over."""
    if path.exists() and path.read_text(encoding="utf-8").partition("\n")[0] != head:
        raise Refused(
            f"{path.name} is there already and is not this command's; move it or give it another name"
        )
    write_whole(path, f"{head}\n{toml(raw)}")
