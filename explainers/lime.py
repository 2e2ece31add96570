"""LIME: a weighted ridge regression on segments and words that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, games
from heatproof.contract import Case
from heatproof.errors import Refused


@dataclass(frozen=True)
class Lime:
    """Ribeiro, Singh, Guestrin 2016 (KDD, arXiv 1602.04938): the slopes of a linear model near the case, signed.

    The model's own score of ``samples`` coalitions is fitted by ridge regression (``ridge``, free intercept) with weights
    exp(-d^2 / (2 ``width``^2)), d the cosine distance from everyone to the coalition. Image, a value a segment: ``cells`` x
    ``cells`` of a grid, [cells, cells], or about as many superpixels ("slic"), [H, W]; each there with chance one half.
    Text, a value a ``text`` unit ("none" | "token" | "word"), removed by ``removal`` or in the model's own way: how many go
    is drawn evenly, then which. Everyone is always among them. What is drawn twice is forwarded once.

    Draws, 1000 samples of an image, width 0.25, ridge 1 and a segment's own mean colour in its place are the authors'
    package's. That cuts superpixels by quickshift, draws 5000 of a text (few captions have so many coalitions), explains a
    class's probability and keeps a text's ten largest words; here it is the score, and all words. The grid is our choice.

    Criticism: at this width half of the segments still weigh 0.5 of all, so that the model is hardly local; ridge shrinks
    the values, the more the smaller the score's scale (a cosine); the map moves with the draw and with the segments; masked
    images are nothing that the model was trained on. A segment of one colour is its own mean: hidden, nothing has changed,
    and the map is blind to it (chance on the planted blocks of ``controlled``; another ``baseline`` finds them).
    """

    samples: int = 1000
    cells: int = 7
    segments: str = "grid"
    compactness: float = 10.0
    baseline: str = "segment_mean"
    width: float = 0.25
    ridge: float = 1.0
    text: str = "word"
    removal: str | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.samples < 2 or self.width <= 0 or self.ridge < 0:
            raise Refused(
                f"lime: found samples {self.samples}, width {self.width}, ridge {self.ridge}, accepted are 2 or more, "
                "above 0, and 0 or more"
            )
        pictures = games.Pictures(model, cases, self.cells, self.segments, self.compactness, self.baseline)
        images = self._slopes(
            pictures, [self._half(c, n) for c, n in zip(cases, pictures.players, strict=True)]
        )
        words = games.texts(model, cases, self.text, self.removal)
        if words is None:
            return [Explanation(image=image) for image in images]
        texts = self._slopes(words, [self._evenly(c, n) for c, n in zip(cases, words.players, strict=True)])
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _slopes(self, game: Any, coalitions: Sequence[Tensor]) -> list[Tensor]:
        scores = game.values(coalitions)
        found = [slopes(x, y, self.width, self.ridge) for x, y in zip(coalitions, scores, strict=True)]
        return [game.paint(k, values) for k, values in enumerate(found)]

    def _half(self, case: Case, players: int) -> Tensor:
        """Each there with chance one half, bool [samples, players]; the first row is everyone."""
        there = torch.rand(self.samples, players, generator=case.generator("lime image")) < 0.5
        there[0] = True
        return there

    def _evenly(self, case: Case, players: int) -> Tensor:
        """From one to all go, as many evenly, bool [samples, players]; the first row is everyone."""
        chance = case.generator("lime text")
        gone = torch.randint(1, max(players, 1) + 1, (self.samples, 1), generator=chance)
        there = torch.rand(self.samples, players, generator=chance).argsort(1).argsort(1) >= gone
        there[0] = True
        return there


def slopes(coalitions: Tensor, scores: Tensor, width: float, ridge: float) -> Tensor:
    """Weighted ridge regression with a free intercept: bool [S, n], float64 [S] -> float64 [n].

    >>> slopes(games.everyone(2), torch.tensor([0.0, 1.0, 3.0, 4.0]).double(), 1.0, 0.0).round(decimals=6).tolist()
    [1.0, 3.0]
    """
    x = coalitions.double()
    # the cosine of a coalition of s players to all n of them is sqrt(s / n); of nobody, 0
    distance = 1 - (x.sum(1) / max(x.shape[1], 1)).sqrt()
    weight = (-(distance**2) / (2 * width**2)).exp()
    share = weight / weight.sum()
    x, y = x - share @ x, scores - share @ scores
    pulled = (x * weight[:, None]).T
    found: Tensor = torch.linalg.pinv(pulled @ x + ridge * torch.eye(x.shape[1]).double()) @ (pulled @ y)
    return found
