"""Explaining as a game: players of an image or a text come and go, and the model's score is what a coalition earns.

Players are segments (grid cells or superpixels) or units of a text (tokens or words). A coalition is a row of bool, True
where a player is there. Rows of pixels are made a batch at a time; each different coalition of a case costs one forward.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from heatproof.contract import Case
from heatproof.errors import Refused, Unsuited, unknown
from heatproof.segments import SEGMENTS, grid, removable, slic

BASELINES = ("mean", "black", "segment_mean")
UNITS = ("none", "token", "word")
TOGETHER = 96  # rows in memory at once: whole blocks of 8, 16, 24, 32 or 48

T = TypeVar("T")
Rows = Sequence[tuple[int, Tensor]]  # which case, and who is there


class Pictures:
    """The images of some cases cut into segments; who is not there shows the baseline.

    ``cut``: "grid" of ``cells`` x ``cells`` | "slic", about as many superpixels of ``compactness``. ``baseline``: "mean" (zero
    after normalisation) | "black" | "segment_mean" (each segment's own mean colour).
    """

    def __init__(
        self,
        model: Any,
        cases: Sequence[Case],
        cells: int,
        cut: str = "grid",
        compactness: float = 10.0,
        baseline: str = "mean",
    ) -> None:
        if cut not in SEGMENTS:
            raise unknown("explainers", "segments", cut, SEGMENTS)
        if baseline not in BASELINES:
            raise unknown("explainers", "baseline", baseline, BASELINES)
        if cells < 1 or compactness <= 0:
            raise Refused(
                f"cells: found {cells}, compactness {compactness}, accepted are 1 or more and above 0"
            )
        if cut == "slic" and importlib.util.find_spec("skimage") is None:
            raise Refused(
                'segments: found "slic", which scikit-image cuts, and it is not installed: type '
                'pip install scikit-image, or take segments = "grid"'
            )
        if cases[0].pixels.ndim != 3:
            raise Unsuited(f"{model.name} reads region features: there are no pixels to remove")
        self.model, self.cases, self.cut, self.cells = model, cases, cut, cells
        self.places = [self._places(case, compactness) for case in cases]
        self.players = [int(place.max()) + 1 for place in self.places]
        self.blanks = [_blank(baseline, c.pixels, p, model) for c, p in zip(cases, self.places, strict=True)]

    def _places(self, case: Case, compactness: float) -> Tensor:
        """The player of each pixel, int64 [H, W]."""
        high, wide = case.pixels.shape[1:]
        if self.cut == "grid":
            return grid((high, wide), self.cells)
        return slic(case.pixels, self.cells**2, compactness, self.model.frame)

    def rows(self, some: Rows) -> Tensor:
        """The images that these coalitions leave, [N, C, H, W]."""
        return torch.stack(
            [torch.where(there[self.places[k]], self.cases[k].pixels, self.blanks[k]) for k, there in some]
        )

    def values(self, coalitions: Sequence[Tensor]) -> list[Tensor]:
        """A score for each row of each case's coalitions, float64; all of them there is the chunk's clean score."""
        whole = None
        if any(bool(rows.all(1).any()) for rows in coalitions):
            whole = self.model.clean(self.cases).tolist()
        score = lambda some: self.model.score(self.rows(some), [self.cases[k] for k, _ in some])
        return _asked(self.model, coalitions, score, whole)

    def embed(self, coalitions: Sequence[Tensor]) -> list[Tensor]:
        """The embedding of each row of each case's coalitions, float64 [S, D]; one forward a row."""
        todo = [(k, there) for k, rows in enumerate(coalitions) for there in rows]
        found = []
        with torch.inference_mode():
            for some in batches(self.model, todo):
                cases = [self.cases[k] for k, _ in some]
                found += list(self.model.embed(self.rows(some), cases).cpu().double())
        return list(torch.stack(found).split([len(rows) for rows in coalitions]))

    def paint(self, k: int, values: Tensor) -> Tensor:
        """A value a player -> the native map: [cells, cells] of a grid, [H, W] of superpixels, each pixel its segment's."""
        if self.cut == "slic":
            return values[self.places[k]].float()
        high, wide = self.cases[k].pixels.shape[1:]
        return values.reshape(min(self.cells, high), min(self.cells, wide)).float()


class Texts:
    """The texts of some cases cut into tokens or words, removed by one of the model's ways; special tokens always stay."""

    def __init__(
        self, model: Any, cases: Sequence[Case], unit: str = "word", removal: str | None = None
    ) -> None:
        self.model, self.cases = model, cases
        self.how = {} if removal is None else {"removal": removal}  # else the model's own way
        self.groups = [removable(case, model.family, unit) for case in cases]
        self.players = [len(groups) for groups in self.groups]
        self.length = max(len(case.words) for case in cases)

    def keep(self, k: int, there: Tensor) -> Tensor:
        """What stays of a text, float [longest T], 1 = kept."""
        kept = torch.ones(self.length)
        for group, stays in zip(self.groups[k], there.tolist(), strict=True):
            kept[group] = float(stays)
        return kept

    def values(self, coalitions: Sequence[Tensor]) -> list[Tensor]:
        """A score for each row of each case's coalitions, float64."""

        def score(some: Rows) -> Tensor:
            rows = torch.stack([self.keep(k, there) for k, there in some])
            found: Tensor = self.model.score_text(rows, [self.cases[k] for k, _ in some], **self.how)
            return found

        return _asked(self.model, coalitions, score)

    def embed(self, coalitions: Sequence[Tensor], removal: str) -> list[Tensor]:
        """The embedding of each row of each case's coalitions, float64 [S, D]; one forward a row.

        A coalition is a text of its own: tokens "delete"d close up, or the model's "pad", "unknown", "mask" stands there.
        """
        todo = [self._told(k, there, removal) for k, rows in enumerate(coalitions) for there in rows]
        rows = self.model.embed_text(todo).cpu().double()
        return list(rows.split([len(some) for some in coalitions]))

    def _told(self, k: int, there: Tensor, removal: str) -> Case:
        case, stays = self.cases[k], self.keep(k, there)[: len(self.cases[k].words)] > 0
        assert case.tokens is not None
        name = "".join(str(int(there)) for there in stays)
        told = replace(case, id=f"{case.id} {removal} {name}", charge=case.charge or case.id)
        if removal == "delete":
            return replace(told, tokens=case.tokens[stays])
        other: int | None = getattr(self.model.tokenizer, removal)
        if other is None:
            raise Unsuited(f"{self.model.name}'s vocabulary has no {removal} token; take delete")
        return replace(told, tokens=case.tokens.masked_fill(~stays, other))

    def paint(self, k: int, values: Tensor) -> Tensor:
        """A value a player -> [..., T]: a word's is shared among its tokens, so that they sum to it; 0 for special ones."""
        heat = torch.zeros(*values.shape[:-1], len(self.cases[k].words))
        for i, group in enumerate(self.groups[k]):
            heat[..., group] = (values[..., i, None] / len(group)).float()
        return heat


def texts(model: Any, cases: Sequence[Case], unit: str, removal: str | None = None) -> Texts | None:
    """The texts of some cases as players; None where they are not asked for ("none") or the model reads none."""
    if unit not in UNITS:
        raise unknown("explainers", "text", unit, UNITS)
    if unit == "none" or "text.embed" not in model.sites:
        return None
    return Texts(model, cases, unit, removal)


def everyone(players: int) -> Tensor:
    """Every coalition, bool [2^players, players]; row r holds player i where bit i of r is set.

    >>> everyone(2).int().tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) % 2 == 1


def distinct(coalitions: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of coalitions bool [S, n], and for each row which of them it is, int64 [S]."""
    if coalitions.shape[1] == 0:
        return coalitions[:1], torch.zeros(len(coalitions), dtype=torch.long)
    rows, which = torch.unique(coalitions, dim=0, return_inverse=True)
    return rows, which


def _asked(
    model: Any,
    coalitions: Sequence[Tensor],
    score: Callable[[Rows], Tensor],
    whole: Sequence[float] | None = None,
) -> list[Tensor]:
    """The scores of each case's coalitions, each different one asked once; ``whole``: those of all players, known."""
    cut = [distinct(rows) for rows in coalitions]
    todo = [(k, j) for k, (rows, _) in enumerate(cut) for j in range(len(rows))]
    if whole is not None:
        todo = [(k, j) for k, j in todo if not bool(cut[k][0][j].all())]
    told = [
        torch.full((len(rows),), torch.nan if whole is None else whole[k]).double()
        for k, (rows, _) in enumerate(cut)
    ]
    with torch.inference_mode():
        for some in batches(model, todo):
            found = score([(k, cut[k][0][j]) for k, j in some]).tolist()
            for (k, j), value in zip(some, found, strict=True):
                told[k][j] = value
    return [values[which] for values, (_, which) in zip(told, cut, strict=True)]


def batches(model: Any, todo: list[T]) -> Iterator[list[T]]:
    """As many at a time as fill whole blocks of the model's rows."""
    many = model.rows * max(1, TOGETHER // model.rows)
    for first in range(0, len(todo), many):
        yield todo[first : first + many]


def _blank(name: str, pixels: Tensor, places: Tensor, model: Any) -> Tensor:
    """The image with nobody there, [C, H, W]."""
    if name == "mean":
        return torch.zeros_like(pixels)
    if name == "black":
        mean, std = (torch.tensor(v)[:, None, None].to(pixels) for v in (model.frame.mean, model.frame.std))
        return (-mean / std).expand_as(pixels)
    flat = places.reshape(-1)
    sums = torch.stack([torch.bincount(flat, channel.double().reshape(-1)) for channel in pixels])
    return (sums / torch.bincount(flat))[:, places].to(pixels)
