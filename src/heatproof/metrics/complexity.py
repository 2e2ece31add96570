"""Complexity: how few places does a map need to say what it says? (no model is asked)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Measure, Refused, Score, Trial, Value
from heatproof.metrics import maps
from heatproof.metrics.maps import Undefined


def gini(heat: Tensor) -> float:
    """The Gini index of the absolute values: 0 for a constant map, 1 - 1/n for a single value among n.

    heat [...] finite. 1 - 2 sum_k (c_k / sum c) (n - k + 1/2) / n over the ascending c. NaN where all are 0. Hurley and
    Rickard 2009 (Comparing measures of sparsity); of attributions, Chalasani et al. 2020.

    >>> gini(torch.tensor([0.0, 0.0, 0.0, -3.0]))
    0.75
    """
    rising = heat.double().abs().reshape(-1).sort().values
    n = len(rising)
    weights = (n - torch.arange(1, n + 1, dtype=torch.float64) + 0.5) / n
    total = float(rising.sum())
    # rounding may leave a constant map a hair below 0
    return max(0.0, 1 - 2 * float((rising * weights).sum()) / total) if total > 0 else math.nan


def entropy(heat: Tensor) -> float:
    """Shannon's entropy, in nats, of the absolute values as shares of their sum: 0 to ln n.

    heat [...] finite, n values. NaN where all are 0. "Complexity" in Bhatt et al. 2020 (arXiv 2005.00631, definition 4).

    >>> round(entropy(torch.tensor([1.0, -1.0])), 6)
    0.693147
    """
    share = heat.double().abs().reshape(-1)
    share = share / share.sum()
    return float(-torch.special.xlogy(share, share).sum()) + 0.0  # no negative zero


def support(heat: Tensor, mass: float) -> float:
    """The smallest share of the places that holds ``mass`` of all absolute relevance, above 0 and up to 1.

    heat [...] finite, 0 < mass <= 1. NaN where all are 0. Ours: the places that a reader must look at.

    >>> support(torch.tensor([6.0, 3.0, -1.0, 0.0]), 0.9)
    0.5
    """
    falling = heat.double().abs().reshape(-1).sort(descending=True).values
    held = falling.cumsum(0)
    total = float(held[-1])
    if not total > 0:
        return math.nan
    short = held < mass * total * (1 - 1e-12)  # what only rounding keeps from the mark has reached it
    return (int(short.sum()) + 1) / len(falling)


@dataclass(frozen=True)
class Complexity:
    """How concentrated the relevance is: Gini index, entropy, and the share of the map that holds most of it.

    - ``gini``: of the absolute values, 0 (constant) to 1 - 1/n (one place); higher is simpler (Hurley and Rickard
      2009; "sparseness" in Chalasani et al. 2020)
    - ``entropy``: of their shares, in nats, 0 (one place) to ln n (constant); lower is simpler ("complexity" in Bhatt
      et al. 2020)
    - ``support``: the smallest share of the places that holds ``mass`` (0.9, our choice) of the absolute relevance;
      lower is simpler. It stands for the *effective complexity* of Nguyen and Martinez 2020, which is another thing: the
      fewest features that must be known for the model's expected loss to stay below a bound, and asks the model.
      Quantus, under that name, counts the values above a threshold (1e-5)

    On the map's own grid (``upsample`` "none"), channels pooled first. The entropy grows with the number of places n,
    so maps of different grids are comparable only on one: take ``upsample`` bilinear | nearest | bicubic, which in
    turn smooths coarse maps. ``sign``: abs | positive | negative (what is left out counts as 0).

    All keep their value when the map is multiplied by a positive number. Asks no model: 0 rows. Undefined: no map, NaN
    in it, no relevance of the sign. Simple is not true: a single random pixel is the best map by all three, and a
    model that uses much of the image has no simple faithful map.
    """

    mass: float = 0.9
    pool: str = "sum"
    sign: str = "abs"
    upsample: str = "none"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("gini", "higher", "complexity"),
        Measure("entropy", "lower", "complexity", unit="nats"),
        Measure("support", "lower", "complexity"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", ("abs", "positive", "negative"))
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        if not 0 < self.mass <= 1:
            raise Refused(
                f"metrics.complexity.mass: found {self.mass}, accepted is a share above 0 and up to 1"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
            if not heat.any():
                raise Undefined("no relevance" if self.sign == "abs" else f"no {self.sign} relevance")
        except Undefined as why:
            return maps.undefined(self.measures, why)
        return Score(
            {
                "gini": Value.of(gini(heat)),
                "entropy": Value.of(entropy(heat)),
                "support": Value.of(support(heat, self.mass)),
            }
        )
