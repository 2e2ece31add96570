"""Gradient and perturbation methods as Captum defines them, asked through the model's one door.

Captum's own loops run case by case, or keep every step of every case in memory, or sum in an order that depends on
the neighbours. Where that is so its definitions are taken, and the rows of all cases go to the model in whole
blocks; the tests hold the results against Captum's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import Saliency as CaptumSaliency
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from heatproof import Explanation, Unsuited, games
from heatproof.contract import Case
from heatproof.errors import Refused

BASELINES = ("mean", "black")


@dataclass(frozen=True)
class IntegratedGradients:
    """Sundararajan et al. 2017 (ICML): (x - baseline) times the mean gradient on the straight path; [C, H, W], signed.

    Sums to score(x) - score(baseline) up to the quadrature's error. Exactly ``steps`` forward-backwards a case.
    ``rule`` and the default of 50 steps are Captum's: gausslegendre, riemann_trapezoid, riemann_middle, riemann_left,
    riemann_right. ``text`` adds as many for the token embeddings, baseline zero, summed by token.
    """

    steps: int = 50
    rule: str = "gausslegendre"
    baseline: str = "mean"
    text: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases)
        images = self._path(model, model.score, x, blank(self.baseline, model, x), cases)
        if not self.text or "text.embed" not in model.sites:
            return [Explanation(image=image) for image in images]
        site = model.site("text.embed")
        with torch.no_grad():
            words = model.upto(site, x, cases)

        def above(rows: Tensor, some: Sequence[Case]) -> Tensor:
            found: Tensor = model.above(site, rows, some)
            return found

        texts = [t.sum(-1) for t in self._path(model, above, words, torch.zeros_like(words), cases)]
        sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
        found = zip(images, texts, sizes, strict=True)
        return [Explanation(image=image, text=text[:size]) for image, text, size in found]

    def _path(
        self, model: Any, score: Callable[..., Tensor], x: Tensor, start: Tensor, cases: Sequence[Case]
    ) -> list[Tensor]:
        sizes, places = approximation_parameters(self.rule)
        weights, shares = sizes(self.steps), places(self.steps)
        sums = [torch.zeros_like(row) for row in x]
        for some in blocks(model, len(cases), self.steps):
            rows = torch.stack([start[k] + shares[j] * (x[k] - start[k]) for k, j in some])
            for (k, j), grad in zip(some, slopes(score, rows, [cases[k] for k, _ in some]), strict=True):
                sums[k] += weights[j] * grad
        return [(row - base) * s for row, base, s in zip(x, start, sums, strict=True)]


@dataclass(frozen=True)
class Saliency:
    """The score's gradient at the pixels, [C, H, W], signed (Simonyan et al. 2013 read its absolute value)."""

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases).requires_grad_()
        maps = CaptumSaliency(lambda rows: model.score(rows, cases)).attribute(x, abs=False)
        return [Explanation(image=heat.detach()) for heat in maps]


@dataclass(frozen=True)
class InputXGradient:
    """Pixels times their gradient, [C, H, W], signed (Shrikumar et al. 2016); zero is the model's mean colour."""

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases).requires_grad_()
        maps = CaptumInputXGradient(lambda rows: model.score(rows, cases)).attribute(x)
        return [Explanation(image=heat.detach()) for heat in maps]


@dataclass(frozen=True)
class GradientShap:
    """Expected gradients (Lundberg and Lee 2017; Erion et al. 2021): IG with one random point of the path a sample.

    The mean over ``samples`` noisy copies x' of the image (standard deviation ``noise``, in normalised units) of
    (x' - baseline) times the gradient at a uniformly random share of the way from the baseline to x'; [C, H, W],
    signed. Captum's default is 5 samples without noise; 0.09 is its tutorials'.
    """

    samples: int = 5
    noise: float = 0.09
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases)
        start = blank(self.baseline, model, x)
        chances = [case.generator("gradient shap") for case in cases]
        sums = [torch.zeros_like(row) for row in x]
        for some in blocks(model, len(cases), self.samples):
            ways, rows = [], []
            for k, _ in some:
                noise = torch.randn(x[k].shape, generator=chances[k]).to(x)
                ways.append(x[k] + self.noise * noise - start[k])
                rows.append(start[k] + torch.rand((), generator=chances[k]).to(x) * ways[-1])
            grads = slopes(model.score, torch.stack(rows), [cases[k] for k, _ in some])
            for (k, _), way, grad in zip(some, ways, grads, strict=True):
                sums[k] += way * grad
        return [Explanation(image=total / self.samples) for total in sums]


@dataclass(frozen=True)
class Occlusion:
    """Score lost while a square of ``window`` is covered (Zeiler and Fergus 2014), moved by ``stride``: [H, W], signed.

    Both are shares of the image's side, rounded to pixels; 1/7 and half of it are our choice (Captum has no default).
    The last window ends at the edge, cut off as in Captum; a pixel has the mean of the windows over it. One row a
    window, and the untouched image.
    """

    window: float = 1 / 7
    stride: float = 1 / 14
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases)
        sides = [self._spans(side) for side in x.shape[2:]]
        windows = [(rows, columns) for rows in sides[0] for columns in sides[1]]
        found = []
        for losses in lost(model, x, cases, blank(self.baseline, model, x), windows):
            heat, cover = torch.zeros(x.shape[2:]), torch.zeros(x.shape[2:])
            for (rows, columns), loss in zip(windows, losses.tolist(), strict=True):
                heat[rows, columns] += loss
                cover[rows, columns] += 1
            found.append(Explanation(image=heat / cover))
        return found

    def _spans(self, side: int) -> list[slice]:
        window, stride = (max(1, round(share * side)) for share in (self.window, self.stride))
        if stride > window:
            raise Refused(
                f"occlusion: stride {self.stride} is more than window {self.window}: it leaves gaps"
            )
        count = 1 + -(-max(0, side - window) // stride)  # rounded up, so that the edge is covered
        return [slice(k * stride, min(k * stride + window, side)) for k in range(count)]


@dataclass(frozen=True)
class FeatureAblation:
    """Score lost while one segment is blanked, signed; a row a segment, and the untouched image.

    Segments: ``cells`` x ``cells`` of a grid, [cells, cells], or about as many superpixels ("slic"), [H, W]. ``text`` "token"
    or "word" does the same to a text, in the model's own way of removal: as many rows as units, and one.
    """

    cells: int = 7
    segments: str = "grid"
    compactness: float = 10.0
    baseline: str = "mean"
    text: str = "none"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        pictures = games.Pictures(model, cases, self.cells, self.segments, self.compactness, self.baseline)
        images = self._losses(pictures)
        words = games.texts(model, cases, self.text)
        if words is None:
            return [Explanation(image=image) for image in images]
        return [Explanation(image=i, text=t) for i, t in zip(images, self._losses(words), strict=True)]

    def _losses(self, game: Any) -> list[Tensor]:
        gone = [torch.cat([torch.ones(1, n).bool(), ~torch.eye(n).bool()]) for n in game.players]
        return [game.paint(k, v[0] - v[1:]) for k, v in enumerate(game.values(gone))]


@dataclass(frozen=True)
class KernelShap:
    """Shapley values of segments by weighted regression (Lundberg and Lee 2017), signed.

    ``samples`` coalitions of segments, the full and the empty one first, drawn and weighed as Captum does. Captum's
    default of 25 is less than the grid's 49 players, so 200 here; no scikit-learn is needed, as Captum's regression does.
    Segments: ``cells`` x ``cells`` of a grid, [cells, cells], or about as many superpixels ("slic"), [H, W]. ``text`` "token" or "word" does
    the same to a text, in the model's own way of removal. Each different coalition is forwarded once.
    """

    samples: int = 200
    cells: int = 7
    segments: str = "grid"
    compactness: float = 10.0
    baseline: str = "mean"
    text: str = "none"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        pictures = games.Pictures(model, cases, self.cells, self.segments, self.compactness, self.baseline)
        images = self._values(pictures, [case.generator("kernel shap") for case in cases])
        words = games.texts(model, cases, self.text)
        if words is None:
            return [Explanation(image=image) for image in images]
        texts = self._values(words, [case.generator("kernel shap text") for case in cases])
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _values(self, game: Any, chances: Sequence[torch.Generator]) -> list[Tensor]:
        asked = [self._coalitions(n, chance) for n, chance in zip(game.players, chances, strict=True)]
        scores = game.values(asked)
        found = [self._regress(c, s) for c, s in zip(asked, scores, strict=True)]
        return [game.paint(k, values) for k, values in enumerate(found)]

    def _coalitions(self, players: int, chance: torch.Generator) -> Tensor:
        """[samples, players]: all, none, then sizes by the Shapley kernel and members at random."""
        ends = torch.tensor([[True], [False]]).expand(2, players)
        if players < 2:
            return ends
        sizes = torch.arange(1, players)
        kernel = 1 / (sizes * (players - sizes))
        drawn = torch.multinomial(kernel, self.samples - 2, replacement=True, generator=chance) + 1
        ranks = torch.rand(self.samples - 2, players, generator=chance).argsort(1).argsort(1)
        return torch.cat([ends, ranks < drawn[:, None]])

    def _regress(self, coalitions: Tensor, scores: Tensor) -> Tensor:
        """Weighted least squares with an intercept; all and none weigh a million times as much, as in Captum."""
        root = torch.ones(len(coalitions), 1, dtype=torch.float64)
        root[:2] = 1e3
        design = torch.cat([torch.ones_like(root), coalitions.double()], 1)
        # the pseudo-inverse answers also where there are fewer coalitions than players
        found: Tensor = torch.linalg.pinv(root * design) @ (root * scores[:, None])
        return found[1:, 0]


# ---------------------------------------------------------------- what the methods share


def stacked(model: Any, cases: Sequence[Case]) -> Tensor:
    """The cases' pixels [N, C, H, W]; Unsuited where the input is no picture."""
    if cases[0].pixels.ndim != 3:
        raise Unsuited(f"{model.name} reads region features: they have no pixels to attribute to")
    found: Tensor = model.stack(cases)
    return found


def blocks(model: Any, cases: int, each: int) -> Iterator[list[tuple[int, int]]]:
    """Every (case, row of it) in order, as many at a time as fill whole blocks of the model's rows, about 32."""
    todo = [(k, j) for k in range(cases) for j in range(each)]
    many = model.rows * max(1, 32 // model.rows)
    for first in range(0, len(todo), many):
        yield todo[first : first + many]


def slopes(score: Callable[..., Tensor], rows: Tensor, cases: Sequence[Case]) -> Tensor:
    """Each row's own gradient of its score."""
    rows = rows.detach().requires_grad_()
    (found,) = torch.autograd.grad(score(rows, cases).sum(), rows)
    return found


def lost(
    model: Any, x: Tensor, cases: Sequence[Case], start: Tensor, windows: Sequence[tuple[slice, slice]]
) -> Tensor:
    """[N, windows]: how much of each case's score goes when a window is blanked; the clean score from the memo."""
    found = torch.zeros(len(cases), len(windows))
    with torch.inference_mode():
        for some in blocks(model, len(cases), len(windows)):
            rows = torch.stack([x[k] for k, _ in some])
            for row, (k, j) in zip(rows, some, strict=True):
                high, wide = windows[j]
                row[:, high, wide] = start[k, :, high, wide]
            scores = model.score(rows, [cases[k] for k, _ in some])
            for (k, j), score in zip(some, scores.tolist(), strict=True):
                found[k, j] = score
    clean: Tensor = model.clean(cases)
    return clean.cpu()[:, None] - found


def blank(name: str, model: Any, x: Tensor) -> Tensor:
    """The image that stands for nothing: "mean" (zero after normalisation, the mean colour) or "black"."""
    if name not in BASELINES:
        raise Refused(f"baseline: found {name!r}, accepted are {', '.join(BASELINES)}")
    if name == "mean":
        return torch.zeros_like(x)
    mean, std = (torch.tensor(v)[:, None, None].to(x) for v in (model.frame.mean, model.frame.std))
    return (-mean / std).expand_as(x).clone()
