"""The pointing game: does the hottest pixel lie on the evidence, or near it? (plausibility)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Refused, Score, Trial, Value
from heatproof.metrics import instances, maps
from heatproof.metrics.localization import pointing_game, widened
from heatproof.metrics.maps import Undefined


@dataclass(frozen=True)
class Pointing:
    """The pointing game of Zhang et al. 2018 (Excitation Backprop): the hottest pixel hits the evidence or misses.

    A pixel hits where it is strictly nearer than ``tolerance`` pixels of the image to the evidence, or in it. Of
    tied maxima the share that hits counts, so a constant map gets the share of the image that hits: the chance
    level of the case. The table's two columns are one value averaged in two ways:

    - ``pointing``: the mean over cases (instance average)
    - ``pointing_class``: the mean over the things asked about of the mean over their cases (class average, as the
      paper and TorchRay report it: a rare class weighs as much as a common one). Classes without a case are left
      out, where TorchRay counts them as missed. Of use where the things asked about are classes, not captions

    ``tolerance``: 15 px in the paper and in TorchRay, meant for photographs about 500 px wide; on an input of 224
    px the same share of the image is about 7 px, and 0 is the game without tolerance. ``instances``: union of all
    (the paper) | any (the best instance) | instance (the mean over the instances); for the last two the other
    instances of the case take no part. ``upsample`` "none" looks for the hottest cell of the map's own grid, which
    hits where at least half of its area does. Ignored regions take no part.

    Between 0 and 1; keeps its value when the map is multiplied by a positive number. Undefined: no map, NaN in it,
    nothing annotated, no evidence left, evidence everywhere, no cell of the map's own grid that could hit. Knows
    one pixel of the map: neither its extent nor its second object matter, the centre of the image does well on
    photographs, and large evidence is hit by chance.

    Left out: the game's "difficult" subset (evidence below a quarter of the image and a distractor in it), for a
    case does not carry the objects that it does not ask about. The weighting game (Raatikainen and Rahtu 2022) is
    ``localization.mass``; its authors' code also widens masks by a kernel of 9 x 9 and skips those up to 100 px.
    """

    pool: str = "sum"
    sign: str = "positive"
    upsample: str = "bilinear"
    tolerance: float = 15.0
    instances: str = "union"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("pointing", "higher", "plausibility"),
        Measure("pointing_class", "higher", "plausibility", reduce="class_mean"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        maps.accept(self, "instances", instances.INSTANCES)
        if not 0 <= self.tolerance < math.inf:
            raise Refused(
                f"metrics.pointing: found tolerance {self.tolerance}, accepted is a tolerance of 0 px or more"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
            targets = self._targets(trial.case, (heat.shape[0], heat.shape[1]))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        found = [{"": Value.of(pointing_game(heat[counted], hit[counted]))} for hit, counted in targets]
        value = instances.merged(found, self.instances)[""]
        return Score({m.name: value for m in self.measures})

    def _targets(self, case: Case, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Where the map's maximum hits, and where it may lie, on the map's grid: one pair a view."""
        pairs = [
            (maps.on_grid(widened(mask, self.tolerance), size), ~maps.on_grid(~counted, size))
            for mask, counted in instances.views(case, maps.image_size(case), self.instances)
        ]
        found = [(hit, counted) for hit, counted in pairs if hit[counted].any()]
        if not found:
            raise Undefined("no cell of the map's grid is near enough to the evidence")
        return found
