"""RISE: the mean score of randomly masked images, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

TOGETHER = 64  # masks in memory at once: whole blocks of rows
NORMALISATIONS = ("coverage", "expectation")


@dataclass(frozen=True)
class Rise:
    """Petsiuk, Das, Saenko 2018 (BMVC), [H, W] in units of the score.

    ``masks`` (the paper: 4000 for VGG16, 8000 for ResNet50) of ``grid`` x ``grid`` cells (7), each kept with
    probability ``keep`` (0.5), enlarged bilinearly and shifted at random by less than a cell, times the normalised
    pixels: what is hidden turns mean colour. Paper: softmax probabilities; here the model's own score.
    ``normalise``: "coverage" divides by the sum of the masks at each pixel, so that a constant score gives a flat map;
    "expectation" by masks * keep, as the paper does. ``text_masks`` > 0 does the same to the words of a text, removed
    in the model's own default way.
    """

    masks: int = 4000
    grid: int = 7
    keep: float = 0.5
    normalise: str = "coverage"
    text_masks: int = 0

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.normalise not in NORMALISATIONS:
            raise Refused(
                f"rise: normalise: found {self.normalise!r}, accepted are {', '.join(NORMALISATIONS)}"
            )
        if cases[0].pixels.ndim != 3:
            raise Unsuited(f"{model.name} reads region features: there are no pixels to mask")
        texts = self.text_masks > 0 and "text.embed" in model.sites
        return [
            Explanation(self._image(model, c), self._text(model, c) if texts else None)
            for c in cases
        ]

    def _image(self, model: Any, case: Case) -> Tensor:
        pixels = model.stack([case])
        high, wide = pixels.shape[2:]
        chance = case.generator("rise image")
        kept = (torch.rand(self.masks, self.grid, self.grid, generator=chance) < self.keep).float()
        cell = math.ceil(high / self.grid), math.ceil(wide / self.grid)
        shifts = [torch.randint(0, c, (self.masks,), generator=chance).tolist() for c in cell]
        heat, cover = pixels.new_zeros(high, wide), pixels.new_zeros(high, wide)
        size = (self.grid + 1) * cell[0], (self.grid + 1) * cell[1]
        with torch.inference_mode():
            for first in range(0, self.masks, TOGETHER):
                some = slice(first, first + TOGETHER)
                wider = F.interpolate(kept[some, None], size, mode="bilinear", align_corners=False)
                corners = zip(wider[:, 0], shifts[0][some], shifts[1][some], strict=True)
                masks = torch.stack([m[y : y + high, x : x + wide] for m, y, x in corners])
                masks = masks.to(pixels)
                scores = model.score(pixels * masks[:, None], [case] * len(masks))
                heat += torch.einsum("m,mhw->hw", scores, masks)
                cover += masks.sum(0)
        return self._mean(heat, cover, self.masks).clone()

    def _text(self, model: Any, case: Case) -> Tensor:
        """Special tokens are never removed, and get the mean score of all masks."""
        chance = case.generator("rise text")
        kept = (torch.rand(self.text_masks, len(case.words), generator=chance) < self.keep).float()
        kept[:, torch.tensor(case.words) < 0] = 1.0
        with torch.inference_mode():
            scores = model.score_text(kept, [case] * self.text_masks).cpu()
        return self._mean(scores @ kept, kept.sum(0), self.text_masks).clone()

    def _mean(self, heat: Tensor, cover: Tensor, masks: int) -> Tensor:
        return heat / (cover.clamp(min=1e-6) if self.normalise == "coverage" else masks * self.keep)
