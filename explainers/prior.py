"""Control: where the evidence is in other images, on average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case


@dataclass(frozen=True)
class Prior:
    """The mean evidence mask of the fit split, [cells, cells] in [0, 1]: the same for every case; no text."""

    cells: int = 28

    def fit(self, model: Any, feed: Iterable[Sequence[Case]]) -> dict[str, Tensor]:
        found = [case.mask for cases in feed for case in cases]
        masks = [self._small(mask) for mask in found if mask is not None and mask.any()]
        if not masks:
            raise Unsuited("no case of the fit split has evidence, so there is no mean of it")
        return {"prior": torch.stack(masks).mean(0)}

    def explain(self, model: Any, cases: Sequence[Case], fitted: Mapping[str, Tensor]) -> list[Explanation]:
        return [Explanation(image=fitted["prior"].clone()) for _ in cases]

    def _small(self, mask: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(mask[None].float(), self.cells)[0]
