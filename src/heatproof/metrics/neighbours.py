"""An explainer asked again about changed images, and how its answer is compared with the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Explainer, Explanation, Measure, Score, Trial, Unsuited
from heatproof.metrics import maps
from heatproof.metrics.infidelity import CHANNELS
from heatproof.metrics.maps import Undefined


def relative_change(before: Tensor, after: Tensor) -> float:
    """The norm of the difference of two maps over the norm of the first, 0 or more; NaN where the first is all 0.

    before, after: the same shape, finite. Euclidean (Frobenius) norms over all numbers. One draw of max-sensitivity,
    Yeh et al. 2019 (arXiv 1901.09392).

    >>> relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    0.2
    """
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Neighbour(Case):
    """A case with other pixels, for explainers to be asked again.

    Its own id keeps what the memo holds of it apart; its cost is the case's. Its random numbers are the case's, too:
    the map is a function of the image only where masks and noise stay, and its change is then the image's doing,
    not the scatter of new draws.
    """

    origin: Case = field(kw_only=True)

    @classmethod
    def of(cls, case: Case, pixels: Tensor, name: str) -> Neighbour:
        other = {
            "id": f"{case.id}~{name}",
            "pixels": pixels,
            "charge": case.charge or case.id,
            "origin": case,
        }
        return cls(**{**vars(case), **other})

    def generator(self, part: str) -> torch.Generator:
        return self.origin.generator(part)


@dataclass(frozen=True)
class AskedAgain:
    """What both metrics share: which trials can be asked again, and how two maps are compared."""

    channels: str = "own"
    pool: str = "sum"

    measures: ClassVar[tuple[Measure, ...]] = ()

    def __post_init__(self) -> None:
        maps.accept(self, "channels", CHANNELS)
        maps.accept(self, "pool", geometry.POOLS)

    def who(self, trial: Trial) -> Explainer:
        if trial.explainer is None:
            raise Unsuited("there is no explainer to ask again")
        if hasattr(trial.explainer, "fit"):
            raise Unsuited("the explainer was fitted, and what it learned is not at hand to ask it again")
        return trial.explainer

    def maps_of(self, trials: Sequence[Trial], found: dict[int, Score]) -> dict[int, Tensor]:
        """The maps of the trials that have one to compare with, by place; the others' scores go to ``found``."""
        owns = {}
        for i, trial in enumerate(trials):
            try:
                owns[i] = self.own(trial)
            except Undefined as why:
                found[i] = maps.undefined(self.measures, why)
        return owns

    def own(self, trial: Trial) -> Tensor:
        heat = self.map_of(trial, trial.explanation)
        if not heat.any():
            raise Undefined("the map is all 0: it has no norm to compare with")
        return heat

    def map_of(self, trial: Trial, answer: Explanation | None) -> Tensor:
        heat = maps.image_heat(Trial(trial.model, trial.case, trial.explainer, answer))
        return heat.double() if self.channels == "own" else geometry.read(heat, pool=self.pool).double()

    def again(self, trial: Trial, before: Tensor, answer: Explanation) -> Tensor:
        after = self.map_of(trial, answer)
        if after.shape != before.shape:
            raise Undefined("the map of the changed image has another shape")
        return after
