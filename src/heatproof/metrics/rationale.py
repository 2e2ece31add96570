"""Rationale: are the most relevant words needed for the score, and are they enough for it? (faithfulness)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps
from heatproof.metrics.text_deletion import keeps, ranked


def drop(whole: float, left: Sequence[float]) -> float:
    """The mean fall of the score, over what is left of it at each share: ``whole`` minus the mean of ``left``.

    With the scores *without* the rationale it is comprehensiveness, with those of the rationale *alone* sufficiency,
    both in the score's unit and of either sign. DeYoung et al. 2020 (ERASER).

    >>> drop(3.0, [1.0, 2.0])
    1.5
    """
    return sum(whole - score for score in left) / len(left)


def top(share: float, total: int) -> int:
    """How many of ``total`` tokens the top share is: the nearest number, at least 1.

    >>> top(0.01, 12), top(0.5, 5), top(1.0, 5)
    (1, 3, 5)
    """
    return max(1, math.floor(share * total + 0.5))


@dataclass(frozen=True, eq=False)
class Plan:
    """What is kept of a case's text: the whole, then without the top k and the top k alone for each count k."""

    kept: Tensor  # float [1 + 2 counts, T]; fewer where the top k is the whole text
    without: list[int]  # for each share: its row
    alone: list[int]

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]], length: int, shares: Sequence[float]) -> Plan:
        """groups: the tokens that go together, the most relevant first; tokens in no group are always kept.

        >>> plan = Plan.of([[2], [1]], 3, [0.5, 1.0])
        >>> plan.kept.int().tolist(), plan.without, plan.alone
        ([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]], [1, 3], [2, 0])
        """
        many, rows = len(groups), keeps(groups, length)
        counts = [top(share, many) for share in shares]
        # deletion has removed k after k steps, all of them where insertion begins; insertion has returned k
        without, alone = counts, [(many + k) % (2 * many) for k in counts]
        asked = list(dict.fromkeys([0, *(row for pair in zip(without, alone, strict=True) for row in pair)]))
        return cls(rows[asked], [asked.index(k) for k in without], [asked.index(k) for k in alone])


@dataclass(frozen=True)
class Rationale:
    """Comprehensiveness and sufficiency of the most relevant tokens as a rationale (DeYoung et al. 2020, ERASER).

    The tokens of the most relevant ``shares`` (1, 5, 10, 20 and 50 % of those that may go, at least one, to the nearest
    number; the paper's bins for soft scores, "AOPC") are removed from the text, and then kept alone:

    - ``comprehensiveness``: f(text) - f(text without them), the mean over the shares; higher is better: they were needed
    - ``sufficiency``: f(text) - f(them alone), the mean over the shares; lower is better: they are enough

    Both in units of the score. The curves tell each share. As in the authors' code the mean is over the shares; the
    paper's formula counts an empty bin as well. ``removal``: delete | pad | unknown | mask | embedding, and attention for dual
    encoders, as in TextDeletion; ``unit``: token | word (a word's tokens go together, by their summed relevance);
    special tokens always stay, and so do, for a captioner, the word that is scored and those after it. ``sign``:
    signed | positive | negative | abs. ``output``: native (ours: it serves cosines too) | probability (the paper;
    for log-probabilities).

    Tied tokens go in the case's own random order. Costs 2 rows for each distinct count, 1 where that is all tokens, and
    one for the whole text. Undefined: no text relevance, NaN in it, nothing that may be removed, a score that is
    not finite. Unsuited: models that read no text. Short captions have few distinct counts: at 5 tokens the first
    four shares are one token. Known criticism: texts with holes are none that the model knows.
    """

    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)
    removal: str = "delete"
    unit: str = "token"
    sign: str = "signed"
    output: str = "native"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("comprehensiveness", "higher", "faithfulness", unit="score"),
        Measure("sufficiency", "lower", "faithfulness", unit="score"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "unit", ("token", "word"))
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "output", ("native", "probability"))
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise Refused(
                f"metrics.rationale.shares: found {self.shares}, accepted are shares above 0 and up to 1"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        if model.family == "classifier":
            raise Unsuited(f"{model.name} is a classifier: it reads no text")
        if self.output == "probability" and model.space != "log-probability":
            raise Unsuited(
                f"{model.name}'s score of a text is a {model.space}, which no declared rule turns into a probability; "
                'take output = "native"'
            )
        plans, found = maps.planned(trials, self.measures, self._plan)
        asked = self._asked(model, [trials[i].case for i in plans], list(plans.values())) if plans else []
        for (i, plan), scores in zip(plans.items(), asked, strict=True):
            found[i] = self._score(plan, scores)
        return [found[i] for i in range(len(trials))]

    def _plan(self, trial: Trial) -> Plan:
        return Plan.of(ranked(trial, self.unit, self.sign), len(trial.case.words), self.shares)

    def _asked(self, model: Model, cases: list[Case], plans: list[Plan]) -> list[list[float]]:
        """The scores of each plan's rows; that of the whole text, the first, from the chunk's memo."""

        def compute(some: list[Case]) -> list[float]:
            return [
                scores[0] for scores in self._rows(model, some, [torch.ones(1, len(c.words)) for c in some])
            ]

        whole = model.recall(f"score of the whole text, {self.removal}", cases, compute)
        parts = self._rows(model, cases, [plan.kept[1:] for plan in plans])
        found = [[first, *rest] for first, rest in zip(whole, parts, strict=True)]
        return [[math.exp(s) for s in scores] for scores in found] if self.output == "probability" else found

    def _rows(self, model: Model, cases: Sequence[Case], kept: Sequence[Tensor]) -> list[list[float]]:
        """The scores of each case's rows of kept tokens [n, T], all asked in one batch."""
        longest = max(rows.shape[1] for rows in kept)
        wide = [torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=1.0) for rows in kept]
        each = [case for case, rows in zip(cases, kept, strict=True) for _ in rows]
        with torch.no_grad():
            scores = model.score_text(torch.cat(wide), each, self.removal)
        return [part.tolist() for part in scores.split([len(rows) for rows in kept])]

    def _score(self, plan: Plan, scores: list[float]) -> Score:
        values, curves = {}, {}
        for name, rows in (("comprehensiveness", plan.without), ("sufficiency", plan.alone)):
            left = [scores[row] for row in rows]
            values[name] = Value.of(drop(scores[0], left))
            curves[name] = (list(self.shares), [scores[0] - score for score in left])
        return Score(values, curves)
