"""How a column of cases becomes one number with an interval, and when two of them differ. No torch here.

Photographs are the unit of chance, not cases: a photograph with five object words counts once. Every
reducer therefore takes *weights by photograph*, and the bootstrap, the jackknife and the permutation test
are the same reducer asked again under other weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from heatproof.records import Record

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

DRAWS = 2000  # bootstrap resamples: the end of a 95 % interval is the 50th value from either side
FLIPS = 1999  # random sign flips; all 2^n of them where that is no more
TAIL = 0.025  # on either side of a 95 % interval
ALPHA = 0.05
NORMAL = statistics.NormalDist()


@dataclass(frozen=True, eq=False)
class Rows:
    """The defined rows of one cell: value [n], parts {name: [n] or [n, K]}, and where each row belongs.

    ``sample`` [n] numbers the photographs from 0 to ``samples`` - 1, ``group`` [n] the pairs of photograph
    and thing asked about, ``trial`` [n] the pairs of replicate and case, ``replicate`` [n] the training seeds.
    """

    value: Array
    sample: Index
    group: Index
    trial: Index
    replicate: Index
    samples: int
    replicates: int = 1
    parts: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.value)

    @property
    def present(self) -> int:
        """How many photographs have a row."""
        return int(np.count_nonzero(np.bincount(self.sample, minlength=1)))

    def take(self, which: Index | npt.NDArray[np.bool_]) -> Rows:
        """The rows that ``which`` selects; photographs and replicates keep their numbers."""
        return Rows(
            self.value[which],
            self.sample[which],
            self.group[which],
            self.trial[which],
            self.replicate[which],
            self.samples,
            self.replicates,
            {name: part[which] for name, part in self.parts.items()},
        )


@dataclass(frozen=True)
class Numbering:
    """The numbers that photographs, groups, trials and replicates of one model have in its ``Rows``."""

    sample: Mapping[str, int]
    group: Mapping[tuple[str, str], int]
    trial: Mapping[tuple[int, str], int]
    replicate: Mapping[int, int]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Numbering:
        """Number what the records name, in sorted order, so that the order of rows changes nothing."""
        seen = {(r.sample, r.about, r.replicate, r.case) for r in records if r.case}
        return cls(
            {s: i for i, s in enumerate(sorted({s for s, _, _, _ in seen}))},
            {g: i for i, g in enumerate(sorted({(s, a) for s, a, _, _ in seen}))},
            {t: i for i, t in enumerate(sorted({(r, c) for _, _, r, c in seen}))},
            {r: i for i, r in enumerate(sorted({r for _, _, r, _ in seen}))},
        )

    def rows(self, records: Sequence[Record], how: str = "mean") -> Rows:
        """The defined ones of these records as arrays, with the parts that the reducer reads."""
        kept = [r for r in records if r.status == "value" and r.value is not None]
        kept.sort(key=lambda r: self.trial[r.replicate, r.case])
        return Rows(
            np.array([r.value for r in kept], dtype=np.float64),
            np.array([self.sample[r.sample] for r in kept], dtype=np.int64),
            np.array([self.group[r.sample, r.about] for r in kept], dtype=np.int64),
            np.array([self.trial[r.replicate, r.case] for r in kept], dtype=np.int64),
            np.array([self.replicate[r.replicate] for r in kept], dtype=np.int64),
            max(len(self.sample), 1),
            max(len(self.replicate), 1),
            {name: _part(kept, name, how) for name in PARTS.get(how, ())},
        )


def _part(records: Sequence[Record], name: str, how: str) -> npt.NDArray[Any]:
    if name == "about":  # a column of every record
        return np.array([r.about for r in records])
    for r in records:
        if name not in r.parts:
            raise ValueError(
                f"{r.column} of {r.explainer} on case {r.case}: the reducer {how!r} reads the parts "
                f"{list(PARTS[how])}, the row has {sorted(r.parts)}; let the metric give Value(parts=...)"
            )
    return np.array([r.parts[name] for r in records], dtype=np.float64)


# ---------------------------------------------------------------- reducers: rows, weights [B, S] -> [B]

Reducer = Callable[[Rows, Array], Array]


def _share(top: Array, bottom: Array) -> Array:
    share: Array = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return share


def _by_sample(rows: Rows, weight: Array | None = None) -> Array:
    if weight is not None and weight.ndim == 2:
        return np.stack([_by_sample(rows, column) for column in weight.T], axis=1)
    return np.bincount(rows.sample, weight, rows.samples).astype(np.float64)


def mean(rows: Rows, weights: Array) -> Array:
    """The plain mean over rows."""
    return _share(weights @ _by_sample(rows, rows.value), weights @ _by_sample(rows))


def pooled_ratio(rows: Rows, weights: Array) -> Array:
    """Sum of ``num`` over sum of ``den``: large objects count more; lists give the mean of their ratios (mIoU)."""
    num, den = (_by_sample(rows, rows.parts[part]) for part in ("num", "den"))
    share = _share(weights @ num, weights @ den)
    return share if share.ndim == 1 else share.mean(1)


def pooled_precision(rows: Rows, weights: Array) -> Array:
    """Average precision of one curve: ``num`` hits of ``den`` pixels at K falling thresholds, all at the last."""
    hits, hot = (weights @ _by_sample(rows, rows.parts[part]) for part in ("num", "den"))
    each = np.diff(hits, axis=1, prepend=0.0) * hits / np.maximum(hot, 1.0)  # 0 where no pixel is hot yet
    return _share(each.sum(1), hits[:, -1])


def class_mean(rows: Rows, weights: Array) -> Array:
    """The mean over things asked about of the mean over their rows: a rare class counts as much as a common one."""
    each = (_spread(rows, rows.parts["about"], part) for part in (rows.value, np.ones(len(rows))))
    sums, counts = (weights @ part for part in each)
    return _share(np.nan_to_num(_share(sums, counts)).sum(1), np.count_nonzero(counts, axis=1) * 1.0)


def max_by(rows: Rows, weights: Array) -> Array:
    """Mean over (photograph, thing asked about) of the best row of each: Sun et al. 2022, section 3.3."""
    order = np.lexsort((rows.value, rows.group))
    last = np.flatnonzero(np.diff(rows.group[order], append=-1))  # the best row of each group
    return mean(rows.take(order[last]), weights)


def roc_auc(rows: Rows, weights: Array) -> Array:
    """Probability that a row of ``label`` 1 has a higher ``score`` than one of label 0; ties count half."""
    positive = _spread(rows, rows.parts["score"], rows.parts["label"])
    negative = _spread(rows, rows.parts["score"], 1 - rows.parts["label"])
    pos, neg = weights @ positive, weights @ negative
    below = np.cumsum(neg, axis=1) - neg / 2
    return _share((pos * below).sum(1), pos.sum(1) * neg.sum(1))


def rank_correlation(rows: Rows, weights: Array) -> Array:
    """Spearman's rho between the parts ``x`` and ``y``, ties at their mean rank."""
    each = weights[:, rows.sample]
    total = each.sum(1, keepdims=True)
    ranks = []
    for part in (rows.parts["x"], rows.parts["y"]):
        tied = weights @ _spread(rows, part, np.ones(len(rows)))
        rank = (np.cumsum(tied, axis=1) - tied / 2)[:, np.unique(part, return_inverse=True)[1]]
        ranks.append(rank - (each * rank).sum(1, keepdims=True) / np.maximum(total, 1))
    x, y = ranks
    scale = np.sqrt((each * x * x).sum(1) * (each * y * y).sum(1))
    return _share((each * x * y).sum(1), scale)


def _spread(rows: Rows, levels: Array, weight: Array) -> Array:
    """[S, K]: the weight that each photograph has at each distinct level, levels ascending."""
    names, inverse = np.unique(levels, return_inverse=True)
    flat = np.bincount(rows.sample * len(names) + inverse, weight, rows.samples * len(names))
    return flat.astype(np.float64).reshape(rows.samples, len(names))


REDUCERS: Mapping[str, Reducer] = {
    "mean": mean,
    "pooled_ratio": pooled_ratio,
    "pooled_precision": pooled_precision,
    "class_mean": class_mean,
    "max_by": max_by,
    "roc_auc": roc_auc,
    "rank_correlation": rank_correlation,
}
PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(("pooled_ratio", "pooled_precision"), ("num", "den"))
PARTS |= {"class_mean": ("about",), "roc_auc": ("label", "score"), "rank_correlation": ("x", "y")}
# a row's own value is on the scale of the result
CASEWISE = ("mean", "pooled_ratio", "pooled_precision", "class_mean", "max_by")
SPREADING = ("roc_auc", "rank_correlation", "class_mean")  # rows over all draws
ROWS_AT_ONCE = 4_000_000  # bounds the memory of the reducers that spread


def over(how: str, rows: Rows, photographs: Array, seeds: Array) -> Array:
    """[B]: reduce each replicate under the photographs' weights [B, S], then average by ``seeds`` [B, R]."""
    if len(rows) == 0:
        return np.full(len(photographs), np.nan)
    step = max(1, ROWS_AT_ONCE // max(len(rows), 1)) if how in SPREADING else len(photographs)
    if rows.replicates == 1:
        blocks = [photographs[i : i + step] for i in range(0, len(photographs), step)]
        return np.concatenate([REDUCERS[how](rows, block) for block in blocks])
    sums, counts = np.zeros(len(photographs)), np.zeros(len(photographs))
    for number in range(rows.replicates):
        part = rows.take(rows.replicate == number)
        alone = Rows(**{**vars(part), "replicates": 1})
        found = over(how, alone, photographs, seeds)
        known = ~np.isnan(found)
        sums += np.where(known, found, 0.0) * seeds[:, number]
        counts += known * seeds[:, number]
    return _share(sums, counts)


def reduce(how: str, rows: Rows) -> float:
    """One number for the rows of a cell; NaN where it has none (no rows, one class alone, no spread).

    >>> rows = Rows(np.array([0., 1., 1.]), *np.array([[0, 0, 1], [0, 0, 1], [0, 1, 2], [0, 0, 0]]), 2)
    >>> round(reduce("mean", rows), 3), reduce("max_by", rows)
    (0.667, 1.0)
    """
    return float(over(how, rows, np.ones((1, rows.samples)), np.ones((1, rows.replicates)))[0])


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


def compare(how: str, first: Rows, second: Rows) -> Comparison | None:
    """Paired comparison of two cells of one column; None where no trial is defined in both.

    The p value is exact over exchanging the two explainers photograph by photograph: under the null
    hypothesis nobody could tell which of the two maps of a photograph came from which explainer.
    """
    first, second = common(first, second)
    if not len(first):
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
