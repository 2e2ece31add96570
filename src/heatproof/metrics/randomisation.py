"""Randomisation: does the map change when the model's weights are replaced by noise? (a sanity check)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from heatproof import contract, geometry, seeds
from heatproof.contract import Explanation, Measure, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking
from heatproof.metrics.maps import Undefined


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


@dataclass(frozen=True)
class Randomisation:
    """Parameter randomisation: rank correlation of a map with the same explainer's map of a randomised model.

    Adebayo et al. 2018 (Sanity checks for saliency maps). The weights are replaced, layer by layer from the
    output down, in ``levels`` equal shares that add up (cascading); ``levels`` 1 replaces them all at once. At
    each level the explainer is asked again; buffers (running means) stay. Layers are modules that own parameters,
    in the order in which the net lists them. The noise is seeded by the spec, so all cases meet one twin.

    - ``randomisation``: Spearman's rho of the absolute maps, every layer randomised
    - ``randomisation_signed``: the same of the signed maps

    Both from -1 to 1, on the map's own grid, ties at their mean rank; the curves tell all levels, over the share
    of layers randomised. Lower is better, down to 0: a map that stays (1) does not depend on what the model has
    learned. Smooth maps scatter more around 0. Costs ``levels`` explanations a case. Known criticism: rank
    correlation after only the top layers says little, and centred maps of any method look alike (Binder et al.
    2023; Hedström et al. 2024).

    Undefined: no map, NaN in it, either map constant. Unsuited: explainers that were fitted.
    """

    levels: int = 1
    pool: str = "sum"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("randomisation", "lower", "sanity"),
        Measure("randomisation_signed", "lower", "sanity"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        if self.levels < 1:
            raise Refused(f"metrics.randomisation.levels: found {self.levels}, accepted is 1 or more")

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, explainer, seed = trials[0].model, trials[0].explainer, trials[0].case.seed
        if explainer is None:
            raise Unsuited("there is no explainer to ask again")
        if hasattr(explainer, "fit"):
            raise Unsuited(
                "the explainer was fitted to the model as it is; it cannot be asked of a randomised one"
            )
        found: dict[int, Score] = {}
        owns: dict[int, Tensor] = {}
        for i, trial in enumerate(trials):
            try:
                owns[i] = maps.image_heat(trial)
            except Undefined as why:
                found[i] = maps.undefined(self.measures, why)
        cases = [trials[i].case for i in owns]
        again: list[list[Explanation]] = []
        for level in range(1, self.levels + 1) if cases else ():
            with torch.inference_mode(False):  # the explainer may want gradients through the twin
                twin = model.twin(
                    self._edit(level, seed), f"randomised {level} of {self.levels}, seed {seed}"
                )
            again.append(contract.explain(explainer, twin, cases))
        for place, i in enumerate(owns):
            found[i] = self._score(trials[i], [answers[place] for answers in again])
        return [found[i] for i in range(len(trials))]

    def _edit(self, level: int, seed: int) -> Callable[[nn.Module], None]:
        def edit(net: nn.Module) -> None:
            groups = layers(net)
            count = -(-len(groups) * level // self.levels)  # rounded up: each level changes something
            randomise(net, [name for group in groups[len(groups) - count :] for name in group], seed)

        return edit

    def _score(self, trial: Trial, answers: Sequence[Explanation]) -> Score:
        share = [level / self.levels for level in range(self.levels + 1)]
        values, curves = {}, {}
        for measure, sign in zip(self.measures, ("abs", "signed"), strict=True):
            try:
                rhos = [self._similarity(trial, answer, sign) for answer in answers]
            except Undefined as why:
                values[measure.name] = Value.undefined(str(why))
                continue
            values[measure.name] = Value.of(rhos[-1], "a map is constant")
            if all(map(math.isfinite, rhos)):
                curves[measure.name] = (share, [1.0, *rhos])
        return Score(values, curves)

    def _similarity(self, trial: Trial, answer: Explanation, sign: str) -> float:
        after = contract.Trial(trial.model, trial.case, trial.explainer, answer)
        one, other = (geometry.read(maps.image_heat(t), pool=self.pool, sign=sign) for t in (trial, after))
        return ranking.spearman(one, other)
