"""What crosses from foreign code into the house is looked at once, here: explanations and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from heatproof import keys
from heatproof.contract import Case, Explanation, Refused, Score
from heatproof.spec import Part


def cell(score: Score, cost: tuple[float, float]) -> dict[str, Any]:
    """A score as the store keeps it; what is computed and what is read back are the same plain values."""
    return keys.plain(
        {
            "values": {
                name: {
                    "value": value.number,
                    "status": "value" if value.defined else "undefined",
                    "reason": value.reason,
                    "parts": dict(value.parts),
                }
                for name, value in score.values.items()
            },
            "curves": {
                name: [[float(v) for v in x], [float(v) for v in y]] for name, (x, y) in score.curves.items()
            },
            "forwards": cost[0],
            "backwards": cost[1],
        }
    )


def needs_other(made: Any) -> bool:
    return bool(getattr(made, "needs_other", False))


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def detached(explanation: Explanation) -> Explanation:
    """Plain CPU tensors without a graph, views included."""
    bare = {
        name: tensor.detach().cpu().contiguous()
        for name in ("image", "text", "pairs")
        if (tensor := getattr(explanation, name)) is not None
    }
    views = {name: detached(view) for name, view in explanation.views.items()}
    return dataclasses.replace(explanation, **bare, views=views)


def check(
    part: Part, cases: Sequence[Case], before: Sequence[torch.Tensor], found: Sequence[Explanation]
) -> None:
    """A broken promise of an explainer is said at once, naming its file and what was promised."""
    where = f"{part.file.name}: {type(part.made).__name__}.explain"
    if len(found) != len(cases):
        raise Refused(
            f"{where} gave {len(found)} explanations for {len(cases)} cases: one a case is needed, in order"
        )
    for case, pixels, explanation in zip(cases, before, found, strict=True):
        if not torch.equal(case.pixels, pixels):
            raise Refused(f"{where} edits case {case.id}'s pixels in place: work on a clone")
        if not isinstance(explanation, Explanation):
            raise Refused(f"{where} gave {type(explanation).__name__}, accepted is heatproof.Explanation")
        image, text = explanation.image, explanation.text
        if image is not None and (image.ndim not in (2, 3) or 0 in image.shape):
            raise Refused(f"{where}: image has shape {list(image.shape)}, accepted is [h, w] or [C, h, w]")
        if image is not None and max(image.shape[-2:]) > max(case.pixels.shape[-2:]):
            raise Refused(
                f"{where}: image has shape {list(image.shape)}, larger than the case's {list(case.pixels.shape)}"
            )
        if text is not None:
            wanted = [0] if case.tokens is None else list(case.tokens.shape)
            if list(text.shape) != wanted:
                raise Refused(
                    f"{where}: text has shape {list(text.shape)}, accepted is {wanted}, one a token"
                )
