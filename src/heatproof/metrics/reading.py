"""Texts as a language model reads them: a vector a token, each text by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heatproof import seeds
from heatproof.errors import Refused


class TooLong(Refused):
    """A text has more tokens than the encoder reads."""


class Read(NamedTuple):
    """A text as the encoder reads it: token ids [T], vectors [T, D], and which tokens the tokenizer added."""

    ids: tuple[int, ...]
    vectors: Tensor
    special: tuple[bool, ...]


@dataclass(frozen=True)
class Encoder:
    """A Hugging Face encoder from a local folder or the hub's cache: ``name``, ``revision``.

    ``layer``: whose hidden states are compared, 0 the embeddings, -1 the last. The paper picks it by model on WMT16, its
    code has 9 of bert-base-uncased's 12 and 17 of roberta-large's 24. Each text is read by itself, without padding, so that no
    other moves its vectors (law 1).
    """

    name: str
    revision: str | None = None
    layer: int = -1

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        tokenizer, net = _opened(self.name, self.revision)
        depth = net.config.num_hidden_layers + 1
        if not -depth <= self.layer < depth:
            raise Refused(
                f"BERTScore: layer: found {self.layer}, accepted are 0 to {depth - 1}, or -1 for the last, of {self.name}"
            )
        return tokenizer, net

    def read(self, text: str) -> Read:
        """The text's tokens with their vectors, float32; Refused where it is longer than the encoder reads."""
        tokenizer, net = self._parts
        found = tokenizer(text, return_special_tokens_mask=True)
        ids = found["input_ids"]
        most = min(tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", math.inf))
        if len(ids) > most:
            raise TooLong(f"BERTScore: {text[:40]!r}... has {len(ids)} tokens, and {self.name} reads {most}")
        with torch.inference_mode():
            states = net(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        return Read(tuple(ids), states[self.layer][0], tuple(map(bool, found["special_tokens_mask"])))


@lru_cache(maxsize=2)
def _opened(name: str, revision: str | None) -> tuple[Any, Any]:
    """Tokenizer and net, once a process whatever the layers that are asked for."""
    from transformers import AutoModel, AutoTokenizer

    try:
        # what is loaded in inference mode cannot be asked outside of it; what the files lack is drawn
        with torch.inference_mode(False), seeds.forked("encoder"):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            net, told = AutoModel.from_pretrained(
                name, revision=revision, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # absent files, unknown kinds and no network come as many
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"BERTScore: encoder {name!r} cannot be loaded: {why}") from error
    lacking = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))  # no layer's
    if lacking:
        raise Refused(
            f"BERTScore: encoder {name!r}: the weights do not fit: {', '.join(lacking[:3])} is missing"
        )
    return tokenizer, net.eval().requires_grad_(False)
