"""The two captioning nets of Sun et al.: adaptive attention over two LSTMs, multi-head attention over one.

Sun, Lapuschkin, Samek, Binder, "Explain and Improve: LRP-Inference Fine-Tuning for Image Captioning Models",
Information Fusion 77 (2022), https://arxiv.org/abs/2001.01037, as the released code defines them.

Both read the encoder's feature map once (``look``), then take one word a step (``step``). The encoder is any
module that gives [N, C, h, w]; where it is an ``nn.Sequential``, each child is one stage of the image tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cells(NamedTuple):
    """What a decoder keeps of an image: its P = h * w cells row by row, and the whole in one vector."""

    keys: Tensor  # [N, P, A]: what the attention compares
    values: Tensor  # [N, P, H]: what it takes the mean of
    whole: Tensor  # [N, D]

    def repeat(self, times: int) -> Cells:
        """Every row ``times`` times in a row, for beams."""
        return Cells(*(part.repeat_interleave(times, 0) for part in self))


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


class MultiHeadState(NamedTuple):
    """After one step: the LSTM, the heads' concatenated context, and the gated one. All [N, H]."""

    h: Tensor
    c: Tensor
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


class CaptionNet(nn.Module):
    """What the two nets have in common; ``start``, ``look``, ``advance`` and ``mix`` are theirs."""

    RELEASED: ClassVar[Mapping[str, str]]  # module name in the released code -> here
    config: Any
    encoder: nn.Module
    embedding: nn.Embedding
    output: nn.Linear
    dropout: nn.Dropout

    heads = 1

    def start(self, like: Tensor) -> Any:
        """The state before the first word, one row for each row of ``like``."""
        raise NotImplementedError

    def look(self, features: Tensor) -> Cells:
        """[N, C, h, w] -> what the decoder reads of it."""
        raise NotImplementedError

    def advance(
        self, state: Any, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[Any, Tensor]:
        """One word's embedding [N, E] -> the next state, and the attention [N, heads, P].

        ``shift`` is added to the attention: a zero that requires grad makes its gradient readable.
        """
        raise NotImplementedError

    def mix(self, state: Any) -> Tensor:
        """What the next word is read from, [N, H]: the context plus the speaking LSTM."""
        raise NotImplementedError

    def say(self, mixed: Tensor) -> Tensor:
        """What ``mix`` gave [N, H] -> the next word's logits [N, V]."""
        logits: Tensor = self.output(self.dropout(mixed))
        return logits

    def step(self, state: Any, cells: Cells, word: Tensor) -> tuple[Any, Tensor, Tensor]:
        """One word id [N] -> the next state, the next word's logits [N, V], the attention [N, heads, P]."""
        state, attention = self.advance(state, cells, self.embedding(word))
        return state, self.say(self.mix(state)), attention

    def forward(self, pixels: Tensor, captions: Tensor) -> Tensor:
        """Teacher-forced: pixels [N, 3, H, W], word ids [N, T] -> logits [N, T, V] of each next word."""
        cells = self.look(self.encoder(pixels))
        state, logits = self.start(cells.whole), []
        for t in range(captions.shape[1]):
            state, spoken, _ = self.step(state, cells, captions[:, t])
            logits.append(spoken)
        return torch.stack(logits, 1)

    def load_released(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the released code's model; its encoder is numbered layer by layer."""
        layers = [n for n, m in self.encoder.named_modules() if not list(m.children())]
        names = {f"img_encoder.encoder.{k}": f"encoder.{name}" for k, name in enumerate(layers)}
        names |= self.RELEASED
        found = {}
        for name, value in weights.items():
            module, _, leaf = name.rpartition(".")
            found[f"{names[module]}.{leaf}"] = value
        self.load_state_dict(found)


class AdaptiveCaptioner(CaptionNet):
    """Adaptive attention: an LSTM that looks, a sentinel that may stand for the image, an LSTM that speaks.

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
        "LanguageLSTM": "language_lstm",
        "embedding": "embedding",
        "fc": "output",
    }

    def __init__(self, encoder: nn.Module, config: AdaptiveConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        embed, hidden, cells = config.embed, config.hidden, config.cells
        self.project = nn.Conv2d(config.channels, hidden, 1)
        self.summarise = nn.Linear(config.channels, embed)
        self.visual_lstm = nn.LSTMCell(hidden + 2 * embed, hidden)
        self.gate_x = nn.Linear(hidden + 2 * embed, hidden)
        self.gate_h = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, cells)
        self.sentinel_key = nn.Linear(hidden, cells)
        self.query = nn.Linear(hidden, cells, bias=False)
        self.score = nn.Linear(cells, 1, bias=False)
        self.language_lstm = nn.LSTMCell(2 * hidden, hidden)
        self.embedding = nn.Embedding(config.vocabulary, embed)
        self.output = nn.Linear(hidden, config.vocabulary)
        self.dropout = nn.Dropout(config.dropout)

    def start(self, like: Tensor) -> AdaptiveState:
        zero = like.new_zeros(like.shape[0], self.config.hidden)
        return AdaptiveState(zero, zero, zero, zero, zero, zero[:, :1], zero, zero)

    def look(self, features: Tensor) -> Cells:
        values = F.relu(self.project(features)).flatten(2).transpose(1, 2)
        whole = F.relu(self.summarise(features.mean((2, 3))))
        return Cells(self.key(values), values, whole)

    def advance(
        self, state: AdaptiveState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[AdaptiveState, Tensor]:
        x1 = torch.cat([state.h2, cells.whole, word], 1)
        h1, c1 = self.visual_lstm(x1, (state.h1, state.c1))
        sentinel = torch.sigmoid(self.gate_x(x1) + self.gate_h(h1 if self.newest else state.h1)) * torch.tanh(
            c1
        )
        attention, beta = self.attend(h1, sentinel, cells.keys)
        attention = attention + shift
        seen = (attention @ cells.values).squeeze(1)
        context = beta * sentinel + (1 - beta) * seen
        h2, c2 = self.language_lstm(torch.cat([context, h1], 1), (state.h2, state.c2))
        return AdaptiveState(h1, c1, h2, c2, sentinel, beta, seen, context), attention

    def attend(self, h1: Tensor, sentinel: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The attention over cells [N, 1, P], and the sentinel's share [N, 1] by a softmax of its own."""
        query = self.query(h1)
        placed = query[:, :, None] if self.config.query_along == "cells" else query[:, None, :]
        scores = self.score(torch.tanh(keys + placed)).squeeze(2)
        own = self.score(torch.tanh(self.sentinel_key(sentinel) + query))
        shares = torch.softmax(torch.cat([scores, own], 1), 1)
        return torch.softmax(scores, 1)[:, None], shares[:, -1:]

    def mix(self, state: AdaptiveState) -> Tensor:
        return state.context + state.h2


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
        self.embedding = nn.Embedding(config.vocabulary, embed)
        self.output = nn.Linear(hidden, config.vocabulary)
        self.dropout = nn.Dropout(config.dropout)
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
        query, key = self.split(self.query(h)[:, None]), self.split(keys)
        return torch.softmax((query @ key.transpose(2, 3)).squeeze(2) / math.sqrt(query.shape[3]), 2)

    def gather(self, attention: Tensor, values: Tensor) -> Tensor:
        """Each head's attended values, side by side [N, H]."""
        return (attention[:, :, None] @ self.split(values)).squeeze(2).flatten(1)

    def mix(self, state: MultiHeadState) -> Tensor:
        return state.context + state.h


def vgg(channels: Sequence[int], convolutions: Sequence[int]) -> nn.Sequential:
    """A VGG trunk: stages of 3 x 3 convolutions with ReLU, a 2 x 2 maximum between two stages, none at the end.

    >>> len(vgg([64, 128, 256, 512, 512], [2, 2, 3, 3, 3]))  # VGG16
    5
    """
    stages, width = [], 3
    for k, (wide, many) in enumerate(zip(channels, convolutions, strict=True)):
        layers: list[nn.Module] = []
        for _ in range(many):
            layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
            width = wide
        if k + 1 < len(channels):
            layers.append(nn.MaxPool2d(2))
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(*stages)


def resnet_trunk(config: Any) -> nn.Sequential:
    """The stem and the stages of a ``transformers`` ResNet, without its pooling and head.

    ``config`` is a ResNetConfig or the dict of one; load a classifier's weights with
    ``resnet_trunk(net.config)[0].load_state_dict(net.resnet.embedder.state_dict())`` and so on, stage by stage.
    """
    from transformers import ResNetConfig, ResNetModel

    settings = ResNetConfig(**config) if isinstance(config, Mapping) else config
    model = ResNetModel(settings)
    return nn.Sequential(model.embedder, *model.encoder.stages)
