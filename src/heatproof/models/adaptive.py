"""The captioning nets of Sun et al. 2022 that attend adaptively: with a second LSTM that speaks, and without.

The attention and its sentinel are those of Lu, Xiong, Parikh, Socher, "Knowing When to Look", CVPR 2017,
https://arxiv.org/abs/1612.01887, but for where the query goes (``AdaptiveConfig``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.models.captioner_nets import CaptionNet, Cells


class AdaptiveState(NamedTuple):
    """After one step: both LSTMs, and how the context came about. All [N, H], ``beta`` [N, 1]."""

    h1: Tensor
    c1: Tensor
    h2: Tensor
    c2: Tensor
    sentinel: Tensor
    beta: Tensor  # the sentinel's share of the context
    seen: Tensor  # the attended cells
    context: Tensor  # beta * sentinel + (1 - beta) * seen


class SingleState(NamedTuple):
    """After one step: the LSTM that looks, and how the context came about; as in ``AdaptiveState``."""

    h: Tensor
    c: Tensor
    sentinel: Tensor
    beta: Tensor
    seen: Tensor
    context: Tensor


@dataclass(frozen=True)
class AdaptiveConfig:
    """Sizes; the published model has embed = hidden = 512, 512 channels and 14 x 14 cells.

    ``query_along``: in the released code the attention's query has one number a cell ("cells"); "features" adds it
    feature by feature, as in Lu et al. 2017 (https://arxiv.org/abs/1612.01887). The weights' shapes are the same.
    """

    vocabulary: int
    channels: int
    cells: int
    embed: int = 512
    hidden: int = 512
    dropout: float = 0.5
    query_along: str = "cells"

    def __post_init__(self) -> None:
        if self.query_along not in ("cells", "features"):
            raise ValueError(f"query_along: found {self.query_along!r}, accepted are 'cells', 'features'")


class SentinelCaptioner(CaptionNet):
    """An LSTM that looks, and a sentinel that may stand for the image; what reads and what speaks is its heirs' matter.

    ``newest``: a bug of the released code's fine-tuning, whose sentinel gate reads the new state of the LSTM that looks.
    """

    newest = False

    RELEASED: ClassVar[Mapping[str, str]] = {
        "img_projector": "project",
        "global_img_feature_proj": "summarise",
        "AdaLSTM.lstm_cell": "visual_lstm",
        "AdaLSTM.x_gate": "gate_x",
        "AdaLSTM.h_gate": "gate_h",
        "AdaAttention.W_v_proj": "key",
        "AdaAttention.W_s_proj": "sentinel_key",
        "AdaAttention.W_g_proj": "query",
        "AdaAttention.w_h": "score",
        "embedding": "embedding",
        "fc": "output",
    }

    def __init__(self, encoder: nn.Module, config: AdaptiveConfig, reads: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        hidden, cells = config.hidden, config.cells
        self.project = nn.Conv2d(config.channels, hidden, 1)
        self.summarise = nn.Linear(config.channels, config.embed)
        self.visual_lstm = nn.LSTMCell(reads, hidden)
        self.gate_x = nn.Linear(reads, hidden)
        self.gate_h = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, cells)
        self.sentinel_key = nn.Linear(hidden, cells)
        self.query = nn.Linear(hidden, cells, bias=False)
        self.score = nn.Linear(cells, 1, bias=False)

    def look(self, features: Tensor) -> Cells:
        values = F.relu(self.project(features)).flatten(2).transpose(1, 2)
        whole = F.relu(self.summarise(features.mean((2, 3))))
        return Cells(self.key(values), values, whole)

    def heed(
        self, x: Tensor, h: Tensor, c: Tensor, cells: Cells, shift: Tensor | float = 0.0
    ) -> tuple[SingleState, Tensor]:
        """One step of the LSTM that looks, from its input and last state: what it sees, and the attention [N, 1, P]."""
        after, memory = self.visual_lstm(x, (h, c))
        gate = torch.sigmoid(self.gate_x(x) + self.gate_h(after if self.newest else h))
        sentinel = gate * torch.tanh(memory)
        attention, beta = self.attend(after, sentinel, cells.keys)
        attention = attention + shift
        seen = (attention @ cells.values).squeeze(1)
        context = beta * sentinel + (1 - beta) * seen
        return SingleState(after, memory, sentinel, beta, seen, context), attention

    def attend(self, h1: Tensor, sentinel: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The attention over cells [N, 1, P], and the sentinel's share [N, 1] by a softmax of its own."""
        query = self.query(h1)
        scores = self.scores(query, keys)
        own = self.score(torch.tanh(self.sentinel_key(sentinel) + query))
        shares = torch.softmax(torch.cat([scores, own], 1), 1)
        return torch.softmax(scores, 1)[:, None], shares[:, -1:]

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """What the softmax over cells is taken of, [N, P]."""
        placed = query[:, :, None] if self.config.query_along == "cells" else query[:, None, :]
        found: Tensor = self.score(torch.tanh(keys + placed)).squeeze(2)
        return found


class AdaptiveCaptioner(SentinelCaptioner):
    """Adaptive attention: an LSTM that looks, a sentinel that may stand for the image, an LSTM that speaks."""

    RELEASED: ClassVar[Mapping[str, str]] = {
        **SentinelCaptioner.RELEASED,
        "LanguageLSTM": "language_lstm",
    }

    def __init__(self, encoder: nn.Module, config: AdaptiveConfig) -> None:
        super().__init__(encoder, config, config.hidden + 2 * config.embed)
        self.language_lstm = nn.LSTMCell(2 * config.hidden, config.hidden)
        self._speaks(config)

    def start(self, like: Tensor) -> AdaptiveState:
        zero = like.new_zeros(like.shape[0], self.config.hidden)
        return AdaptiveState(zero, zero, zero, zero, zero, zero[:, :1], zero, zero)

    def advance(
        self, state: AdaptiveState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[AdaptiveState, Tensor]:
        x1 = torch.cat([state.h2, cells.whole, word], 1)
        looked, attention = self.heed(x1, state.h1, state.c1, cells, shift)
        h2, c2 = self.language_lstm(torch.cat([looked.context, looked.h], 1), (state.h2, state.c2))
        return AdaptiveState(looked.h, looked.c, h2, c2, *looked[2:]), attention

    def mix(self, state: AdaptiveState) -> Tensor:
        return state.context + state.h2


class SingleCaptioner(SentinelCaptioner):
    """Adaptive attention without the second LSTM: the one that looks speaks as well.

    The released code's ``adaptiveattention`` model: the LSTM reads the word and then the image, [emb; g], and the next
    word is read from context + h. Sizes, sentinel, attention and its quirk, and dropout are those of ``AdaptiveCaptioner``.
    """

    def __init__(self, encoder: nn.Module, config: AdaptiveConfig) -> None:
        super().__init__(encoder, config, 2 * config.embed)
        self._speaks(config)

    def start(self, like: Tensor) -> SingleState:
        zero = like.new_zeros(like.shape[0], self.config.hidden)
        return SingleState(zero, zero, zero, zero[:, :1], zero, zero)

    def advance(
        self, state: SingleState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[SingleState, Tensor]:
        return self.heed(torch.cat([word, cells.whole], 1), state.h, state.c, cells, shift)

    def mix(self, state: SingleState) -> Tensor:
        return state.context + state.h
