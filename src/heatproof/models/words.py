"""Text to token ids and back to words: a plain word list, or a Hugging Face tokenizer, behind one call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tokens(Protocol):
    """A text and a length -> ids (bos and eos included), the word each belongs to (-1 = special), their texts."""

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
    """A fast Hugging Face tokenizer (CLIP's byte-pair encoding among them)."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else self.pad
        self.mask = tokenizer.mask_token_id

    def __call__(self, text: str, length: int) -> tuple[list[int], list[int], list[str]]:
        found = self.inner(text, truncation=True, max_length=length)
        ids = list(found["input_ids"])
        words = [-1 if w is None else w for w in found.word_ids()]
        words = [-1 if i in (self.bos, self.eos) else w for i, w in zip(ids, words, strict=True)]
        spoken = [
            "" if w < 0 else self.inner.convert_ids_to_tokens(i).replace("</w>", "")
            for i, w in zip(ids, words, strict=True)
        ]
        return ids, words, spoken


def read_vocabulary(folder: Path) -> Tokens:
    """The tokenizer of a model folder: a Hugging Face one, or our own ``words.json``."""
    own = folder / "words.json"
    if own.exists():
        return WordList(json.loads(own.read_text(encoding="utf-8")))
    from transformers import AutoTokenizer

    return HuggingFaceTokens(AutoTokenizer.from_pretrained(folder))
