"""Orders of pixels: what is tied, who comes first, and what can be expected of tied pixels (law 3).

Two values are tied where nothing but rounding tells them apart: a run of neighbouring values, none further
than 1e-6 of the map's range from the run's highest, is one *level*. Wider runs are cut from the top into
levels of that width. A level therefore never splits a plateau with rounding noise, and never spans more
than the tolerance. Multiplying a map by a positive number keeps its levels (to the last bit for powers of
two). A range that float32 cannot resolve at the size of the values (2^-22 of the largest) is no range.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TIED = 1e-6  # of the map's range
RESOLUTION = 2.0**-22  # of the largest value: a few units in the last place of a float32

Ints = npt.NDArray[np.int64]


def _tolerance(top: float, low: float) -> float:
    return max(TIED * (top - low), RESOLUTION * max(abs(top), abs(low)))


def _descend(heat: Tensor) -> tuple[Ints, Ints]:
    """Flat indices from the highest value down, and the level of each: 0, 0, 1, 2, 2, ..."""
    values = heat.detach().cpu().reshape(-1).numpy()
    places = np.argsort(-values)
    down = values[places].astype(np.float64)
    tolerance = _tolerance(float(down[0]), float(down[-1]))
    breaks = np.zeros(len(down), dtype=bool)
    if tolerance > 0:
        breaks[1:] = down[:-1] - down[1:] > tolerance
        run = np.maximum.accumulate(np.where(breaks, np.arange(len(down)), 0))
        cell = np.maximum(np.ceil((down[run] - down) / tolerance), 1)
        breaks[1:] |= cell[1:] > cell[:-1]
    return places, np.cumsum(breaks, dtype=np.int64)


def levels(heat: Tensor) -> Tensor:
    """The level of each value, 0 for the highest; tied values share one.

    heat: any shape, finite -> int64 of the same shape.

    >>> levels(torch.tensor([[0.5, 1.0], [0.0, 0.5 + 1e-7]])).tolist()
    [[1, 0], [2, 1]]
    """
    places, level = _descend(heat)
    found = np.empty_like(level)
    found[places] = level
    return torch.from_numpy(found).reshape(heat.shape)


def maxima(heat: Tensor) -> Tensor:
    """Where the map has its maximum, all tied places included: bool of the same shape.

    >>> maxima(torch.tensor([1.0, 0.0, 1.0])).tolist()
    [True, False, True]
    """
    top, low = float(heat.max()), float(heat.min())
    return top - heat.double() <= _tolerance(top, low)


def order(heat: Tensor, generator: torch.Generator) -> Tensor:
    """Flat indices of the values from the highest down, tied values in a random order: int64 [n].

    heat: any shape, finite. The first k are exactly k values, whatever the ties; the mirrored order is the same
    read backwards. The same generator state gives the same order on any machine.

    >>> order(torch.tensor([3.0, 1.0, 2.0]), torch.Generator().manual_seed(0)).tolist()
    [0, 2, 1]
    """
    down, level = _descend(heat)
    same = level[1:] == level[:-1]
    tied = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    places, group = down[tied], level[tied]
    if len(places):
        lots = np.zeros(len(down), dtype=np.int64)  # by place: how equal values were sorted cannot matter
        lots[places] = 1
        lots[lots > 0] = torch.randperm(len(places), generator=generator).numpy()
        down[tied] = places[np.argsort(group * len(places) + lots[places])]
    return torch.from_numpy(down)


def mean_ranks(heat: Tensor) -> Tensor:
    """Ranks from the highest down, counted from 1, tied values at the mean of their places; float64.

    >>> mean_ranks(torch.tensor([5.0, 2.0, 5.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    level = levels(heat)
    size = torch.bincount(level.reshape(-1)).double()
    return (size.cumsum(0) - (size - 1) / 2)[level]


def top_share(heat: Tensor, inside: Tensor, k: int) -> float:
    """The expected share of the k hottest pixels that lies inside, over all orders of tied pixels.

    heat [...] finite, inside bool of the same shape, 1 <= k <= n -> 0 to 1. The level that the k-th pixel falls
    in counts by the share of it that is inside, so a constant map gets the area of ``inside``.

    >>> top_share(torch.tensor([2.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]), 2)
    0.75
    """
    if not 1 <= k <= heat.numel():
        raise ValueError(f"k: found {k}, accepted is 1 to {heat.numel()}, the number of pixels")
    level = levels(heat).reshape(-1)
    size = torch.bincount(level)
    hit = torch.bincount(level, inside.reshape(-1).double())
    before = size.cumsum(0) - size
    taken = (k - before).clamp(min=0).minimum(size)
    return float((hit * taken / size).sum() / k)


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two maps, -1 to 1; tied values at their mean rank.

    a, b: the same number of values, finite. NaN where one of them is constant.

    >>> spearman(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0]))
    0.5
    """
    x, y = (r - r.mean() for r in (mean_ranks(a).reshape(-1), mean_ranks(b).reshape(-1)))
    scale = float((x @ x) * (y @ y)) ** 0.5
    return float(x @ y) / scale if scale > 0 else float("nan")
