"""Guided backpropagation: gradients that only positive paths carry, and their product with Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import Explanation, Unsuited, geometry
from heatproof.contract import Case


@dataclass(frozen=True)
class GuidedBackprop:
    """Springenberg et al. 2015 (ICLR workshop, arXiv 1412.6806): the gradient at the pixels, [C, H, W], signed.

    At every ReLU the gradient passes where the input was positive and the gradient is positive itself; in ReLU6 also
    below 6 only. The net is a twin whose ReLU modules are exchanged, so that the model has no hook to lose. Functions
    without a module stay as they are (a captioner's decoder: its convolutions alone are guided). Nets with other
    activations, transformers among them, have no ReLU to guide.

    Criticism: Nie et al. 2018 (ICML) show that it restores the image rather than explains; Adebayo et al. 2018
    (NeurIPS) that it hardly changes when the upper layers' weights are drawn at random.
    """

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return [Explanation(image=heat) for heat in guided(model, cases)]


@dataclass(frozen=True)
class GuidedGradCam:
    """Selvaraju et al. 2017 (ICCV): guided backpropagation times the positive part of Grad-CAM, enlarged bilinearly.

    [C, H, W], signed by the guided gradient. ``layer`` counts "image.conv" sites; -1, the last, is the paper's choice.
    One forward and backward for each of the two. (Captum's GuidedGradCam enlarges by nearest neighbour.)

    Criticism: that of guided backpropagation: the fine structure is the image's edges, whatever the class.
    """

    layer: int = -1

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if "image.conv" not in model.sites:
            raise Unsuited(f"guided Grad-CAM needs convolutions; {model.name} has {', '.join(model.sites)}")
        fine = guided(model, cases)
        with model.watch(model.site("image.conv", self.layer)) as seen:
            score = model.score(model.stack(cases), cases)
            (grads,) = torch.autograd.grad(score.sum(), seen.value)
        found = []
        for heat, value, grad in zip(fine, seen.value.detach(), grads, strict=True):
            cam = (value * grad.mean((1, 2), keepdim=True)).sum(0).clamp(min=0)
            found.append(Explanation(image=heat * geometry.read(cam, (heat.shape[1], heat.shape[2]))))
        return found


def guided(model: Any, cases: Sequence[Case]) -> Tensor:
    """The guided gradient of each case's score at its pixels, [N, C, H, W]."""
    if cases[0].pixels.ndim != 3:
        raise Unsuited(f"{model.name} reads region features: they have no pixels to attribute to")
    if not any(isinstance(module, (nn.ReLU, nn.ReLU6)) for module in model.net.modules()):
        raise Unsuited(f"guided backpropagation needs ReLU layers; {model.name} has none")
    twin = model.twin(guide, "guided")
    x = twin.stack(cases).requires_grad_()
    found: Tensor = torch.autograd.grad(twin.score(x, cases).sum(), x)[0]
    return found


def guide(net: nn.Module) -> None:
    """Exchange every ReLU and ReLU6 of a net, in place."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, Guided(6.0 if isinstance(child, nn.ReLU6) else torch.inf))


class Guided(nn.Module):
    """min(max(x, 0), top), whose gradient must be positive to pass."""

    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Pass.apply(x, self.top)  # type: ignore[no-untyped-call]
        return found


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(min=0, max=top)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (through,) = ctx.saved_tensors
        return torch.where(through & (grads[0] > 0), grads[0], torch.zeros_like(grads[0])), None
