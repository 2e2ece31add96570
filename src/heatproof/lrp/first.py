"""Rules of the layer that sees the pixels: relevance there must not hang on a pixel's value alone.

Their way back hands on R itself and no g (see the package's first lines), since nothing lies below them. Both lay
the zeros around the image themselves, so that no relevance is lost into what a separate padding put there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.lrp.rules import Rule, ratio

Share = Callable[[Tensor, Tensor], Tensor]  # the image, the relevance of what comes out -> that of the image


class _Own(torch.autograd.Function):
    """Forward ``z``; backward is the rule's own answer to z's relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, share: Share) -> Tensor:
        ctx.save_for_backward(x, z)
        ctx.share = share
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, z = ctx.saved_tensors
        with torch.enable_grad():
            return ctx.share(x, grads[0] * z), None, None


class First(Rule):
    """A convolution of pixels, with the zero padding before it, if it stands alone; subclasses give ``share``."""

    def __init__(self, layer: nn.Conv2d, padding: nn.Module | None = None) -> None:
        super().__init__(layer)
        self.padding = padding or nn.Identity()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().linear(self.padding(x), weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x.detach(), self.layer.weight, self.layer.bias)
        found: Tensor = _Own.apply(x, z, self.share)  # type: ignore[no-untyped-call]
        return found

    def share(self, x: Tensor, relevance: Tensor) -> Tensor:
        raise NotImplementedError


class Box(First):
    """R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) R_j / sum_i (the same), pixels lying between l and h.

    Montavon et al. 2017 (deep Taylor decomposition, arXiv 1512.02479), with the bias left out, as the rule has none.
    ``low`` and ``high``: what each channel's 0 and 255 become in the model's input.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, layer: nn.Conv2d, padding: nn.Module | None, low: Sequence[float], high: Sequence[float]
    ) -> None:
        super().__init__(layer, padding)
        for name, values in (("low", low), ("high", high)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def share(self, x: Tensor, relevance: Tensor) -> Tensor:
        ends = [end.to(x).expand_as(x).clone().requires_grad_() for end in (self.low, self.high)]
        x = x.detach().requires_grad_()
        z = self.linear(x, self.layer.weight)
        z = z - self.linear(ends[0], self.positive) - self.linear(ends[1], self.negative)
        grads = torch.autograd.grad(z, [x, *ends], ratio(relevance, z.detach()))
        found: Tensor = sum(value.detach() * g for value, g in zip([x, *ends], grads, strict=True))  # type: ignore[assignment]
        return found


class Flat(First):
    """An output's relevance goes to all pixels that it sees, in equal parts (Lapuschkin et al. 2019)."""

    def share(self, x: Tensor, relevance: Tensor) -> Tensor:
        even = torch.ones_like(x).requires_grad_()
        count = self.linear(even, torch.ones_like(self.layer.weight))
        (found,) = torch.autograd.grad(count, even, relevance / count.detach())
        return found
