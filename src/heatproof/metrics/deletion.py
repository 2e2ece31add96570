"""Deletion: does the score follow the map when pixels are removed, and when they are put back? (faithfulness)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import baselines, maps, ranking, rows, spaces
from heatproof.metrics.maps import Undefined


def counts(total: int, steps: int) -> list[int]:
    """How many of ``total`` things are gone after each step: 0 ... total, to the nearest whole thing.

    >>> counts(10, 4), counts(1024, 5)[1]
    ([0, 3, 5, 8, 10], 205)
    """
    return [(2 * step * total + steps) // (2 * steps) for step in range(steps + 1)]


def area(share: Sequence[float], score: Sequence[float]) -> float:
    """The area under a masking curve, by trapezoids over the share really removed (or inserted), 0 to 1.

    Both ends belong to it, so a constant curve has the area of its height and a straight one the mean of its
    ends, whatever the steps. Petsiuk et al. 2018 (RISE).

    >>> area([0, 0.5, 1], [1.0, 0.3, 0.0])
    0.4
    """
    return float(
        torch.trapezoid(torch.tensor(score, dtype=torch.float64), torch.tensor(share, dtype=torch.float64))
    )


def symmetric_gain(share: Sequence[float], deletion: Sequence[float], insertion: Sequence[float]) -> float:
    """The symmetric relevance gain: the area between removing the least and the most relevant first.

    Both curves over the same shares. Inserting the most relevant first passes the very images that removing the
    least relevant first does, so its curve has the same area. Positive where the map orders the
    pixels as the model uses them, about 0 for a random order. Blücher et al. 2024.

    >>> symmetric_gain([0, 0.5, 1], [1.0, 0.25, 0.0], [0.0, 0.75, 1.0])
    0.25
    """
    return area(share, insertion) - area(share, deletion)


def between_ends(score: Sequence[float], clean: float, blank: float) -> list[float]:
    """A curve on the scale where the untouched image is 1 and the blank one 0.

    Raises Undefined where the untouched image does not score higher than the blank one.

    >>> between_ends([4.0, 3.0, 2.0], clean=4.0, blank=2.0)
    [1.0, 0.5, 0.0]
    """
    if not clean > blank:
        raise Undefined("the blank image scores no lower than the untouched one")
    return [(value - blank) / (clean - blank) for value in score]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which pixels go when: flat places in ``order``, the first ``gone[i]`` of them gone after step i."""

    order: Tensor
    gone: list[int]

    @classmethod
    def of(cls, heat: Tensor, steps: int, patch: int, generator: torch.Generator) -> Plan:
        """Rank the pixels of heat [H, W], or its patches of ``patch`` px by their mean; ties in random order.

        Patches at the right and lower edge are cut short.

        >>> plan = Plan.of(torch.tensor([[0.0, 2.0, 5.0]]), steps=2, patch=2, generator=torch.Generator())
        >>> plan.order.tolist(), plan.gone, plan.share
        ([2, 0, 1], [0, 1, 3], [0.0, 0.3333333333333333, 1.0])
        """
        if patch == 1:
            return cls(ranking.order(heat, generator), counts(heat.numel(), steps))
        means = F.avg_pool2d(heat[None], patch, ceil_mode=True)[0]
        units = torch.empty(means.numel(), dtype=torch.long)
        units[ranking.order(means, generator)] = torch.arange(means.numel())
        whole = units.reshape(means.shape).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        rank = whole[: heat.shape[0], : heat.shape[1]].reshape(-1)
        ends = [0, *torch.bincount(rank).cumsum(0).tolist()]
        return cls(rank.argsort(stable=True), [ends[k] for k in counts(means.numel(), steps)])

    @property
    def share(self) -> list[float]:
        """The share of the pixels that is gone after each step, 0 to 1."""
        return [k / self.gone[-1] for k in self.gone]


def masked(image: Tensor, blank: Tensor, plan: Plan) -> Iterator[Tensor]:
    """The partly masked images: deletion's inner steps, then insertion's, 2 (steps - 1) of shape [C, H, W].

    image, blank [C, H, W]. The same memory each time: copy what is to be kept.

    >>> plan = Plan(torch.tensor([1, 0]), [0, 1, 2])
    >>> [row.tolist() for row in masked(torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 2), plan)]
    [[[[1.0, 0.0]]], [[[0.0, 2.0]]]]
    """
    high, wide = image.shape[1:]
    # a pixel's channels side by side, as nets read them: one place to write, and no other layout afterwards
    ends = [x.flatten(1).T.contiguous() for x in (image, blank)]
    for start, then in (ends, ends[::-1]):
        now = start.clone()
        for first, last in pairwise(plan.gone[:-1]):
            turn = plan.order[first:last].to(image.device)
            now.index_copy_(0, turn, then.index_select(0, turn))
            yield now.T.view(-1, high, wide)


def inpainted(image: Tensor, blank: Tensor, plan: Plan) -> Iterator[Tensor]:
    """The images of ``masked``, with what is gone inpainted from what is left in place of the blank."""
    high, wide = image.shape[1:]
    for order in (plan.order, plan.order.flip(0)):
        gone = torch.zeros(high * wide, dtype=torch.bool)
        sizes = plan.gone[1:-1] if order is plan.order else [len(order) - k for k in plan.gone[1:-1]]
        for size in sizes:
            gone[:] = False
            gone[order[:size]] = True
            yield baselines.replaced("inpaint", image, blank, gone.view(high, wide))


def partly(rule: str, image: Tensor, blank: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Deletion's inner steps, then insertion's, on a baseline: see ``masked`` and ``inpainted``."""
    return (inpainted if rule == "inpaint" else masked)(image, blank, plan)


@dataclass(frozen=True)
class Deletion:
    """Deletion and insertion curves over the image, their areas, and the symmetric gain between them.

    The pooled, enlarged and signed map ranks the pixels (all channels of a pixel go together), or patches of
    ``patch`` px by their mean; tied ones go in the case's own random order. After step i of ``steps``, i/steps
    of them are gone, the hottest first, each replaced by the ``baseline`` image; the insertion curve runs from
    the baseline image back, the hottest pixels first. The curves share both ends: 2 x ``steps`` rows a case.

    - ``deletion``: area under the score over the share removed; lower is better (Petsiuk et al. 2018, RISE;
      the MoRF curve of Samek et al. 2017)
    - ``insertion``: area under the score over the share inserted; higher is better (the LeRF curve read back)
    - ``srg``: insertion minus deletion (Blücher et al. 2024), higher is better

    ``steps``: RISE takes 1 % of the pixels or less a step; 10 is a cheap default, and the areas of another
    number differ by what the trapezoids miss. ``baseline``: mean | black | image_mean | blur (of ``sigma`` px) |
    noise | marginal (another image of the data set) | inpaint (from the pixels that are left); it can decide the ranking, so
    a spec that names none gets mean, blur and inpaint. ``output``: native (the model's own logit, cosine or
    log-probability) | probability | margin (to the best rival of the case's choices) | accuracy among them. ``normalise``: none (as RISE) | ends (untouched = 1, blank = 0, case
    by case). ``sign`` "signed" removes negative relevance last.

    Undefined: no map, NaN in it, a score that is not finite; with "ends" also where the blank image scores no lower
    than the untouched one. A constant map has the areas of a random order. Measures how the score depends
    on the order of the pixels, on images that the model was not trained on.
    """

    steps: int = 10
    baseline: str = "mean"
    sigma: float = 5.0
    output: str = "native"
    normalise: str = "none"
    patch: int = 1
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("deletion", "lower", "faithfulness", unit="score"),
        Measure("insertion", "higher", "faithfulness", unit="score"),
        Measure("srg", "higher", "faithfulness", unit="score"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "baseline", tuple(baselines.RULES))
        maps.accept(self, "output", spaces.OUTPUTS)
        maps.accept(self, "normalise", ("none", "ends"))
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if self.steps < 1 or self.patch < 1 or self.sigma <= 0:
            raise Refused(
                f"metrics.deletion: found steps {self.steps}, patch {self.patch}, sigma {self.sigma}, accepted are "
                "1 step or more, patches of 1 px or more, and a sigma above 0"
            )

    @property
    def needs_other(self) -> bool:
        return baselines.needs_other(self.baseline)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        spaces.check(self.output, model, [trial.case for trial in trials])
        maps.needs_pixels(trials)
        plans, found = maps.planned(trials, self.measures, self._plan)
        asked = [trials[i].case for i in plans]
        found |= zip(plans, self._scores(model, asked, list(plans.values())), strict=True)
        return [found[i] for i in range(len(trials))]

    def _plan(self, trial: Trial) -> Plan:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        return Plan.of(heat, self.steps, self.patch, trial.case.generator("tied pixels"))

    def _scores(self, model: Model, cases: list[Case], plans: list[Plan]) -> Iterator[Score]:
        if not cases:
            return
        blanks = rows.blanks(model, cases, self.baseline, self.sigma)
        clean = spaces.clean(self.output, model, cases).tolist()
        blank = rows.blank_scores(self.output, model, cases, self.baseline, self.sigma)
        inner = self._inner_scores(model, cases, plans, blanks)
        half = self.steps - 1
        for i, plan in enumerate(plans):
            row = inner[2 * half * i : 2 * half * (i + 1)]
            yield self._score(plan.share, clean[i], blank[i], row[:half], row[half:])

    def _score(
        self, share: list[float], clean: float, blank: float, deleted: list[float], inserted: list[float]
    ) -> Score:
        try:
            falling, rising = [clean, *deleted, blank], [blank, *inserted, clean]
            if self.normalise == "ends":
                falling, rising = (between_ends(y, clean, blank) for y in (falling, rising))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        return Score(
            {
                "deletion": Value.of(area(share, falling)),
                "insertion": Value.of(area(share, rising)),
                "srg": Value.of(symmetric_gain(share, falling, rising)),
            },
            {"deletion": (share, falling), "insertion": (share, rising)},
        )

    # ------------------------------------------------------------------ the forwards

    def _inner_scores(
        self, model: Model, cases: Sequence[Case], plans: Sequence[Plan], blanks: Sequence[Tensor]
    ) -> list[float]:
        """The scores of all partly masked images, case by case, each case's deletion rows first."""
        pixels = model.stack(cases)
        changed = (
            (case, image)
            for case, clean, blank, plan in zip(cases, pixels, blanks, plans, strict=True)
            for image in partly(self.baseline, clean, blank.to(clean.device), plan)
        )
        found: list[float] = []
        block = pixels.new_empty((rows.AT_ONCE, *pixels.shape[1:])).contiguous(
            memory_format=torch.channels_last
        )
        with torch.inference_mode():
            while True:
                asked: list[Case] = []
                for case, image in islice(changed, rows.AT_ONCE):
                    block[len(asked)] = image
                    asked.append(case)
                if not asked:
                    return found
                found += spaces.score(self.output, model, block[: len(asked)], asked).tolist()
