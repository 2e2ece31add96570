"""Robustness: does the map stay when the image hardly changes, and when only the model's input offset does?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from heatproof import contract
from heatproof.contract import Case, Measure, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps
from heatproof.metrics.infidelity import spread
from heatproof.metrics.maps import Undefined
from heatproof.metrics.neighbours import AskedAgain, Neighbour, relative_change

ALIKE = 1e-3  # of the score or of 1: how near a shifted model must answer to count as the same


def local_lipschitz(before: Tensor, after: Tensor, moved: Tensor) -> float:
    """The norm of the difference of two maps over that of the step ``moved`` between their images, 0 or more.

    Alvarez-Melis and Jaakkola 2018 (arXiv 1806.08049), for one neighbour; NaN where nothing moved.

    >>> local_lipschitz(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.5]))
    2.0
    """
    step = float(moved.double().norm())
    return float((after.double() - before.double()).norm()) / step if step > 0 else math.nan


def first_convolution(net: nn.Module) -> nn.Conv2d:
    """The convolution that a constant shift of the input can be taken back in: the first listed, without padding.

    Raises Unsuited where there is none, or it has no bias, or pads with zeros, which no shift reaches.
    """
    found = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise Unsuited("the net has no convolution whose bias could take a shift of the input back")
    if found.bias is None:
        raise Unsuited("the first convolution has no bias that could take a shift of the input back")
    if found.padding not in ((0, 0), "valid"):
        raise Unsuited(
            "the first convolution pads with zeros: its bias cannot take a shift of the input back there"
        )
    return found


def compensate(net: nn.Module, shift: float) -> None:
    """Edit the first convolution's bias, in place, so that the net answers x + shift as it did x.

    >>> net = nn.Conv2d(1, 1, 2)
    >>> x, before = torch.ones(1, 1, 3, 3), net(torch.ones(1, 1, 3, 3))
    >>> compensate(net, 0.5)
    >>> torch.allclose(net(x + 0.5), before, atol=1e-6)
    True
    """
    layer = first_convolution(net)
    with torch.no_grad():
        taken = shift * layer.weight.double().sum((1, 2, 3))
        layer.bias.copy_(layer.bias.double() - taken)  # type: ignore[union-attr]  # it has one


@dataclass(frozen=True)
class Sensitivity(AskedAgain):
    """How much a map changes when noise too small to see is put on the image: max and average sensitivity, Lipschitz.

    ``samples`` noisy copies x + d of the image, each number of d uniform within +-``radius`` standard deviations of
    the image's own numbers (the L-infinity ball of Yeh et al. 2019 and captum), are explained anew.

    - ``max_sensitivity``: the largest of ||phi(x + d) - phi(x)|| / ||phi(x)|| (Yeh et al. 2019, arXiv 1901.09392)
    - ``average_sensitivity``: their mean
    - ``local_lipschitz``: the largest of ||phi(x + d) - phi(x)|| / ||d|| (Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049),
      which follows the scale of the map and of the input: compare maps of one unit on one model alone

    All are 0 or more, lower is better; the first two keep their value when the map is multiplied. Maps are compared
    on their own grid: ``channels`` "own" number by number, "pooled" by ``pool`` first. ``radius``: 0.1 is our choice
    (captum: 0.02 in the input's units; the authors 0.2 and 0.1 on images from 0 to 1); ``samples``: captum's 10 (authors: 50). A
    random maximum is a lower bound of the largest change. The authors' code divides its running maximum by the norm
    again at every draw; here each draw is divided once.

    An explainer's own random numbers stay those of the case, so its Monte Carlo scatter is not counted. Costs
    ``samples`` explanations a case (a dual encoder reads the text anew for each). Undefined: no map, NaN in one, an
    all-zero map, a constant image, a map whose shape changes with the image. Unsuited: explainers that were fitted.

    **Blind**: a map that ignores the input is best. A constant, a centred blob and a random map all have 0, and the
    smoother of two maps wins (arXiv 2412.10942). It tells nothing without a measure of faithfulness beside it.
    """

    samples: int = 10
    radius: float = 0.1

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("max_sensitivity", "lower", "robustness"),
        Measure("average_sensitivity", "lower", "robustness"),
        Measure("local_lipschitz", "lower", "robustness", unit="map / input"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or self.radius <= 0:
            raise Refused(
                f"metrics.sensitivity: found samples {self.samples} and radius {self.radius}, accepted are 1 or more "
                "and a radius above 0"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        explainer = self.who(trials[0])
        found: dict[int, Score] = {}
        owns = self.maps_of(trials, found)
        cases = {i: self._neighbours(trials[i].case) for i in owns}
        changes: dict[int, list[tuple[float, float]]] = {i: [] for i in owns}
        for _ in range(self.samples):
            asked = {i: next(cases[i]) for i in owns if i not in found}
            if not asked:
                break
            answers = contract.explain(explainer, trials[0].model, list(asked.values()))
            for (i, other), answer in zip(asked.items(), answers, strict=True):
                try:
                    after = self.again(trials[i], owns[i], answer)
                except Undefined as why:
                    found[i] = maps.undefined(self.measures, why)
                    continue
                step = other.pixels.double() - trials[i].case.pixels.double()
                changes[i].append((relative_change(owns[i], after), local_lipschitz(owns[i], after, step)))
        return [found.get(i) or self._score(changes[i]) for i in range(len(trials))]

    def own(self, trial: Trial) -> Tensor:
        if spread(trial.case.pixels) == 0:
            raise Undefined("a constant image has no deviation to measure a radius in")
        return super().own(trial)

    def _neighbours(self, case: Case) -> Iterator[Neighbour]:
        """Noisy copies, one after the other; the k-th is the same however many are asked for."""
        chance, size = case.generator("noise in a radius"), self.radius * spread(case.pixels)
        for k in range(self.samples):
            with torch.inference_mode(False):  # the explainer may want gradients at these pixels
                pixels = case.pixels + size * (2 * torch.rand(case.pixels.shape, generator=chance) - 1)
            yield Neighbour.of(case, pixels, f"noise {k} within {self.radius}")

    def _score(self, changes: Sequence[tuple[float, float]]) -> Score:
        relative, absolute = zip(*changes, strict=True)
        return Score(
            {
                "max_sensitivity": Value.of(max(relative)),
                "average_sensitivity": Value.of(sum(relative) / len(relative)),
                "local_lipschitz": Value.of(max(absolute)),
            }
        )


@dataclass(frozen=True)
class InputInvariance(AskedAgain):
    """Does the map stay when a constant is added to the input and the model takes it back?

    Kindermans et al. 2017 (arXiv 1711.00867): a twin of the model whose first bias is less by what ``shift`` adds to each
    filter's sum answers x + shift exactly as the model answers x, so a map should be the same of both.

    - ``input_invariance``: ||phi'(x + shift) - phi(x)|| / ||phi(x)||, 0 or more; lower is better, 0 is invariant

    ``shift`` is in units of the normalised input (1 is our choice; the authors moved images from [0, 1] to [-1, 0]).
    Maps are compared on their own grid, ``channels`` and ``pool`` as in Sensitivity; random numbers stay the case's.
    Costs one explanation, one row of the twin and the untouched image from the memo, a case.

    Undefined: no map, NaN in one, an all-zero map, a twin that does not answer alike (within 1e-3). Unsuited: explainers
    that were fitted; nets whose first convolution pads with zeros (no bias can make up for the border) or has no bias.
    A reference that stays (black, the mean colour) makes a method fail: that is the paper's point, and a matter of
    taste where the reference has a meaning. A map that ignores the input is best.
    """

    shift: float = 1.0

    measures: ClassVar[tuple[Measure, ...]] = (Measure("input_invariance", "lower", "robustness"),)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        explainer, model = self.who(trials[0]), trials[0].model
        found: dict[int, Score] = {}
        owns = self.maps_of(trials, found)
        cases = [trials[i].case for i in owns]
        with torch.inference_mode(False):
            twin = model.twin(lambda net: compensate(net, self.shift), f"input shifted by {self.shift}")
            moved = [
                Neighbour.of(case, case.pixels + self.shift, f"shifted by {self.shift}") for case in cases
            ]
        if not cases:
            return [found[i] for i in range(len(trials))]
        pairs = zip(model.clean(cases).tolist(), twin.clean(moved).tolist(), strict=True)
        answers = contract.explain(explainer, twin, moved)
        for (i, before), answer, (score, shifted) in zip(owns.items(), answers, pairs, strict=True):
            try:
                if not abs(shifted - score) <= ALIKE * max(1.0, abs(score)):
                    raise Undefined("the shifted model does not answer alike: its first layer is another")
                found[i] = Score(
                    {
                        "input_invariance": Value.of(
                            relative_change(before, self.again(trials[i], before, answer))
                        )
                    }
                )
            except Undefined as why:
                found[i] = maps.undefined(self.measures, why)
        return [found[i] for i in range(len(trials))]
