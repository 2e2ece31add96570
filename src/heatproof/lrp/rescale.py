"""DeepLIFT's rescale rule: a twin whose activation functions compare with what a blank image gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.contract import Case, Unsuited

LINEAR = (
    *(nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.ZeroPad2d, nn.Flatten, nn.Identity, nn.Dropout),
)
CURVED = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish),
)
SMALL = 1e-6  # a difference below it has the plain gradient, as in Captum


def differences(model: Any, blank: Tensor, cases: Sequence[Case]) -> list[Tensor]:
    """(x - blank) times the multipliers, [C, H, W] of each case: sums to score(x) - score(blank)."""
    defined(model, cases)
    twin = model.twin(rescale, "deeplift")
    layers = [module for module in twin.net.modules() if isinstance(module, _Two)]
    x = twin.stack(cases)
    found: list[Tensor] = []
    for first in range(0, len(cases), model.rows):  # a block of rows, so that both passes are cut alike
        rows, some = x[first : first + model.rows], cases[first : first + model.rows]
        base = blank.to(rows).expand_as(rows)
        try:
            with torch.no_grad():
                twin.score(base, some)
            for layer in layers:
                layer.second = True
            rows = rows.clone().requires_grad_()
            (slopes,) = torch.autograd.grad(twin.score(rows, some).sum(), rows)
        finally:
            for layer in layers:
                layer.forget()
        found += list((rows.detach() - base) * slopes)
    return found


def defined(model: Any, cases: Sequence[Case]) -> None:
    """Unsuited where a net is no sum of linear layers, functions of one number and maxima."""
    if model.family != "classifier" or "image.attention" in model.sites or cases[0].pixels.ndim != 3:
        raise Unsuited(
            "DeepLIFT's rescale rule is not defined where activations multiply each other "
            "(attention, gates): CNN classifiers only"
        )
    for path, module in model.net.named_modules():
        known = isinstance(module, (*LINEAR, *CURVED, nn.MaxPool2d))
        if not known and not any(True for _ in module.children()):
            raise Unsuited(f"DeepLIFT has no rule for {type(module).__name__} ({path})")


def rescale(net: nn.Module) -> None:
    """Exchange every activation function and maximum of a net, in place."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, CURVED):
                setattr(parent, name, Rescaled(child))
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, RescaledMax(child))


class _Two(nn.Module):
    """Keeps what came in during the first pass, and compares with it in the second."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        if getattr(inner, "inplace", False):
            inner.inplace = False  # what was kept must not be written over
        self.forget()

    def forget(self) -> None:
        self.base: Tensor | None = None
        self.second = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.second:
            self.base = x
            found: Tensor = self.inner(x)
            return found
        if self.base is None:
            raise Unsuited(
                f"DeepLIFT: a {type(self.inner).__name__} is called twice: write one for each call"
            )
        base, self.base = self.base, None
        return self.compare(x, base)

    def compare(self, x: Tensor, base: Tensor) -> Tensor:
        raise NotImplementedError


class Rescaled(_Two):
    """A function of one number: y, whose slope is (y - y0) / (x - x0)."""

    def compare(self, x: Tensor, base: Tensor) -> Tensor:
        plain: Tensor = self.inner(x)
        with torch.no_grad():
            step = x - base
            small = step.abs() < SMALL
            slope = (plain - self.inner(base)) / torch.where(small, 1.0, step)
        # the value of ``plain``, with the multiplier as its slope
        straight = plain.detach() + (slope * x - (slope * x).detach())
        return torch.where(small, plain, straight)


class RescaledMax(_Two):
    """A maximum over windows: the change goes to the winner of the image, and what it had to overtake to the baseline's."""

    def compare(self, x: Tensor, base: Tensor) -> Tensor:
        pool = self.inner
        told = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        with torch.no_grad():
            kept, there = F.max_pool2d(x, *told, return_indices=True)
            before, away = F.max_pool2d(base, *told, return_indices=True)
            most = torch.maximum(kept, before)
            step = x - base
            small = step.abs() < SMALL
            unit = torch.where(small, 0.0, 1 / torch.where(small, 1.0, step))
        # a sum of inputs whose slope at the winners is the change over their own step
        scaled = (unit * x).flatten(2)
        won = (most - before) * scaled.gather(2, there.flatten(2)).view_as(kept)
        lost = (kept - most) * scaled.gather(2, away.flatten(2)).view_as(kept)
        moved = won + lost
        return kept + (moved - moved.detach())
