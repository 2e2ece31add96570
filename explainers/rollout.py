"""Attention rollout: attention of all layers multiplied, each with its residual path."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case


@dataclass(frozen=True)
class Rollout:
    """The reading token's row of the product over layers of row-normalised (mean over heads + identity).

    Abnar and Zuidema 2020, "Quantifying attention flow in transformers" (ACL). Image: the class token's row over the
    patches; of a tower that ends in attention pooling (SigLIP) the pooling's row, which has no residual path, times the
    product of the layers below. Text of a dual encoder: the row of the place that is read, for CLIP the end token's,
    over all tokens. ``start`` is the first layer taken, 0 = all as in the paper. Values in [0, 1]; no target: every
    class of an image has the same map.
    """

    start: int = 0

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if "image.attention" not in model.sites:
            raise Unsuited(
                f"rollout needs self-attention over the image; {model.name} has {', '.join(model.sites)}"
            )
        layers = self._watched(model, "image.attention", cases)
        images = [model.grid(rolled([layer[i] for layer in layers], reader=0)) for i in range(len(cases))]
        if "text.attention" not in model.sites:
            return [Explanation(image=image) for image in images]
        layers, texts = self._watched(model, "text.attention", cases), []
        for i, (case, n) in enumerate(zip(cases, lengths(cases), strict=True)):
            size = model.span(case)
            own = [layer[i, :, :size, :size] for layer in layers]
            texts.append(rolled(own, reader=size - 1)[:n])
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _watched(self, model: Any, kind: str, cases: Sequence[Case]) -> list[Tensor]:
        """The probabilities [N, heads, T, T] of every layer from ``start`` on, by one forward."""
        with torch.no_grad(), ExitStack() as stack:
            sites = [model.site(kind, k) for k in range(self.start, model.sites[kind])]
            seen = [stack.enter_context(model.watch(site)) for site in sites]
            if kind.startswith("text"):
                model.score_text(torch.ones(len(cases), max(lengths(cases))), cases)
            else:
                model.score(model.stack(cases), cases)
            return [watch.value for watch in seen]


def lengths(cases: Sequence[Case]) -> list[int]:
    """How many real tokens each text has."""
    return [0 if case.tokens is None else len(case.tokens) for case in cases]


def rolled(layers: Sequence[Tensor], reader: int) -> Tensor:
    """[heads, T, T] of each layer, lowest first -> the reader's row [T] of the rolled-out attention.

    A last layer [heads, 1, T] pools: it is the reader itself.

    >>> rolled([torch.eye(2)[None], torch.full((1, 2, 2), 0.5)], reader=0).tolist()
    [0.75, 0.25]
    """
    row = torch.eye(layers[0].shape[-1])[reader].to(layers[0])
    if layers[-1].shape[1] < len(row):
        row, layers = layers[-1].mean(0)[0], layers[:-1]
    for attention in reversed(layers):
        mixed = attention.mean(0) + torch.eye(attention.shape[-1]).to(attention)
        row = row @ (mixed / mixed.sum(-1, keepdim=True))
    return row
