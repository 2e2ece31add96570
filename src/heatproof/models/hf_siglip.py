"""Hugging Face SigLIP and SigLIP 2, from the hub's cache or a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.contract import Case, Refused
from heatproof.models.attention import attend, tell_sites
from heatproof.models.base import Context, Stage
from heatproof.models.dual import Dual
from heatproof.models.hf_classifier import open_card, open_frame, open_net
from heatproof.models.hf_clip import one_token, words_and_places
from heatproof.models.words import HuggingFaceTokens, open_tokens

KINDS = ("SiglipModel", "Siglip2Model")


@dataclass(frozen=True)
class HfSiglip:
    """``name`` is a hub name or a folder with config.json, model.safetensors and a tokenizer.

    SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786). A checkpoint of
    SigLIP 2 for images of any shape ("naflex") is given the square that its position embeddings were made for, into
    which the whole image is squashed as the others do: no place is padding. ``lower`` lower-cases a text before the
    tokenizer: SigLIP's own does so by itself, but Gemma's, which SigLIP 2 was trained on lower-cased texts with, does not.
    """

    name: str
    revision: str | None = None
    rows: int = 8
    lower: bool = True

    def load(self, name: str, device: str = "cpu") -> Siglip:
        from transformers import AutoModel

        net = open_net(AutoModel, self.name, self.revision)
        kind = type(net).__name__
        if kind not in KINDS:
            raise Refused(
                f"model {name}: found {kind}, accepted are {', '.join(KINDS)}; for a CLIP type hf_clip"
            )
        frame = open_frame(self.name, self.revision)
        if kind == "Siglip2Model":  # its processor names no size
            vision = net.config.vision_config
            frame = replace(frame, size=isqrt(vision.num_patches) * vision.patch_size, mode="squash")
        tokenizer = open_tokens(self.name, self.revision, lower=self.lower)
        if isinstance(tokenizer, HuggingFaceTokens):
            tokenizer.mask = None  # Gemma's list has one, which no SigLIP was trained with
        return siglip(
            name, net, tokenizer, frame=frame, card=open_card(self.name), rows=self.rows, device=device
        )


def siglip(name: str, net: Any, tokenizer: Any, **settings: Any) -> Siglip:
    """A ``transformers`` SiglipModel or Siglip2Model that is at hand already, behind the contract."""
    vision, text = net.vision_model, net.text_model
    tell_sites(
        net,
        [net.config, net.config.vision_config, net.config.text_config, vision.config, text.config],
        {
            "image": [*(block.self_attn for block in vision.encoder.layers), vision.head.attention],
            "text": [block.self_attn for block in text.encoder.layers],
        },
    )
    return Siglip(
        name,
        net,
        image_stages=image_stages,
        text_stages=text_stages,
        tokenizer=tokenizer,
        text_length=net.config.text_config.max_position_embeddings,
        **settings,
    )


@dataclass(eq=False)
class Siglip(Dual):
    """A dual encoder whose image has no class token and whose text is read at its last place, padding or not.

    The score is the cosine, as for every dual encoder; ``probability`` is what the model was trained to give. A text is
    always padded behind its end to the full length, and every place sees every other, the padding too: that is how it was trained.
    Removal "attention" hides a token from all others; "delete" closes up and pads. Padding is never removed.
    """

    extra_tokens = 0

    @property
    def _width(self) -> int:
        net: Any = self.net
        return int(net.config.vision_config.hidden_size)

    def span(self, case: Case) -> int:
        return self.text_length

    def probability(self, cosine: Tensor) -> Tensor:
        """[N] cosines -> [N] in [0, 1]: sigmoid(exp(logit_scale) cosine + logit_bias), whether the pair belongs together.

        In double precision on the way, so that no last bit depends on a row's place (law 1).
        """
        net: Any = self.net
        logit = net.logit_scale.double().exp() * cosine.double() + net.logit_bias.double()
        return torch.sigmoid(logit).to(cosine)

    def above(self, site: str, activation: Tensor, cases: Sequence[Case], *, brief: bool = False) -> Tensor:
        if self._find(site)[0] == "text" and activation.shape[1] != self.text_length:
            raise ValueError(
                f"{activation.shape[1]} places of a text: all {self.text_length} have part in it"
            )
        return super().above(site, activation, cases, brief=brief)

    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = "attention") -> Tensor:
        sizes = torch.tensor([super(Siglip, self).span(case) for case in cases], device=keep.device)
        real = torch.arange(keep.shape[1], device=keep.device) < sizes[:, None]
        return super().score_text(torch.where(real, keep, torch.ones_like(keep)), cases, removal)

    def _reading(self, ids: Tensor, keep: Tensor | None = None) -> Context:
        return {"seen": torch.ones(ids.shape) if keep is None else keep, "gain": torch.ones(ids.shape)}

    def _ended(self, context: Context, ids: Tensor, rows: Sequence[Tensor]) -> Context:
        return context  # the last place is read, wherever the text ends


# ---------------------------------------------------------------- the towers as stages


def image_stages(net: Any) -> list[Stage]:
    """Sites: image.embed 0, image.block k = the output of every block: attention pooling reads all its patches.

    ``image.attention`` of the index behind the last block's is the pooling's, [N, heads, 1, T].
    """
    vision = net.vision_model
    embed = vision.embeddings
    if type(net).__name__ == "Siglip2Model":
        embed = partial(embed_square, vision.embeddings)
    stages = [Stage("image.embed 0", lambda x, _: embed(x))]
    stages += [_image_block(f"image.block {k}", block) for k, block in enumerate(vision.encoder.layers)]
    return [*stages, Stage(None, lambda x, _: pooled(vision.head, vision.post_layernorm(x)))]


def embed_square(embeddings: Any, pixels: Tensor) -> Tensor:
    """[N, C, S, S] -> patch embeddings [N, T, D]: the square grid that the position embeddings were made for.

    A patch is told as SigLIP 2's processor tells it, channels last.
    """
    size = embeddings.patch_size
    patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
    tokens: Tensor = embeddings.patch_embedding(patches.flatten(3).flatten(1, 2))
    placed: Tensor = tokens + embeddings.position_embedding.weight
    return placed


def pooled(head: Any, x: Tensor) -> Tensor:
    """[N, T, D] -> [N, D]: a learnt probe attends to all patches; then a norm and an MLP beside a residual path."""
    attention = head.attention
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    probe = head.probe.expand(len(x), -1, -1)
    query, key, value = (
        F.linear(y, weight, bias).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for y, (weight, bias) in zip((probe, x, x), parts, strict=True)
    )
    mixed, _ = attend(attention, query, key, value, None)
    y = attention.out_proj(mixed.flatten(2))
    found: Tensor = (y + head.mlp(head.layernorm(y)))[:, 0]
    return found


def text_stages(net: Any) -> list[Stage]:
    """Sites: text.embed 0, text.block k below the last, of whose output the last place alone is read."""
    text = net.text_model
    last = len(text.encoder.layers) - 1

    stages = [Stage("text.embed 0", words_and_places(text))]
    for k, block in enumerate(text.encoder.layers):
        stages.append(_text_block(f"text.block {k}" if k < last else None, block))
    return [*stages, Stage(None, lambda x, _: text.head(text.final_layer_norm(x)[:, -1]))]


def _image_block(site: str, block: Any) -> Stage:
    return Stage(site, lambda x, _: block(x, None))


def _text_block(site: str | None, block: Any) -> Stage:
    def brief(x: Tensor, context: Context) -> Tensor:
        end = torch.full((len(x),), x.shape[1] - 1, device=x.device)
        return one_token(block, x, end, both_ways(context["seen"]))

    return Stage(site, lambda x, context: block(x, both_ways(context["seen"])), None if site else brief)


def both_ways(seen: Tensor) -> Tensor:
    """seen [N, T] (1 = other places may look at it) -> additive mask [N, 1, T, T] without a direction.

    A place always sees itself.

    >>> (both_ways(torch.tensor([[1.0, 0.0, 1.0]]))[0, 0] == 0).int().tolist()
    [[1, 0, 1], [1, 1, 1], [1, 0, 1]]
    """
    own = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    open_ = (seen[:, None, :] >= 0.5) | own
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(open_.shape, device=seen.device).masked_fill(~open_, lowest)[:, None]
