"""Rows: changed images in, scores out; what the metrics that remove something share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from heatproof.contract import Case, Model
from heatproof.metrics import baselines, spaces

AT_ONCE = 96  # changed images held in memory: whole blocks of 8, 16, 24, 32 or 48 rows


def scored(output: str, model: Model, rows: Iterable[tuple[Case, Tensor]]) -> list[float]:
    """The score of each (case, image [C, H, W]) in the output space, in order; images are made when their turn comes."""
    waiting, found = iter(rows), []
    with torch.inference_mode():
        while some := list(islice(waiting, AT_ONCE)):
            images = torch.stack([image for _, image in some])
            found += spaces.score(output, model, images, [case for case, _ in some]).tolist()
    return found


def blanks(model: Model, cases: Sequence[Case], rule: str, sigma: float) -> list[Tensor]:
    """Each case's image with everything removed, by the name that ``Deletion`` remembers it under."""

    def compute(some: list[Case]) -> list[Tensor]:
        return [baselines.blank(rule, case, model, sigma) for case in some]

    return model.recall(f"image of baseline {rule} {sigma}", cases, compute)


def blank_scores(output: str, model: Model, cases: Sequence[Case], rule: str, sigma: float) -> list[float]:
    """The scores of the ``blanks``, by the name that ``Deletion`` remembers them under."""

    def compute(some: list[Case]) -> list[float]:
        with torch.no_grad():
            return spaces.score(output, model, torch.stack(blanks(model, some, rule, sigma)), some).tolist()

    return model.recall(f"{output} score of baseline {rule} {sigma}", cases, compute)
