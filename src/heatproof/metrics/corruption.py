"""Image and caption pairs that lost what a map marks, and whether they still find each other: shared by two metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Model, Refused, Trial, Unsuited
from heatproof.metrics import baselines, maps, ranking
from heatproof.metrics.maps import Undefined
from heatproof.metrics.neighbours import Neighbour
from heatproof.segments import removable

FILLS = ("image_mean", "mean", "black")  # rules of baselines
REMOVALS = ("pad", "unknown", "mask", "delete")  # what can be told by other tokens alone
SIDES = ("image", "text")
TIED = 1e-6  # cosines that rounding alone may tell apart
ALONE = "the fit split has no other photograph to tell this one from"


def above(share: float, n: int) -> int:
    """How many of n untied values lie above their (1 - share) percentile (interpolated linearly); at least 1.

    >>> above(0.25, 224 * 224), [above(0.1, n) for n in (1, 5, 11, 12)]
    (12544, [1, 1, 1, 2])
    """
    return max(1, math.ceil(share * (n - 1) - 1e-9))


def marked(heat: Tensor, share: float, chance: torch.Generator, *, by_threshold: bool = False) -> Tensor:
    """What goes: exactly ``above(share, n)`` of the highest values, tied ones by lot; bool [n] for a heat [n], finite.

    ``by_threshold``: what is strictly above the percentile, fewer where values are tied.

    >>> marked(torch.tensor([0.0, 3.0, 1.0, 2.0]), 0.25, torch.Generator()).tolist()
    [False, True, False, False]
    """
    if by_threshold:
        values = heat.double()
        return values > values.quantile(1 - share)
    gone = torch.zeros(len(heat), dtype=torch.bool)
    gone[ranking.order(heat, chance)[: above(share, len(heat))]] = True
    return gone


def hit(query: Tensor, own: Tensor, others: Tensor) -> float:
    """1 where the query [D] has a greater cosine with ``own`` [D] than with all of the others [N, D], else 0.

    Where n of them share the greatest, to 1e-6, 1 / (n + 1): equal captions, the same words in another order for a bag of them.

    >>> hit(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    0.5
    """
    like = (F.normalize(torch.cat([own[None], others]).double(), dim=1) * query.double()).sum(1)
    best = like >= like.max() - TIED
    return float(best[0]) / int(best.sum())


def images(model: Model, cases: Sequence[Case]) -> list[Tensor]:
    """The untouched images' embeddings [D], from the chunk's memo by the name that a dual encoder has for them."""

    def compute(some: list[Case]) -> list[Tensor]:
        with torch.no_grad():
            return list(model.embed(model.stack(some), some))

    return model.recall("image embedding", cases, compute)


@dataclass(frozen=True)
class Corruption:
    """Images and captions without what a map marks; a subclass says what is asked about them."""

    image_share: float = 0.25
    text_share: float = 0.1
    fill: str = "image_mean"
    removal: str = "pad"
    by_threshold: bool = False
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    def __post_init__(self) -> None:
        maps.accept(self, "fill", FILLS)
        maps.accept(self, "removal", REMOVALS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if not (0 < self.image_share < 1 and 0 < self.text_share < 1):
            raise Refused(
                f"metrics.{type(self).__name__.lower()}: found image_share {self.image_share}, text_share "
                f"{self.text_share}, accepted are shares between 0 and 1"
            )

    def image(self, trial: Trial) -> Tensor:
        """The case's image [C, H, W] without its marked pixels, all channels together."""
        case = trial.case
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        chance = case.generator("tied pixels")
        gone = marked(heat.reshape(-1), self.image_share, chance, by_threshold=self.by_threshold)
        blank = baselines.blank(self.fill, case, trial.model)
        return torch.where(gone.reshape(heat.shape), blank, case.pixels)

    def text(self, trial: Trial) -> Case:
        """The case with a caption without its marked tokens; special tokens stay. Its cost is the case's."""
        case, heat = trial.case, maps.text_heat(trial)
        free = [place for (place,) in removable(case, trial.model.family)]
        if not free or case.tokens is None:
            raise Undefined("no token that may be removed")
        relevance = geometry.read(heat[free][None], sign=self.sign)[0]
        gone = torch.zeros(len(case.words), dtype=torch.bool)
        gone[free] = marked(
            relevance, self.text_share, case.generator("tied tokens"), by_threshold=self.by_threshold
        )
        return _reworded(trial.model, case, gone, self.removal)

    def embedded(self, side: str, trials: Sequence[Trial]) -> tuple[dict[int, Tensor], dict[int, str]]:
        """By place: the embeddings [D] of one side without what is marked, and why there is none."""
        pixels: dict[int, Tensor] = {}
        read: dict[int, Case] = {}
        lost: dict[int, str] = {}
        for i, trial in enumerate(trials):
            try:
                if side == "image":
                    pixels[i], read[i] = self.image(trial), trial.case
                else:
                    read[i] = self.text(trial)
            except Undefined as why:
                lost[i] = str(why)
        if not read:
            return {}, lost
        model, cases = trials[0].model, list(read.values())
        with torch.no_grad():
            found = (
                model.embed(torch.stack(list(pixels.values())), cases) if pixels else model.embed_text(cases)
            )
        return dict(zip(read, found.cpu(), strict=True)), lost


def _reworded(model: Any, case: Case, gone: Tensor, removal: str) -> Case:
    if removal == "delete":
        there = [k for k, away in enumerate(gone.tolist()) if not away]
        ids, words = case.tokens[~gone], tuple(case.words[k] for k in there)  # type: ignore[index]  # asked before
    else:
        other = getattr(model.tokenizer, removal)
        if other is None:
            raise Unsuited(f"{model.name}'s vocabulary has no mask token; take pad, unknown or delete")
        ids, words = torch.where(gone, other, case.tokens), case.words  # type: ignore[arg-type]
    name = f"reading {' '.join(map(str, ids.tolist()))}"
    return replace(
        Neighbour.of(case, case.pixels, name), tokens=ids, words=words, spoken=(), evidence_text=None
    )
