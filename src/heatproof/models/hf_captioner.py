"""Hugging Face captioners (BLIP, vision-encoder-decoders, LLaVA-like), from the hub's cache or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heatproof.contract import Refused
from heatproof.models import coco_synsets
from heatproof.models.hf_caption import HfCaption
from heatproof.models.hf_captioner_nets import PARTS, tell
from heatproof.models.hf_captioner_words import Spelling
from heatproof.models.hf_classifier import open_card, open_frame, open_net

COCO = (*coco_synsets.SYNSETS, *coco_synsets.NEAREST, *coco_synsets.LEFT_OUT)


@dataclass(frozen=True)
class HfCaptioner:
    r"""``name`` is a hub name or a folder with config.json, model.safetensors, a tokenizer and preprocessor_config.json.

    BLIP (Li et al. 2022, arXiv 2201.12086), ViT with GPT-2 or BERT that looks at it by cross-attention, and LLaVA (Liu et al.
    2023, arXiv 2304.08485). ``objects`` are the names that count as objects, COCO's 80 where none are given. ``prompt`` is the
    text that the caption continues; LLaVA's must say where the image stands: "USER: <image>\nDescribe it. ASSISTANT:".
    ``length`` is the longest caption in tokens, its start included; ``beam`` how wide ``write`` searches (1: greedy).
    """

    name: str
    revision: str | None = None
    objects: tuple[str, ...] = ()
    prompt: str = ""
    length: int = 24
    beam: int = 3
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> HfCaption:
        """The captioner; raises Refused where it is of another make, or a setting does not fit it."""
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        net = open_net(AutoModelForImageTextToText, self.name, self.revision)
        if type(net).__name__ not in PARTS:
            raise Refused(f"model {name}: found {type(net).__name__}, accepted are {', '.join(PARTS)}")
        try:
            inner = AutoTokenizer.from_pretrained(self.name, revision=self.revision)
        except Exception as error:  # absent files, absent libraries and no network come as many kinds
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Refused(f"model {self.name!r}: its tokenizer cannot be loaded: {why}") from error
        return caption(
            name,
            net,
            inner,
            self.prompt,
            frame=open_frame(self.name, self.revision),
            card=open_card(self.name),
            rows=self.rows,
            device=device,
            objects=self.objects or COCO,
            length=self.length,
            beam=self.beam,
        )


def caption(name: str, net: Any, inner: Any, prompt: str, **settings: Any) -> HfCaption:
    """A ``transformers`` captioner and its tokenizer that are at hand already, behind the contract."""
    tell(net)
    parts, config = PARTS[type(net).__name__](net), net.config
    start, end = _ends(net, inner)
    if parts.image_token is None:
        ids = [start, *inner(prompt, add_special_tokens=False)["input_ids"]]
    else:
        ids = list(inner(prompt)["input_ids"])
        ids = ids[:-1] if ids[-1:] == [inner.eos_token_id] else ids
        if ids.count(parts.image_token) != 1 or ids[-1] == parts.image_token:
            told = inner.convert_ids_to_tokens(parts.image_token)
            raise Refused(
                f"model {name}: prompt: found {prompt!r}, accepted is a text that has {told} once and goes on "
                f"behind it; type: prompt = 'USER: {told} Describe the image. ASSISTANT:'"
            )
    vision = getattr(config, "vision_config", None) or config.encoder
    size, patch = int(vision.image_size), int(vision.patch_size)
    if settings["frame"].size != size:
        raise Refused(f"model {name}: its images are {settings['frame'].size} px, the net reads {size}")
    long = len(ids) + (0 if parts.image_token is None else (size // patch) ** 2) + settings["length"]
    if settings["length"] < 3 or long > parts.places:
        raise Refused(
            f"model {name}: length: found {settings['length']}, accepted are 3 to {parts.places - long + settings['length']}"
        )
    numbers = max(len(inner), parts.embedding.num_embeddings)
    words = Spelling(inner, numbers, ids[-1], end, bool(prompt))
    return HfCaption(name, net, words=words, prompt=tuple(ids[:-1]), cells=(size // patch) ** 2, **settings)


def _ends(net: Any, inner: Any) -> tuple[int, int]:
    """The tokens that start a caption and that end it, as the library's ``generate`` takes them."""
    config = net.config
    if type(net).__name__ == "BlipForConditionalGeneration":
        return int(config.text_config.bos_token_id), int(config.text_config.sep_token_id)
    told = [net.generation_config, config, getattr(config, "decoder", config)]
    starts = [getattr(c, "decoder_start_token_id", None) for c in told] + [
        getattr(told[-1], "bos_token_id", None),
        inner.bos_token_id,
        inner.cls_token_id,
    ]
    ends = [getattr(c, "eos_token_id", None) for c in told] + [inner.eos_token_id, inner.sep_token_id]
    start, end = (next((t for t in some if t is not None), None) for some in (starts, ends))
    if hasattr(config, "image_token_id"):
        start = -1  # the prompt begins as its tokenizer says
    if end is None or start is None:
        raise Refused(
            "config.json: found no decoder_start_token_id or eos_token_id, accepted is a token's id each"
        )
    return int(start), int(end[0] if isinstance(end, list) else end)
