"""Control: an edge filter, the map that looks right to the eye and knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from heatproof import Explanation, Unsuited
from heatproof.contract import Case


@dataclass(frozen=True)
class Edges:
    """Sobel gradient magnitude of the mean over channels, [H, W], >= 0 (Adebayo et al. 2018's edge detector); no text."""

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if cases[0].pixels.ndim != 3:
            raise Unsuited(f"{model.name} reads region features: there is no image to filter")
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernels = torch.stack([across, across.T])[:, None]
        found = []
        for case in cases:
            grey = case.pixels.mean(0)[None, None]
            slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels.to(grey))
            found.append(Explanation(image=slopes[0].square().sum(0).sqrt()))
        return found
