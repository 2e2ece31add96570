"""Shapley values of segments and words: exact where few, else by sampled orders of arrival."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, games
from heatproof.contract import Case
from heatproof.errors import Refused


@dataclass(frozen=True)
class Shapley:
    """Shapley value sampling (Castro, Gomez, Tejada 2009; Strumbelj and Kononenko 2010): what each player adds, signed.

    The mean over ``orders`` random orders of arrival of what a player adds to the model's own score when it comes. The
    values sum to score(all) - score(nobody) whatever is drawn. Image, a value a segment: ``cells`` x ``cells`` of a grid,
    [cells, cells], or about as many superpixels ("slic"), [H, W]. Text, a value a ``text`` unit ("none" | "token" | "word"),
    removed by ``removal`` or in the model's own way. n players cost at most orders * (n - 1) + 2 forwards; where all 2^n
    coalitions are no more than that, they are asked instead and the values are exact.

    25 orders are Captum's default (n_samples), "mean" its zero baseline; a 7 x 7 grid is our choice.

    Criticism: the deviation falls with the root of the orders; coalitions of half the image are nothing the model was
    trained on; credit for what only works together is shared out evenly, which is a convention (see ``interactions``).
    """

    orders: int = 25
    cells: int = 7
    segments: str = "grid"
    compactness: float = 10.0
    baseline: str = "mean"
    text: str = "word"
    removal: str | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.orders < 1:
            raise Refused(f"shapley: orders: found {self.orders}, accepted is 1 or more")
        pictures = games.Pictures(model, cases, self.cells, self.segments, self.compactness, self.baseline)
        images = self._values(pictures, [case.generator("shapley image") for case in cases])
        words = games.texts(model, cases, self.text, self.removal)
        if words is None:
            return [Explanation(image=image) for image in images]
        texts = self._values(words, [case.generator("shapley text") for case in cases])
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _values(self, game: Any, chances: Sequence[torch.Generator]) -> list[Tensor]:
        orders = [self._orders(n, chance) for n, chance in zip(game.players, chances, strict=True)]
        asked = [
            games.everyone(n) if order is None else arrivals(order).flatten(0, 1)
            for n, order in zip(game.players, orders, strict=True)
        ]
        scores = game.values(asked)
        found = [
            exact(s) if order is None else added(order, s) for order, s in zip(orders, scores, strict=True)
        ]
        return [game.paint(k, values) for k, values in enumerate(found)]

    def _orders(self, players: int, chance: torch.Generator) -> Tensor | None:
        """Who comes first, second, ..., int64 [orders, players]; None where every coalition can be asked."""
        if 2**players <= self.orders * max(players - 1, 0) + 2:
            return None
        return torch.rand(self.orders, players, generator=chance).argsort(1)


def arrivals(orders: Tensor) -> Tensor:
    """int64 [P, n] -> bool [P, n + 1, n]: who is there after nobody, the first, ..., the last has come.

    >>> arrivals(torch.tensor([[1, 0]])).int().tolist()
    [[[0, 0], [0, 1], [1, 1]]]
    """
    turns = orders.argsort(1)
    return turns[:, None] < torch.arange(orders.shape[1] + 1)[:, None]


def added(orders: Tensor, scores: Tensor) -> Tensor:
    """The mean of what each player adds: int64 [P, n], scores of their arrivals [P * (n + 1)] -> [n]."""
    gains = scores.view(len(orders), -1).diff(dim=1)
    return torch.zeros_like(gains).scatter(1, orders, gains).mean(0)


def exact(scores: Tensor) -> Tensor:
    """Shapley values from the scores of ``games.everyone(n)``: float64 [2^n] -> [n].

    >>> exact(torch.tensor([0.0, 1.0, 3.0, 6.0]).double()).tolist()
    [2.0, 4.0]
    """
    players = len(scores).bit_length() - 1
    there = games.everyone(players)
    sizes = there.sum(1)
    weights = torch.tensor([1 / (players * math.comb(players - 1, s)) for s in range(players)]).double()
    found = torch.zeros(players).double()
    for i in range(players):
        without = (~there[:, i]).nonzero()[:, 0]
        found[i] = (weights[sizes[without]] * (scores[without + 2**i] - scores[without])).sum()
    return found
