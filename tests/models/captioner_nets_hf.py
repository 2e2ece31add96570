"""Tiny random captioners of the library in folders as the hub has them, the house's models of them, and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as tk
import torch
import transformers as hf
from torch import Tensor

from heatproof.contract import Case, Object, Sample
from heatproof.models.hf_captioner import HfCaptioner

SIZE, PATCH, LENGTH = 32, 8, 14
TOWER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
EYES = {**TOWER, "image_size": SIZE, "patch_size": PATCH}
KINDS = ("blip", "vit_gpt2", "vit_bert", "llava")
PROMPT = "user : <image> what is it ? answer :"
OBJECTS = ("ball", "snowboard", "star", "redball")
CAPTIONS = ("a red ball on the sky", "The snowboard, next to a redball!")
PIECES = "a red blue ball snow star on the sky next to user what is it answer : ? , . !".split()


def word_pieces() -> Any:
    """As BERT's: "snowboard" is snow, ##board; "redball" is red, ##ball; no word is wholly unknown."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *PIECES, *letters[1:]]
    pieces += [f"##{p}" for p in ("board", "ball", "s", "red", *letters) if p != "s"] + ["##s"]
    inner = tk.Tokenizer(tk.models.WordPiece({p: k for k, p in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = tk.normalizers.BertNormalizer()
    inner.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tk.decoders.WordPiece()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "bos": "[DEC]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, **{f"{k}_token": v for k, v in names.items()})


def byte_pairs(end: str = "<|end|>", extra: tuple[str, ...] = ()) -> Any:
    """As GPT-2's: the blank is part of the word behind it."""
    special = [end, "<pad>", *extra]
    ids = {p: k for k, p in enumerate([*special, *sorted(tk.pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for word in [*PIECES, "board", "The"]:
        for lead in ("", "\u0120"):
            parts = [*lead, *word]
            for k in range(1, len(parts)):
                pair = "".join(parts[:k]), parts[k]
                if "".join(pair) not in ids:
                    ids["".join(pair)] = len(ids)
                    merges.append(pair)
    inner = tk.Tokenizer(tk.models.BPE(ids, merges))
    inner.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tk.decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=end,
        bos_token=end,
        pad_token="<pad>",
        additional_special_tokens=[*extra],
    )


def net(kind: str, tokenizer: Any) -> Any:
    size = len(tokenizer)
    words: dict[str, Any] = {
        **TOWER, "vocab_size": size, "max_position_embeddings": 128, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "blip":
        text = {**words, "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3}
        return hf.BlipForConditionalGeneration(hf.BlipConfig(text_config=text, vision_config=EYES))
    if kind == "llava":
        text = hf.LlamaConfig(**words, num_key_value_heads=1, bos_token_id=0, eos_token_id=0)
        eyes = hf.CLIPVisionConfig(**{**EYES, "num_hidden_layers": 3})
        image = tokenizer.convert_tokens_to_ids("<image>")
        return hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(vision_config=eyes, text_config=text, image_token_index=image)
        )
    eyes = hf.ViTConfig(**EYES)
    if kind == "vit_bert":
        text = hf.BertConfig(**words, is_decoder=True, add_cross_attention=True)
        start, end = 2, 3
    else:
        text = hf.GPT2Config(
            vocab_size=size, n_positions=128, n_embd=24, n_layer=2, n_head=2, add_cross_attention=True,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        start, end = 0, 0
    made = hf.VisionEncoderDecoderModel(
        hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, text)
    )
    for config in (made.config, made.generation_config):
        config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = (
            start,
            end,
            tokenizer.pad_token_id,
        )
    return made


def folder(kind: str, top: Path) -> Path:
    """A checkpoint: weights away from their trivial start, a tokenizer, a processor's settings."""
    tokenizer = {
        "blip": word_pieces, "vit_bert": word_pieces, "vit_gpt2": byte_pairs,
        "llava": lambda: byte_pairs("</s>", ("<image>",)),
    }[kind]()  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = net(kind, tokenizer)
        for value in made.parameters():
            value.data.add_(0.25 * torch.randn(value.shape))
    made.save_pretrained(top)
    tokenizer.save_pretrained(top)
    frame = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": {"height": SIZE, "width": SIZE},
    }
    (top / "preprocessor_config.json").write_text(json.dumps(frame))
    return top


def models(top: Path) -> dict[str, tuple[Any, Any]]:
    """Of each kind the house's model and the library's own net, of the same weights."""
    found = {}
    for kind in KINDS:
        path = folder(kind, top / kind)
        told = HfCaptioner(
            str(path), objects=OBJECTS, length=LENGTH, prompt=PROMPT if kind == "llava" else ""
        )
        auto = hf.AutoModelForImageTextToText
        found[kind] = told.load(kind), auto.from_pretrained(path, attn_implementation="eager").eval()
    return found


def samples(count: int = 4) -> list[Sample]:
    chance = np.random.default_rng(1)
    found = []
    for k in range(count):
        image = chance.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[4 + k : 20 + k, 6:20] = True
        image[mask] = (255, 20 * k, 0)
        things = [
            Object(name, (6.0, 4.0 + k, 20.0, 20.0 + k), mask) for name in ("ball", "snowboard", "redball")
        ]
        found.append(Sample(f"s{k}", lambda i=image: i, captions=CAPTIONS, objects=tuple(things)))
    return found


def cases(model: Any) -> list[Case]:
    """One word of one token, and two of several, on four images."""
    asked = [model.ask(samples(), f"caption {k}") for k in (0, 1)]
    return [case for both in asked for some in both for case in some][:9]


def plain(model: Any, net: Any, pixels: Tensor, ids: list[int]) -> Tensor:
    """The library's own teacher-forced logits [1, T, V] where ``ids`` [T] are read, the prompt before them."""
    before = list(model.prompt)
    if type(net).__name__ == "LlavaForConditionalGeneration":
        at = before.index(net.config.image_token_id)
        before[at : at + 1] = [net.config.image_token_id] * (SIZE // PATCH) ** 2
    read = torch.tensor([[*before, *ids]])
    name = "decoder_input_ids" if type(net).__name__ == "VisionEncoderDecoderModel" else "input_ids"
    return net(pixel_values=pixels, **{name: read}).logits[:, -len(ids) :]


# ---------------------------------------------------------------- slow twins


def gap(found: Tensor, expected: Tensor, most: float = 1e-6) -> None:
    found, expected = found.detach(), expected.detach()
    off = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
    print(f"off by at most {off:.1e}")
    assert found.shape == expected.shape
    assert off < most


def said(case: Case) -> list[int]:
    """The tokens of the word that is scored."""
    return [
        i for i, w in zip(case.tokens.tolist(), case.words, strict=True) if w == case.words[case.target + 1]
    ]


def forced(model: Any, net: Any, pixels: Tensor, before: list[int], word: list[int]) -> Tensor:
    """The word's log-probability by the library, each token after those before it."""
    chances = plain(model, net, pixels[None], [*before, *word]).log_softmax(2)[0]
    return sum(chances[len(before) - 1 + k, token] for k, token in enumerate(word))


def embedding(net: Any) -> Any:
    """The library's token embeddings."""
    part = getattr(net, "text_decoder", getattr(net, "decoder", net))
    return part.get_input_embeddings()


def twins(model: Any, net: Any, cases: Any) -> Tensor:
    return torch.stack(
        [forced(model, net, c.pixels, c.tokens[: c.target + 1].tolist(), said(c)) for c in cases]
    )
