"""Randomisation: does the map change when the model's weights are replaced by noise? (a sanity check)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from heatproof import contract, geometry, seeds
from heatproof.contract import (
    Case,
    Explainer,
    Explanation,
    Measure,
    Model,
    Refused,
    Score,
    Trial,
    Unsuited,
    Value,
)
from heatproof.metrics import maps, ranking, similarity
from heatproof.metrics.maps import Undefined

MODES = ("cascading", "independent")
ORDERS = ("top_down", "bottom_up")
SIMILARITIES = ("spearman", "ssim")
CONSTANT = "a map is constant"


def layers(net: nn.Module) -> list[list[str]]:
    """The parameters' names by the module that owns them, in the order in which the net lists them.

    >>> layers(nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)))
    [['0.weight', '0.bias'], ['2.weight', '2.bias']]
    """
    found: dict[str, list[str]] = {}
    for name, _ in net.named_parameters():
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())


def randomise(net: nn.Module, names: Sequence[str], seed: int) -> None:
    """Replace parameters, in place, by normal noise of each tensor's own mean and standard deviation.

    A tensor of equal values (a fresh bias, a single number) stays as it is: its own deviation is 0. Each parameter's
    noise depends on the seed and its name alone.

    >>> net = nn.Linear(50, 50)
    >>> before = net.weight.clone()
    >>> randomise(net, ["weight"], seed=0)
    >>> bool((net.weight != before).all()), bool((net.weight.std() / before.std() - 1).abs() < 0.1)
    (True, True)
    """
    owned = dict(net.named_parameters())
    with torch.no_grad():
        for name in names:
            weight = owned[name]
            noise = torch.randn(weight.shape, generator=seeds.generator(seed, "randomised", name))
            spread = weight.std(correction=0)
            weight.copy_(weight.mean() + spread * noise.to(weight))


def runs(total: int, levels: int, mode: str = "cascading", order: str = "top_down") -> list[tuple[int, int]]:
    """Which of ``total`` layers are random at each level, as first and one past the last, counted from the input.

    The layers are cut into ``levels`` shares, rounded up from the end that ``order`` starts at; "cascading" adds share
    to share, "independent" takes each alone (and leaves out those that are empty).

    >>> runs(4, 2), runs(4, 2, "independent"), runs(4, 2, order="bottom_up")
    ([(2, 4), (0, 4)], [(2, 4), (0, 2)], [(0, 2), (0, 4)])
    """
    ends = [-(-total * level // levels) for level in range(levels + 1)]  # each level changes something
    starts = [0] * levels if mode == "cascading" else ends[:-1]
    found = [run for run in zip(starts, ends[1:], strict=True) if run[0] < run[1]]
    return found if order == "bottom_up" else [(total - last, total - first) for first, last in found]


def randomised(model: Model, run: tuple[int, int], seed: int) -> Model:
    """The model's twin with the layers of a ``run`` replaced by noise; asked for again, it is the same one."""

    def edit(net: nn.Module) -> None:
        randomise(net, [name for group in layers(net)[slice(*run)] for name in group], seed)

    with torch.inference_mode(False):  # the explainer may want gradients through the twin
        return model.twin(edit, f"layers {run[0]} to {run[1] - 1} randomised, seed {seed}")


def depth(model: Model) -> int:
    """How many layers the model has."""
    net: nn.Module = model.net  # type: ignore[attr-defined]  # every implementation has one
    return len(layers(net))


def who(trial: Trial) -> Explainer:
    """The trial's explainer, or Unsuited where it cannot be asked about another model."""
    if trial.explainer is None:
        raise Unsuited("there is no explainer to ask again")
    if hasattr(trial.explainer, "fit"):
        raise Unsuited(
            "the explainer was fitted to the model as it is; it cannot be asked of a randomised one"
        )
    return trial.explainer


@dataclass(frozen=True)
class Randomisation:
    """Parameter randomisation: likeness of a map to the same explainer's map of a randomised model.

    Adebayo et al. 2018 (Sanity checks for saliency maps). The weights are replaced, layer by layer, in ``levels`` equal
    shares. ``mode``: cascading (shares add up) | independent (each alone, the rest as trained). ``order``: top_down
    (from the output, as Adebayo et al.) | bottom_up (from the input, which Binder et al. 2023, arXiv 2211.12486,
    and Hedström et al. 2024 advise: under random top layers the features below still stand, and maps with them).
    ``levels`` 1 replaces all at once, where neither matters. At each level the explainer is asked again; buffers
    (running means) stay. Layers are modules that own parameters, in the order in which the net lists them. The noise is
    seeded by the spec, so all cases meet one twin.

    - ``randomisation``: likeness of the absolute maps, every layer randomised
    - ``randomisation_signed``: the same of the signed maps

    Of the last level where cascading; ``average`` takes the mean over the levels (Hedström et al.), as do independent
    shares, which have no last. The curves tell all levels, over the share of layers randomised (independent: of
    layers gone through). ``similarity``: spearman (ties at their mean rank; on the map's own grid with ``upsample`` none)
    | ssim (Wang et al. 2004, in windows of 11 px, sigma 1.5, on the image's grid: take ``upsample``
    bilinear) of maps brought to one ``scale``: second_moment (Binder et al.) | max_abs | range | percentile | none.

    Both from -1 to 1. Lower is better, down to 0: a map that stays (1) does not depend on what the model has
    learned. Smooth maps scatter more around 0. Costs ``levels`` explanations a case. Known criticism: rank
    correlation after only the top layers says little, and centred maps of any method look alike (Binder et al.
    2023; Hedström et al. 2024). A map of noise is like no other and so the best by any likeness, and one pixel that
    outshines the rest makes two maps alike on a fixed range (max_abs, range); see mprt:EfficientMprt.

    Undefined: no map, NaN in it, either map constant. Unsuited: explainers that were fitted.
    """

    levels: int = 1
    pool: str = "sum"
    mode: str = "cascading"
    order: str = "top_down"
    average: bool = False
    similarity: str = "spearman"
    scale: str = "second_moment"
    upsample: str = "none"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("randomisation", "lower", "sanity"),
        Measure("randomisation_signed", "lower", "sanity"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "mode", MODES)
        maps.accept(self, "order", ORDERS)
        maps.accept(self, "similarity", SIMILARITIES)
        maps.accept(self, "scale", tuple(similarity.SCALES))
        enlarged = tuple(way for way in geometry.UPSAMPLES if way != "none")
        maps.accept(self, "upsample", enlarged if self.similarity == "ssim" else geometry.UPSAMPLES)
        if self.levels < 1:
            raise Refused(f"metrics.randomisation.levels: found {self.levels}, accepted is 1 or more")

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, explainer = trials[0].model, who(trials[0])
        plans, found = maps.planned(trials, self.measures, maps.image_heat)
        asked = [trials[i] for i in plans]
        if asked:
            before = self._before(explainer, asked)
            levels = runs(depth(model), self.levels, self.mode, self.order)
            seed = asked[0].case.seed
            after = [
                self._answers(explainer, randomised(model, run, seed), [t.case for t in asked])
                for run in levels
            ]
            for k, i in enumerate(plans):
                found[i] = self._score(trials[i], before[k], [answers[k] for answers in after])
        return [found[i] for i in range(len(trials))]

    def _before(self, explainer: Explainer, trials: Sequence[Trial]) -> list[Explanation]:
        return [trial.explanation or Explanation() for trial in trials]

    def _answers(self, explainer: Explainer, model: Model, cases: Sequence[Case]) -> list[Explanation]:
        return contract.explain(explainer, model, cases)

    def _score(self, trial: Trial, before: Explanation, after: Sequence[Explanation]) -> Score:
        cascading = self.mode == "cascading"
        share = [level / len(after) for level in range(len(after) + 1)]
        values, curves = {}, {}
        for measure, sign in zip(self.measures, ("abs", "signed"), strict=True):
            try:
                found = [self._likeness(trial, before, answer, sign) for answer in after]
            except Undefined as why:
                values[measure.name] = Value.undefined(str(why))
                continue
            mean = self.average or not cascading
            values[measure.name] = Value.of(sum(found) / len(found) if mean else found[-1], CONSTANT)
            if all(map(math.isfinite, found)):
                curves[measure.name] = (share, [1.0, *found]) if cascading else (share[1:], found)
        return Score(values, curves)

    def _likeness(self, trial: Trial, before: Explanation, after: Explanation, sign: str) -> float:
        one, other = (
            maps.read(
                Trial(trial.model, trial.case, trial.explainer, answer),
                pool=self.pool,
                sign=sign,
                upsample=self.upsample,
            )
            for answer in (before, after)
        )
        if self.similarity == "spearman":
            return ranking.spearman(one, other)
        return similarity.scaled_ssim(one, other, self.scale)
