"""What the captioning nets of Sun et al. have in common.

Sun, Lapuschkin, Samek, Binder, "Explain and Improve: LRP-Inference Fine-Tuning for Image Captioning Models",
Information Fusion 77 (2022), https://arxiv.org/abs/2001.01037, as the released code defines them: adaptive attention
(``models/adaptive.py``), multi-head attention (``models/multi_head.py``), and both over the features of regions
(``models/region_captioners.py``).

All read the encoder's feature map once (``look``), then take one word a step (``step``). The encoder is any
module that gives [N, C, h, w]; where it is an ``nn.Sequential``, each child is one stage of the image tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Cells(NamedTuple):
    """What a decoder keeps of an image: its P = h * w cells row by row, and the whole in one vector."""

    keys: Tensor  # [N, P, A]: what the attention compares
    values: Tensor  # [N, P, H]: what it takes the mean of
    whole: Tensor  # [N, D]

    def repeat(self, times: int) -> Cells:
        """Every row ``times`` times in a row, for beams."""
        return Cells(*(part.repeat_interleave(times, 0) for part in self))


class CaptionNet(nn.Module):
    """What the nets have in common; ``start``, ``look``, ``advance`` and ``mix`` are theirs."""

    RELEASED: ClassVar[Mapping[str, str]]  # module name in the released code -> here
    config: Any
    encoder: nn.Module
    project: Any  # of each cell: a 1 x 1 convolution, or a linear layer of rows
    embedding: nn.Embedding
    output: nn.Linear
    dropout: nn.Dropout

    heads = 1

    def _speaks(self, config: Any) -> None:
        """The layers of words, the last ones made."""
        self.embedding = nn.Embedding(config.vocabulary, config.embed)
        self.output = nn.Linear(config.hidden, config.vocabulary)
        self.dropout = nn.Dropout(config.dropout)

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

    def released(self) -> dict[str, str]:
        """Every module's name in the released code -> here; its encoder is numbered layer by layer."""
        layers = [n for n, m in self.encoder.named_modules() if n and not list(m.children())]
        return {f"img_encoder.encoder.{k}": f"encoder.{n}" for k, n in enumerate(layers)} | dict(
            self.RELEASED
        )

    def load_released(self, weights: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
        """Take the weights of the released code's model, by ``names``, or by ``released()``; raises as torch does."""
        names, found = names or self.released(), {}
        for name, value in weights.items():
            module, _, leaf = name.rpartition(".")
            found[f"{names[module]}.{leaf}"] = value
        self.load_state_dict(found)
