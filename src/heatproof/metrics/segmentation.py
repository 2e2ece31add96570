"""Segmentation: how good a mask of the evidence is the map, at one threshold and over all? (plausibility)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Measure, Refused, Score, Trial, Value
from heatproof.metrics import instances, maps, ranking
from heatproof.metrics.localization import overlap, top_k_intersection
from heatproof.metrics.maps import Undefined

THRESHOLDS = tuple(k / 20 for k in range(1, 20))


def roc_auc(heat: Tensor, mask: Tensor) -> float:
    """The probability that a pixel of the mask is hotter than one outside, tied pairs half: ROC-AUC, 0 to 1.

    heat [...] finite, mask bool of the same shape, neither empty nor everything. From the mean ranks of the mask's
    pixels (Mann and Whitney 1947), so every order of tied pixels is averaged; a constant map gets 0.5.

    >>> roc_auc(torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]))
    0.875
    """
    inside = int(mask.sum())
    outside = mask.numel() - inside
    behind = float(ranking.mean_ranks(heat)[mask].sum()) - inside * (inside + 1) / 2
    return 1 - behind / (inside * outside)


def precision_area(hits: Tensor, hot: Tensor) -> float:
    """Average precision from counts at falling thresholds: the precisions weighted by the recall each adds, 0 to 1.

    hits [K]: pixels above each threshold that are in the mask, hot [K]: all pixels above it; the last threshold has
    them all. A step without hot pixels adds nothing.

    >>> precision_area(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 4]))
    0.75
    """
    hits = hits.double()
    gained = hits.diff(prepend=hits.new_zeros(1))
    return float((gained * hits / hot.clamp(min=1)).sum() / hits[-1])


def average_precision(heat: Tensor, mask: Tensor) -> float:
    """Average precision of the heat as a detector of the mask's pixels, above 0 to 1; tied values are one threshold.

    heat [...] finite, mask bool of the same shape, not empty. As scikit-learn defines it: no interpolation. A
    constant map gets the mask's share of the pixels.

    >>> average_precision(torch.tensor([3.0, 2.0, 1.0, 1.0]), torch.tensor([True, False, True, False]))
    0.75
    """
    level = ranking.levels(heat).reshape(-1)
    hits = torch.bincount(level, mask.reshape(-1).double()).cumsum(0)
    return precision_area(hits, torch.bincount(level).cumsum(0))


def two_class_precision(heat: Tensor, mask: Tensor) -> float:
    """Average precision of foreground and background as one list of 2N decisions, above 0 to 1.

    heat [...] finite, mask bool of the same shape. The heat above the map's minimum answers for the mask, the heat
    that is missing to its maximum for the rest. A constant map gets 0.5. The AP of Chefer et al. 2021 (Transformer
    interpretability beyond attention visualization); their mAP is its mean over the images.

    >>> two_class_precision(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    1.0
    """
    level = ranking.levels(heat).reshape(-1)
    highest = torch.full((int(level.max()) + 1,), -torch.inf, dtype=torch.float64)
    highest.scatter_reduce_(0, level, heat.reshape(-1).double(), "amax")
    flat = highest[level]  # tied values made equal: differences have less range, but the same rounding
    both = torch.cat([flat - flat.min(), flat.max() - flat])
    return average_precision(both, torch.cat([mask.reshape(-1), ~mask.reshape(-1)]))


def region(heat: Tensor, mask: Tensor, threshold: float | str) -> tuple[int, int]:
    """Pixels of the hot region that are in the mask, and pixels of the hot region.

    heat [...] finite, mask bool of the same shape. Hot is what exceeds the map's mean (threshold "mean", Chefer et
    al. 2021; by more than 1e-6 of the range), or what reaches a share of its maximum (as in
    ``localization.overlap``). (0, 0) where nothing is hot: a constant map under "mean", no heat under a share.

    >>> region(torch.tensor([4.0, 2.0, 0.0]), torch.tensor([True, True, False]), "mean")
    (1, 1)
    >>> region(torch.tensor([4.0, 2.0, 0.0]), torch.tensor([True, False, True]), 0.5)
    (1, 2)
    """
    if isinstance(threshold, str):
        heat = heat.double()
        top, low = float(heat.max()), float(heat.min())
        tied = max(ranking.TIED * (top - low), ranking.RESOLUTION * max(abs(top), abs(low)))
        hot = heat - heat.mean() > tied
        return int((hot & mask).sum()), int(hot.sum())
    shared, joined = overlap(heat, mask, threshold)
    return shared, joined + shared - int(mask.sum()) if joined else 0


@dataclass(frozen=True)
class Segmentation:
    """The map as a segmentation of the evidence: ROC-AUC, average precision, IoU over thresholds, Dice, mIoU.

    Over all thresholds, by the order of the pixels alone:

    - ``auc``: ROC-AUC over pixels; 0.5 is chance, and large easy backgrounds raise it
    - ``ap``: average precision over pixels (scikit-learn's); chance is the evidence's share of the image
    - ``top_k``: the share of the hottest ``k`` of the pixels that lies in the evidence (Theiner et al. 2022); cannot
      reach 1 where the evidence is smaller than that
    - ``ap_two_class``: average precision over foreground and background together, averaged over the cases: the mAP
      of Chefer et al. 2021, who report the mean over images. Far above ``ap`` where the background is large

    Over ``thresholds``, in shares of the map's maximum:

    - ``iou_mean``: mean IoU over the thresholds
    - ``iou_best``: IoU at the best threshold of each case. Optimistic: the mask itself picks the threshold
    - ``ap_pooled``: average precision of one curve for the data set, hits and hot pixels summed over the cases at
      each threshold (the curve that Chefer et al.'s code saves, in coarser steps)

    At one ``threshold``, "mean" of the map (Chefer et al. 2021: strictly above) or a share of its maximum:

    - ``dice``: twice the intersection over the sum of both areas, averaged over the cases (their mF1)
    - ``pixel_accuracy``: pixels called rightly evidence or background; counts summed over the cases
    - ``miou``: the mean of the IoU of the evidence and the IoU of the background; counts summed over the cases

    ``instances``: union of all | any (the best instance) | instance (mean over the instances, counts summed); for
    the last two the other instances of the case take no part. ``upsample`` "none" judges on the map's own grid,
    where cells at least half covered are evidence. ``sign`` "signed" ranks negative relevance last. Ignored
    regions take no part.

    All are between 0 and 1 and keep their value when the map is multiplied by a positive number. Undefined: no map,
    NaN in it, nothing annotated, no evidence left, evidence everywhere; without relevance of the sign what is
    read at shares of the maximum, on a constant map what is read above its mean. Measures agreement with an
    annotation that the model need not share: a model that uses context is punished for an honest map.
    """

    pool: str = "sum"
    sign: str = "positive"  # as localization; Chefer et al.'s code reads the signed map
    upsample: str = "bilinear"
    instances: str = "union"
    threshold: str | float = "mean"
    thresholds: tuple[float, ...] = THRESHOLDS
    k: float = 0.02  # Quantus takes 1000 pixels of 224 x 224

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("auc", "higher", "plausibility"),
        Measure("ap", "higher", "plausibility"),
        Measure("top_k", "higher", "plausibility"),
        Measure("ap_two_class", "higher", "plausibility"),
        Measure("iou_mean", "higher", "plausibility"),
        Measure("iou_best", "higher", "plausibility"),
        Measure("ap_pooled", "higher", "plausibility", reduce="pooled_precision"),
        Measure("dice", "higher", "plausibility"),
        Measure("pixel_accuracy", "higher", "plausibility", reduce="pooled_ratio"),
        Measure("miou", "higher", "plausibility", reduce="pooled_ratio"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        maps.accept(self, "instances", instances.INSTANCES)
        if isinstance(self.threshold, str):
            maps.accept(self, "threshold", ("mean",))
        shares = [*self.thresholds, self.k] + [self.threshold] * (not isinstance(self.threshold, str))
        rising = all(a < b for a, b in pairwise(self.thresholds))
        if not self.thresholds or not rising or not all(0 < float(share) <= 1 for share in shares):
            raise Refused(
                f"metrics.segmentation: found threshold {self.threshold!r}, thresholds {self.thresholds} and k "
                f"{self.k}, accepted are shares above 0 and up to 1, thresholds ascending, or threshold 'mean'"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
            views = instances.views(trial.case, (heat.shape[0], heat.shape[1]), self.instances)
        except Undefined as why:
            return maps.undefined(self.measures, why)
        found = [self._values(heat[counted], mask[counted]) for mask, counted in views]
        return Score(instances.merged(found, self.instances))

    def _values(self, heat: Tensor, mask: Tensor) -> dict[str, Value]:
        k = min(max(int(self.k * heat.numel() + 0.5), 1), heat.numel())
        return {
            "auc": Value.of(roc_auc(heat, mask)),
            "ap": Value.of(average_precision(heat, mask)),
            "top_k": Value.of(top_k_intersection(heat, mask, k)),
            "ap_two_class": Value.of(two_class_precision(heat, mask)),
            **self._over_thresholds(heat, mask),
            **self._at_one(heat, mask),
        }

    def _cold(self) -> Value:
        signed = {"abs": "no relevance", "signed": "no positive relevance"}
        return Value.undefined(signed.get(self.sign, f"no {self.sign} relevance"))

    def _over_thresholds(self, heat: Tensor, mask: Tensor) -> dict[str, Value]:
        if not (heat > 0).any():
            return dict.fromkeys(("iou_mean", "iou_best", "ap_pooled"), self._cold())
        size = int(mask.sum())
        pairs = [overlap(heat, mask, threshold) for threshold in self.thresholds[::-1]]
        ious = [shared / joined for shared, joined in pairs]
        hits = [*(shared for shared, _ in pairs), size]
        hot = [*(joined + shared - size for shared, joined in pairs), mask.numel()]
        return {
            "iou_mean": Value.of(sum(ious) / len(ious)),
            "iou_best": Value.of(max(ious)),
            "ap_pooled": Value.of(precision_area(torch.tensor(hits), torch.tensor(hot)), num=hits, den=hot),
        }

    def _at_one(self, heat: Tensor, mask: Tensor) -> dict[str, Value]:
        shared, hot = region(heat, mask, self.threshold)
        if not hot:
            constant = Value.undefined("a constant map has no region above its mean")
            missing = constant if isinstance(self.threshold, str) else self._cold()
            return dict.fromkeys(("dice", "pixel_accuracy", "miou"), missing)
        size, total = int(mask.sum()), mask.numel()
        neither = total - hot - size + shared
        num, den = [shared, neither], [hot + size - shared, total - shared]
        return {
            "dice": Value.of(2 * shared / (hot + size)),
            "pixel_accuracy": Value.of((shared + neither) / total, num=shared + neither, den=total),
            "miou": Value.of((num[0] / den[0] + num[1] / den[1]) / 2, num=num, den=den),
        }
