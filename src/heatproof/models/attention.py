"""Attention probabilities as sites: the function that every transformer here computes attention with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heatproof.models.watching import PARTS, passing


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,  # the library passes dropout and flags that frozen models have no use for
) -> tuple[Tensor, Tensor]:
    """softmax(q k' scaling + mask) v, with the probabilities [N, heads, T, T] shown to watchers.

    So are the heads' queries, keys, values and what they mix, [N, heads, T, d]: the parts of the site that are called
    "image.attention 0.query" and so on (``PARTS``). The signature is that of Hugging Face's attention interface (its
    eager attention, less the dropout).
    """
    site = str(module.heatproof_site)
    query, key, value = (
        passing(f"{site}.{part}", x) for part, x in zip(PARTS, (query, key, value), strict=False)
    )
    multiply = getattr(module, "heatproof_multiply", torch.matmul)  # LRP's twins have a product of their own
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = multiply(query, key.transpose(2, 3)) * scale
    if attention_mask is not None:
        logits = logits + attention_mask
    probabilities = passing(site, torch.softmax(logits, -1))
    mixed = passing(f"{site}.mixed", multiply(probabilities, value))
    return mixed.transpose(1, 2).contiguous(), probabilities


def tell_sites(net: nn.Module, configs: list[Any], towers: dict[str, list[nn.Module]]) -> None:
    """Make a Hugging Face net use ``attend`` and name the attention module of each block of its towers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("heatproof", attend)
    AttentionMaskInterface.register("heatproof", eager_mask)  # so that the net's own forward stays right
    for config in configs:
        config._attn_implementation = "heatproof"
    for tower, modules in towers.items():
        for k, module in enumerate(modules):
            setattr(module, "heatproof_site", f"{tower}.attention {k}")  # noqa: B010 - modules type no attributes


def causal(seen: Tensor) -> Tensor:
    """seen [N, T] (1 = other tokens may look at it) -> additive mask [N, 1, T, T] of a causal text tower.

    A token always sees itself, so that no row is empty.

    >>> (causal(torch.tensor([[1.0, 0.0, 1.0]]))[0, 0] == 0).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    length = seen.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=seen.device)
    open_ = (past & (seen[:, None, :] >= 0.5)) | own
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(open_.shape, device=seen.device).masked_fill(~open_, lowest)[:, None]
