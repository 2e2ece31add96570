"""Infidelity: how far is the drop that a map foretells from the drop that comes? (faithfulness)"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import baselines, maps, rows, spaces
from heatproof.metrics.maps import Undefined

CHANNELS = ("own", "pooled")


def infidelity(dots: Sequence[float], drops: Sequence[float], *, scale: bool = False) -> float:
    """The mean square of foretold minus real drop, in squared units of the score, 0 or more.

    dots [n]: what the map foretells for each perturbation, I . phi; drops [n]: f(x) - f(x - I). ``scale`` first
    multiplies all dots by the factor that makes the result smallest, beta = mean(dots drops) / mean(dots^2): NaN where
    all dots are 0. Yeh et al. 2019 (arXiv 1901.09392); the factor is their code's, captum's ``normalize``.

    >>> infidelity([1.0, 2.0], [2.0, 4.0]), infidelity([1.0, 2.0], [2.0, 4.0], scale=True)
    (2.5, 0.0)
    """
    if not dots:
        return math.nan
    told, real = (torch.tensor(values, dtype=torch.float64) for values in (dots, drops))
    beta = (told * real).mean() / told.square().mean() if scale else 1.0
    return float((beta * told - real).square().mean())


def spread(values: Tensor) -> float:
    """The standard deviation of all numbers of an image, [C, H, W]: the unit of noise on it. 0 where it is constant.

    >>> spread(torch.tensor([[[1.0, 3.0]]]))
    1.0
    """
    return float(values.double().std(correction=0)) if values.amax() > values.amin() else 0.0


def squares(high: int, wide: int, largest: int, many: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``many`` random squares as bool planes [H, W]: of all of side 1 to ``largest`` inside the image, each as likely.

    >>> sorted(int(square.sum()) for square in squares(2, 2, 2, 40, torch.Generator()))[-1]
    4
    """
    places = torch.tensor([(high - side + 1) * (wide - side + 1) for side in range(1, largest + 1)])
    ends = places.cumsum(0)
    for draw in torch.randint(int(ends[-1]), (many,), generator=generator).tolist():
        side = int(torch.searchsorted(ends, draw, right=True)) + 1
        top, left = divmod(draw - int(ends[side - 1] - places[side - 1]), wide - side + 1)
        plane = torch.zeros(high, wide, dtype=torch.bool)
        plane[top : top + side, left : left + side] = True
        yield plane


@dataclass(frozen=True)
class Infidelity:
    """The squared error of a map as a forecast of the score's drop under perturbations I of the input (Yeh et al. 2019).

    - ``infidelity``: mean of (I . phi - (f(x) - f(x - I)))^2 over ``samples`` perturbations, the map taken at its word
    - ``infidelity_scaled``: the same after the best factor for the case's map, as in the authors' code: for ranking

    Lower is better, 0 at best, in squared units of the score. The raw value follows the scale of the map: it tells
    something only of maps in the score's own units. The scaled one does not change when the map is multiplied.

    ``perturbation`` and ``attribution`` go together, as in the authors' two experiments (squares and global, noise and local):

    - "square" removes a square to the ``baseline`` (mean | black | image_mean | blur of ``sigma`` px | noise | marginal | inpaint): of all
      squares inside the image of side 1 to ``largest`` times its shorter side, each as likely (the authors took every
      one of side 1 to 10 on 28 px)
    - "noise" subtracts independent normal noise, as in captum's examples; "noisy_baseline" puts the ``baseline`` plus
      such noise in the place of the image, as the authors' other experiment does (theirs is cut to the range of pixels).
      ``deviation``: in standard deviations of the image's own numbers (authors: 0.2 on images from 0 to 1; captum 0.003)
    - attribution "global": phi is in units of the score, x - baseline multiplied into it already (input times gradient,
      IG, LRP, occlusion, CAM): I . phi is the sum of the map over the square; for squares alone
    - attribution "local": phi is in units of the score's gradient (saliency): I . phi is the sum of I times phi

    ``channels``: "own" takes a map of the input's shape [C, H, W] number by number, and spreads any other as "pooled"
    does: the pooled, enlarged map shared out equally over the channels, divided so that its sum is that of its own
    grid. Methods of both kinds in one column are compared as they come; "pooled" treats all alike. ``samples``: 100 is
    our choice (authors: 10000; captum: 10). ``output``: native | probability | margin | accuracy.

    Costs ``samples`` rows a case; the untouched image from the memo. Undefined: no map, NaN in it, a score that is not
    finite, a constant image (noise has no unit); ``infidelity_scaled`` also where the map foretells 0 for every
    perturbation. Known criticism: the perturbation decides what is measured (captum issue 1018), and images with squares cut
    out are none that the model knows.
    """

    perturbation: str = "square"
    attribution: str = "global"
    samples: int = 100
    largest: float = 10 / 28
    deviation: float = 0.2
    baseline: str = "mean"
    sigma: float = 5.0
    output: str = "native"
    channels: str = "own"
    pool: str = "sum"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("infidelity", "lower", "faithfulness", unit="score^2"),
        Measure("infidelity_scaled", "lower", "faithfulness", unit="score^2"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "perturbation", ("square", "noise", "noisy_baseline"))
        maps.accept(self, "attribution", ("global", "local"))
        maps.accept(self, "baseline", tuple(baselines.RULES))
        maps.accept(self, "output", spaces.OUTPUTS)
        maps.accept(self, "channels", CHANNELS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if self.perturbation != "square" and self.attribution == "global":
            raise Refused(
                f'metrics.infidelity.attribution: found "global" with perturbation "{self.perturbation}", accepted is '
                '"local": noise over x - baseline has no bound'
            )
        if self.samples < 1 or not 0 < self.largest <= 1 or self.deviation <= 0 or self.sigma <= 0:
            raise Refused(
                f"metrics.infidelity: found samples {self.samples}, largest {self.largest}, deviation {self.deviation}, "
                f"sigma {self.sigma}, accepted are 1 sample or more, a largest side above 0 and up to 1, and others above 0"
            )

    @property
    def needs_other(self) -> bool:
        return baselines.needs_other(self.baseline)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        spaces.check(self.output, model, [trial.case for trial in trials])
        maps.needs_pixels(trials, "perturb")
        phis, found = maps.planned(trials, self.measures, self._phi)
        cases = [trials[i].case for i in phis]
        found |= zip(phis, self._scores(model, cases, list(phis.values())) if cases else (), strict=True)
        return [found[i] for i in range(len(trials))]

    def _phi(self, trial: Trial) -> Tensor:
        """The map, float64 [C, H, W], a number for each of the input's."""
        if self.perturbation != "square" and spread(trial.case.pixels) == 0:
            raise Undefined("a constant image has no deviation to measure noise in")
        heat, shape = maps.image_heat(trial), trial.case.pixels.shape
        if self.channels == "own" and heat.shape == shape:
            return heat.double()
        plane = maps.read(trial, pool=self.pool, sign="signed", upsample=self.upsample).double()
        share = heat.shape[-2] * heat.shape[-1] / plane.numel() / shape[0]
        return (plane * share).expand(shape)

    def _scores(self, model: Model, cases: list[Case], phis: list[Tensor]) -> Iterator[Score]:
        empty = rows.blanks(model, cases, self.baseline, self.sigma)
        clean = spaces.clean(self.output, model, cases).tolist()
        told: list[list[float]] = [[] for _ in cases]

        def changed_images() -> Iterator[tuple[Case, Tensor]]:
            for case, phi, blank, dots in zip(cases, phis, empty, told, strict=True):
                for changed, dot in self._perturbed(case, phi, blank):
                    dots.append(dot)
                    yield case, changed

        left = rows.scored(self.output, model, changed_images())
        for i, (dots, whole) in enumerate(zip(told, clean, strict=True)):
            drops = [whole - score for score in left[i * self.samples : (i + 1) * self.samples]]
            yield self._score(dots, drops)

    def _perturbed(self, case: Case, phi: Tensor, blank: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Each perturbed image x - I [C, H, W], and what the map foretells of it."""
        image, chance = case.pixels, case.generator(f"infidelity {self.perturbation}")
        if self.perturbation != "square":
            size, start = self.deviation * spread(image), image if self.perturbation == "noise" else blank
            for _ in range(self.samples):
                changed = start - size * torch.randn(image.shape, generator=chance)
                yield changed, float(((image.double() - changed.double()) * phi).sum())
            return
        high, wide = image.shape[1:]
        largest = max(1, round(self.largest * min(high, wide)))
        for square in squares(high, wide, largest, self.samples, chance):
            changed = baselines.replaced(self.baseline, image, blank, square)
            weight = phi if self.attribution == "global" else (image - changed).double() * phi
            yield changed, float(weight[:, square].sum())

    def _score(self, dots: list[float], drops: list[float]) -> Score:
        return Score(
            {
                "infidelity": Value.of(infidelity(dots, drops)),
                "infidelity_scaled": Value.of(
                    infidelity(dots, drops, scale=True), "the map foretells 0 for every perturbation"
                )
                if all(map(math.isfinite, drops))
                else Value.undefined("not a finite number"),
            }
        )
