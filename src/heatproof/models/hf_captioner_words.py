"""Captions of Hugging Face's captioners word by word: a tokenizer as a list of words, and what a search reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heatproof.models.words import WordList

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
LEAD = "a"  # what a word is spelled behind, so that the blank before it is heard


class Spelling(WordList):
    """A tokenizer as a list of words: a word of several tokens has a number past the vocabulary, and ``pieces``.

    Texts are cut into words and marks; a word is spelled with the blank before it, the first one only where ``blank``.
    """

    def __init__(self, inner: Any, size: int, bos: int, eos: int, blank: bool) -> None:
        self.inner, self.size, self.bos, self.eos, self.blank = inner, size, bos, eos, blank
        spare = inner.pad_token_id
        self.pad = eos if spare is None else spare
        self.unknown = self.pad if inner.unk_token_id is None else inner.unk_token_id
        self.mask = None  # no captioner here was trained with one
        self.ids = _Numbers(self.number)
        self.numbered: list[str] = []
        self._spelled = lru_cache(1 << 14)(self._ids)

    def number(self, word: str) -> int:
        """One id for a word: its token's where it is spelled by one, wherever it stands."""
        first, later = self.pieces(word, True), self.pieces(word, False)
        if first == later and len(first) == 1:
            return first[0]
        return self._past(word)

    def rival(self, name: str) -> int:
        """The number past the vocabulary of a name's last word, however it is spelled."""
        return self._past(name.rsplit(maxsplit=1)[-1])

    def _past(self, word: str) -> int:
        if word not in self.numbered:
            self.numbered.append(word)
        return self.size + self.numbered.index(word)

    def spell(self, number: int, first: bool) -> tuple[int, ...]:
        """The tokens of a word's number."""
        return (number,) if number < self.size else self.pieces(self.numbered[number - self.size], first)

    def pieces(self, word: str, first: bool) -> tuple[int, ...]:
        """The tokens of a word, or of a mark, which follows without a blank."""
        if first and not self.blank:
            return self._spelled(word)
        lead, whole = (
            self._spelled(LEAD),
            self._spelled(f"{LEAD} {word}" if word[0].isalnum() else LEAD + word),
        )
        return whole[len(lead) :] if whole[: len(lead)] == lead else self._spelled(word)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.inner(text, add_special_tokens=False)["input_ids"])

    def __call__(self, text: str, length: int) -> tuple[list[int], list[int], list[str]]:
        said = WORD.findall(text)[: length - 2]
        return (
            [self.bos, *map(self.number, said), self.eos],
            [-1, *range(len(said)), -1],
            ["", *said, ""],
        )

    def text(self, ids: list[int]) -> list[str]:
        return WORD.findall(self.inner.decode(ids, skip_special_tokens=True))


class _Numbers(dict[str, int]):
    """Every word has a number: ``get`` asks for it."""

    def __init__(self, number: Callable[[str], int]) -> None:
        super().__init__()
        self._number = number

    def get(self, word: str, other: Any = None) -> Any:
        return self._number(word)


# ---------------------------------------------------------------- searching


class Said(NamedTuple):
    """A search's state: what each beam has said, [N, length], and how many tokens, [N]."""

    ids: Tensor
    steps: Tensor


class Looked(NamedTuple):
    whole: Tensor  # the features

    def repeat(self, times: int) -> Looked:
        return Looked(self.whole.repeat_interleave(times, 0))


class Walker(NamedTuple):
    """What ``captioner_search.search`` needs of a net: each step reads all that was said again."""

    logits: Callable[[Tensor, Tensor], Tensor]  # features, ids [N, length] -> [N, length, V]
    length: int

    def look(self, features: Tensor) -> Looked:
        return Looked(features)

    def start(self, whole: Tensor) -> Said:
        nothing = torch.zeros(len(whole), self.length, dtype=torch.long, device=whole.device)
        return Said(nothing, nothing[:, 0])

    def step(self, state: Said, cells: Looked, word: Tensor) -> tuple[Said, Tensor, None]:
        place = int(state.steps[0])  # all beams are as long
        ids = state.ids.index_copy(1, state.steps[:1], word[:, None])
        return Said(ids, state.steps + 1), self.logits(cells.whole, ids)[:, place], None
