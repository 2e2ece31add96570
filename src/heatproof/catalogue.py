"""``heatproof list``: what is on each shelf, one line each; metrics and explainers at full length too."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heatproof import shelf
from heatproof.shelf import Place


def lines(what: str, cwd: Path) -> Iterator[str]:
    """Name, settings with their defaults, where it stands, and the first line of what it says of itself."""
    place = Place(cwd, cwd)
    if what in ("benchmarks", "recipes"):
        known = place.benchmarks() if what == "benchmarks" else place.recipes()
        for name, path in known.items():
            raw = shelf.read_toml(path)
            yield f"{name:<28} {raw.get('title', '')}  [{_where(path, cwd)}]"
        return
    if what == "models":
        for name, path in place.trained().items():
            yield f"{name:<28} {shelf.read_toml(path).get('title', 'trained here')}  [{_where(path, cwd)}]"
    for path in place.files(what).values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for use, node in zip(shelf.uses(what, path), _classes(tree, shelf.VERBS[what]), strict=True):
            said = (ast.get_docstring(node) or ast.get_docstring(tree) or "").split("\n")[0]
            yield f"{use:<28} {_settings(node)}  {said}  [{_where(path, cwd)}]"
    for entry in importlib.metadata.entry_points(group=f"heatproof.{what}"):
        yield f"{entry.name:<28} (installed: {entry.value})"


def cards(what: str, cwd: Path) -> Iterator[str]:
    """Every metric or explainer at full length, as Markdown: what it says of itself, settings with their defaults.

    ``docs/metrics.md`` and ``docs/explainers.md`` hold these lines, and a test that they are the code's own.
    """
    place = Place(cwd, cwd)
    for path in place.files(what).values():
        for use in shelf.uses(what, path):
            cls = shelf.find(what, use, place, f"heatproof list {what}")
            yield from ["", f"## {use}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
            told = [f for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []
            if told:
                yield "Settings: " + ", ".join(_default(f) for f in told) + "."
            if what == "metrics":
                yield from ["", *_values(cls, told)] if told else _values(cls, told)


def _values(cls: Any, told: list[dataclasses.Field[Any]]) -> Iterator[str]:
    """What a metric's values mean, as a table."""
    yield from [
        "| value | better | measures | unit | a column is reduced by |",
        "|---|---|---|---|---|",
    ]
    needs = any(f.default is f.default_factory is dataclasses.MISSING for f in told)
    for m in (cls if needs else cls()).measures:
        yield f"| `{m.name}` | {m.better} | {m.measures} | {m.unit or '–'} | {m.reduce} |"


def _classes(tree: ast.Module, verb: str) -> list[ast.ClassDef]:
    return [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and node.name[0] != "_"
        and any(isinstance(f, ast.FunctionDef) and f.name == verb for f in node.body)
    ]


def _settings(node: ast.ClassDef) -> str:
    fields = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and not _settled(line):
            default = f" = {ast.unparse(line.value)}" if line.value else ""
            fields.append(ast.unparse(line.target) + default)
    return f"({', '.join(fields)})"


def _default(field: dataclasses.Field[object]) -> str:
    """A setting with its default, or alone where a spec must give it."""
    needed = field.default is field.default_factory is dataclasses.MISSING
    return f"`{field.name}`" if needed else f"`{field.name} = {json.dumps(field.default)}`"


def _settled(line: ast.AnnAssign) -> bool:
    """Whether a field is none that a spec can set."""
    return "ClassVar" in ast.unparse(line.annotation) or "init=False" in ast.unparse(line)


def _where(path: Path, cwd: Path) -> str:
    path, cwd = path.resolve(), cwd.resolve()
    if path.is_relative_to(cwd):
        return str(path.relative_to(cwd))
    for root in sorted(
        (shelf.house().resolve(), shelf.PACKAGE.resolve()), reverse=True
    ):  # the inner one first
        if path.is_relative_to(root):
            return f"heatproof/{path.relative_to(root)}"
    return str(path)
