"""Attention rollout and flow: attention of all layers multiplied, or taken as pipes, each with its residual path."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case

SCALE = 2**20  # flows are of whole numbers


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
        if model.family == "captioner":
            raise Unsuited(
                f"{model.name}'s words read its image by cross-attention: no token of the image is the reader"
            )
        layers = self._watched(model, "image.attention", cases)
        images = [model.grid(self._row([layer[i] for layer in layers], 0)) for i in range(len(cases))]
        if "text.attention" not in model.sites:
            return [Explanation(image=image) for image in images]
        layers, texts = self._watched(model, "text.attention", cases), []
        for i, (case, n) in enumerate(zip(cases, lengths(cases), strict=True)):
            size = model.span(case)
            own = [layer[i, :, :size, :size] for layer in layers]
            texts.append(self._row(own, size - 1)[:n])
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _row(self, layers: Sequence[Tensor], reader: int) -> Tensor:
        return rolled(layers, reader)

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


@dataclass(frozen=True)
class Flow(Rollout):
    """The most that can flow from the reading token down to each input token, attention being the width of the pipes.

    Abnar and Zuidema 2020, attention flow: a token of one layer is joined to those of the layer below by (mean over heads +
    identity) / 2, and a token's relevance is the maximum flow from the reader to it alone. Places, ``start`` and range are those of
    ``rollout``. One forward, but a flow a token: 0.07 s a map for 50 tokens in 12 layers, 5 s for 197; capacities are whole
    numbers of 2^-20. Criticism: where attention is broad nearly all can reach any token, so that maps are flat.
    """

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        return super().explain(model, cases)  # the shelf reads the verb in the class itself

    def _row(self, layers: Sequence[Tensor], reader: int) -> Tensor:
        return flowing(layers, reader)


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


def flowing(layers: Sequence[Tensor], reader: int) -> Tensor:
    """[heads, T, T] of each layer, lowest first -> the maximum flow from the reader above to each token below, [T].

    A last layer [heads, 1, T] pools: it is the reader itself.

    >>> flowing([torch.eye(2)[None], torch.full((1, 2, 2), 0.5)], reader=0).tolist()
    [0.75, 0.25]
    """
    size = layers[0].shape[-1]
    rows, columns, widths = [], [], []
    for k, attention in enumerate(
        layers
    ):  # tokens of layer k are the nodes from k * size on; the inputs are layer 0
        mixed = attention.mean(0)
        pools = len(mixed) < size
        mixed = mixed if pools else (mixed + torch.eye(size).to(mixed)) / 2
        above = torch.full((1,), reader) if pools else torch.arange(size)
        there = (mixed * SCALE).round().int().cpu()
        rows.append((above[:, None] + (k + 1) * size).expand_as(there).flatten())
        columns.append((torch.arange(size) + k * size).expand_as(there).flatten())
        widths.append(there.flatten())
    nodes = (len(layers) + 1) * size
    pipes = [torch.cat(part).numpy() for part in (widths, rows, columns)]
    net = csr_array((pipes[0], (pipes[1], pipes[2])), shape=(nodes, nodes))
    source = len(layers) * size + reader
    return torch.tensor(
        [maximum_flow(net, source, token).flow_value / SCALE for token in range(size)]
    ).float()
