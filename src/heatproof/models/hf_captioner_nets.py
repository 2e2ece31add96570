"""Hugging Face captioners taken apart: the image's stages, the words' way in, and what makes logits of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heatproof.contract import Refused
from heatproof.models.attention import attend, tell_sites
from heatproof.models.base import Stage
from heatproof.models.watching import PASSING, passing

CROSS = "cross.attention"


class Parts(NamedTuple):
    """One net: ``image`` ends in the features [N, P, D]; ``read`` makes of them what the words look at [N, P', E].

    ``say`` takes token embeddings [N, S, E], what is looked at, and L, to the logits [N, L, V] of the last L places. The net
    looks by cross-attention, or, where ``image_token`` is given, the image stands among the tokens in that one's place.
    """

    image: list[Stage]
    embedding: nn.Embedding
    read: Callable[[Tensor], Tensor]
    say: Callable[[Tensor, Tensor, int], Tensor]
    image_token: int | None
    special: int  # tokens of a block that are no patch
    places: int  # the longest sequence


# ---------------------------------------------------------------- the three kinds


def blip(net: Any) -> Parts:
    vision, text = net.vision_model, net.text_decoder

    def say(words: Tensor, seen: Tensor, length: int) -> Tensor:
        # its embeddings add places in place
        out = text(inputs_embeds=words.clone(), encoder_hidden_states=seen, use_cache=False)
        found: Tensor = out.logits[:, -length:]
        return found

    stages = [Stage("image.embed 0", lambda x, _: vision.embeddings(x))]
    stages += [
        Stage(f"image.block {k}", partial(_blip_block, block))
        for k, block in enumerate(vision.encoder.layers)
    ]
    limit = net.config.text_config.max_position_embeddings
    return Parts(stages, text.get_input_embeddings(), vision.post_layernorm, say, None, 1, limit)


def _blip_block(block: Any, x: Tensor, _: Any) -> Tensor:
    """The library's block by our own attention, whose probabilities and parts are sites."""
    attention = block.self_attn
    parts = attention.qkv(block.layer_norm1(x)).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    mixed, _ = attend(attention, query, key, value, None, attention.scale)
    x = x + attention.projection(mixed.flatten(2))
    found: Tensor = x + block.mlp(block.layer_norm2(x))
    return found


def encoder_decoder(net: Any) -> Parts:
    vision, text = net.encoder, net.decoder

    def read(x: Tensor) -> Tensor:
        seen: Tensor = vision.layernorm(x)
        if hasattr(net, "enc_to_dec_proj"):
            seen = net.enc_to_dec_proj(seen)
        return seen

    def say(words: Tensor, seen: Tensor, length: int) -> Tensor:
        out = text(inputs_embeds=words, encoder_hidden_states=seen, use_cache=False)
        found: Tensor = out.logits[:, -length:]
        return found

    stages = [Stage("image.embed 0", lambda x, _: vision.embeddings(x)), *_blocks(vision.layers)]
    limit = text.config.max_position_embeddings
    return Parts(stages, text.get_input_embeddings(), read, say, None, 1, limit)


def llava(net: Any) -> Parts:
    vision, text, config = net.model.vision_tower, net.model.language_model, net.config
    classed = hasattr(vision.embeddings, "class_embedding")
    dropped = int(config.vision_feature_select_strategy == "default")

    def embed(x: Tensor, _: Any) -> Tensor:
        found: Tensor = vision.embeddings(x)
        if hasattr(vision, "pre_layrnorm"):
            found = vision.pre_layrnorm(found)
        return found

    def say(words: Tensor, seen: Tensor, length: int) -> Tensor:
        hidden = text(inputs_embeds=words, use_cache=False).last_hidden_state
        found: Tensor = net.lm_head(hidden[:, -length:])
        return found

    depth = len(vision.encoder.layers)
    stop = config.vision_feature_layer % (depth + 1)  # of the states before the first block and after each
    return Parts(
        [Stage("image.embed 0", embed), *_blocks(vision.encoder.layers[:stop], None)],
        text.get_input_embeddings(),
        lambda x: net.model.multi_modal_projector(x[:, dropped:]),
        say,
        int(config.image_token_id),
        int(classed),
        int(config.text_config.max_position_embeddings),
    )


def _blocks(blocks: Any, *arguments: Any) -> list[Stage]:
    def run(block: Any, x: Tensor, _: Any) -> Tensor:
        found: Tensor = block(x, *arguments)
        return found

    return [Stage(f"image.block {k}", partial(run, block)) for k, block in enumerate(blocks)]


PARTS: dict[str, Callable[[Any], Parts]] = {
    "BlipForConditionalGeneration": blip,
    "VisionEncoderDecoderModel": encoder_decoder,
    "LlavaForConditionalGeneration": llava,
}


# ---------------------------------------------------------------- attention as sites


class Shown(nn.Module):
    """In the place of the dropout of attention probabilities: lets watchers see them."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        return passing(self.site, x)


def tell(net: Any) -> None:
    """Name the attention of a net's image tower and of its words over the image; Refused where it is of another make."""
    kind, config = type(net).__name__, net.config
    if kind == "BlipForConditionalGeneration":
        for k, block in enumerate(net.vision_model.encoder.layers):
            block.self_attn.heatproof_site = f"image.attention {k}"
        net.text_decoder.config._attn_implementation = "eager"
        for k, layer in enumerate(net.text_decoder.bert.encoder.layer):
            layer.crossattention.self.dropout = Shown(f"{CROSS} {k}")
        return
    if kind == "LlavaForConditionalGeneration":
        vision, text = net.model.vision_tower, net.model.language_model
        if type(vision).__name__ not in ("CLIPVisionModel", "SiglipVisionModel"):
            raise _other(vision, "vision tower", "CLIPVisionModel, SiglipVisionModel")
        if not isinstance(config.vision_feature_layer, int):
            raise Refused(f"vision_feature_layer: found {config.vision_feature_layer}, accepted is one layer")
        if type(text).__name__ not in ("LlamaModel", "MistralModel", "Qwen2Model"):
            raise _other(text, "language model", "LlamaModel, MistralModel, Qwen2Model")
        stop = config.vision_feature_layer % (len(vision.encoder.layers) + 1)
        _tell(vision, text, [block.self_attn for block in vision.encoder.layers])
        for k, block in enumerate(vision.encoder.layers):
            block.self_attn.heatproof_site = f"{'image' if k < stop else 'unread'}.attention {k}"
        cross = [layer.self_attn for layer in text.layers]
    else:
        if type(net.encoder).__name__ != "ViTModel":
            raise _other(net.encoder, "encoder", "ViTModel")
        text = net.decoder.base_model
        layers = text.h if hasattr(text, "h") else getattr(getattr(text, "encoder", None), "layer", None)
        if layers is None or not all(hasattr(layer, "crossattention") for layer in layers):
            raise _other(net.decoder, "decoder", "GPT2LMHeadModel, BertLMHeadModel with cross-attention")
        _tell(net.encoder, text, [layer.attention for layer in net.encoder.layers])
        own = [layer.attn if hasattr(layer, "attn") else layer.attention.self for layer in layers]
        for k, module in enumerate(own):
            module.heatproof_site = f"own.attention {k}"  # of words to words: nobody may watch it
        cross = [getattr(layer.crossattention, "self", layer.crossattention) for layer in layers]
    for k, module in enumerate(cross):
        module.heatproof_site = f"{CROSS} {k}"
        groups = getattr(module, "num_key_value_groups", 1)
        module.heatproof_groups = groups


def _tell(vision: Any, text: Any, towers: list[nn.Module]) -> None:
    tell_sites(vision, [vision.config], {"image": towers})
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("heatproof words", grouped)
    AttentionMaskInterface.register("heatproof words", eager_mask)
    text.config._attn_implementation = "heatproof words"


def grouped(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Any:
    """``attend`` where several heads share one key and value."""
    many = getattr(module, "heatproof_groups", 1)
    key, value = (x if many == 1 else x.repeat_interleave(many, 1) for x in (key, value))
    return attend(module, query, key, value, *rest, **more)


def _other(found: Any, what: str, accepted: str) -> Refused:
    return Refused(f"{what}: found {type(found).__name__}, accepted are {accepted}")


# ---------------------------------------------------------------- words and image together


def decode(
    parts: Parts, prompt: tuple[int, ...], tower: str, features: Tensor, words: Tensor, last: Tensor
) -> Tensor:
    """Features [N, P, D] and the embeddings of the last of the prompt and a caption [N, L, E] -> logits [N, L, V].

    ``last`` [N] is the place of the last step that the score reads: what follows is shown to nobody.
    """
    seen, ids = parts.read(features), torch.tensor(prompt, dtype=torch.long, device=words.device)
    at = len(prompt) if parts.image_token is None else prompt.index(parts.image_token)
    before = parts.embedding(ids).to(words).expand(len(words), -1, -1)
    pieces, cells = [before, words], slice(None)
    if parts.image_token is not None:
        pieces, cells = [before[:, :at], seen, before[:, at + 1 :], words], slice(at, at + seen.shape[1])
    with _showing(tower, words.shape[1], cells, last):
        return parts.say(torch.cat(pieces, 1), seen, words.shape[1])


@contextmanager
def _showing(tower: str, length: int, cells: slice, last: Tensor) -> Iterator[None]:
    """Inside, attention [N, heads, S, K] is shown as a captioner's: [N, length, heads, cells], zero after ``last``."""
    own = torch.arange(length, device=last.device) <= last[:, None]

    def show(tap: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        seen = tap(x[:, :, -length:, cells].transpose(1, 2) * own[:, :, None, None])
        whole = x.clone()
        whole[:, :, -length:, cells] = seen.transpose(1, 2)
        return whole

    start = f"{tower}.{CROSS} "
    taps = {
        s.removeprefix(f"{tower}."): t
        for s, t in PASSING.get().items()
        if s.startswith(start) and "." not in s[len(start) :]
    }
    token = PASSING.set({site: partial(show, tap) for site, tap in taps.items()})
    try:
        yield
    finally:
        PASSING.reset(token)
