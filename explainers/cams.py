"""Class activation maps beside Grad-CAM: other weights for the same activations of one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case

Rule = Callable[[Tensor, Tensor], Tensor]  # activation and gradient [D, places...] -> [places...]


@dataclass(frozen=True)
class GradCamPlusPlus:
    """Chattopadhyay et al. 2018 (WACV, arXiv 1710.11063): Grad-CAM whose positive gradients are weighted place by place.

    A channel's weight is the sum over places of a * relu(g), a = g^2 / (2 g^2 + sum(A) g^3), 0 where that divides by 0;
    the map is the sum of channels so weighted, on the layer's own grid. ``layer`` -1, the last "image.conv" site, is
    the paper's choice; tokens of transformers are taken as places as in Grad-CAM, at "image.block" and "text.block".
    The closed form is that of the exponential of the score, and of a score that is linear in A above a ReLU: on tokens,
    whose activations have both signs, it is a rule of thumb. The map is signed where A is; ``relu`` is the paper's.

    Criticism: Lerma and Lucas 2022 (arXiv 2205.10838) find it next to Grad-CAM with positive gradients only: where
    g is small, a is 1/2 everywhere.
    """

    layer: int = -1
    relu: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return explained(model, cases, self.layer, self.layer, self._heat)

    def _heat(self, value: Tensor, grad: Tensor) -> Tensor:
        places = grad.flatten(1)
        below = 2 * places**2 + value.flatten(1).sum(1, keepdim=True) * places**3
        share = torch.where(below == 0, 0.0, places**2 / torch.where(below == 0, 1.0, below))
        weights = (share * places.clamp(min=0)).sum(1)
        heat = (value * weights.reshape(-1, *[1] * (value.ndim - 1))).sum(0)
        return heat.clamp(min=0) if self.relu else heat


@dataclass(frozen=True)
class HiResCam:
    """Draelos and Carin 2020 (arXiv 2011.08891): gradient times activation, summed over channels, place by place.

    At the last convolution below a linear head it is exactly each place's share of the logit, which Grad-CAM's mean
    gradient is not. ``layer`` counts "image.conv" sites, -1 as in the paper. ``token_layer`` counts the block sites of
    transformers; their last is read by a layer norm, to whose gradient the token is at right angles, so that the map
    is rounding there: -2, as in the comparison of Zhu et al. 2025 (NIB). A tower with one site has no map.
    The same numbers as ``gradcam`` with pool "none". Signed; ``relu`` is the paper's last step.

    Criticism: above a head that is not linear it is gradient times input at a middle layer, with the noise of that.
    """

    layer: int = -1
    token_layer: int = -2
    relu: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return explained(model, cases, self.layer, self.token_layer, self._heat, last_token=False)

    def _heat(self, value: Tensor, grad: Tensor) -> Tensor:
        heat = (value * grad).sum(0)
        return heat.clamp(min=0) if self.relu else heat


@dataclass(frozen=True)
class LayerCam:
    """Jiang et al. 2021 (IEEE TIP 30): activations weighted by their own positive gradients, summed over channels.

    Made for low layers, whose fine grids Grad-CAM's mean gradient spoils; ``layer`` -1, the last "image.conv" site, is
    where it comes near to Grad-CAM. Tokens of transformers are taken as places, at the same ``layer`` of their block
    sites. Signed where activations are; ``relu`` is the paper's last step.

    Criticism: dropping negative gradients counts evidence against the class as nothing, and the map has no meaning in
    units of the score.
    """

    layer: int = -1
    relu: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return explained(model, cases, self.layer, self.layer, self._heat)

    def _heat(self, value: Tensor, grad: Tensor) -> Tensor:
        heat = (value * grad.clamp(min=0)).sum(0)
        return heat.clamp(min=0) if self.relu else heat


@dataclass(frozen=True)
class EigenCam:
    """Muhammad and Yeasin 2020 (IJCNN, arXiv 2008.00299): activations projected on their first principal direction.

    A, places x channels, = U S V'; the map is A v1. ``centred`` takes each channel's mean away first. The paper does not;
    some of its re-implementations do, and of tokens, whose first direction is what all of them share, nothing else
    tells the object from its ground: None centres tokens and leaves feature maps as they are. ``layer`` counts
    "image.conv" or "image.block" sites, -1 the last. The sign of v1 is free: here the place farthest from 0 is positive.

    Criticism: it looks at no score, so that all classes and captions of an image share one map; with several objects
    the largest wins. Of texts there is none.
    """

    layer: int = -1
    centred: bool | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        site = model.site(kind_of(model), self.layer)
        with torch.no_grad():
            values = model.upto(site, model.stack(cases), cases)
        centred = site.startswith("image.block") if self.centred is None else self.centred
        return [Explanation(image=self._heat(on_grid(model, site, value), centred)) for value in values]

    def _heat(self, value: Tensor, centred: bool) -> Tensor:
        rows = value.flatten(1).T.double()  # [places, channels]
        if centred:
            rows = rows - rows.mean(0)
        _, _, directions = torch.linalg.svd(rows, full_matrices=False)
        heat: Tensor = rows @ directions[0]
        heat = -heat if float(heat[heat.abs().argmax()]) < 0 else heat
        return heat.reshape(value.shape[1:]).to(value)


# ---------------------------------------------------------------- what they share


def kind_of(model: Any) -> str:
    """Where the image is on a grid: feature maps, or else the tokens of a transformer."""
    return "image.conv" if "image.conv" in model.sites else "image.block"


def on_grid(model: Any, site: str, value: Tensor) -> Tensor:
    """One case's activation as [D, h, w]."""
    found: Tensor = model.grid(value) if site.startswith("image.block") else value
    return found


def explained(
    model: Any, cases: Sequence[Case], layer: int, token_layer: int, rule: Rule, last_token: bool = True
) -> list[Explanation]:
    """One forward and backward a tower; the rule is asked case by case, for places of the image and real tokens.

    ``last_token`` False: the last token site gives none.
    """
    kind = kind_of(model)
    tokens = kind == "image.block"
    site = model.site(kind, max(token_layer, -model.sites.get(kind, 1)) if tokens else layer)
    if tokens and not last_token and site == model.site(kind):
        raise Unsuited(
            f"gradient times activation is zero at {site}, which a layer norm reads; take a lower layer"
        )
    values, grads = slopes(model, site, cases)
    images = [
        rule(on_grid(model, site, value), on_grid(model, site, grad))
        for value, grad in zip(values, grads, strict=True)
    ]
    if "text.block" not in model.sites:
        return [Explanation(image=image) for image in images]
    site = model.site("text.block", max(token_layer, -model.sites["text.block"]))
    if not last_token and site == model.site("text.block"):
        return [Explanation(image=image) for image in images]
    values, grads = slopes(model, site, cases)
    texts = [rule(v[:n].T, g[:n].T) for v, g, n in zip(values, grads, map(len_of, cases), strict=True)]
    return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]


def slopes(model: Any, site: str, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """A site's activations and the score's gradient there, [N, ...] each."""
    with model.watch(site) as seen:
        if site.startswith("text."):
            score = model.score_text(torch.ones(len(cases), max(map(len_of, cases))), cases)
        else:
            score = model.score(model.stack(cases), cases)
        (grads,) = torch.autograd.grad(score.sum(), seen.value)
    return seen.value.detach(), grads


def len_of(case: Case) -> int:
    """How many real tokens a case's text has."""
    return 0 if case.tokens is None else len(case.tokens)
