"""Concord: do two explainers say the same of one case? (neither need be right)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import contract, geometry
from heatproof.contract import Explainer, Explanation, Measure, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking, similarity
from heatproof.metrics.maps import Undefined


def taken(heat: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each value its level's first rank, how many of the level's ranks are among the top k, and the level's size.

    heat [...] finite, 1 <= k <= n -> three float64 tensors [n]; ranks count from 0 at the largest absolute value.

    >>> [x.tolist() for x in taken(torch.tensor([1.0, -3.0, 1.0]), 2)]
    [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 2.0]]
    """
    level = ranking.levels(heat.abs()).reshape(-1)
    size = torch.bincount(level).double()
    first = size.cumsum(0) - size
    inside = (k - first).clamp(min=0).minimum(size)
    return first[level], inside[level], size[level]


def feature_agreement(a: Tensor, b: Tensor, k: int) -> float:
    """The share of the k largest values by size that two maps have in common, 0 to 1.

    a, b: the same number of values, finite; 1 <= k <= n. Where values are tied, the expectation over the orders of tied
    values, drawn for each map alone. Krishna et al. 2022 (arXiv 2202.01602), section 4; so the three below.

    >>> feature_agreement(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, -3.0, 1.0]), 2)
    1.0
    """
    return _common(a, b, k, ranks=False, signs=False)


def rank_agreement(a: Tensor, b: Tensor, k: int) -> float:
    """As ``feature_agreement``, of values that also have the same rank in both maps.

    >>> rank_agreement(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, -3.0, 1.0]), 3)
    0.3333333333333333
    """
    return _common(a, b, k, ranks=True, signs=False)


def sign_agreement(a: Tensor, b: Tensor, k: int) -> float:
    """As ``feature_agreement``, of values that also have the same sign in both maps.

    >>> sign_agreement(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, -3.0, 1.0]), 2)
    0.5
    """
    return _common(a, b, k, ranks=False, signs=True)


def signed_rank_agreement(a: Tensor, b: Tensor, k: int) -> float:
    """As ``feature_agreement``, of values that also have the same rank and the same sign in both maps.

    >>> signed_rank_agreement(torch.tensor([3.0, -2.0, 1.0]), torch.tensor([3.0, 2.0, 1.0]), 3)
    0.6666666666666666
    """
    return _common(a, b, k, ranks=True, signs=True)


def _common(a: Tensor, b: Tensor, k: int, *, ranks: bool, signs: bool) -> float:
    first_a, in_a, size_a = taken(a, k)
    first_b, in_b, size_b = taken(b, k)
    if ranks:  # each level's ranks are equally likely: how many ranks have the two levels in common?
        both = (first_a + in_a).minimum(first_b + in_b) - first_a.maximum(first_b)
        chance = both.clamp(min=0) / (size_a * size_b)
    else:
        chance = (in_a / size_a) * (in_b / size_b)
    if signs:
        chance = chance * (a.reshape(-1).sign() == b.reshape(-1).sign())
    return float(chance.sum()) / k


@dataclass(frozen=True)
class Concord:
    """Agreement of a map with another explainer's map of the same case, by rank, structure and the top places.

    ``of`` names an explainer of the spec: { use = "concord", of = "gradcam" }. The disagreement problem (Krishna et al. 2022,
    arXiv 2202.01602): methods that practitioners take for alike name other features, in another order, with other signs.

    - ``spearman``, ``kendall``: Spearman's rho and Kendall's tau-b over all pixels, -1 to 1
    - ``ssim``: structural similarity (Wang et al. 2004), -1 to 1; windows of 11 px, sigma 1.5, maps brought to one
      ``scale`` (second_moment | max_abs | range | percentile | none, as in Randomisation)
    - ``feature_agreement``: the share of the top ``share`` of the cells, by absolute relevance, that both maps have
    - ``rank_agreement``, ``sign_agreement``, ``signed_rank_agreement``: of those, what also has the same rank, the same
      sign, both. All four from 0 to 1; of equal maps 1; of independent ones ``feature_agreement`` is ``share``

    Both maps are pooled, enlarged and signed alike on the image's grid; for the last four they are averaged over ``cells``
    by ``cells`` regions (14; 0: each pixel by itself), because the authors rank superpixels, and no two maps have 1000 equal ranks.
    ``share`` 0.1 is ours. Ties: by rank and in expectation. Higher is more agreement, which is no merit by itself:
    two maps may be wrong alike, and both coarse. The other map's cost is the case's, shared where the spec asks for it.

    Unchanged when either map is multiplied by a positive number (but for ``scale`` none). Undefined: no map or NaN in it, of
    either; ``spearman``, ``kendall`` and ``ssim`` also where one is constant. Unsuited: where ``of`` is, or was fitted.
    """

    of: Explainer
    share: float = 0.1
    cells: int = 14
    scale: str = "second_moment"
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("spearman", "higher", "quality"),
        Measure("kendall", "higher", "quality"),
        Measure("ssim", "higher", "quality"),
        Measure("feature_agreement", "higher", "quality"),
        Measure("rank_agreement", "higher", "quality"),
        Measure("sign_agreement", "higher", "quality"),
        Measure("signed_rank_agreement", "higher", "quality"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "scale", tuple(similarity.SCALES))
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if not 0 < self.share <= 1 or self.cells < 0:
            raise Refused(
                f"metrics.concord: found share {self.share}, cells {self.cells}, accepted are a share "
                "above 0 and up to 1, and cells from 0"
            )

    @property
    def needs_other(self) -> bool:
        return bool(getattr(self.of, "needs_other", False))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        if hasattr(self.of, "fit"):
            raise Unsuited(
                "the explainer to agree with was fitted, and what it learned is not at hand to ask it"
            )
        plans, found = maps.planned(trials, self.measures, self._read)
        if plans:
            answers = contract.explain(self.of, trials[0].model, [trials[i].case for i in plans])
            for i, answer in zip(plans, answers, strict=True):
                found[i] = self._score(trials[i], plans[i], answer)
        return [found[i] for i in range(len(trials))]

    def _read(self, trial: Trial) -> Tensor:
        return maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)

    def _score(self, trial: Trial, own: Tensor, answer: Explanation) -> Score:
        try:
            other = self._read(Trial(trial.model, trial.case, self.of, answer))
        except Undefined as why:
            return maps.undefined(self.measures, Undefined(f"of the explainer to agree with: {why}"))
        found = {
            "spearman": ranking.spearman(own, other),
            "kendall": similarity.kendall_tau(own, other),
            "ssim": similarity.scaled_ssim(own, other, self.scale),
        }
        one, two = self._regions(own), self._regions(other)
        k = max(1, round(self.share * one.numel()))
        for agreement in (feature_agreement, rank_agreement, sign_agreement, signed_rank_agreement):
            found[agreement.__name__] = agreement(one, two, k)
        return Score({name: Value.of(number, "a map is constant") for name, number in found.items()})

    def _regions(self, heat: Tensor) -> Tensor:
        high, wide = heat.shape
        if not self.cells:
            return heat
        size = min(self.cells, high), min(self.cells, wide)
        return F.adaptive_avg_pool2d(heat.double()[None], size)[0]
