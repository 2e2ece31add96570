"""What transformers need beside the rules of layers with weights: products, norms, activations, unit vectors.

AttnLRP, Achtibat et al., ICML 2024 (arXiv 2402.05602). As everywhere in ``heatproof.lrp`` a tensor x carries g with
R = x * g. A softmax then needs no rule: theirs, R_i = x_i (R_i - s_i sum_j R_j), is what autograd does to g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.lrp.rules import stabilised, stand

Product = Callable[[Tensor, Tensor], Tensor]
MIXING = ("attnlrp", "constant")  # what an attention's probabilities get: half of what they mix, or nothing


def halved(epsilon: float) -> Product:
    """The matrix product of two inputs that both get relevance, one half each: R_ji = sum_p a_ji b_ip R_jp / (2 o_jp + eps)."""

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        with torch.no_grad():
            factor = out / stabilised(2 * out, epsilon)
        return stand(out, out, factor)

    return multiply


def second(epsilon: float) -> Product:
    """The matrix product whose first input is a weight: the second gets all (Ali et al. 2022, arXiv 2202.07304)."""

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        out = a.detach() @ b
        with torch.no_grad():
            factor = out / stabilised(out, epsilon)
        return stand(out, out, factor)

    return multiply


class Normalised(nn.Module):
    """A layer norm whose standard deviation is a constant; centring, scale and shift go by the epsilon rule."""

    def __init__(self, norm: nn.LayerNorm, epsilon: float) -> None:
        super().__init__()
        self.norm, self.epsilon = norm, epsilon

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.norm(x)
        places = tuple(range(-len(self.norm.normalized_shape), 0))
        centred = x - x.mean(places, keepdim=True)
        with torch.no_grad():
            size = (centred.square().mean(places, keepdim=True) + self.norm.eps).sqrt()
            factor = z / stabilised(z, self.epsilon)
        scale = 1.0 if self.norm.weight is None else self.norm.weight
        return stand(centred / size * scale, z, factor)


class Passed(nn.Module):
    """A function of one number, which hands on all that it gets: g is scaled by y / x."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        with torch.no_grad():
            factor = torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x))
        return stand(x, y, factor)


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, where |x| is a constant: a cosine's relevance then sums to the cosine.

    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> unit(x)[0].backward()
    >>> (x * x.grad).tolist()
    [0.6000000238418579, 0.0]
    """
    found: Tensor = x / x.detach().norm(dim=-1, keepdim=True).clamp(min=1e-12)  # as torch's own normalize
    return found


def edit(net: Any, epsilon: float, mixing: str) -> None:
    """Exchange, in place, how the net's attention multiplies and how its embedding is scaled."""
    for module in net.modules():
        if hasattr(module, "heatproof_site"):
            module.heatproof_multiply = halved(epsilon) if mixing == "attnlrp" else second(epsilon)
    net.heatproof_unit = unit
