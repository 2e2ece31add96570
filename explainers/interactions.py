"""Image cells times words: which part of the image speaks for which word of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited, games
from heatproof.contract import Case
from heatproof.errors import Refused, unknown

REMOVALS = ("delete", "pad", "unknown", "mask")
Side = tuple[Tensor, Tensor]  # the different coalitions [S, n] of one side, and what each weighs [S]


@dataclass(frozen=True)
class Interactions:
    """Weighted Banzhaf interactions of cells and words, by regression; pairs [cells^2, T], image [cells, cells], text [T].

    The game is the cosine v(S, L) of the cells S (of a ``cells`` x ``cells`` grid) and the words L that are there, each with
    chance ``keep`` by itself. ``image_masks`` coalitions of cells and ``text_masks`` of words are embedded once each, and
    every image meets every text: M x N values for M + N forwards. Where a side has no more coalitions than that, all are
    asked, weighed by their chance. v is fitted by c + sum a_i x_i + sum b_j y_j + sum w_ij x_i y_j, x and y less ``keep``.
    With all coalitions w_ij is exactly the weighted Banzhaf interaction, the mean over who else is there of
    v(i, j) - v(i) - v(j) + v(), and a, b are the weighted Banzhaf values (Grabisch and Roubens 1999; Marichal and Mathonet
    2011); pairs of one side are orthogonal to them, and left out. So is what three players do together.

    ``pairs`` is w, a word's shared among its ``unit`` "token"s; ``image`` is a, ``text`` b: the first-order maps of the same
    game, words half told included. A word's own map is its column of ``pairs``. ``removal`` of words: "delete" | "pad" |
    "unknown" | "mask". ``baseline`` "mean" | "black" | "segment_mean" in place of cells. FIxLIP (Baniecki et al. 2025) fits
    such games for CLIP and reports ``keep`` 0.7, taken here; the numbers of masks are ours (theirs meet 2^21 times).

    Criticism: an interaction is about a joint change of the score, not about where a thing is; with fewer image masks than
    cells the fit is the smallest of many; half-empty texts and images are nothing that the model was trained on.
    """

    cells: int = 7
    image_masks: int = 512
    text_masks: int = 64
    keep: float = 0.7
    unit: str = "word"
    removal: str = "delete"
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if model.family != "dual":
            raise Unsuited(f"interactions need an image and a text to meet; {model.name} is a {model.family}")
        if not 0 < self.keep < 1 or min(self.image_masks, self.text_masks) < 1:
            raise Refused(
                f"interactions: found keep {self.keep}, masks {self.image_masks} and {self.text_masks}, accepted are "
                "between 0 and 1, and 1 or more"
            )
        if self.removal not in REMOVALS:
            raise unknown("explainers: interactions", "removal", self.removal, REMOVALS)
        if self.unit not in ("token", "word"):
            raise unknown("explainers: interactions", "unit", self.unit, ("token", "word"))
        pictures = games.Pictures(model, cases, self.cells, baseline=self.baseline)
        texts = games.Texts(model, cases, self.unit)
        seen = [
            self._side(c, "image", n, self.image_masks) for c, n in zip(cases, pictures.players, strict=True)
        ]
        said = [self._side(c, "text", n, self.text_masks) for c, n in zip(cases, texts.players, strict=True)]
        images = pictures.embed([rows for rows, _ in seen])
        words = texts.embed([rows for rows, _ in said], self.removal)
        found = []
        for k, (image, text) in enumerate(zip(images, words, strict=True)):
            values = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
            whole = fit(values, seen[k], said[k], self.keep)
            pairs, cells, tokens = whole[1:, 1:], whole[1:, 0], whole[0, 1:]
            found.append(Explanation(pictures.paint(k, cells), texts.paint(k, tokens), texts.paint(k, pairs)))
        return found

    def _side(self, case: Case, part: str, players: int, masks: int) -> Side:
        """The coalitions of one side: all, weighed by their chance, or some drawn, by how often they were."""
        if 2**players <= masks:
            there = games.everyone(players)
            count = there.sum(1).double()
            return there, self.keep**count * (1 - self.keep) ** (players - count)
        chance = case.generator(f"interactions {part}")
        rows, which = games.distinct(torch.rand(masks, players, generator=chance) < self.keep)
        return rows, torch.bincount(which).double() / masks


def fit(values: Tensor, seen: Side, said: Side, keep: float) -> Tensor:
    """Weighted least squares of v [M, N] on (1, x) times (1, y), x, y less ``keep``: float64 [1 + n, 1 + m].

    Every image meets every text, so that the design is a product, and its pseudo-inverse the product of the sides'.

    >>> side = games.everyone(1), torch.tensor([0.5, 0.5]).double()
    >>> fit(torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double(), side, side, 0.5).round(decimals=6).tolist()
    [[0.25, 0.5], [0.5, 1.0]]
    """
    solved = []
    for there, weight in (seen, said):
        design = F.pad(there.double() - keep, (1, 0), value=1.0)
        root = weight.sqrt()
        solved.append(torch.linalg.pinv(root[:, None] * design) * root)
    return solved[0] @ values @ solved[1].T
