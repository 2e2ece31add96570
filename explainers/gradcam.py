"""Grad-CAM: activations of one layer, weighted by the mean gradient of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

POOLS = ("mean", "none")


@dataclass(frozen=True)
class GradCam:
    """Selvaraju et al. 2017 (ICCV), on the layer's own grid.

    Convolutions: sum over channels of activation times the spatial mean of its gradient, at site "image.conv" ``layer``.
    Tokens (ViT, CLIP image and text): the same with patches, or real tokens, as places, at "image.block" ``layer``;
    the class token is no place. -1, the last site, is the paper's choice; a text tower too low for ``layer`` is read
    at its first. ``pool`` "none" weights each place by its own gradient (gradient times activation); at the last
    token site that is zero but for rounding, because a layer norm alone reads a patch there and its gradient is
    orthogonal to it: no map. The map is signed: reading its positive part is the paper's ReLU on the map's own grid;
    ``relu`` applies it here.
    """

    layer: int = -1
    pool: str = "mean"
    relu: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.pool not in POOLS:
            raise Refused(f"gradcam: pool: found {self.pool!r}, accepted are {', '.join(POOLS)}")
        kind = "image.conv" if "image.conv" in model.sites else "image.block"
        site = model.site(kind, self.layer)
        if self._vanishes(model, site):
            raise Unsuited(
                f"gradient times activation is zero at {site}, which a layer norm reads; take a lower layer"
            )
        with model.watch(site) as seen:
            score = model.score(model.stack(cases), cases)
            (grads,) = torch.autograd.grad(score.sum(), seen.value)
        images = []
        for value, grad in zip(seen.value.detach(), grads, strict=True):
            if kind == "image.block":
                value, grad = model.grid(value), model.grid(grad)  # [D, h, w]
            images.append(self._weighted(value, grad))
        if "text.block" not in model.sites:
            return [Explanation(image=image) for image in images]
        return [
            Explanation(image=image, text=text)
            for image, text in zip(images, self._texts(model, cases), strict=True)
        ]

    def _vanishes(self, model: Any, site: str) -> bool:
        kind = site.split(" ", maxsplit=1)[0]
        return self.pool == "none" and kind.endswith(".block") and site == model.site(kind)

    def _texts(self, model: Any, cases: Sequence[Case]) -> Sequence[Tensor | None]:
        site = model.site("text.block", max(self.layer, -model.sites["text.block"]))
        if self._vanishes(model, site):
            return [None] * len(cases)
        sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
        with model.watch(site) as seen:
            score = model.score_text(torch.ones(len(cases), max(sizes)), cases)
            (grads,) = torch.autograd.grad(score.sum(), seen.value)
        rows = zip(seen.value.detach(), grads, sizes, strict=True)
        return [self._weighted(value[:n].T, grad[:n].T) for value, grad, n in rows]

    def _weighted(self, value: Tensor, grad: Tensor) -> Tensor:
        """[D, places...] of activation and gradient -> [places...]."""
        if self.pool == "mean":
            grad = grad.flatten(1).mean(1).reshape(-1, *[1] * (grad.ndim - 1))
        heat = (value * grad).sum(0)
        return heat.clamp(min=0) if self.relu else heat
