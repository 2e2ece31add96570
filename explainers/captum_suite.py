"""Gradient and perturbation methods as Captum defines them, asked through the model's one door.

Captum's ``forward_func`` is ``model.score``: it repeats rows in the order of its inputs, so that the cases repeat
likewise. Methods that draw from the global generators run case by case under a seed of the case's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import FeatureAblation as CaptumAblation
from captum.attr import GradientShap as CaptumGradientShap
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import Occlusion as CaptumOcclusion
from captum.attr import Saliency as CaptumSaliency
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from heatproof import Explanation, Unsuited, seeds
from heatproof.contract import Case
from heatproof.errors import Refused

ROWS = 32  # handed to the model at once: whole blocks, and a bounded graph
BASELINES = ("mean", "black")


@dataclass(frozen=True)
class IntegratedGradients:
    """Sundararajan et al. 2017 (ICML): (x - baseline) times the mean gradient on the straight path; [C, H, W], signed.

    Sums to score(x) - score(baseline) up to the quadrature's error. Exactly ``steps`` forward-backwards a case
    (Captum's own loop keeps all steps of all cases in memory at once, or sums them in an order that depends on the
    neighbours). ``rule`` and the default of 50 steps are Captum's: gausslegendre, riemann_trapezoid, riemann_middle,
    riemann_left, riemann_right. ``text`` adds as many for the token embeddings, baseline zero, summed by token.
    """

    steps: int = 50
    rule: str = "gausslegendre"
    baseline: str = "mean"
    text: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases)
        images = self._path(model.score, x, blank(self.baseline, model, x), cases)
        if not self.text or "text.embed" not in model.sites:
            return [Explanation(image=image) for image in images]
        site = model.site("text.embed")
        with torch.no_grad():
            words = model.upto(site, x, cases)
        found = self._path(
            lambda rows, some: model.above(site, rows, some), words, torch.zeros_like(words), cases
        )
        texts = [t.sum(-1)[: 0 if c.tokens is None else len(c.tokens)] for t, c in zip(found, cases, strict=True)]
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _path(
        self,
        score: Callable[[Tensor, Sequence[Case]], Tensor],
        x: Tensor,
        start: Tensor,
        cases: Sequence[Case],
    ) -> list[Tensor]:
        sizes, places = approximation_parameters(self.rule)
        weights, shares = sizes(self.steps), places(self.steps)
        sums = [torch.zeros_like(row) for row in x]
        todo = [(k, j) for k in range(len(cases)) for j in range(self.steps)]
        for first in range(0, len(todo), ROWS):
            block = todo[first : first + ROWS]
            rows = torch.stack([start[k] + shares[j] * (x[k] - start[k]) for k, j in block])
            rows.requires_grad_()
            total = score(rows, [cases[k] for k, _ in block]).sum()
            (grads,) = torch.autograd.grad(total, rows)
            for (k, j), grad in zip(block, grads, strict=True):
                sums[k] += weights[j] * grad
        return [(row - base) * s for row, base, s in zip(x, start, sums, strict=True)]


@dataclass(frozen=True)
class Saliency:
    """The score's gradient at the pixels, [C, H, W], signed (Simonyan et al. 2013 read its absolute value)."""

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases).requires_grad_()
        maps = CaptumSaliency(rows_scored(model, cases)).attribute(x, abs=False)
        return [Explanation(image=heat.detach()) for heat in maps]


@dataclass(frozen=True)
class InputXGradient:
    """Pixels times their gradient, [C, H, W], signed (Shrikumar et al. 2016); zero is the model's mean colour."""

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        x = stacked(model, cases).requires_grad_()
        maps = CaptumInputXGradient(rows_scored(model, cases)).attribute(x)
        return [Explanation(image=heat.detach()) for heat in maps]


@dataclass(frozen=True)
class GradientShap:
    """Expected gradients (Lundberg and Lee 2017; Erion et al. 2021): IG with one random point of the path a sample.

    ``samples`` noisy copies (standard deviation ``noise`` in normalised units) of the image, each at a random share of
    its way from the baseline; [C, H, W], signed. Captum's defaults are 5 samples and no noise; 8 fill a block of rows.
    """

    samples: int = 8
    noise: float = 0.09
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:
            x = stacked(model, [case]).requires_grad_()
            base = blank(self.baseline, model, x.detach())
            with seeds.forked(case.seed, case.id, "gradient shap"):
                (heat,) = CaptumGradientShap(rows_scored(model, [case])).attribute(
                    x, base, n_samples=self.samples, stdevs=self.noise
                )
            found.append(Explanation(image=heat.detach()))
        return found


@dataclass(frozen=True)
class Occlusion:
    """Score lost while a square of ``window`` pixels is covered (Zeiler and Fergus 2014), moved by ``stride``.

    [H, W], signed; a pixel has the mean of the windows over it. Windows a case + 1 rows. The sizes are shares of the
    image's side, rounded to pixels: 1/7 and half of it are our choice (Captum has no default).
    """

    window: float = 1 / 7
    stride: float = 1 / 14
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:  # Captum sums the windows in an order that depends on the rows beside them
            x = stacked(model, [case])
            side = min(x.shape[2:])
            window, stride = (max(1, round(part * side)) for part in (self.window, self.stride))
            (heat,) = CaptumOcclusion(rows_scored(model, [case])).attribute(
                x,
                sliding_window_shapes=(x.shape[1], window, window),
                strides=(x.shape[1], stride, stride),
                baselines=blank(self.baseline, model, x),
                perturbations_per_eval=ROWS,
            )
            found.append(Explanation(image=heat[0].clone()))
        return found


@dataclass(frozen=True)
class FeatureAblation:
    """Score lost while one cell of a ``cells`` x ``cells`` grid is blanked: [cells, cells], signed; cells^2 + 1 rows."""

    cells: int = 7
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:
            x = stacked(model, [case])
            grid, rows, columns = patches(self.cells, x)
            (heat,) = CaptumAblation(rows_scored(model, [case])).attribute(
                x,
                baselines=blank(self.baseline, model, x),
                feature_mask=grid,
                perturbations_per_eval=ROWS,
            )
            found.append(Explanation(image=heat[0][rows][:, columns]))
        return found


@dataclass(frozen=True)
class KernelShap:
    """Shapley values of grid cells by weighted regression (Lundberg and Lee 2017): [cells, cells], signed.

    ``samples`` random coalitions, the empty and the full one among them; Captum's default of 25 is less than the
    grid's 49 players, so 200 here.
    """

    samples: int = 200
    cells: int = 7
    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:
            x = stacked(model, [case])
            grid, _, _ = patches(self.cells, x)
            method = CaptumKernelShap(rows_scored(model, [case]))
            method.interpretable_model = _Regression()
            with torch.no_grad(), seeds.forked(case.seed, case.id, "kernel shap"):
                values = method.attribute(
                    x,
                    baselines=blank(self.baseline, model, x),
                    feature_mask=grid,
                    n_samples=self.samples,
                    perturbations_per_eval=8,
                    return_input_shape=False,
                )
            found.append(Explanation(image=values.reshape(self.cells, self.cells).float()))
        return found


class _Regression:
    """Weighted least squares with an intercept, in place of the one for which Captum needs scikit-learn."""

    def fit(self, train_data: Any) -> None:
        ((x, y, weight),) = [[part.double() for part in batch] for batch in train_data]
        root = weight.sqrt()[:, None]
        design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
        # the pseudo-inverse answers also where there are fewer coalitions than players
        self.values = (torch.linalg.pinv(root * design) @ (root * y.reshape(-1, 1)))[1:, 0]

    def representation(self) -> Tensor:
        return self.values


# ---------------------------------------------------------------- what the methods share


def stacked(model: Any, cases: Sequence[Case]) -> Tensor:
    """The cases' pixels [N, C, H, W]; Unsuited where the input is no picture."""
    if cases[0].pixels.ndim != 3:
        raise Unsuited(f"{model.name} reads region features: they have no pixels to attribute to")
    found: Tensor = model.stack(cases)
    return found


def rows_scored(model: Any, cases: Sequence[Case]) -> Callable[[Tensor], Tensor]:
    """``forward_func``: rows come as whole copies of the cases, one after the other."""

    def forward(rows: Tensor) -> Tensor:
        found: Tensor = model.score(rows, [*cases] * (len(rows) // len(cases)))
        return found

    return forward


def blank(name: str, model: Any, x: Tensor) -> Tensor:
    """The image that stands for nothing: "mean" (zero after normalisation, the mean colour) or "black"."""
    if name not in BASELINES:
        raise Refused(f"baseline: found {name!r}, accepted are {', '.join(BASELINES)}")
    if name == "mean":
        return torch.zeros_like(x)
    mean, std = (torch.tensor(v)[:, None, None].to(x) for v in (model.frame.mean, model.frame.std))
    return (-mean / std).expand_as(x).clone()


def patches(cells: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of cells over the image: which cell each pixel is in [1, 1, H, W], and each cell's first row and column."""
    high, wide = (torch.arange(side) * cells // side for side in x.shape[2:])
    first = [torch.searchsorted(axis, torch.arange(cells)) for axis in (high, wide)]
    return (high[:, None] * cells + wide)[None, None].to(x.device), first[0], first[1]
