"""RISE: the mean score of randomly masked images, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited, games, masks
from heatproof.contract import Case
from heatproof.errors import Refused, unknown

LAYOUT = torch.channels_last
NORMALISATIONS = ("coverage", "expectation")


@dataclass(frozen=True)
class Rise:
    """Petsiuk, Das, Saenko 2018 (BMVC), [H, W] in units of the weights.

    ``masks`` (the paper: 4000 for VGG16, 8000 for ResNet50) of ``grid`` x ``grid`` cells (7), each kept with
    probability ``keep`` (0.5), enlarged bilinearly and shifted at random by less than a cell, times the normalised
    pixels: what is hidden turns mean colour. ``segments`` "slic" keeps whole superpixels instead, about grid^2 of them,
    of ``compactness``. ``probability``: weigh by the softmax of logits or the exponential of a
    log-probability, as the paper does, so that a mask's weight is never negative (a cosine stays as it is); else by
    the model's own score.
    ``normalise``: "coverage" divides by the sum of the masks at each pixel, so that a constant score gives a flat map;
    "expectation" by masks * keep, as the paper does. ``text_masks`` > 0 does the same to the ``unit``s of a text ("token" |
    "word", whose tokens go and are scored together), removed in the model's own default way.
    """

    masks: int = 4000
    grid: int = 7
    keep: float = 0.5
    normalise: str = "coverage"
    probability: bool = True
    segments: str = "grid"
    compactness: float = 10.0
    text_masks: int = 0
    unit: str = "token"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.normalise not in NORMALISATIONS:
            raise Refused(
                f"rise: normalise: found {self.normalise!r}, accepted are {', '.join(NORMALISATIONS)}"
            )
        if cases[0].pixels.ndim != 3:
            raise Unsuited(f"{model.name} reads region features: there are no pixels to mask")
        if self.unit not in ("token", "word"):
            raise unknown("explainers: rise", "unit", self.unit, ("token", "word"))
        images = self._images(model, cases)
        if self.text_masks == 0 or "text.embed" not in model.sites:
            return [Explanation(image=image) for image in images]
        return [Explanation(i, self._text(model, c)) for i, c in zip(images, cases, strict=True)]

    def _images(self, model: Any, cases: Sequence[Case]) -> list[Tensor]:
        pixels = model.stack(cases)
        if self.segments == "grid":
            masked = masks.cells(cases, self.masks, self.grid, self.keep, (pixels.shape[2], pixels.shape[3]))
        else:
            cut = games.Pictures(model, cases, self.grid, self.segments, self.compactness)
            masked = masks.pieces(cut, self.masks, self.keep)
        heats, covers = (torch.zeros(len(cases), *pixels.shape[2:]).to(pixels) for _ in range(2))
        todo = [(k, j) for k in range(len(cases)) for j in range(self.masks)]
        # one block for all, in the layout that nets read
        rows = torch.empty(0)
        with torch.inference_mode():
            for some in games.batches(model, todo):
                if not len(rows):
                    rows = pixels.new_empty((len(some), *pixels.shape[1:])).contiguous(memory_format=LAYOUT)
                shown = [mask.to(pixels) for mask in masked(some)]
                block = rows[: len(some)]
                for row, (k, _), mask in zip(block, some, shown, strict=True):
                    torch.mul(pixels[k], mask, out=row)
                scores = self._weights(model, block, [cases[k] for k, _ in some]).tolist()
                for (k, _), mask, score in zip(some, shown, scores, strict=True):
                    heats[k].add_(mask, alpha=score)
                    covers[k].add_(mask)
        return [self._mean(h, c, self.masks) for h, c in zip(heats, covers, strict=True)]

    def _weights(self, model: Any, rows: Tensor, cases: Sequence[Case]) -> Tensor:
        """[B]: what each mask counts for."""
        if not self.probability or model.space == "cosine":
            found: Tensor = model.score(rows, cases)
            return found
        if model.space == "log-probability":
            return torch.exp(model.score(rows, cases))
        chances = model.scores(rows, [replace(case, choices=()) for case in cases]).softmax(1)  # all classes
        return torch.stack([row[case.target] for row, case in zip(chances, cases, strict=True)])

    def _text(self, model: Any, case: Case) -> Tensor:
        """Special tokens are never removed, and get the mean score of all masks."""
        chance = case.generator("rise text")
        words = torch.tensor(case.words)
        kept = (torch.rand(self.text_masks, len(case.words), generator=chance) < self.keep).float()
        if self.unit == "word":
            first = (words[None] == words[:, None]).int().argmax(1)  # the word's first token decides for all
            kept = kept[:, first]
        kept[:, words < 0] = 1.0
        with torch.no_grad():
            scores = model.score_text(kept, [case] * self.text_masks).cpu()
        if self.probability and model.space == "log-probability":
            scores = scores.exp()
        return self._mean(scores @ kept, kept.sum(0), self.text_masks)

    def _mean(self, heat: Tensor, cover: Tensor, masks: int) -> Tensor:
        return heat / (cover.clamp(min=1e-6) if self.normalise == "coverage" else masks * self.keep)
