"""Tiny random SigLIPs in folders as the hub has them, the library's own nets beside the house's models, and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from heatproof.contract import Case
from heatproof.models.hf_siglip import HfSiglip

SIZE, PATCH, LENGTH = 32, 8, 12
TOWER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
TEXTS = [
    "a red ball",
    "blue box",
    "a tall cone on a red box on a blue ball on a cone",
    "red",
    "A ball on a box",
]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
KINDS = ("siglip", "siglip2")


def gemma(cls: Any = hf.GemmaTokenizer) -> Any:
    """Byte pairs as Gemma has them: a blank is part of the word behind it, the end is told, the beginning is not."""
    ids = {piece: k for k, piece in enumerate([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "\u2581"])}
    merges = []
    for word in ("red", "ball", "blue", "box", "on", "con", "tall", "a"):
        for a, b in [*((word[:k], word[k]) for k in range(1, len(word))), ("\u2581", word)]:
            if a + b not in ids:
                ids[a + b] = len(ids)
                merges.append((a, b))
    return cls(vocab=ids, merges=merges, add_bos_token=False, add_eos_token=True)


def folder(kind: str, top: Path) -> Path:
    """A checkpoint: weights away from their trivial start, a tokenizer, a processor's settings."""
    tokenizer = gemma(hf.GemmaTokenizer if kind == "siglip" else hf.Siglip2Tokenizer)
    text = {
        **TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 16,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    image = {"image_size": SIZE} if kind == "siglip" else {"num_patches": (SIZE // PATCH) ** 2}
    config, made = {
        "siglip": (hf.SiglipConfig, hf.SiglipModel),
        "siglip2": (hf.Siglip2Config, hf.Siglip2Model),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = made(config(text_config=text, vision_config={**TOWER, **image, "patch_size": PATCH}))
        for value in net.state_dict().values():
            value.add_(0.2 * torch.randn(value.shape))
        net.logit_scale.data.fill_(1.5)
        net.logit_bias.data.fill_(-1.0)
    net.save_pretrained(top)
    tokenizer.save_pretrained(top)
    frame: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    frame |= {"size": {"height": SIZE, "width": SIZE}} if kind == "siglip" else {"patch_size": PATCH}
    (top / "preprocessor_config.json").write_text(json.dumps(frame))
    return top


def models(top: Path) -> dict[str, tuple[Any, Any]]:
    """Of each kind the house's model and the library's own net, of the same weights."""
    found = {}
    for kind in KINDS:
        made = hf.SiglipModel if kind == "siglip" else hf.Siglip2Model
        path = folder(kind, top / kind)
        own = made.from_pretrained(path, attn_implementation="eager").eval()
        found[kind] = HfSiglip(str(path)).load(kind), own
    return found


def cases(model: Any, choices: tuple[str, ...] = ()) -> list[Case]:
    found = []
    for k, text in enumerate(TEXTS):
        ids, words, spoken = model.tokenizer(text, LENGTH)
        pixels = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(k))
        evidence = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        evidence[0, 4 + k : 16 + k, 3 : 20 - k] = True
        told = {"tokens": torch.tensor(ids), "words": tuple(words), "spoken": tuple(spoken)}
        told |= {"choices": choices, "evidence": evidence}
        found.append(Case(f"c{k}", f"s{k}", text, pixels, text, **told))
    return found


def padded(ids: Tensor, pad: int = 0) -> Tensor:
    """[T] -> [1, LENGTH]."""
    return F.pad(ids, (0, LENGTH - len(ids)), value=pad)[None]


def seen(net: Any, pixels: Tensor) -> dict[str, Tensor]:
    """What the library's net is told of one image [C, H, W]."""
    if type(net).__name__ == "SiglipModel":
        return {"pixel_values": pixels[None]}
    side = SIZE // PATCH
    rows = [
        pixels[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(1, 2, 0).flatten()
        for y in range(side)
        for x in range(side)
    ]
    shapes = torch.tensor([[side, side]])
    mask = torch.ones(1, side * side, dtype=torch.long)
    return {"pixel_values": torch.stack(rows)[None], "pixel_attention_mask": mask, "spatial_shapes": shapes}


def plain(net: Any, pixels: Tensor, ids: Tensor) -> Any:
    """The library's own forward on one image [C, H, W] and one padded text [1, LENGTH]."""
    return net(input_ids=ids, **seen(net, pixels))
