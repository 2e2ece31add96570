"""Hugging Face CLIP, from the hub's cache or a local folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof.models.attention import attend, causal, tell_sites
from heatproof.models.base import Context, Stage
from heatproof.models.dual import Dual
from heatproof.models.hf_classifier import open_card, open_frame, open_net
from heatproof.models.words import open_tokens


@dataclass(frozen=True)
class HfClip:
    """``name`` is a hub name or a folder with config.json, model.safetensors and a tokenizer."""

    name: str
    revision: str | None = None
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Dual:
        from transformers import CLIPModel

        net = open_net(CLIPModel, self.name, self.revision)
        return clip(
            name,
            net,
            open_tokens(self.name, self.revision),
            frame=open_frame(self.name, self.revision),
            card=open_card(self.name),
            rows=self.rows,
            device=device,
        )


def clip(
    name: str,
    net: Any,
    tokenizer: Any,
    stages: Callable[[Any], list[Stage]] | None = None,
    **settings: Any,
) -> Dual:
    """A ``transformers`` CLIPModel that is at hand already, behind the contract; ``stages`` of its image tower."""
    tell_sites(
        net,
        [
            net.config,
            net.config.vision_config,
            net.config.text_config,
            net.vision_model.config,
            net.text_model.config,
        ],
        {
            "image": [b.self_attn for b in net.vision_model.encoder.layers],
            "text": [b.self_attn for b in net.text_model.encoder.layers],
        },
    )
    return Dual(
        name,
        net,
        image_stages=stages or image_stages,
        text_stages=text_stages,
        tokenizer=tokenizer,
        text_length=net.config.text_config.max_position_embeddings,
        unended=_highest if net.config.text_config.eos_token_id == 2 else _first,
        **settings,
    )


def _first(ids: Tensor) -> int:
    """Where ``transformers`` reads a text that has no end token: a search that finds nothing answers 0 ..."""
    return 0


def _highest(ids: Tensor) -> int:
    """... and where the config is as old as OpenAI's on the hub, the end is taken to be the highest id."""
    return int(ids.argmax())


def image_stages(net: Any) -> list[Stage]:
    """Sites: image.embed 0, image.block k = the output of block k below the last, which is read at the class token."""
    vision = net.vision_model
    last = len(vision.encoder.layers) - 1
    stages = [
        Stage("image.embed 0", lambda x, _: vision.pre_layrnorm(vision.embeddings(x))),
    ]
    for k, block in enumerate(vision.encoder.layers):
        site = f"image.block {k}" if k < last else None
        stages.append(_image_block(site, block))
    return [
        *stages,
        Stage(None, lambda x, _: net.visual_projection(vision.post_layernorm(x[:, 0]))),
    ]


def _image_block(site: str | None, block: Any) -> Stage:
    def brief(x: Tensor, _: Context) -> Tensor:
        return one_token(block, x, torch.zeros(len(x), dtype=torch.long, device=x.device))

    return Stage(site, lambda x, _: block(x, None), None if site else brief)


def _text_block(site: str | None, block: Any) -> Stage:
    def brief(x: Tensor, context: Context) -> Tensor:
        return one_token(block, x, context["eos"], causal(context["seen"]))

    return Stage(site, lambda x, context: block(x, causal(context["seen"])), None if site else brief)


def one_token(block: Any, x: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
    """A block's output [N, 1, D] at one token a row, at [N]: the keys and values of all, the query of that one."""
    rows, attention = torch.arange(len(x), device=x.device), block.self_attn
    inner = block.layer_norm1(x)
    one = inner[rows, at][:, None]
    query, key, value = (
        project(y).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for project, y in (
            (attention.q_proj, one),
            (attention.k_proj, inner),
            (attention.v_proj, inner),
        )
    )
    seen = None if mask is None else mask[rows, :, at][:, :, None]
    mixed, _ = attend(attention, query, key, value, seen, attention.scale)
    out = x[rows, at][:, None] + attention.out_proj(mixed.flatten(2))
    found: Tensor = out + block.mlp(block.layer_norm2(out))
    return found


def words_and_places(text: Any) -> Callable[[Tensor, Context], Tensor]:
    """Token embeddings, each times how much of it stays, and those of their places: ids [N, T] -> [N, T, D]."""

    def embed(ids: Tensor, context: Context) -> Tensor:
        tokens = text.embeddings.token_embedding(ids) * context["gain"][..., None]
        embedded: Tensor = tokens + text.embeddings.position_embedding.weight[: ids.shape[1]]
        return embedded

    return embed


def text_stages(net: Any) -> list[Stage]:
    """Sites: text.embed 0, text.block k; the end token alone is read, by the causal mask all tokens reach it."""
    text = net.text_model
    last = len(text.encoder.layers) - 1

    def read(x: Tensor, context: Context) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)
        at = context["eos"] if x.shape[1] > 1 else 0  # a brief last block leaves the end token alone
        embedding: Tensor = net.text_projection(text.final_layer_norm(x)[rows, at])
        return embedding

    stages = [Stage("text.embed 0", words_and_places(text))]
    for k, block in enumerate(text.encoder.layers):
        site = f"text.block {k}" if k < last else None
        stages.append(_text_block(site, block))
    return [*stages, Stage(None, read)]
