"""Fidelity: does the relevance of what is removed foretell how far the score falls? (faithfulness)"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from heatproof.contract import Case, Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import ranking, spaces
from heatproof.metrics.removing import Cut, Removal, size, subsets


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson's linear correlation of two lists of numbers, -1 to 1.

    a, b [n], finite. NaN where one of them is constant, as far as a float32 can tell.

    >>> round(pearson(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0])), 6)
    0.5
    """
    if not (ranking.levels(a).any() and ranking.levels(b).any()):
        return math.nan
    x, y = (values.double() - values.double().mean() for values in (a, b))
    return max(-1.0, min(1.0, float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))))


def agreement(
    relevance: Sequence[float], scores: Sequence[float], rule: Callable[[Tensor, Tensor], float]
) -> Value:
    """The correlation of the relevance that went and the drop of the score, -1 to 1, over a case's subsets.

    ``scores`` are what is left without each subset: the untouched score would shift all drops alike, so it is not
    asked for. ``rule``: ``pearson`` or ``ranking.spearman``. Undefined where either is the same for all subsets.

    >>> agreement([1.0, 2.0, 4.0], [5.0, 4.0, 2.0], pearson).number
    1.0
    """
    went, left = (torch.tensor(values, dtype=torch.float64) for values in (relevance, scores))
    if not left.isfinite().all():
        return Value.undefined("a score is not a finite number")
    for values, told in ((went, "relevance"), (left, "score")):
        if not ranking.levels(values).any():
            return Value.undefined(f"all subsets have the same {told}")
    return Value.of(rule(went, -left))


def monotone(scores: Sequence[float]) -> float:
    """The share of steps along which the score does not fall, 0 to 1; 1 is monotonic.

    A fall by less than a float32 can tell apart (2^-22 of the largest score) is none.

    >>> monotone([1.0, 2.0, 2.0, 1.5])
    0.6666666666666666
    """
    noise = ranking.RESOLUTION * max(map(abs, scores))
    steps = [after - before >= -noise for before, after in pairwise(scores)]
    return sum(steps) / len(steps)


@dataclass(frozen=True)
class FaithfulnessCorrelation(Removal):
    """Pearson's correlation of the relevance of random subsets and the drop of the score without them.

    Bhatt et al. 2020 (arXiv 2005.00631, definition 3). ``subsets`` random sets of exactly ``share`` of the units are
    each set to the ``baseline``; a set's relevance is the sum of the signed map over it. Higher is better, from -1 to
    1; about 0 for a map that knows nothing. Costs ``subsets`` rows a case.

    ``cells``: 0 removes single pixels, all channels together, as the paper; n removes cells of an n x n grid (no
    finer than the pixels), whose relevance is the sum over their pixels. ``share``: 0.05 is our choice; Quantus takes
    224 of 224 x 224 pixels, and 100 subsets. ``baseline``: mean | black | image_mean | blur (of ``sigma`` px) | noise;
    it can decide the ranking. ``output``: native (logit, cosine, log-probability) | probability.

    Keeps its value when the map is multiplied by a positive number. Undefined: no map, NaN in it, a score that is not
    finite, all subsets of one relevance (a constant map) or of one score. Known criticism: scattered pixels are no
    image that the model knows; with few subsets the value is noisy (its deviation is about 1 / sqrt(``subsets``));
    it rewards an additive model of the score, whose interactions no map of single pixels can tell.
    """

    share: float = 0.05
    subsets: int = 100

    measures: ClassVar[tuple[Measure, ...]] = (Measure("faithfulness_correlation", "higher", "faithfulness"),)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, (self.share,), self.subsets)

    def gone(self, case: Case, relevance: Tensor) -> Iterator[Tensor]:
        units = len(relevance)
        return subsets(units, size(self.share, units), self.subsets, case.generator("fidelity subsets"))

    def score(self, units: int, relevance: list[float], scores: list[float]) -> Score:
        return Score({"faithfulness_correlation": agreement(relevance, scores, pearson)})

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return self.judge(trials)


@dataclass(frozen=True)
class MuFidelity(FaithfulnessCorrelation):
    """Faithfulness correlation over the cells of a coarse grid, by ranks: Spearman's rho, as in Xplique.

    Bhatt et al. 2020, definition 3, in the form of Fel et al. 2022 (Xplique, arXiv 2206.04394): the image is cut into
    9 x 9 ``cells``, 200 ``subsets`` of a ``share`` of 0.2 of them are set to the ``baseline``, and the drops are
    ranked against the summed relevance of the pixels that went. Tied values have their mean rank. Higher is better,
    from -1 to 1. Costs ``subsets`` rows a case. Settings as in FaithfulnessCorrelation.

    Exactly round(share x cells) cells go; Xplique's code lets each cell go with that probability, so that sizes vary
    and a constant map scores by counting cells, and has 0 where the correlation is undefined. Undefined, and criticised, as
    FaithfulnessCorrelation; coarse cells cannot tell fine maps from blurred ones.
    """

    cells: int = 9
    share: float = 0.2
    subsets: int = 200

    measures: ClassVar[tuple[Measure, ...]] = (Measure("mu_fidelity", "higher", "faithfulness"),)

    def score(self, units: int, relevance: list[float], scores: list[float]) -> Score:
        return Score({"mu_fidelity": agreement(relevance, scores, ranking.spearman)})

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return self.judge(trials)


@dataclass(frozen=True)
class SensitivityN(Removal):
    """Sensitivity-n: Pearson's correlation of relevance and drop, for one size of subsets after the other.

    Ancona et al. 2018 (arXiv 1711.06104). For each of ``shares`` of the units, ``subsets`` random sets of exactly so
    many are set to the ``baseline``, as in FaithfulnessCorrelation. The curve tells the correlation by the share
    really removed; ``sensitivity_n`` is its plain mean over the sizes. Higher is better, from -1 to 1. Shares that mean one
    number of units are asked once. Costs ``subsets`` rows a case and size.

    ``subsets``: 100 a size, and sizes up to 80 % of the units, are the paper's; which shares is our choice. Other
    settings as in FaithfulnessCorrelation.

    Undefined as FaithfulnessCorrelation, at any of the sizes. A map satisfies sensitivity-n for all n only where the
    model is additive, so 1 is out of reach for most.
    """

    shares: tuple[float, ...] = (0.01, 0.05, 0.2, 0.5, 0.8)
    subsets: int = 100

    measures: ClassVar[tuple[Measure, ...]] = (Measure("sensitivity_n", "higher", "faithfulness"),)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, self.shares, self.subsets)

    def _sizes(self, units: int) -> list[int]:
        return sorted({size(share, units) for share in self.shares})

    def gone(self, case: Case, relevance: Tensor) -> Iterator[Tensor]:
        units = len(relevance)
        for k in self._sizes(units):
            yield from subsets(units, k, self.subsets, case.generator(f"fidelity subsets of {k}"))

    def score(self, units: int, relevance: list[float], scores: list[float]) -> Score:
        sizes, found = self._sizes(units), []
        for i, k in enumerate(sizes):
            some = slice(i * self.subsets, (i + 1) * self.subsets)
            value = agreement(relevance[some], scores[some], pearson)
            if value.number is None:
                return Score({"sensitivity_n": Value.undefined(f"{value.reason} ({k} of {units} units)")})
            found.append(value.number)
        shares = [k / units for k in sizes]
        return Score({"sensitivity_n": Value.of(sum(found) / len(found))}, {"sensitivity_n": (shares, found)})

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return self.judge(trials)


@dataclass(frozen=True)
class Monotonicity(Removal):
    """Does the score rise with every unit that is added, the least relevant first?

    Luss et al. 2019 (arXiv 1905.12698) as in AIX360 (Arya et al. 2019): from the ``baseline`` image on, the units
    return in the order of rising relevance, tied ones in the case's own random order. The scores from the first unit to
    the whole image make the curve, over the share returned; the bare baseline image has no part in it.

    - ``monotonicity``: 1 where no step falls, else 0
    - ``monotone_steps``: the share of steps that do not fall, 0 to 1

    Higher is better. A fall within the rounding of a float32 is none. ``cells``: 7 x 7 is our choice (the paper's
    features are few and named). Other settings as in FaithfulnessCorrelation. Costs a row a unit, the untouched image
    from the memo.

    Undefined: no map, NaN in it, a score that is not finite. A constant map has the value of a random order, about half
    of the steps. Asks only whether each unit raises the score, whatever the order, so a model that all units speak
    for is monotonic under any map; a unit that speaks against the score is a fall wherever it comes.
    """

    cells: int = 7

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("monotonicity", "higher", "faithfulness"),
        Measure("monotone_steps", "higher", "faithfulness"),
    )

    def gone(self, case: Case, relevance: Tensor) -> Iterator[Tensor]:
        falling = ranking.order(relevance, case.generator("tied units"))
        return (falling[: len(falling) - back] for back in range(1, len(falling)))

    def ask(self, model: Model, cases: list[Case], cuts: list[Cut]) -> list[tuple[list[float], list[float]]]:
        clean = spaces.clean(self.output, model, cases).tolist()
        answers = super().ask(model, cases, cuts)
        return [(went, [*scores, whole]) for (went, scores), whole in zip(answers, clean, strict=True)]

    def score(self, units: int, relevance: list[float], scores: list[float]) -> Score:
        if not all(map(math.isfinite, scores)):
            return Score({m.name: Value.undefined("a score is not a finite number") for m in self.measures})
        steps, share = monotone(scores), [back / units for back in range(1, units + 1)]
        return Score(
            {"monotonicity": Value.of(float(steps == 1)), "monotone_steps": Value.of(steps)},
            {"monotonicity": (share, scores)},
        )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return self.judge(trials)


def _check(metric: object, shares: Sequence[float], many: int) -> None:
    if not shares or not all(0 < share < 1 for share in shares) or many < 3:
        raise Refused(
            f"metrics.{type(metric).__name__.lower()}: found shares {tuple(shares)} and {many} subsets, accepted are "
            "shares between 0 and 1, and 3 subsets or more"
        )
