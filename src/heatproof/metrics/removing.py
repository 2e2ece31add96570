"""What is removed from an image, unit by unit, and what is left of the score: shared by metrics of faithfulness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Refused, Score, Trial
from heatproof.metrics import baselines, maps, rows, spaces
from heatproof.metrics.maps import Undefined


@dataclass(frozen=True, eq=False)
class Cut:
    """An image as units that go whole: each pixel's ``unit``, int64 [H, W], each unit's ``relevance``, float64 [n]."""

    unit: Tensor
    relevance: Tensor

    @classmethod
    def of(cls, heat: Tensor, cells: int) -> Cut:
        """Pixels (``cells`` 0), or cells x cells cells as equal as whole pixels allow, relevance summed over each.

        heat [H, W]. No more cells a side than pixels. Raises Undefined where only one unit is left.

        >>> cut = Cut.of(torch.tensor([[1.0, 2.0, 3.0]]), cells=2)
        >>> cut.unit.tolist(), cut.relevance.tolist()
        ([[0, 0, 1]], [3.0, 3.0])
        """
        high, wide = (min(cells or side, side) for side in heat.shape)
        if high * wide < 2:
            raise Undefined("the image is one unit: there are no parts to compare")
        down, along = (torch.arange(s) * n // s for s, n in zip(heat.shape, (high, wide), strict=True))
        unit = down[:, None] * wide + along
        return cls(unit, torch.bincount(unit.reshape(-1), heat.double().reshape(-1)))

    def without(self, rule: str, image: Tensor, blank: Tensor, gone: Tensor) -> Tensor:
        """image [C, H, W] with the units ``gone``, int64 [k], removed by a rule of ``baselines``."""
        chosen = torch.zeros(len(self.relevance), dtype=torch.bool)
        chosen[gone] = True
        return baselines.replaced(rule, image, blank, chosen[self.unit])


def size(share: float, units: int) -> int:
    """How many units a share of them is: the nearest number, at least 1 and never all.

    >>> size(0.5, 5), size(0.001, 5), size(0.99, 5)
    (3, 1, 4)
    """
    return max(1, min(units - 1, math.floor(share * units + 0.5)))


def subsets(units: int, k: int, many: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``many`` random sets of exactly k units, each int64 [k], every set of that size as likely.

    >>> [len(s.unique()) for s in subsets(9, 4, 2, torch.Generator())]
    [4, 4]
    """
    return (torch.randperm(units, generator=generator)[:k] for _ in range(many))


@dataclass(frozen=True)
class Removal:
    """A metric that removes sets of units and reads the score that is left; a subclass says which, and what of it."""

    cells: int = 0
    baseline: str = "mean"
    sigma: float = 5.0
    output: str = "native"
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = ()

    def __post_init__(self) -> None:
        maps.accept(self, "baseline", tuple(baselines.RULES))
        maps.accept(self, "output", spaces.OUTPUTS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if self.cells < 0 or self.cells == 1 or self.sigma <= 0:
            raise Refused(
                f"metrics.{type(self).__name__.lower()}: found cells {self.cells} and sigma {self.sigma}, accepted are "
                "cells 0 (single pixels) or 2 and more a side, and a sigma above 0"
            )

    @property
    def needs_other(self) -> bool:
        return baselines.needs_other(self.baseline)

    def gone(self, case: Case, relevance: Tensor) -> Iterator[Tensor]:
        """The units that go, row by row, each int64 [k]; relevance float64 [n] is the units'."""
        raise NotImplementedError

    def score(self, units: int, relevance: list[float], scores: list[float]) -> Score:
        """What to say of a case cut into ``units``: the summed relevance that went, and the score left, row by row."""
        raise NotImplementedError

    def judge(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        spaces.check(self.output, model, [trial.case for trial in trials])
        maps.needs_pixels(trials)
        cuts, found = maps.planned(trials, self.measures, self._cut)
        answers = self.ask(model, [trials[i].case for i in cuts], list(cuts.values())) if cuts else []
        for (i, cut), (relevance, scores) in zip(cuts.items(), answers, strict=True):
            found[i] = self.score(len(cut.relevance), relevance, scores)
        return [found[i] for i in range(len(trials))]

    def _cut(self, trial: Trial) -> Cut:
        return Cut.of(maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample), self.cells)

    def ask(self, model: Model, cases: list[Case], cuts: list[Cut]) -> list[tuple[list[float], list[float]]]:
        """Each case's rows: the summed relevance that goes, and the score that is left."""
        went: list[list[float]] = [[] for _ in cases]  # filled as the images are made
        empty = rows.blanks(model, cases, self.baseline, self.sigma)

        def changed() -> Iterator[tuple[Case, Tensor]]:
            for case, blank, cut, told in zip(cases, empty, cuts, went, strict=True):
                for gone in self.gone(case, cut.relevance):
                    told.append(float(cut.relevance[gone].sum()))
                    yield case, cut.without(self.baseline, case.pixels, blank, gone)

        scores = iter(rows.scored(self.output, model, changed()))
        return [(told, list(islice(scores, len(told)))) for told in went]
