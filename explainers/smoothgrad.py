"""SmoothGrad and VarGrad: mean and variance of the gradient among noisy copies of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case


@dataclass(frozen=True)
class SmoothGrad:
    """Smilkov et al. 2017 (arXiv 1706.03825): the mean gradient at noisy copies of the image, [C, H, W], signed.

    ``samples`` copies (the paper: 50, more changes little) with Gaussian noise of standard deviation ``noise`` times
    the range of the image's values (the paper: 0.1 to 0.2). The paper shows absolute values: read them with sign "abs".
    Exactly ``samples`` forwards and backwards a case.

    Criticism: the gradient of another score, blurred by the noise, at images that may be outside the model's world;
    Seo et al. 2018 (arXiv 1806.03000) find no smoothing of the gradient itself in it, but higher derivatives added.
    """

    samples: int = 50
    noise: float = 0.15

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return [
            Explanation(image=mean.float()) for mean, _ in moments(model, cases, self.samples, self.noise)
        ]


@dataclass(frozen=True)
class VarGrad:
    """Adebayo et al. 2018 (ICLR workshop, arXiv 1810.03307): the variance of the gradient among noisy copies, >= 0.

    Copies as in SmoothGrad, same defaults, drawn afresh. The population variance, element by element, [C, H, W].

    Criticism: it tells where the gradient is unsteady and nothing about its sign or size; Seo et al. 2018 show that
    it does not depend on the gradient itself but on higher derivatives.
    """

    samples: int = 50
    noise: float = 0.15

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = moments(model, cases, self.samples, self.noise)
        return [Explanation(image=variance.float()) for _, variance in found]


def moments(model: Any, cases: Sequence[Case], samples: int, noise: float) -> list[tuple[Tensor, Tensor]]:
    """Each case's mean and variance of the gradient over its noisy copies, float64 [C, H, W]."""
    if cases[0].pixels.ndim != 3:
        raise Unsuited(f"{model.name} reads region features: they have no pixels to attribute to")
    x = model.stack(cases)
    chances = [case.generator("smoothgrad") for case in cases]
    spreads = [noise * float(row.max() - row.min()) for row in x]
    sums, squares = ([torch.zeros_like(row, dtype=torch.float64) for row in x] for _ in range(2))
    for some in blocks(model, len(cases), samples):
        copies = [x[k] + spreads[k] * torch.randn(x[k].shape, generator=chances[k]).to(x) for k in some]
        rows = torch.stack(copies).requires_grad_()
        (grads,) = torch.autograd.grad(model.score(rows, [cases[k] for k in some]).sum(), rows)
        for k, grad in zip(some, grads.double(), strict=True):
            sums[k] += grad
            squares[k] += grad**2
    means = [total / samples for total in sums]
    return [
        (mean, (square / samples - mean**2).clamp(min=0)) for mean, square in zip(means, squares, strict=True)
    ]


def blocks(model: Any, cases: int, each: int) -> Iterator[list[int]]:
    """Whose copy each row is, in order, as many at a time as fill whole blocks of the model's rows, about 32."""
    todo = [k for k in range(cases) for _ in range(each)]
    many = model.rows * max(1, 32 // model.rows)
    for first in range(0, len(todo), many):
        yield todo[first : first + many]
