"""TOML values and the types of dataclass fields: does one suit the other, and what was typed?"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; TOML's arrays come as tuples, and an int will do for a float.

    >>> fits(2, float), fits(True, int), fits((1, 2), tuple[int, ...]), fits("a", Literal["b"]), fits(None, int | None)
    (True, False, True, False, True)
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        return isinstance(value, tuple) and all(fits(v, inner[0]) for v in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else value is None


def readable(hint: Any) -> str:
    """A type as an error names it.

    >>> readable(int | None), readable(float)
    ('int | None', 'float')
    """
    plain = typing.get_origin(hint) is None
    return str(getattr(hint, "__name__", hint)) if plain else str(hint).replace("typing.", "")


def typed(text: str) -> Any:
    """What was typed on the command line as a value: TOML where it is TOML, else a string.

    >>> typed("0.5"), typed("true"), typed("blur")
    (0.5, True, 'blur')
    """
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def settings_of(made: Any) -> dict[str, Any]:
    """The fields of a part as plain values, fit for JSON and for a key."""
    return {f.name: _plain(getattr(made, f.name)) for f in dataclasses.fields(made)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"use": type(value).__qualname__, **settings_of(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value
