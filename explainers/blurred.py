"""Control: a method's own map, blurred: does a metric pay for smoothness?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, geometry
from heatproof.contract import Case, Explainer, explain


@dataclass(frozen=True)
class Blurred:
    """The map of ``of``, channels summed, on the image's grid, after a Gaussian of ``sigma`` (a share of the side).

    Song et al. 2023 (arXiv 2304.13836): some metrics reward blur, which adds no information. 0.05 is our choice.
    The text stays as it is.
    """

    of: Explainer
    sigma: float = 0.05

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        answers = explain(self.of, model, cases)
        return [self._blur(case, answer) for case, answer in zip(cases, answers, strict=True)]

    def _blur(self, case: Case, answer: Explanation) -> Explanation:
        if answer.image is None:
            return answer
        high, wide = case.pixels.shape[-2:]
        heat = geometry.read(answer.image, (high, wide))
        for side, axis in ((high, -2), (wide, -1)):
            heat = smoothed(heat, self.sigma * side, axis)
        return replace(answer, image=heat, views={})


def smoothed(heat: Tensor, sigma: float, axis: int) -> Tensor:
    """[H, W] convolved with a Gaussian along one axis; edges are repeated.

    >>> [f"{v:.2f}" for v in smoothed(torch.eye(5)[2:3], 0.5, -1)[0].tolist()]
    ['0.00', '0.11', '0.79', '0.11', '0.00']
    """
    reach = max(1, math.ceil(4 * sigma))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    rows = heat.transpose(axis, -1)[:, None]
    rows = F.pad(rows, (reach, reach), mode="replicate")
    return F.conv1d(rows, (bell / bell.sum())[None, None].to(rows))[:, 0].transpose(axis, -1)
