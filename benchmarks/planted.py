"""Metrics with a fault each, of kinds that were really seen in the field: what the lie detector is examined with.

None of them is to be used. They come in by the door that an outsider's metric does: ``use = "./planted.py:Deaf"``.
A number in brackets is the row of the field's pitfalls that a fault stands for: 4 blur is paid for, 5 ties in rankings, 6 ties
in the pointing game, 14 masks that miss the model's geometry, 15 areas and the direction of curves, 21 sensitivity that random maps pass,
24 what looks right taken for what the model used, 12 and 19 maps scaled by
their own range, 28 rows of two cases compared, 3 and 22 scores that the map does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry, seeds
from heatproof.contract import Measure, Score, Trial, Value
from heatproof.metrics import maps, rows
from heatproof.metrics.complexity import gini
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.localization import mass_accuracy
from heatproof.metrics.maps import Undefined
from heatproof.metrics.robustness import Sensitivity

INSIDE = (Measure("score", "higher", "plausibility"),)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels


@dataclass(frozen=True)
class Planted:
    """A number of each map, enlarged to the image and signed; a subclass says which, and whether higher is better."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("score", "higher", "faithfulness"),)
    sign: ClassVar[str] = "positive"

    def number(self, trial: Trial, heat: Tensor) -> float:
        raise NotImplementedError

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        def plan(trial: Trial) -> Tensor:
            if trial.case.mask is None or not trial.case.mask.any():
                raise Undefined("no evidence")
            return maps.read(trial, pool="sum", sign=self.sign, upsample="bilinear")

        plans, found = maps.planned(trials, self.measures, plan)
        for i, heat in plans.items():
            found[i] = Score({"score": Value.of(self.number(trials[i], heat))})
        return [found[i] for i in range(len(trials))]


class AnyTie(Planted):
    """The pointing game in which any of the tied hottest pixels inside is a hit (Quantus; 6)."""

    measures: ClassVar[tuple[Measure, ...]] = INSIDE

    def number(self, trial: Trial, heat: Tensor) -> float:
        return float((heat[_mask(trial)] == heat.max()).any())


class Mirrored(Planted):
    """Mass inside the mask, the mask turned over: image and annotation in two geometries (14)."""

    measures: ClassVar[tuple[Measure, ...]] = INSIDE

    def number(self, trial: Trial, heat: Tensor) -> float:
        return float(mass_accuracy(heat, _mask(trial).flip(-1)))


class Cropped(Planted):
    """Mass inside the mask, the model's crop forgotten: the mask is a quarter of the image off (14)."""

    measures: ClassVar[tuple[Measure, ...]] = INSIDE

    def number(self, trial: Trial, heat: Tensor) -> float:
        high, wide = heat.shape
        return float(mass_accuracy(heat, _mask(trial).roll((high // 4, wide // 4), (0, 1))))


class Deaf(Planted):
    """The score of the untouched image, whatever the map: the metric's argument that nobody reads (3)."""

    def number(self, trial: Trial, heat: Tensor) -> float:
        return float(trial.model.clean([trial.case])[0])


class Central(Planted):
    """How near the middle the heat is: what a data set of centred things teaches a metric to like (24)."""

    def number(self, trial: Trial, heat: Tensor) -> float:
        high, wide = heat.shape
        down, along = torch.linspace(-1, 1, high)[:, None], torch.linspace(-1, 1, wide)[None]
        total = heat.sum()
        return float(-(heat * (down.square() + along.square())).sum() / total) if total > 0 else float("nan")


class Smooth(Planted):
    """Least total variation of the map scaled to its maximum: "coherence", which blur and blobs have most of (4)."""

    sign = "abs"

    def number(self, trial: Trial, heat: Tensor) -> float:
        top = heat.max()
        heat = heat / top if top > 0 else heat
        return -float(heat.diff(dim=0).abs().mean() + heat.diff(dim=1).abs().mean())


class Sparse(Planted):
    """The Gini index taken for faithfulness: any lone pixel is the best map (24)."""

    sign = "abs"

    def number(self, trial: Trial, heat: Tensor) -> float:
        return gini(heat)


class Dice(Planted):
    """A random number for every map, in place of a score (22)."""

    def number(self, trial: Trial, heat: Tensor) -> float:
        chance = seeds.generator(trial.case.seed, trial.case.id, repr(float(heat.double().sum())))
        return float(torch.rand((), generator=chance))


class Edges(Planted):
    """How well the map follows the edges of the image, which no model is asked about (24)."""

    def number(self, trial: Trial, heat: Tensor) -> float:
        grey = trial.case.pixels.mean(0)
        edges = torch.zeros_like(grey)
        edges[1:] += grey.diff(dim=0).abs()
        edges[:, 1:] += grey.diff(dim=1).abs()
        pair = torch.stack([edges.flatten(), heat.float().flatten()])
        return float(torch.corrcoef(pair)[0, 1]) if heat.max() > heat.min() else float("nan")


class Cast(Planted):
    """Mass inside the mask of another image: rows of maps and rows of masks out of step (28)."""

    measures: ClassVar[tuple[Measure, ...]] = INSIDE
    needs_other: ClassVar[bool] = True

    def number(self, trial: Trial, heat: Tensor) -> float:
        other = trial.case.other() if trial.case.other is not None else trial.case
        return float(mass_accuracy(heat, other.mask)) if other.mask is not None else float("nan")


class Broad(Planted):
    """The score of the image times the map scaled from 0 to 1: the more is left to see, the better the map (12, 19)."""

    sign = "signed"

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        def plan(trial: Trial) -> Tensor:
            heat = maps.read(trial, pool="sum", sign="signed", upsample="bilinear").float()
            low, top = heat.min(), heat.max()
            if top <= low:
                raise Undefined("a constant map")
            return trial.case.pixels * ((heat - low) / (top - low)).sqrt().sqrt()

        plans, found = maps.planned(trials, self.measures, plan)
        asked = [(trials[i].case, image) for i, image in plans.items()]
        for i, score in zip(plans, rows.scored("native", trials[0].model, asked), strict=True):
            found[i] = Score({"score": Value.of(score)})
        return [found[i] for i in range(len(trials))]


@dataclass(frozen=True)
class Backwards:
    """The area under the deletion curve, the least relevant pixels removed first, taken for the curve's mirror (15)."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("score", "lower", "faithfulness"),)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        turned = [replace(t, explanation=_negated(t)) for t in trials]
        return [Score({"score": s.values["deletion"]}) for s in Deletion(steps=5).measure(turned)]


class AllAtOnce(Planted):
    """The score while the hottest pixels go, all tied with the last one going too: of a map half zero, everything (5)."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("score", "lower", "faithfulness"),)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        def plan(trial: Trial) -> list[Tensor]:
            heat = maps.read(trial, pool="sum", sign="positive", upsample="bilinear").float()
            ends = torch.quantile(heat, 1 - torch.tensor(SHARES))
            return [trial.case.pixels.masked_fill(heat >= end, 0.0) for end in ends]

        plans, found = maps.planned(trials, self.measures, plan)
        asked = [(trials[i].case, image) for i, images in plans.items() for image in images]
        scores = iter(rows.scored("native", trials[0].model, asked))
        for i in plans:
            found[i] = Score({"score": Value.of(sum(next(scores) for _ in SHARES) / len(SHARES))})
        return [found[i] for i in range(len(trials))]


@dataclass(frozen=True)
class Steady:
    """How little the map changes with the image, taken for truth: a map that ignores the image is perfect (21)."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("score", "lower", "faithfulness"),)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        found = Sensitivity(samples=3).measure(trials)
        return [Score({"score": s.values["max_sensitivity"]}) for s in found]


def _mask(trial: Trial) -> Tensor:
    mask = trial.case.mask
    assert mask is not None  # looked at before
    return mask


def _negated(trial: Trial) -> object:
    answer = trial.explanation
    if answer is None or answer.image is None:
        return answer
    return replace(answer, image=-geometry.read(answer.image))
