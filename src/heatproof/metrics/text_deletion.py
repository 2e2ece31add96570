"""TextDeletion: does the score follow the words' relevance when tokens are removed, and when they return?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking
from heatproof.metrics.deletion import area, symmetric_gain
from heatproof.metrics.maps import Undefined
from heatproof.segments import removable


def ranked(trial: Trial, unit: str, sign: str) -> list[list[int]]:
    """The tokens that may go, those of a unit together, the most relevant first, tied ones in the case's own order.

    A unit's relevance is the sum of its tokens'. Raises Undefined where there is none, or nothing that may go.
    """
    case, relevance = trial.case, maps.text_heat(trial)
    groups = removable(case, trial.model.family, unit)
    if not groups:
        raise Undefined("no token that may be removed")
    summed = torch.stack([relevance[group].sum() for group in groups])
    heat = geometry.read(summed[None], sign=sign)[0]
    return [groups[i] for i in ranking.order(heat, case.generator("tied tokens")).tolist()]


def keeps(groups: Sequence[Sequence[int]], length: int) -> Tensor:
    """Float [2n, length], 1 = kept: what deletion leaves after 0 ... n-1 steps, then what insertion has put back.

    groups: n lists of token places, in the order in which they go. Tokens in no group are always kept.

    >>> keeps([[2], [1]], 3).int().tolist()
    [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 1]]
    """
    kept = torch.ones(2, len(groups), length)
    for turn, group in enumerate(groups):
        kept[0, turn + 1 :, group] = 0
        kept[1, : turn + 1, group] = 0
    return kept.flatten(0, 1)


@dataclass(frozen=True)
class TextDeletion:
    """Deletion and insertion over the text, token by token, their areas, and the symmetric gain.

    The signed relevance of the tokens ranks them; the most relevant goes first, one a step, tied ones in the
    case's own random order. Special tokens always stay; so do, for a captioner, the word that is scored
    and those after it. Both curves share their ends: 2n rows for n removable tokens.

    - ``text_deletion``: area under the score over the share of tokens removed; lower is better
    - ``text_insertion``: area under the score over the share put back, the most relevant first; higher is better
    - ``text_srg``: insertion minus deletion; higher is better (Blücher et al. 2024, told of pixels)

    ``removal``: how the model lets a token go, one of those that its ``score_text`` knows: delete (the rest closes
    up, as Sun et al. 2022) | pad | unknown | mask (where the vocabulary has such a token) | embedding (times 0), and attention for dual encoders. ``unit``: token | word (a word's tokens go together, ranked by
    their summed relevance). ``sign``: signed | positive | negative | abs.

    Undefined: no text relevance, NaN in it, nothing that may be removed, a score that is not finite.
    Unsuited: models that read no text.
    """

    removal: str = "delete"
    unit: str = "token"
    sign: str = "signed"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("text_deletion", "lower", "faithfulness", unit="score"),
        Measure("text_insertion", "higher", "faithfulness", unit="score"),
        Measure("text_srg", "higher", "faithfulness", unit="score"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "unit", ("token", "word"))
        maps.accept(self, "sign", geometry.SIGNS)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        if model.family == "classifier":
            raise Unsuited(f"{model.name} is a classifier: it reads no text")
        plans, found = maps.planned(trials, self.measures, self._plan)
        asked = [trials[i].case for i in plans]
        for i, (deleted, inserted) in zip(
            plans, self._curves(model, asked, list(plans.values())), strict=True
        ):
            found[i] = self._score(deleted, inserted)
        return [found[i] for i in range(len(trials))]

    def _plan(self, trial: Trial) -> Tensor:
        """What is kept in each of the case's rows, float [2n, T]; the first row of each half is an end."""
        return keeps(ranked(trial, self.unit, self.sign), len(trial.case.words))

    def _curves(
        self, model: Model, cases: list[Case], plans: list[Tensor]
    ) -> list[tuple[list[float], list[float]]]:
        if not cases:
            return []
        longest = max(plan.shape[1] for plan in plans)
        wide = [torch.nn.functional.pad(plan, (0, longest - plan.shape[1]), value=1.0) for plan in plans]
        ends = dict(zip((case.id for case in cases), wide, strict=True))

        def compute(some: list[Case]) -> list[list[float]]:
            pairs = [ends[case.id][[0, len(ends[case.id]) // 2]] for case in some]
            return self._ask(model, some, pairs)

        known = model.recall(f"text ends {self.removal} {self.unit}", cases, compute)
        halves = [len(plan) // 2 for plan in wide]
        inner = [torch.cat([p[1:n], p[n + 1 :]]) for p, n in zip(wide, halves, strict=True)]
        found = self._ask(model, cases, inner)
        return [
            ([clean, *row[: n - 1], blank], [blank, *row[n - 1 :], clean])
            for (clean, blank), row, n in zip(known, found, halves, strict=True)
        ]

    def _ask(self, model: Model, cases: Sequence[Case], keep: Sequence[Tensor]) -> list[list[float]]:
        """The scores of each case's rows of kept tokens, all asked in one batch."""
        sizes = [len(rows) for rows in keep]
        if not sum(sizes):
            return [[] for _ in cases]
        each = [case for case, size in zip(cases, sizes, strict=True) for _ in range(size)]
        with torch.no_grad():
            scores = model.score_text(torch.cat(list(keep)), each, self.removal)
        return [part.tolist() for part in torch.split(scores, sizes)]

    def _score(self, deleted: list[float], inserted: list[float]) -> Score:
        share = [k / (len(deleted) - 1) for k in range(len(deleted))]
        return Score(
            {
                "text_deletion": Value.of(area(share, deleted)),
                "text_insertion": Value.of(area(share, inserted)),
                "text_srg": Value.of(symmetric_gain(share, deleted, inserted)),
            },
            {"deletion": (share, deleted), "insertion": (share, inserted)},
        )
