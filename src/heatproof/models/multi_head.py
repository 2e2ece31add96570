"""The second captioning net of Sun et al. 2022: multi-head attention over one LSTM, its context gated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.models.captioner_nets import CaptionNet, Cells


class MultiHeadState(NamedTuple):
    """After one step: the LSTM, the heads' concatenated context, and the gated one. All [N, H]."""

    h: Tensor
    c: Tensor
    seen: Tensor
    context: Tensor


@dataclass(frozen=True)
class MultiHeadConfig:
    """Sizes; the published model has embed = hidden = 512, 512 channels and 8 heads."""

    vocabulary: int
    channels: int
    embed: int = 512
    hidden: int = 512
    heads: int = 8
    dropout: float = 0.3
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden: found {self.hidden}, no multiple of the {self.heads} heads")


class MultiHeadCaptioner(CaptionNet):
    """Scaled dot-product attention in several heads, its context gated by the one LSTM's state."""

    RELEASED: ClassVar[Mapping[str, str]] = {
        "img_projector": "project",
        "LanguageLSTM": "language_lstm",
        "decoder_k_proj": "key",
        "decoder_v_proj": "value",
        "decoder_multihead_attention.q_proj": "query",
        "decoder_aoa_linear": "linear",
        "decoder_aoa_linear_gate": "gate",
        "embedding": "embedding",
        "fc": "output",
    }

    def __init__(self, encoder: nn.Module, config: MultiHeadConfig) -> None:
        super().__init__()
        self.encoder, self.config, self.heads = encoder, config, config.heads
        embed, hidden = config.embed, config.hidden
        self.project = nn.Conv2d(config.channels, hidden, 1)
        self.language_lstm = nn.LSTMCell(embed + hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.linear = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, hidden)
        self._speaks(config)
        self.attention_dropout = nn.Dropout(config.attention_dropout)

    def start(self, like: Tensor) -> MultiHeadState:
        zero = like.new_zeros(like.shape[0], self.config.hidden)
        return MultiHeadState(zero, zero, zero, zero)

    def look(self, features: Tensor) -> Cells:
        rows = F.relu(self.project(features)).flatten(2).transpose(1, 2)
        return Cells(self.key(rows), self.value(rows), rows.mean(1))

    def split(self, x: Tensor) -> Tensor:
        """[N, L, H] -> [N, heads, L, H / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def advance(
        self, state: MultiHeadState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[MultiHeadState, Tensor]:
        h, c = self.language_lstm(torch.cat([word, cells.whole], 1), (state.h, state.c))
        attention = self.attend(h, cells.keys) + shift
        seen = self.gather(self.attention_dropout(attention), cells.values)
        context = torch.sigmoid(self.gate(h)) * self.linear(seen)
        return MultiHeadState(h, c, seen, context), attention

    def attend(self, h: Tensor, keys: Tensor) -> Tensor:
        """Each head's attention over cells [N, heads, P]."""
        return torch.softmax(self.scores(self.query(h), keys), 2)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """What each head's softmax over cells is taken of, [N, heads, P]."""
        one, key = self.split(query[:, None]), self.split(keys)
        return (one @ key.transpose(2, 3)).squeeze(2) / math.sqrt(one.shape[3])

    def gather(self, attention: Tensor, values: Tensor) -> Tensor:
        """Each head's attended values, side by side [N, H]."""
        return (attention[:, :, None] @ self.split(values)).squeeze(2).flatten(1)

    def mix(self, state: MultiHeadState) -> Tensor:
        return state.context + state.h
