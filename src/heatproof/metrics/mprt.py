"""The model parameter randomisation test, smooth and efficient: its two repairs (sanity checks)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from heatproof import contract, geometry
from heatproof.contract import Case, Explainer, Explanation, Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import maps, similarity
from heatproof.metrics.maps import Undefined
from heatproof.metrics.neighbours import Neighbour
from heatproof.metrics.randomisation import Randomisation, depth, randomised, who


def histogram_entropy(heat: Tensor, bins: int) -> float:
    """Shannon's entropy, in nats, of the values' histogram over ``bins`` equal bins of their range: 0 to ln bins.

    heat [...] finite. A constant map has 0. The complexity of Hedström et al. 2024 (arXiv 2405.02383).

    >>> round(histogram_entropy(torch.tensor([0.0, 1.0, 2.0, 3.0]), 2), 6)
    0.693147
    """
    if similarity.constant(heat):
        return 0.0
    counts, _ = np.histogram(heat.double().numpy(), bins)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # no negative zero


@dataclass(frozen=True)
class SmoothMprt(Randomisation):
    """Parameter randomisation of maps averaged over noisy images, so that a gradient's noise is not taken for change.

    sMPRT, Hedström et al. 2024 (Sanity checks revisited, arXiv 2405.02383): before two maps are compared, each is the
    mean of the explainer's signed maps of ``samples`` images: the image itself, and the others with normal noise of a
    deviation of ``noise`` times the image's range. 50 and 0.1 are the authors' for ImageNet. The same noisy images are
    put to both models, and an explainer's own random numbers stay those of the case. ``samples`` 1 is Randomisation.

    Values, settings and undefined cases are those of Randomisation; the authors take ``order`` bottom_up, many
    ``levels`` and their ``average``. Costs ``levels`` + 1 times ``samples`` explanations a case, less the one that is
    there. Known criticism: averaging adds a low-pass of its own, and what is compared is no longer the map that was asked for.
    """

    samples: int = 50
    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or self.noise <= 0:
            raise Refused(
                f"metrics.mprt: found samples {self.samples} and noise {self.noise}, accepted are 1 or more "
                "and a deviation above 0"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:  # the shelf reads the verb in the class itself
        return super().measure(trials)

    def _before(self, explainer: Explainer, trials: Sequence[Trial]) -> list[Explanation]:
        return self._smooth(
            explainer, trials[0].model, [t.case for t in trials], super()._before(explainer, trials)
        )

    def _answers(self, explainer: Explainer, model: Model, cases: Sequence[Case]) -> list[Explanation]:
        return self._smooth(explainer, model, cases, super()._answers(explainer, model, cases))

    def _smooth(
        self, explainer: Explainer, model: Model, cases: Sequence[Case], plain: Sequence[Explanation]
    ) -> list[Explanation]:
        images = [[e.image] for e in plain]
        noisy = [self._noisy(case) for case in cases]
        for _ in range(self.samples - 1):
            # asked past the memo, which would keep every one of these maps for nobody
            with torch.inference_mode(False), torch.enable_grad():
                answers = explainer.explain(model, [next(copies) for copies in noisy])
            for some, answer in zip(images, answers, strict=True):
                some.append(answer.image)
        return [Explanation(image=_mean(some)) for some in images]

    def _noisy(self, case: Case) -> Iterator[Neighbour]:
        chance = case.generator("noise to smooth a map")
        size = self.noise * float(case.pixels.max() - case.pixels.min())
        for k in range(self.samples - 1):
            with torch.inference_mode(False):  # the explainer may want gradients at these pixels
                pixels = case.pixels + size * torch.randn(case.pixels.shape, generator=chance)
            yield Neighbour.of(case, pixels, f"noise {k} of {self.noise}")


def _mean(images: Sequence[Tensor | None]) -> Tensor | None:
    """The mean map, in float64; None where one is missing."""
    there = [image.detach().cpu().double() for image in images if image is not None]
    return torch.stack(there).mean(0) if len(there) == len(images) else None


@dataclass(frozen=True)
class EfficientMprt:
    """The rise of a map's complexity when the model is randomised: noise in place of what was learned should show.

    eMPRT, Hedström et al. 2024 (Sanity checks revisited, arXiv 2405.02383): two maps alone, of the model and of its twin
    with every layer randomised (that of Randomisation), each with the entropy H of its histogram over ``bins`` equal bins of its
    own range (100, the authors').

    - ``rise``: (H randomised - H) / H; higher is better, at least -1. 0 or less: the map is no simpler for what the
      model has learned. A map that does not look at the model has 0

    No pair of maps is compared, so that a map of noise gains nothing by being like no other: it has 0 as well. ``sign``:
    signed (the authors) | positive | negative | abs. On the map's own grid; few places fill few bins (7 x 7: at most
    ln 49), so enlarge coarse maps (``upsample``) or read a column within one grid. Unchanged when maps are multiplied.

    Costs one explanation a case, shared with Randomisation. Undefined: no map, NaN in it, a map without entropy
    (constant). Unsuited: explainers that were fitted. Known criticism: entropy sees values and no places, so a map may pass
    by shuffling; the number of bins moves it; a method whose maps are rich already has little to rise to.
    """

    bins: int = 100
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "none"

    measures: ClassVar[tuple[Measure, ...]] = (Measure("rise", "higher", "sanity"),)

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", geometry.UPSAMPLES)
        if self.bins < 2:
            raise Refused(f"metrics.mprt.bins: found {self.bins}, accepted is 2 or more")

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, explainer = trials[0].model, who(trials[0])
        before, found = maps.planned(trials, self.measures, self._entropy)
        cases = [trials[i].case for i in before]
        if cases:
            answers = contract.explain(explainer, randomised(model, (0, depth(model)), cases[0].seed), cases)
            for i, answer in zip(before, answers, strict=True):
                found[i] = self._score(trials[i], before[i], answer)
        return [found[i] for i in range(len(trials))]

    def _entropy(self, trial: Trial) -> float:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        return histogram_entropy(heat, self.bins)

    def _score(self, trial: Trial, before: float, answer: Explanation) -> Score:
        if before == 0:
            return maps.undefined(
                self.measures, Undefined("the map is constant: it has no entropy to rise from")
            )
        try:
            after = self._entropy(Trial(trial.model, trial.case, trial.explainer, answer))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        return Score({"rise": Value.of((after - before) / before)})
