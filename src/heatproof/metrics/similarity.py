"""How alike are two maps? Plain functions of the field's names; tied values are those of ``ranking`` (law 3)."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from heatproof.metrics import ranking


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b of two maps, -1 to 1: concordant less discordant pairs, ties taken out of the scale.

    a, b: the same number of values, finite. NaN where one of them is constant. Kendall 1945.

    >>> kendall_tau(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0]))
    0.5
    """
    # levels count from the highest down in both, so the sign stays
    found = stats.kendalltau(ranking.levels(a).reshape(-1).numpy(), ranking.levels(b).reshape(-1).numpy())
    return round(float(found.statistic), 15)


def manhattan(a: Tensor, b: Tensor) -> float:
    """The sum of absolute differences, 0 and up, in the maps' units; scale the maps first if they differ in it.

    >>> manhattan(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0]))
    3.0
    """
    return float(torch.linalg.vector_norm(a.double() - b.double(), 1))


def euclidean(a: Tensor, b: Tensor) -> float:
    """The root of the summed squared differences, 0 and up, in the maps' units.

    >>> euclidean(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    5.0
    """
    return float(torch.linalg.vector_norm(a.double() - b.double()))


def mean_squared_error(a: Tensor, b: Tensor) -> float:
    """The mean squared difference, 0 and up, in the maps' units squared.

    >>> mean_squared_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    12.5
    """
    return float((a.double() - b.double()).square().mean())
