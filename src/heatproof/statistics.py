"""A column's number with its interval, and when two of them differ. No torch here.

The bootstrap, the jackknife and the permutation test are the column's reducer asked again under other weights of the
photographs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from heatproof.reducers import Array, Rows, over

DRAWS = 2000  # bootstrap resamples: the end of a 95 % interval is the 50th value from either side
FLIPS = 1999  # random sign flips; all 2^n of them where that is no more
TAIL = 0.025  # on either side of a 95 % interval
ALPHA = 0.05
NORMAL = statistics.NormalDist()


# ---------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Interval:
    """The ends of a 95 % interval; NaN where fewer than two photographs leave nothing to resample."""

    low: float = math.nan
    high: float = math.nan


@lru_cache(maxsize=4)
def resampled(samples: int, replicates: int) -> tuple[Array, Array]:
    """Weights of photographs [1 + S + DRAWS, S] and of replicates: as is, each left out once, redrawn.

    Photographs and replicates are crossed levels, so each is redrawn by itself.
    """
    chance = np.random.default_rng([samples, replicates])
    drawn = [chance.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in (samples, replicates)]
    kept = [np.ones((1, samples)), 1 - np.eye(samples), drawn[0]]
    return np.vstack(kept), np.vstack([np.ones((1 + samples, replicates)), drawn[1]])


def bca(theta: float, draws: Array, jackknife: Array) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) from draws [B] and leave-one-outs [S]."""
    draws = np.sort(draws)  # NaN, a resample without any defined row, goes last
    draws = draws[: int(np.searchsorted(draws, math.inf, side="right"))]
    if not len(draws) or math.isnan(theta):
        return Interval()
    below = sum(np.searchsorted(draws, theta, side=side) for side in ("left", "right")) / 2
    edge = 0.5 / len(draws)
    bias = NORMAL.inv_cdf(min(max(float(below) / len(draws), edge), 1 - edge))
    off = jackknife[~np.isnan(jackknife)]
    off = off.mean() - off if len(off) else off
    spread = float(off @ off) ** 1.5
    speed = float(off @ (off * off)) / (6 * spread) if spread > 0 else 0.0
    return Interval(*(_quantile(draws, _corrected(tail, bias, speed)) for tail in (TAIL, 1 - TAIL)))


def _corrected(tail: float, bias: float, speed: float) -> float:
    z = bias + NORMAL.inv_cdf(tail)
    return NORMAL.cdf(bias + z / (1 - speed * z)) if speed * z < 1 else tail


def _quantile(ascending: Array, share: float) -> float:
    place = share * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return float(ascending[low] + (place - low) * (ascending[high] - ascending[low]))


def estimate(how: str, rows: Rows) -> tuple[float, Interval]:
    """The number of a cell and its interval by resampling photographs (and replicates, if several)."""
    return _estimate(over(how, rows, *resampled(rows.samples, rows.replicates)), rows)


def _estimate(found: Array, rows: Rows) -> tuple[float, Interval]:
    theta = float(found[0])
    if rows.present < 2:  # nothing to be resampled against
        return theta, Interval()
    left_out = found[1 : 1 + rows.samples][np.bincount(rows.sample, minlength=rows.samples) > 0]
    return theta, bca(theta, found[1 + rows.samples :], left_out)


# ---------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Comparison:
    """First minus second on the trials that both define, with the two-sided p of a sign-flip test."""

    difference: float
    interval: Interval
    p: float
    trials: int
    photographs: int


@lru_cache(maxsize=4)
def _flips(samples: int) -> Array:
    """[P, 2S]: 1 where a photograph's rows are read from the first [:, :S] or the second [:, S:] explainer.

    Row 0 exchanges nothing. All 2^S exchanges where they are few, else seeded random ones.
    """
    if 2**samples <= FLIPS + 1:
        second = np.arange(2**samples)[:, None] >> np.arange(samples) & 1
    else:
        second = np.random.default_rng([samples, FLIPS]).integers(0, 2, (FLIPS + 1, samples))
        second[0] = 0
    return np.hstack([1 - second, second]).astype(np.float64)


def common(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    """Both, cut to the trials that are defined in both (law 4)."""
    if np.array_equal(first.trial, second.trial):
        return first, second
    return (
        first.take(np.isin(first.trial, second.trial)),
        second.take(np.isin(second.trial, first.trial)),
    )


def compare(how: str, first: Rows, second: Rows, *, same: bool = True) -> Comparison | None:
    """Paired comparison of two cells of one column; None where no trial is defined in both.

    Not ``same``: both were asked about different words of the photographs, which alone are paired. The p value is exact over exchanging the two explainers photograph by photograph: under the null
    hypothesis nobody could tell which of the two maps of a photograph came from which explainer.
    """
    first, second = common(first, second) if same else (first, second)
    if not (len(first) and len(second)):
        return None
    weights = resampled(first.samples, first.replicates)
    difference, ends = _estimate(over(how, first, *weights) - over(how, second, *weights), first)
    flips = _flips(first.samples)
    seeds = np.ones((len(flips), first.replicates))
    there, back = (_joined(*pair) for pair in ((first, second), (second, first)))
    moved = np.abs(over(how, there, flips, seeds) - over(how, back, flips, seeds))
    slack = 1e-9 * max(1.0, abs(difference))
    p = float(np.mean(~(moved < abs(difference) - slack)))
    return Comparison(difference, ends, p, len(first), first.present)


def _joined(first: Rows, second: Rows) -> Rows:
    """Both as one, the second's photographs and groups numbered after the first's."""
    groups = int(max(first.group.max(), second.group.max())) + 1
    return Rows(
        np.concatenate([first.value, second.value]),
        np.concatenate([first.sample, second.sample + first.samples]),
        np.concatenate([first.group, second.group + groups]),
        np.concatenate([first.trial, second.trial]),
        np.concatenate([first.replicate, second.replicate]),
        2 * first.samples,
        first.replicates,
        {name: np.concatenate([part, second.parts[name]]) for name, part in first.parts.items()},
    )


def difference(how: str, first: Rows, second: Rows) -> Interval:
    """The interval of first minus second on the trials that both define, without a test."""
    first, second = common(first, second)
    weights = resampled(first.samples, first.replicates)
    return _estimate(over(how, first, *weights) - over(how, second, *weights), first)[1]


def holm(ps: Sequence[float]) -> list[float]:
    """P values adjusted for their number, step by step (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
