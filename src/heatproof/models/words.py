"""Text to token ids and back to words: a plain word list, or a Hugging Face tokenizer, behind one call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from heatproof.errors import Refused

MARK = "\u2581"  # sentence pieces: a word begins here


class Tokens(Protocol):
    """A text and a length -> ids (bos and eos included where there are such), the word each belongs to (-1 = special), their texts."""

    bos: int
    eos: int
    pad: int
    unknown: int
    mask: int | None  # a token for what is hidden, in vocabularies that were trained with one

    def __call__(self, text: str, length: int) -> tuple[list[int], list[int], list[str]]: ...


class WordList:
    """One id a word; texts are lower-cased and split at everything that is no letter or digit.

    >>> words = WordList({"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "red": 4, "ball": 5})
    >>> words("A red ball!", 8)
    ([1, 3, 4, 5, 2], [-1, 0, 1, 2, -1], ['', 'a', 'red', 'ball', ''])
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        self.words = {i: w for w, i in self.ids.items()}
        self.pad, self.bos, self.eos, self.unknown = (
            self._special(*names)
            for names in (
                ("<pad>",),
                ("<bos>", "<start>"),
                ("<eos>", "<end>"),
                ("<unk>",),
            )
        )
        self.mask = self.ids.get("<mask>")

    def _special(self, *names: str) -> int:
        for name in names:
            if name in self.ids:
                return self.ids[name]
        raise ValueError(f"the vocabulary has none of {names}")

    def __call__(self, text: str, length: int) -> tuple[list[int], list[int], list[str]]:
        said = re.findall(r"[a-z0-9]+", text.lower())[: length - 2]
        ids = [self.bos, *(self.ids.get(word, self.unknown) for word in said), self.eos]
        return ids, [-1, *range(len(said)), -1], ["", *said, ""]

    def text(self, ids: list[int]) -> list[str]:
        """The words of ids, special tokens left out."""
        special = {self.pad, self.bos, self.eos, self.unknown, self.mask}
        return [self.words[i] for i in ids if i not in special]


class HuggingFaceTokens:
    """A Hugging Face tokenizer: byte pairs (CLIP) or sentence pieces (SigLIP's T5 and Gemma vocabularies).

    Pieces that tell a word's start by "\u2581" are counted into words by that mark; else words are what the tokenizer cut
    before it looked for pieces. ``bos`` is None where there is none. ``lower`` lower-cases a text first.
    """

    def __init__(self, tokenizer: Any, lower: bool = False) -> None:
        self.inner, self.lower = tokenizer, lower
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else self.pad
        self.mask = tokenizer.mask_token_id

    def __call__(self, text: str, length: int) -> tuple[list[int], list[int], list[str]]:
        found = self.inner(text.lower() if self.lower else text, truncation=True, max_length=length)
        ids = list(found["input_ids"])
        pieces = [str(piece) for piece in self.inner.convert_ids_to_tokens(ids)]
        marked = any(piece.startswith(MARK) for piece in pieces)
        places = started(pieces) if marked or not found.is_fast else found.word_ids()
        words = [
            -1 if place is None or i in (self.bos, self.eos) else place
            for i, place in zip(ids, places, strict=True)
        ]
        spoken = [
            "" if w < 0 else piece.replace("</w>", "").replace(MARK, "")
            for piece, w in zip(pieces, words, strict=True)
        ]
        return ids, words, spoken


def started(pieces: list[str]) -> list[int]:
    """The word of each piece, counted by the pieces that begin one.

    >>> started(["\u2581a", "\u2581ba", "ll", "</s>"])
    [0, 1, 1, 1]
    >>> started(["a", "\u2581ball"])
    [0, 1]
    """
    starts = [piece.startswith(MARK) or not k for k, piece in enumerate(pieces)]
    return [sum(starts[: k + 1]) - 1 for k in range(len(pieces))]


def read_vocabulary(folder: Path) -> Tokens:
    """The tokenizer of a model folder: a Hugging Face one, or our own ``words.json``."""
    return open_tokens(str(folder))


def open_tokens(name: str, revision: str | None = None, lower: bool = False) -> Tokens:
    """The tokenizer of a model folder or hub name; Refused where it cannot be loaded."""
    own = Path(name) / "words.json"
    if own.exists():
        return WordList(json.loads(own.read_text(encoding="utf-8")))
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(name, revision=revision)
        if inner.vocab_size <= len(inner.all_special_ids):  # what the library makes of no files at all
            raise ValueError("there is no vocabulary")
        return HuggingFaceTokens(inner, lower)
    except Exception as error:  # absent files, absent libraries and no network come as many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(
            f"model {name!r}: its tokenizer cannot be loaded: {why}; one that is "
            "a spiece.model alone needs pip install sentencepiece protobuf"
        ) from error
