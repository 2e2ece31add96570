"""Integrated gradients at a layer inside the net; the released code of NIB is one setting of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from heatproof import Explanation
from heatproof.contract import Case

Score = Callable[[Tensor, Sequence[Case]], Tensor]


@dataclass(frozen=True)
class LayerIg:
    """Sundararajan et al. 2017 with an activation in the image's place, and 0 where it starts from; signed.

    At the site h, the mean gradient of the score on the straight path from 0 to h, times h: unpooled, [D, h, w] of
    feature maps or patches, and [T] of text tokens, summed over channels. With what special tokens hold it sums to
    score(h) - score(0). ``layer`` counts "image.conv" or "image.block" sites and "text.block" sites, where a tower too
    low is read at its first; -1 is the last. The tower below is run once; then ``steps`` (Captum: 50) times what is above
    the site, by ``rule`` (Captum's names: gausslegendre, riemann_trapezoid, riemann_middle, riemann_left,
    riemann_right). Captum's LayerIntegratedGradients starts from the activation of a baseline image instead.

    Criticism: zero is no activation that any image has, so that much of the path lies where the net was never
    trained; under a layer norm the score jumps at the path's very start.
    """

    layer: int = -1
    steps: int = 50
    rule: str = "gausslegendre"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return integrated(model, cases, self.layer, self.steps, self.rule)


@dataclass(frozen=True)
class Nib:
    """Zhu et al. 2025 (ICLR), "narrowing information bottleneck theory", as its released code has it: layer IG.

    The paper derives a bottleneck without noise and without beta; what its code computes is ``LayerIg`` with the
    defaults here, to the last digit: zero baseline, 10 right-hand Riemann steps, at what enters block 9 of 12. That is
    the output of the block below, site -3 of a tower whose last block is no site; a lower tower is read at its first.
    Their figures scale the signed map to [0, 1], so that what speaks against the text is dark.

    Criticism: that of layer IG; 10 right-hand steps miss the jump of a layer norm near zero, and do not sum to the score.
    """

    layer: int = -3
    steps: int = 10
    rule: str = "riemann_right"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return integrated(model, cases, self.layer, self.steps, self.rule)


def integrated(model: Any, cases: Sequence[Case], layer: int, steps: int, rule: str) -> list[Explanation]:
    """Layer IG of the image tower and, where there is one, of the text tower."""
    kind = "image.conv" if "image.conv" in model.sites else "image.block"
    images = path(model, site_of(model, kind, layer), cases, steps, rule)
    if kind == "image.block":
        images = [model.grid(heat) for heat in images]
    if "text.block" not in model.sites:
        return [Explanation(image=image) for image in images]
    texts = path(model, site_of(model, "text.block", layer), cases, steps, rule)
    sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
    rows = zip(images, texts, sizes, strict=True)
    return [Explanation(image=image, text=text.sum(-1)[:size]) for image, text, size in rows]


def site_of(model: Any, kind: str, layer: int) -> str:
    """A layer's site; the first where the tower is too low to count so far from its end."""
    found: str = model.site(kind, max(layer, -model.sites.get(kind, 1)))
    return found


def path(model: Any, site: str, cases: Sequence[Case], steps: int, rule: str) -> list[Tensor]:
    """Each case's activation times its mean gradient on the way from zero."""
    with torch.no_grad():
        hidden = model.upto(site, model.stack(cases), cases)
    sizes, places = approximation_parameters(rule)
    weights, shares = sizes(steps), places(steps)
    sums = [torch.zeros_like(h) for h in hidden]
    for some in blocks(model, len(cases), steps):
        rows = torch.stack([shares[j] * hidden[k] for k, j in some]).requires_grad_()
        (grads,) = torch.autograd.grad(model.above(site, rows, [cases[k] for k, _ in some]).sum(), rows)
        for (k, j), grad in zip(some, grads, strict=True):
            sums[k] += weights[j] * grad
    return [h * total for h, total in zip(hidden, sums, strict=True)]


def blocks(model: Any, cases: int, each: int) -> Iterator[list[tuple[int, int]]]:
    """Every (case, step) in order, as many at a time as fill whole blocks of the model's rows, about 32."""
    todo = [(k, j) for k in range(cases) for j in range(each)]
    many = model.rows * max(1, 32 // model.rows)
    for first in range(0, len(todo), many):
        yield todo[first : first + many]
