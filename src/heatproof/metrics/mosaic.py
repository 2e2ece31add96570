"""The grid pointing game: of a mosaic of classes, does the map light up the cell of its own? (plausibility)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Measure, Refused, Score, Trial, Value
from heatproof.metrics import instances, maps
from heatproof.metrics.localization import mass_accuracy, pointing_game
from heatproof.metrics.maps import Undefined


def smoothed(heat: Tensor, width: int) -> Tensor:
    """The mean over a square of ``width`` px around each pixel, nothing (0) beyond the edges: [H, W] -> [H, W].

    width: odd; 1 leaves the map as it is.

    >>> smoothed(torch.tensor([[0.0, 9.0, 0.0]]), 3).tolist()
    [[1.0, 1.0, 1.0]]
    """
    return F.avg_pool2d(heat[None, None], width, stride=1, padding=width // 2)[0, 0]


def cells(size: tuple[int, int], grid: int) -> Tensor:
    """The number of the cell that each pixel's centre is in, row by row: int64 [H, W].

    >>> cells((2, 4), 2).tolist()
    [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    down, along = ((2 * torch.arange(n) + 1) * grid // (2 * n) for n in size)
    return down[:, None] * grid + along


def hottest_cell(heat: Tensor, mask: Tensor, cell: Tensor) -> float:
    """Whether the cell with the most heat is in the mask, 0 or 1; the share that is, of tied cells.

    heat [...] non-negative, mask bool and cell int64 (numbers from 0) of the same shape; the mask is made of whole
    cells, else NaN. A map without heat ties them all: one over the number of cells.

    >>> heat, mask = torch.tensor([2.0, 2.0, 3.0, 0.0]), torch.tensor([True, True, False, False])
    >>> hottest_cell(heat, mask, torch.tensor([0, 0, 1, 1]))
    1.0
    """
    flat = cell.reshape(-1)
    size, inside = torch.bincount(flat), torch.bincount(flat, mask.reshape(-1).double())
    there = size > 0
    if not ((inside == 0) | (inside == size)).all():
        return float("nan")
    mass = torch.bincount(flat, heat.reshape(-1).double())
    return pointing_game(mass[there], (inside > 0)[there])


@dataclass(frozen=True)
class GridPointing:
    """The grid pointing game (Böhle et al. 2021, CoDA-Nets; B-cos 2022): relevance in the cell of the target class.

    For data sets of mosaics (``mosaics``), where the evidence of a class is its cell. An image that was made has
    no context to excuse relevance elsewhere, but the models never saw such images.

    - ``grid_pointing``: the relevance inside the target's cell over all relevance of the sign. It is
      ``localization.mass`` on another kind of data set, the same function, but for ``smooth``
    - ``grid_argmax``: the cell with the most relevance is the target's; of tied cells the share that is

    A uniform map gets one over the number of cells in both: 0.25 of 2 x 2, 0.11 of 3 x 3. ``grid``: cells a side,
    as the data set lays them; only ``grid_argmax`` reads it. ``smooth``: the map, still signed, is averaged over
    squares of so many pixels first, where relevance of both signs cancels (odd; 1 does nothing, as CoDA-Nets' code;
    that of B-cos asks for a width). The authors average over the cells of all classes of all mosaics, which is the mean
    over cases under a policy that asks about every object, and count a map without positive relevance as 0.
    Their mosaics hold only images that the model classifies with confidence.

    Between 0 and 1; keep their value when the map is multiplied by a positive number. Ignored regions take no part.
    Undefined: no map, NaN in it, nothing annotated, no evidence left, evidence everywhere; ``grid_pointing``
    without relevance of the sign; ``grid_argmax`` where the evidence is not made of whole cells.
    """

    pool: str = "sum"
    sign: str = "positive"
    upsample: str = "bilinear"
    grid: int = 2
    smooth: int = 1

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("grid_pointing", "higher", "plausibility"),
        Measure("grid_argmax", "higher", "plausibility"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", ("positive", "negative", "abs"))
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        if self.grid < 2 or self.smooth < 1 or self.smooth % 2 == 0:
            raise Refused(
                f"metrics.gridpointing: found grid {self.grid} and smooth {self.smooth}, accepted are a grid of 2 or "
                "more cells a side and an odd width of 1 px or more"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign="signed", upsample=self.upsample)
            heat = geometry.read(smoothed(heat, self.smooth), sign=self.sign)
            size = (heat.shape[0], heat.shape[1])
            ((mask, counted),) = instances.views(trial.case, size, "union")
        except Undefined as why:
            return maps.undefined(self.measures, why)
        cell = cells(size, self.grid)[counted]
        heat, mask = heat[counted], mask[counted]
        cold = "no relevance" if self.sign == "abs" else f"no {self.sign} relevance"
        split = f"the evidence is not made of whole cells of a {self.grid} x {self.grid} grid"
        return Score(
            {
                "grid_pointing": Value.of(mass_accuracy(heat, mask), cold),
                "grid_argmax": Value.of(hottest_cell(heat, mask, cell), split),
            }
        )
