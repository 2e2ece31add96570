"""From a caption as written to words at spaces, and from words to n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Gram = tuple[str, ...]

ORDERS = (1, 2, 3, 4)
WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|(?:(?!n't\b)\w)+(?:[-/&.,]\w+)*")


def plain(text: str) -> str:
    """Lower case, every character that is neither word nor space replaced by a space.

    What Tanti, Gatt and Camilleri scored their captioners with ("Where to put the image in an image caption generator",
    https://arxiv.org/abs/1703.09137). Nothing is dropped but punctuation; what it joined falls apart.

    >>> plain("A man's T-shirt, half-wet .")
    'a man s t shirt half wet'
    """
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def treebank_like(text: str) -> str:
    """Lower case, clitics split off as in the Penn Treebank, punctuation dropped, hyphenated words left whole.

    Near to what coco-caption does with Stanford's PTBTokenizer, which needs Java, and not the same: abbreviations, brackets,
    currency, ellipses, dates, "cannot" and "gonna" have rules there and none here. Scores of the two differ where a caption
    has such a thing, so do not set them side by side.

    >>> treebank_like("The man's half-wet dog doesn't run.")
    "the man 's half-wet dog does n't run"
    """
    return " ".join(WORD.findall(text.lower()))


def grams(text: str) -> Counter[Gram]:
    """How often each n-gram of one to four words is said.

    >>> grams("a a")[("a",)], grams("a a")[("a", "a")]
    (2, 1)
    """
    words = text.split()
    return Counter(
        tuple(words[start : start + order]) for order in ORDERS for start in range(len(words) - order + 1)
    )


def paired(said: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses captions that do not stand one beside each image's references, and one text in place of several.

    >>> paired(["a", "b"], [["a"]])
    Traceback (most recent call last):
    ValueError: 2 captions, but references of 1 images
    """
    if len(said) != len(references):
        raise ValueError(f"{len(said)} captions, but references of {len(references)} images")
    for i, some in enumerate(references):
        if isinstance(some, str):
            raise TypeError(f"references[{i}]: found the text {some[:40]!r}, accepted is a list of texts")
