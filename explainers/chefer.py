"""Attention weighted by its gradient: relevance rolled out over layers, and one layer alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

FORMS = ("product", "positive", "gradient")
Layers = list[tuple[Tensor, Tensor]]  # probabilities and gradients [N, heads, T, T], lowest layer first


@dataclass(frozen=True)
class Chefer:
    """Chefer, Gur, Wolf 2021 (ICCV, arXiv 2103.15679), self-attention alone: gradient-weighted rollout, >= 0.

    R starts as the identity; layer by layer R becomes R + mean over heads of relu(gradient * attention) times R. Image:
    the class token's row of R over the patches; text of a dual encoder: the row of the place that is read, for CLIP the
    end token's, over all tokens. A tower that ends in attention pooling (SigLIP) is read by the pooling's row, mean over
    heads of relu(gradient * attention) times R, as they carry relevance through attention to other tokens.
    ``start_layer`` is the first layer taken, ``start_layer_text`` the text tower's; negative counts from the end, and a
    tower too low starts at its first. None is what was published: every layer for a classifier, the last alone for CLIP
    (their notebook: "start_layer = -1"), as later comparisons run it too. One forward and backward a tower.

    Criticism: heads that speak against the target are dropped, and what MLPs and norms do to a token is not seen;
    with the last layer alone it is one attention map, weighted.
    """

    start_layer: int | None = None
    start_layer_text: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        usual = -1 if model.family == "dual" else 0
        start = usual if self.start_layer is None else self.start_layer
        layers = weighed(model, "image.attention", start, cases)
        images = [
            model.grid(relevance([(a[i], g[i]) for a, g in layers], reader=0)) for i in range(len(cases))
        ]
        if "text.attention" not in model.sites:
            return [Explanation(image=image) for image in images]
        start = usual if self.start_layer_text is None else self.start_layer_text
        layers, found = weighed(model, "text.attention", start, cases), []
        for i, (image, case, n) in enumerate(zip(images, cases, lengths(cases), strict=True)):
            size = model.span(case)
            own = [(a[i, :, :size, :size], g[i, :, :size, :size]) for a, g in layers]
            found.append(Explanation(image=image, text=relevance(own, reader=size - 1)[:n]))
        return found


@dataclass(frozen=True)
class AttentionGradient:
    """Attention and its gradient at one layer, mean over heads, read as ``attention`` reads it (Chefer et al. 2021).

    ``form``: "product" is attention times gradient, signed; "positive" its positive part head by head, which is one
    layer of Chefer's rollout; "gradient" the gradient's absolute value alone. Zhu et al. 2025 (NIB) compare with all
    three at the last layer of CLIP, as "FastIG", "Chefer" and "SaliencyMap". ``layer`` -1 is the last. A captioner has
    the step that speaks the target: cross-attention over the encoder's cells, to whose probabilities the gradient adds.

    Criticism: a head that copies what every token knows has large products and tells no place.
    """

    layer: int = -1
    form: str = "product"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.form not in FORMS:
            raise Refused(f"chefer: form: found {self.form!r}, accepted are {', '.join(FORMS)}")
        if model.family == "captioner":
            ((seen, grads),) = slopes(model, [model.site("cross.attention", self.layer)], cases)
            steps = [(a[c.target], g[c.target]) for a, g, c in zip(seen, grads, cases, strict=True)]
            return [Explanation(image=model.grid(self._pool(a, g))) for a, g in steps]
        self_attention(model)
        ((seen, grads),) = slopes(model, [model.site("image.attention", self.layer)], cases)
        rows = slice(0, 1 if model.extra_tokens else None)  # without a class token all rows, or the pooling's
        images = [
            model.grid(self._pool(a[:, rows].flatten(0, 1), g[:, rows].flatten(0, 1)))
            for a, g in zip(seen, grads, strict=True)
        ]
        if "text.attention" not in model.sites:
            return [Explanation(image=image) for image in images]
        layer = max(self.layer, -model.sites["text.attention"])
        ((seen, grads),) = slopes(model, [model.site("text.attention", layer)], cases)
        found = []
        for image, a, g, case, n in zip(images, seen, grads, cases, lengths(cases), strict=True):
            reader = model.span(case) - 1
            found.append(Explanation(image=image, text=self._pool(a[:, reader, :n], g[:, reader, :n])))
        return found

    def _pool(self, attention: Tensor, grad: Tensor) -> Tensor:
        """[heads, T] -> [T]."""
        if self.form == "gradient":
            return grad.abs().mean(0)
        product = attention * grad
        return (product.clamp(min=0) if self.form == "positive" else product).mean(0)


def self_attention(model: Any) -> None:
    if "image.attention" not in model.sites:
        raise Unsuited(f"needs self-attention over the image; {model.name} has {', '.join(model.sites)}")
    if model.family == "captioner":
        raise Unsuited(
            f"{model.name}'s words read its image by cross-attention: no token of the image is the reader"
        )


def weighed(model: Any, kind: str, start: int, cases: Sequence[Case]) -> Layers:
    """Every layer's attention from ``start`` on, with the score's gradient there."""
    self_attention(model)
    count = model.sites[kind]
    first = max(start + count, 0) if start < 0 else start
    if first >= count:
        raise Refused(f"chefer: start_layer: found {start}, {model.name} has layers 0 to {count - 1}")
    return slopes(model, [model.site(kind, k) for k in range(first, count)], cases)


def slopes(model: Any, sites: Sequence[str], cases: Sequence[Case]) -> Layers:
    """One forward and backward of a tower: each site's value, and the score's gradient there."""
    with ExitStack() as stack:
        seen = [stack.enter_context(model.watch(site)) for site in sites]
        if sites[0].startswith("text."):
            score = model.score_text(torch.ones(len(cases), max(lengths(cases))), cases)
        else:
            score = model.score(model.stack(cases), cases)
        grads = torch.autograd.grad(score.sum(), [watch.value for watch in seen])
    return [(watch.value.detach(), grad) for watch, grad in zip(seen, grads, strict=True)]


def lengths(cases: Sequence[Case]) -> list[int]:
    """How many real tokens each text has."""
    return [0 if case.tokens is None else len(case.tokens) for case in cases]


def relevance(layers: Sequence[tuple[Tensor, Tensor]], reader: int) -> Tensor:
    """[heads, T, T] of attention and gradient, lowest layer first -> the reader's row [T] of R.

    A last layer [heads, 1, T] pools: it is the reader itself.

    >>> relevance([(torch.full((1, 2, 2), 0.5), torch.tensor([[[-1.0, 2.0], [0.0, 0.0]]]))], reader=0).tolist()
    [1.0, 1.0]
    """
    row = torch.eye(layers[0][0].shape[-1])[reader].to(layers[0][0])
    if layers[-1][0].shape[1] < len(row):
        attention, grad = layers[-1]
        row, layers = (attention * grad).clamp(min=0).mean(0)[0], layers[:-1]
    for attention, grad in reversed(layers):
        row = row + row @ (attention * grad).clamp(min=0).mean(0)
    return row
