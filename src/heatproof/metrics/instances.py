"""How a case with several annotated instances is judged: all of them at once, the best one, or their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heatproof.contract import Case, Value
from heatproof.metrics import maps
from heatproof.metrics.maps import Undefined

INSTANCES = ("union", "any", "instance")


def views(case: Case, size: tuple[int, int], instances: str) -> list[tuple[Tensor, Tensor]]:
    """What is judged at once, as pairs of a mask and the pixels that count, each bool [h, w] on a grid of ``size``.

    - "union": one view, the union of all instances
    - "any", "instance": one view an instance; the other instances' pixels count neither as evidence nor as
      background, so that a map is not blamed for finding two things of one kind

    Ignored regions never count. A view without evidence, or with nothing else, is left out; Undefined where
    none is left.
    """
    if case.evidence is None:
        raise Undefined("nothing annotated")
    if not case.evidence.any():
        raise Undefined("no evidence in the image")
    counted = torch.ones(size, dtype=torch.bool)
    if case.ignore is not None:
        counted = ~maps.on_grid(case.ignore, size)
    planes = maps.on_grid(case.evidence.any(0, keepdim=True) if instances == "union" else case.evidence, size)
    everything = planes.any(0)
    pairs = [(plane & counted, counted & (plane | ~everything)) for plane in planes]
    seen = [(mask, counted) for mask, counted in pairs if mask.any()]
    if not seen:
        raise Undefined("no evidence left outside ignored regions, on the map's grid")
    found = [(mask, counted) for mask, counted in seen if not mask[counted].all()]
    if not found:
        raise Undefined("evidence everywhere")
    return found


def merged(found: Sequence[Mapping[str, Value]], instances: str) -> dict[str, Value]:
    """The case's values from those of its views, for values of which more is better.

    - "any": the highest that is defined, with its parts
    - else: the mean over the views that define it; parts are summed, so that a pooled reducer counts every instance

    >>> low, high = {"iou": Value(0.25, parts={"num": 1})}, {"iou": Value(0.75, parts={"num": 3})}
    >>> merged([low, high], "any")["iou"].number, merged([low, high], "instance")["iou"]
    (0.75, Value(number=0.5, reason='', parts={'num': 4}))
    """
    return {name: _merged([values[name] for values in found], instances) for name in found[0]}


def _merged(values: Sequence[Value], instances: str) -> Value:
    numbers = [v.number for v in values if v.number is not None]
    if not numbers:
        return values[0]
    defined = [v for v in values if v.defined]
    if instances == "any":
        return defined[numbers.index(max(numbers))]
    parts = {name: _summed([v.parts[name] for v in defined]) for name in defined[0].parts}
    return Value.of(sum(numbers) / len(numbers), **parts)


def _summed(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], list):
        return [sum(column) for column in zip(*parts, strict=True)]
    return sum(parts)
