"""The towers of tiny Hugging Face nets once more, block by block and head by head, with every part left to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.contract import Case


@dataclass
class Tower:
    """One case's pass through one tower: parts by layer, [heads, T, ...], and tokens [T, D] after each block."""

    score: Tensor
    attention: list[Tensor] = field(default_factory=list)
    query: list[Tensor] = field(default_factory=list)
    key: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)  # the first is what enters block 0
    outputs: list[Any] = field(default_factory=list)  # each attention's output layer


def pass_through(model: Any, case: Case, tower: str = "image") -> Tower:
    """The bare net's pass; attention is a leaf from which a graph starts, so that gradients can be had."""
    net = model.net
    if tower == "text":
        text = net.text_model
        x, blocks = text.embeddings(case.tokens[None])[0], text.encoder.layers
    elif model.family == "dual":
        vision = net.vision_model
        x, blocks = (
            vision.pre_layrnorm(vision.embeddings(case.pixels[None]))[0],
            vision.encoder.layers,
        )
    else:
        x, blocks = net.vit.embeddings(case.pixels[None])[0], net.vit.layers
    found = Tower(torch.zeros(()), tokens=[x.requires_grad_()])
    for block in blocks:
        x = _block(found, block, x, causal=tower == "text")
        found.tokens.append(x)
    found.score = read(model, case, x[-1] if tower == "text" else x[0], tower)
    return found


def _block(found: Tower, block: Any, x: Tensor, *, causal: bool) -> Tensor:
    clip = hasattr(block, "self_attn")
    attention = block.self_attn if clip else block.attention
    before, after = (
        (block.layer_norm1, block.layer_norm2) if clip else (block.layernorm_before, block.layernorm_after)
    )
    heads = attention.num_heads if clip else attention.num_attention_heads
    y = before(x)
    query, key, value = (
        torch.stack(layer(y).chunk(heads, -1))
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = torch.stack([q @ k.T / math.sqrt(q.shape[1]) for q, k in zip(query, key, strict=True)])
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[1:]).triu(1).bool(), -torch.inf)
    chances = logits.softmax(-1)
    mixed = torch.stack([a @ v for a, v in zip(chances, value, strict=True)])
    output = attention.out_proj if clip else attention.o_proj
    for name, part in (
        ("attention", chances),
        ("query", query),
        ("key", key),
        ("value", value),
        ("mixed", mixed),
        ("outputs", output),
    ):
        getattr(found, name).append(part)
    x = x + output(torch.cat(list(mixed), -1))
    return x + block.mlp(after(x))


def read(model: Any, case: Case, token: Tensor, tower: str = "image") -> Tensor:
    """The score of what a last block's token [D] says."""
    net = model.net
    if model.family == "classifier":
        found: Tensor = net.classifier(net.vit.layernorm(token))[case.target]
        return found
    if tower == "text":
        with torch.no_grad():
            other = net.visual_projection(net.vision_model(case.pixels[None]).pooler_output)[0]
        return F.cosine_similarity(net.text_projection(net.text_model.final_layer_norm(token)), other, dim=0)
    embedded = net.visual_projection(net.vision_model.post_layernorm(token))
    return F.cosine_similarity(embedded, said(model, case.tokens), dim=0)


def said(model: Any, tokens: Tensor) -> Tensor:
    """[D]: what the text tower makes of token ids that end with the end token."""
    text = model.net.text_model
    with torch.no_grad():
        x = text.embeddings(tokens[None])
        mask = torch.full((1, 1, len(tokens), len(tokens)), -1e30).triu(1)
        for block in text.encoder.layers:
            x = block(x, mask)
        found: Tensor = model.net.text_projection(text.final_layer_norm(x[0, -1]))
    return found


def square(heat: Any) -> Any:
    """The patches of [T], folded."""
    side = math.isqrt(len(heat) - 1)
    return heat[1:].reshape(side, side)
