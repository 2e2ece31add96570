"""The rules of layers with weights: the same forward, another way back.

Each rule maps a layer's input x to its output z. Behind z, autograd carries g with ``R = x * g`` (see the package's
first lines), so a rule that reads ``R_i = sum_j c_ij R_j / d_j`` hands ``g_j z_j / d_j`` to the part of the forward
whose derivative is ``c_ij / x_i``. Bach et al. 2015 (epsilon, alpha-beta), Montavon et al. 2019 (gamma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, weight, bias) -> z


class _Stand(torch.autograd.Function):
    """Forward ``value``; backward hands g * factor to ``inner``, from which value was not computed."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.clone()  # residual sums write into what a layer puts out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return grads[0] * factor, None, None


def stand(inner: Tensor, value: Tensor, factor: Tensor) -> Tensor:
    """``value`` going forward; coming back, g times ``factor`` into ``inner``."""
    found: Tensor = _Stand.apply(inner, value.detach(), factor.detach())  # type: ignore[no-untyped-call]
    return found


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """z pushed away from zero by epsilon, zero itself to the positive side.

    >>> stabilised(torch.tensor([-1.0, 0.0, 1.0]), 0.5).tolist()
    [-1.5, 0.5, 1.5]
    """
    return torch.where(z >= 0, z + epsilon, z - epsilon)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where there is nothing to divide among."""
    return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))


class Rule(nn.Module):
    """A convolution or linear layer with a modified way back; subclasses give ``forward``."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("positive", layer.weight.detach().clamp(min=0), persistent=False)
        self.register_buffer("negative", layer.weight.detach().clamp(max=0), persistent=False)

    positive: Tensor
    negative: Tensor

    @property
    def weight(self) -> Tensor:
        """The layer's own, for nets that ask it for its type."""
        return self.layer.weight

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def part(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """The contributions of positive inputs through ``up`` and of negative ones through ``down``."""
        found = self.linear(x.clamp(min=0), up)
        below = x.clamp(max=0)
        if bool((below != 0).any()):  # else the second sum is all zeros
            found = found + self.linear(below, down)
        return found


class Epsilon(Rule):
    """R_i = sum_j x_i w_ij R_j / (z_j + epsilon sign z_j); the bias takes its share and keeps it."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, epsilon: float = 1e-6) -> None:
        super().__init__(layer)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x, self.layer.weight, self.layer.bias)
        with torch.no_grad():
            factor = z / stabilised(z, self.epsilon)
        return stand(z, z, factor)


class Gamma(Rule):
    """Contributions c_ij = x_i w_ij of the output's own sign count 1 + gamma times, the bias among them.

    For z_j > 0: R_i = sum_j (c_ij + gamma max(c_ij, 0)) R_j / (z_j + gamma sum_i max(c_ij, 0)); for z_j < 0 with min.
    For x >= 0 and z > 0 this is the rule of Montavon et al. 2019; inputs of both signs as in Andeol et al. 2021.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, gamma: float = 0.25) -> None:
        super().__init__(layer)
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        layer, sums = self.layer, self.linear(x, self.layer.weight)
        bias = sums.new_zeros(1) if layer.bias is None else layer.bias.detach()
        bias = bias if isinstance(layer, nn.Linear) else bias[:, None, None]
        with torch.no_grad():
            z = sums + bias
            up = z >= 0
            share = torch.where(up, bias.clamp(min=0), bias.clamp(max=0))
        positive = self.part(x, self.positive, self.negative)
        own = torch.where(up, positive, sums - positive)
        below = z + self.gamma * (own.detach() + share)
        return stand(sums + self.gamma * own, z, ratio(z, below))


class Alpha1Beta0(Rule):
    """R_i = sum_j max(x_i w_ij, 0) R_j / sum_i max(x_i w_ij, 0): positive contributions only, no bias.

    Where nothing contributes, 1e-7 stands below the line, as in Sun et al. 2022.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x, self.layer.weight, self.layer.bias)
        positive = self.part(x, self.positive, self.negative)
        with torch.no_grad():
            factor = z / (positive + 1e-7 * (positive == 0))
        return stand(positive, z, factor)


class Clipped(nn.Module):
    """ReLU6 that keeps relevance where it saturates: R passes whole, so g is scaled by y / x."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(x)
        with torch.no_grad():
            factor = ratio(y, x)
        return stand(x, y, factor)
