"""How the rows of a column become one number: what each reducer reads of them, and how. No torch here.

Photographs are the unit of chance, not cases: a photograph with five object words counts once. Every reducer therefore
takes *weights by photograph*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from heatproof.records import Record

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


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
    """Sum of ``num`` over sum of ``den``: large objects count more; lists give the mean of the ratios that there are (mIoU)."""
    num, den = (_by_sample(rows, rows.parts[part]) for part in ("num", "den"))
    share = _share(weights @ num, weights @ den)
    if share.ndim == 1:
        return share
    known = ~np.isnan(share)
    return _share(np.nan_to_num(share).sum(1), known.sum(1) * 1.0)


def ratio_or_zero(rows: Rows, weights: Array) -> Array:
    """The same of lists, a ratio without a denominator counting 0 (Sun et al. 2022 as released)."""
    num, den = (_by_sample(rows, rows.parts[part]) for part in ("num", "den"))
    found = np.nan_to_num(_share(weights @ num, weights @ den)).mean(1)
    return np.where(weights @ _by_sample(rows) > 0, found, np.nan)


def ratio_over_fewer(rows: Rows, weights: Array) -> Array:
    """Their sum over one less than there are (Sun et al.'s first release)."""
    many = np.shape(rows.parts["num"])[-1]
    found: Array = ratio_or_zero(rows, weights) * many / (many - 1)
    return found


def bleu(rows: Rows, weights: Array) -> Array:
    """The geometric mean of the pooled ratios ``num`` / ``den`` of each order, times what brevity costs: Papineni et al. 2002."""
    found, told, words, wanted = (
        weights @ _by_sample(rows, rows.parts[part]) for part in ("num", "den", "words", "wanted")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        score: Array = np.exp(np.log(np.nan_to_num(_share(found, told))).mean(1)) * np.minimum(
            1, np.exp(1 - wanted / words)
        )
    return score


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


def auc_extremes(rows: Rows, weights: Array) -> Array:
    """The same, of what repeats in a photograph the highest of label 1 and the lowest of label 0 alone (Sun et al. 2022 as released)."""
    label, score = rows.parts["label"], rows.parts["score"]
    key = 2 * rows.group + label
    order = np.lexsort((np.where(label > 0, score, -score), key))
    return roc_auc(rows.take(order[np.flatnonzero(np.diff(key[order], append=-1))]), weights)


def auc_of_last(rows: Rows, weights: Array) -> Array:
    """The same, every row having the score of its photograph's last ``place`` (a bug of the same release)."""
    order = np.lexsort((rows.parts["place"], rows.sample))
    ends = order[np.flatnonzero(np.diff(rows.sample[order], append=-1))]
    last = np.zeros(rows.samples)
    last[rows.sample[ends]] = rows.parts["score"][ends]
    return auc_extremes(replace(rows, parts={**rows.parts, "score": last[rows.sample]}), weights)


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
    "ratio_or_zero": ratio_or_zero,
    "ratio_over_fewer": ratio_over_fewer,
    "bleu": bleu,
    "pooled_precision": pooled_precision,
    "class_mean": class_mean,
    "max_by": max_by,
    "roc_auc": roc_auc,
    "auc_extremes": auc_extremes,
    "auc_of_last": auc_of_last,
    "rank_correlation": rank_correlation,
}
RATIOS = ("pooled_ratio", "ratio_or_zero", "ratio_over_fewer", "pooled_precision")
PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(RATIOS, ("num", "den"))
PARTS |= {
    "bleu": ("num", "den", "words", "wanted"),
    "class_mean": ("about",),
    "roc_auc": ("label", "score"),
    "auc_extremes": ("label", "score"),
    "auc_of_last": ("label", "score", "place"),
    "rank_correlation": ("x", "y"),
}
# a row's own value is on the scale of the result
CASEWISE = ("mean", *RATIOS, "bleu", "class_mean", "max_by")
SPREADING = (
    "roc_auc",
    "auc_extremes",
    "auc_of_last",
    "rank_correlation",
    "class_mean",
)  # rows over all draws
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
