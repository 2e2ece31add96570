"""Score-CAM: each activation map weighted by the score of the image seen through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

WEIGHTS = ("softmax", "increase")


@dataclass(frozen=True)
class ScoreCam:
    """Wang et al. 2020 (CVPR workshops, arXiv 1910.01279): no gradient; a channel counts by what it lets through.

    Each channel of the layer, enlarged bilinearly to the image and scaled to [0, 1], is multiplied with the normalised
    pixels: what it hides turns mean colour. ``weights`` "softmax", as published: the softmax over channels of the
    scores of these images; "increase": the score less that of the image without anything. The map is the weighted sum
    of the activations on their own grid, signed; the paper reads its positive part. A channel that is constant hides
    nothing it could be asked about, and counts nothing. ``layer`` counts "image.conv" or "image.block" sites; -1, the
    last, is the paper's choice. Exactly one row a channel that is not constant ("increase": one more), masks made
    block by block.

    Criticism: thousands of rows where layers are wide. A softmax of cosines, which differ by hundredths, is flat: take
    "increase" with dual encoders. Chen et al. 2022 (ACCV, gScoreCAM) find most of CLIP's channels to be noise.
    "increase" is blind to what only shows in several channels together: each alone lets nothing through.
    """

    layer: int = -1
    weights: str = "softmax"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.weights not in WEIGHTS:
            raise Refused(f"score_cam: weights: found {self.weights!r}, accepted are {', '.join(WEIGHTS)}")
        if cases[0].pixels.ndim != 3:
            raise Unsuited(f"{model.name} reads region features: there are no pixels to mask")
        kind = "image.conv" if "image.conv" in model.sites else "image.block"
        pixels = model.stack(cases)
        with torch.inference_mode():
            values = model.upto(model.site(kind, self.layer), pixels, cases)
            maps = [model.grid(value) if kind == "image.block" else value for value in values]
            scores = self._scores(model, pixels, maps, cases)
            blank = model.score(torch.zeros_like(pixels), cases) if self.weights == "increase" else None
        found = []
        for k, (value, score) in enumerate(zip(maps, scores, strict=True)):
            asked = ~score.isnan()
            weights = torch.zeros_like(score)
            if asked.any():
                known = score[asked]
                weights[asked] = known.softmax(0) if blank is None else known - blank[k].double()
            heat = (weights[:, None, None].to(value) * value).sum(0)
            found.append(Explanation(image=heat.clone()))
        return found

    def _scores(
        self, model: Any, pixels: Tensor, maps: Sequence[Tensor], cases: Sequence[Case]
    ) -> list[Tensor]:
        """[channels] of each case: the score of the image through each channel's mask, NaN where it is constant."""
        scores = [torch.full((len(value),), torch.nan, dtype=torch.float64) for value in maps]
        varied = [(value.flatten(1).amax(1) > value.flatten(1).amin(1)).tolist() for value in maps]
        todo = [(k, c) for k, channels in enumerate(varied) for c, there in enumerate(channels) if there]
        for some in blocks(todo, model.rows):
            rows = torch.stack([pixels[k] * self._mask(maps[k][c], pixels.shape[2:]) for k, c in some])
            answers = model.score(rows, [cases[k] for k, _ in some]).tolist()
            for (k, c), answer in zip(some, answers, strict=True):
                scores[k][c] = answer
        return scores

    def _mask(self, channel: Tensor, size: Sequence[int]) -> Tensor:
        """[h, w] -> [H, W] in [0, 1], enlarged first as in the paper."""
        wide = F.interpolate(channel[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
        return (wide - wide.min()) / (wide.max() - wide.min()).clamp(min=torch.finfo(wide.dtype).tiny)


def blocks(todo: Sequence[tuple[int, int]], rows: int) -> Iterator[Sequence[tuple[int, int]]]:
    """As many at a time as fill whole blocks of the model's rows, about 32."""
    many = rows * max(1, 32 // rows)
    for first in range(0, len(todo), many):
        yield todo[first : first + many]
