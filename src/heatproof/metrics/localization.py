"""Localization: does the heat lie on what the annotation calls the evidence? (plausibility, not faithfulness)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Refused, Score, Trial, Value
from heatproof.metrics import maps, ranking
from heatproof.metrics.maps import Undefined


def pointing_game(heat: Tensor, hit: Tensor) -> float:
    """The share of the map's tied maxima that hit, 0 to 1: the expected score of a maximum drawn from them.

    heat [...] finite, hit bool of the same shape: where a maximum counts (the mask, or ``widened`` by a
    tolerance). Zhang et al. 2018 (Excitation Backprop), for one case; the game's score is the mean over cases.
    A constant map gets the area of ``hit``.

    >>> pointing_game(torch.tensor([[3.0, 3.0], [1.0, 0.0]]), torch.tensor([[True, False], [True, True]]))
    0.5
    """
    return float(hit[ranking.maxima(heat)].double().mean())


def widened(mask: Tensor, tolerance: float) -> Tensor:
    """Every pixel whose centre is strictly nearer than ``tolerance`` px to a pixel of the mask, and the mask.

    bool [H, W] -> bool [H, W]; exact Euclidean distances. Strictly, as in the authors' game.

    >>> widened(torch.tensor([[True, False, False]]), 2.0).tolist()
    [[True, True, False]]
    """
    height, width = mask.shape
    across = torch.arange(width).expand(height, width)
    left = torch.where(mask, across, -width - tolerance).cummax(1).values
    right = torch.where(mask, across, 2 * width + tolerance).flip(1).cummin(1).values.flip(1)
    along = torch.minimum(across - left, right - across).square()  # to the nearest mask pixel of the row
    found = mask.clone()
    reach = min(math.ceil(tolerance) - 1, height - 1)
    for down in range(-reach, reach + 1):
        near = along < tolerance**2 - down**2
        found[max(down, 0) : height + min(down, 0)] |= near[max(-down, 0) : height - max(down, 0)]
    return found


def mass_accuracy(heat: Tensor, mask: Tensor) -> float:
    """Relevance mass accuracy: the heat inside the mask over all heat, 0 to 1 (Arras et al. 2022, CLEVR-XAI).

    heat [...] non-negative, mask bool of the same shape. NaN where there is no heat at all. With the interior of
    the bounding boxes for a mask it is the energy-based pointing game (Wang et al. 2020, Score-CAM).

    >>> mass_accuracy(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]))
    0.75
    """
    total = heat.double().sum()
    return float(heat[mask].double().sum() / total) if total > 0 else math.nan


def rank_accuracy(heat: Tensor, mask: Tensor) -> float:
    """Relevance rank accuracy: the share of the k hottest pixels inside the mask, k its size, 0 to 1.

    heat [...] finite, mask bool of the same shape, not empty. Expected over the orders of tied pixels, so a
    constant map gets the mask's share of the image. Arras et al. 2022 (CLEVR-XAI).

    >>> rank_accuracy(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False]))
    0.5
    """
    return ranking.top_share(heat, mask, int(mask.sum()))


def top_k_intersection(heat: Tensor, mask: Tensor, k: int) -> float:
    """The share of the k hottest pixels inside the mask, 0 to 1, expected over ties (Theiner et al. 2022).

    heat [...] finite, mask bool of the same shape, 1 <= k <= number of pixels.

    >>> top_k_intersection(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False]), 3)
    0.6666666666666666
    """
    return ranking.top_share(heat, mask, k)


def overlap(heat: Tensor, mask: Tensor, threshold: float) -> tuple[int, int]:
    """Pixels in the intersection and in the union of the mask and the hot region; their ratio is the IoU.

    heat [...] non-negative, mask bool of the same shape. Hot is what reaches ``threshold`` times the map's
    maximum, values within 1e-6 of the range below it included (Zhou et al. 2016 cut CAM at 0.2 of the maximum).
    (0, 0) where the map has no heat.

    >>> overlap(torch.tensor([4.0, 2.0, 1.0]), torch.tensor([False, True, True]), 0.5)
    (1, 3)
    """
    top, low = float(heat.max()), float(heat.min())
    if top <= 0:
        return 0, 0
    hot = heat.double() >= threshold * top - ranking.TIED * (top - low)
    return int((hot & mask).sum()), int((hot | mask).sum())


@dataclass(frozen=True)
class Localization:
    """Is the heat on the evidence? Pointing game, relevance mass and rank, IoU, energy-based pointing.

    The map is pooled over channels (``pool``), enlarged to the image (``upsample``; "none" takes masks and
    boxes to the map's own grid instead, cells at least half covered), and reduced to one ``sign``. Ignored
    regions take no part: their pixels are neither evidence nor background.

    - ``pointing``: the hottest pixel is in the mask, or strictly nearer to it than ``tolerance`` pixels of the
      grid. Default 0, as most have it; Zhang et al. 2018 took 15 px on photographs about 500 px wide.
    - ``mass``, ``rank``: relevance mass and rank accuracy (Arras et al. 2022) in the mask.
    - ``energy``: the energy-based pointing game (Wang et al. 2020): the mass inside the *boxes*. Where the
      evidence has no boxes, the tight boxes of its instances.
    - ``iou``: the region above ``threshold`` of the map's maximum against the mask, averaged over cases;
      ``iou_pooled`` sums intersections and unions over the cases first, so large evidence weighs more.

    All are between 0 and 1, read the union of a case's instances, and keep their value when the map is
    multiplied by a positive number. Undefined: no map, NaN in it, nothing annotated, no evidence left, evidence
    everywhere; ``mass``, ``energy`` and ``iou`` also where no relevance of the sign is left, ``energy`` where
    the boxes cover the image.
    """

    pool: str = "sum"
    sign: str = "positive"  # Arras et al. 2022: signed maps make ratios of no meaning
    upsample: str = "bilinear"
    tolerance: float = 0.0
    threshold: float = 0.5

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("pointing", "higher", "plausibility"),
        Measure("mass", "higher", "plausibility"),
        Measure("rank", "higher", "plausibility"),
        Measure("energy", "higher", "plausibility"),
        Measure("iou", "higher", "plausibility"),
        Measure("iou_pooled", "higher", "plausibility", reduce="pooled_ratio"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", ("positive", "negative", "abs"))
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        if self.tolerance < 0 or not 0 < self.threshold <= 1:
            raise Refused(
                f"metrics.localization: found tolerance {self.tolerance} and threshold {self.threshold}, "
                "accepted are a tolerance of 0 px or more and a threshold above 0 and up to 1"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
            mask, boxes, counted = _truth(trial.case, (heat.shape[0], heat.shape[1]))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        hit = widened(mask, self.tolerance) if self.tolerance else mask
        if trial.case.ignore is not None:
            heat, mask, boxes, hit = (plane[counted] for plane in (heat, mask, boxes, hit))
        shared, joined = overlap(heat, mask, self.threshold)
        cold = f"no {self.sign} relevance" if self.sign != "abs" else "no relevance"
        iou = Value.of(shared / joined, num=shared, den=joined) if joined else Value.undefined(cold)
        return Score(
            {
                "pointing": Value.of(pointing_game(heat, hit)),
                "mass": Value.of(mass_accuracy(heat, mask), cold),
                "rank": Value.of(rank_accuracy(heat, mask)),
                "energy": Value.undefined("boxes everywhere")
                if boxes.all()
                else Value.of(mass_accuracy(heat, boxes), cold),
                "iou": iou,
                "iou_pooled": iou,
            }
        )


def _truth(case: Case, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, inside of the boxes, and the pixels that count, each bool [h, w] on the map's grid."""
    if case.evidence is None:
        raise Undefined("nothing annotated")
    if not case.evidence.any():
        raise Undefined("no evidence in the image")
    counted = torch.ones(size, dtype=torch.bool)
    if case.ignore is not None:
        counted = ~maps.on_grid(case.ignore, size)
    mask = maps.on_grid(case.evidence.any(0), size) & counted
    if not mask.any():
        raise Undefined("no evidence left outside ignored regions, on the map's grid")
    if bool(mask[counted].all()):
        raise Undefined("evidence everywhere")
    boxes = maps.box_planes(
        case.boxes if case.boxes is not None else _tight(case.evidence), maps.image_size(case)
    )
    return mask, maps.on_grid(boxes.any(0), size), counted


def _tight(planes: Tensor) -> Tensor:
    """The smallest box around each non-empty plane [K, H, W] -> [<=K, 4]."""
    spots = [plane.nonzero() for plane in planes if plane.any()]
    corners = [torch.cat([spot.amin(0).flip(0), spot.amax(0).flip(0) + 1]) for spot in spots]
    return torch.stack(corners).float()
