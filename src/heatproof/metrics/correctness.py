"""Correctness: how much of the relevance lies inside the annotated boxes, over thresholds (Sun et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Score, Trial, Value
from heatproof.metrics import maps
from heatproof.metrics.maps import Undefined

THRESHOLDS = tuple(k / 10 for k in range(10))


def inside(
    heat: Tensor, regions: Tensor, thresholds: Sequence[float], *, as_released: bool = False
) -> Tensor:
    """The share of the heat inside each region when all heat up to each threshold is cut away.

    heat [H, W] non-negative and not all zero; regions bool [K, H, W]; thresholds ascending, in parts of the
    map's maximum, below 1 -> float64 [K, thresholds], 0 to 1. Sun et al. 2022 (Explain and improve: LRP-inference
    fine-tuning for image captioning models), "correctness".

    ``as_released``: the authors' code cuts one map in place, so every region after the first meets the map as
    the highest threshold left it.

    >>> inside(torch.tensor([[4.0, 2.0, 2.0]]), torch.tensor([[[True, True, False]]]), [0.0, 0.5]).tolist()
    [[0.75, 1.0]]
    """
    heat = heat.double() / heat.double().max()
    cuts = torch.tensor(thresholds, dtype=torch.float64)[:, None, None]
    left = torch.where(heat > cuts, heat, 0.0).flatten(1)
    found = regions.flatten(1).double() @ (left / left.sum(1, keepdim=True)).T
    if as_released:
        found[1:] = found[1:, -1:]
    return found.clamp(max=1.0)


@dataclass(frozen=True)
class Correctness:
    """Relevance inside the evidence over thresholds 0, 0.1, ... 0.9 of the map's maximum; the best box counts.

    The map is the mean over channels of the positive parts (``sign`` taken before ``pool``), enlarged to the
    image, divided by its maximum. For each threshold what does not exceed it is cut to zero, and the share of
    the rest inside the best of the case's boxes is kept. The table's cell is the best case of each pair of image
    and thing asked about (several words may mean it), averaged over the pairs. Sun et al. 2022, section 3.3.

    - ``inside_0``, ``inside_50``: nothing cut; cut up to half of the maximum
    - ``inside_area``: mean height of the curve over the thresholds, by trapezoids

    ``within``: boxes (the paper) | masks (of the instances). ``as_released``: the authors' code thresholds one
    map in place, so boxes after the first always see the highest threshold, and an empty map counts 0. Ignored
    regions count neither inside nor outside (as_released knows none).

    Between 0 and 1, unchanged when the map is multiplied by a positive number. Undefined: no map, NaN in it, no
    relevance of the sign, nothing annotated, no box inside the image.
    """

    pool: str = "mean"
    sign: str = "positive"  # the authors' "neg" rows: negative
    upsample: str = "bilinear"
    within: str = "boxes"
    as_released: bool = False

    measures: ClassVar[tuple[Measure, ...]] = tuple(
        Measure(name, "higher", "plausibility", reduce="max_by")
        for name in ("inside_0", "inside_50", "inside_area")
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", ("positive", "negative", "abs"))
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        maps.accept(self, "within", ("boxes", "masks"))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample, sign_first=True)
            regions = maps.on_grid(self._regions(trial.case), (heat.shape[0], heat.shape[1]))
            if not self.as_released:
                if trial.case.ignore is not None:
                    heat = heat.masked_fill(
                        maps.on_grid(trial.case.ignore, (heat.shape[0], heat.shape[1])), 0.0
                    )
                if not (heat > 0).any():
                    raise Undefined("no relevance" if self.sign == "abs" else f"no {self.sign} relevance")
        except Undefined as why:
            return maps.undefined(self.measures, why)
        best = [0.0] * len(THRESHOLDS)
        if (heat > 0).any():
            best = inside(heat, regions, THRESHOLDS, as_released=self.as_released).amax(0).tolist()
        middle = (sum(best) - (best[0] + best[-1]) / 2) / (len(best) - 1)
        values = (best[0], best[THRESHOLDS.index(0.5)], middle)
        return Score(
            {m.name: Value.of(v) for m, v in zip(self.measures, values, strict=True)},
            {"inside": (THRESHOLDS, best)},
        )

    def _regions(self, case: Case) -> Tensor:
        if self.within == "masks":
            if case.evidence is None:
                raise Undefined("nothing annotated")
            regions = case.evidence
        elif case.boxes is None:
            raise Undefined("no boxes annotated")
        else:
            regions = maps.box_planes(case.boxes, maps.image_size(case))
        if not regions.any():
            raise Undefined("no evidence in the image")
        return regions
