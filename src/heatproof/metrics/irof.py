"""Irof: how far does the score fall as whole segments are removed, the most relevant first? (faithfulness)"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, cast

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import baselines, maps, ranking, rows, spaces
from heatproof.metrics.deletion import Plan, area, partly
from heatproof.metrics.maps import Undefined
from heatproof.segments import SEGMENTS, grid, slic


def segment_means(heat: Tensor, segments: Tensor) -> Tensor:
    """The mean relevance of each segment: heat [H, W], segments int64 [H, W] from 0 -> float64 [n].

    >>> segment_means(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]])).tolist()
    [2.0, 5.0]
    """
    places = segments.reshape(-1)
    return torch.bincount(places, heat.double().reshape(-1)) / torch.bincount(places)


def segment_plan(heat: Tensor, segments: Tensor, generator: torch.Generator) -> Plan:
    """Remove segment by segment, the one of the highest mean relevance first, tied ones in a random order.

    Raises Undefined where there is but one segment: there is nothing to rank.

    >>> plan = segment_plan(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]), torch.Generator())
    >>> plan.order.tolist(), plan.gone
    ([2, 0, 1], [0, 1, 3])
    """
    means = segment_means(heat, segments)
    if len(means) < 2:
        raise Undefined("the image is one segment: there is nothing to rank")
    turn = torch.empty(len(means), dtype=torch.long)
    turn[ranking.order(means, generator)] = torch.arange(len(means))
    turns = turn[segments.reshape(-1)]
    return Plan(turns.argsort(stable=True), [0, *torch.bincount(turns).cumsum(0).tolist()])


def area_over(share: Sequence[float], score: Sequence[float]) -> float:
    """The area over a curve of scores relative to the untouched one: 1 minus the area under it, below 1 if none is negative.

    score [L + 1]: untouched, then after each step. Undefined is raised where score[0] is not above 0.

    >>> area_over([0, 0.5, 1], [4.0, 1.0, 0.0])
    0.625
    """
    if not score[0] > 0:
        raise Undefined("the untouched image does not score above 0: there is no ratio to it")
    return 1 - area(share, [value / score[0] for value in score])


@dataclass(frozen=True)
class Irof:
    """IROF, iterative removal of features (Rieger and Hansen 2020): segments go one after the other.

    The image is cut into segments; the pooled, enlarged and signed map ranks them by their mean relevance, tied ones in
    the case's own random order. They are replaced by the ``baseline`` one by one until none is left, and the score is
    read each time relative to the untouched image's. Rows a case: one more than it has segments.

    - ``irof``: the area over that curve; higher is better. Close to 1 where the score is gone with the first segment, 0
      where it never moves, negative where it rises

    The curve is integrated case by case from 0 to 1, both ends included, so the number of segments, which varies from
    image to image, does not scale it; Quantus leaves it in units of segments. ``over``: segments (each is a
    step of the same width, the paper) | pixels (as wide as it is large). ``segments``: grid (``cells`` x ``cells``,
    the same for every image) | slic (superpixels, the paper; about ``cells`` x ``cells`` of them, ``compactness`` as in
    scikit-image, which must be installed). ``baseline``: image_mean (the image's mean colour, as Quantus has it) | mean |
    black | blur (of ``sigma`` px) | noise | marginal | inpaint. ``output``: probability (the paper) | native, which only makes sense for scores
    that are 0 where there is no evidence: a ratio of logits does not mean anything (Quantus gives -9.7 for one).

    Undefined: no map, NaN in it, an image that is one segment, an untouched score that is not above 0 (always so for
    a native log-probability), a score that is not finite. A constant map has the area of a random order. Unsuited: a
    cosine as probability. Known criticism: as for deletion, what stands in place of a segment decides much; superpixels
    favour maps that follow edges.
    """

    segments: str = "grid"
    cells: int = 8
    compactness: float = 10.0
    over: str = "segments"
    baseline: str = "image_mean"
    sigma: float = 5.0
    output: str = "probability"
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("irof", "higher", "faithfulness", unit="share of the score"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "segments", SEGMENTS)
        maps.accept(self, "over", ("segments", "pixels"))
        maps.accept(self, "baseline", tuple(baselines.RULES))
        maps.accept(self, "output", spaces.OUTPUTS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if self.cells < 1 or self.compactness <= 0 or self.sigma <= 0:
            raise Refused(
                f"metrics.irof: found cells {self.cells}, compactness {self.compactness}, sigma {self.sigma}, accepted "
                "are 1 cell or more, and a compactness and a sigma above 0"
            )
        if self.segments == "slic":
            try:
                importlib.import_module("skimage.segmentation")
            except ImportError as error:
                raise Refused(
                    'metrics.irof.segments: found "slic", which scikit-image cuts, and it is not installed: type '
                    'pip install scikit-image, or take segments = "grid"'
                ) from error

    @property
    def needs_other(self) -> bool:
        return baselines.needs_other(self.baseline)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, cases = trials[0].model, [trial.case for trial in trials]
        spaces.check(self.output, model, cases)
        maps.needs_pixels(trials)
        plans, found = maps.planned(trials, self.measures, self._plan)
        for i, curve in self._curves(model, cases, plans):
            try:
                found[i] = self._score(plans[i], curve)
            except Undefined as why:
                found[i] = maps.undefined(self.measures, why)
        return [found[i] for i in range(len(trials))]

    def _plan(self, trial: Trial) -> Plan:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        segments = grid(maps.image_size(trial.case), self.cells)
        if self.segments == "slic":
            (segments,) = self._slic(trial.model, trial.case)
        return segment_plan(heat, segments, trial.case.generator("tied segments"))

    def _slic(self, model: Model, case: Case) -> list[Tensor]:
        frame = cast("geometry.Frame", model.frame)  # type: ignore[attr-defined]  # every implementation has one
        number, compactness = self.cells**2, self.compactness
        return model.recall(
            f"slic {number} {compactness}",
            [case],
            lambda some: [slic(c.pixels, number, compactness, frame) for c in some],
        )

    def _curves(
        self, model: Model, cases: Sequence[Case], plans: dict[int, Plan]
    ) -> Iterator[tuple[int, list[float]]]:
        """Each case's scores: untouched, then after each segment; only the untouched one where that ends it."""
        if not plans:
            return
        clean = dict(
            zip(plans, spaces.clean(self.output, model, [cases[i] for i in plans]).tolist(), strict=True)
        )
        going = [i for i in plans if clean[i] > 0]
        yield from ((i, [clean[i]]) for i in plans if not clean[i] > 0)
        if not going:
            return
        asked = [cases[i] for i in going]
        blanks = rows.blanks(model, asked, self.baseline, self.sigma)
        last = rows.blank_scores(self.output, model, asked, self.baseline, self.sigma)
        inner = iter(
            rows.scored(
                self.output,
                model,
                (
                    (cases[i], image.clone())
                    for i, blank in zip(going, blanks, strict=True)
                    for image in islice(
                        partly(self.baseline, cases[i].pixels.cpu(), blank.cpu(), plans[i]),
                        len(plans[i].gone) - 2,
                    )
                ),
            )
        )
        for i, end in zip(going, last, strict=True):
            yield i, [clean[i], *(next(inner) for _ in plans[i].gone[2:]), end]

    def _score(self, plan: Plan, curve: list[float]) -> Score:
        steps = len(plan.gone) - 1
        share = plan.share if self.over == "pixels" else [k / steps for k in range(steps + 1)]
        value = Value.of(area_over(share, curve))
        return Score({"irof": value}, {"irof": (share, [score / curve[0] for score in curve])})
