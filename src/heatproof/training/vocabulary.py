"""The words of the scenes, as ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from heatproof.models.words import WordList
from heatproof.scenery import BACKGROUNDS, COLOURS, KINDS, TEXTURES
from heatproof.scenery.words import PLACES

SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
PLAIN = "a above alone an and below is large left more next nothing of picture right shows small the there to with"


def scene_words() -> WordList:
    """Every word that a caption of a scene can hold, in a fixed order, after the special tokens.

    >>> len(scene_words().ids)
    56
    """
    words = set(PLAIN.split()) | set(KINDS) | set(COLOURS) | set(TEXTURES) - {"plain"}
    words |= set(chain.from_iterable(PLACES[name].split() for name in BACKGROUNDS))
    return WordList({word: index for index, word in enumerate((*SPECIAL, *sorted(words)))})


def encode(words: WordList, texts: Sequence[str], length: int) -> Tensor:
    """Texts -> int64 [len(texts), length], padded."""
    rows = [words(text, length)[0] for text in texts]
    return torch.tensor([row + [words.pad] * (length - len(row)) for row in rows])


def swap_sides(ids: Tensor, words: WordList) -> Tensor:
    """The same texts with left and right exchanged."""
    left, right = words.ids["left"], words.ids["right"]
    swapped = torch.where(ids == left, right, ids)
    return torch.where(ids == right, left, swapped)
