"""BLEU: the share of a caption's n-grams that somebody's caption has too, punished where it is short.

Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002,
https://aclanthology.org/P02-1040.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from heatproof.captions.tokens import ORDERS, Gram, grams, paired

SMOOTH = ("none", "coco")
TINY, SMALL = 1e-15, 1e-9  # added to what was found and to what was said, by coco-caption

Counts = tuple[
    list[int], list[int], int, int
]  # found and said of each order; words, and words of the reference


def bleu(
    said: Sequence[str], references: Sequence[Sequence[str]], smooth: str = "none"
) -> list[tuple[float, ...]]:
    """BLEU-1 to BLEU-4 of every caption by itself, each 0 to 1.

    ``said[i]`` is one caption, ``references[i]`` the captions that people gave. BLEU-n is the geometric mean of the clipped
    precisions of the orders 1 to n, times exp(1 - r / c) where the caption's c words are fewer than the r of the reference
    nearest in length (of two as near, the shorter). An order of which nothing is found makes it 0. NaN: no references.

    ``smooth``: "none" | "coco", which adds 1e-15 to what was found and 1e-9 to what was said, as coco-caption does; the same
    for a corpus, but a caption without one common four-gram gets about 1e-4 in place of 0, and so is ranked by its shorter ones.

    >>> [round(score, 2) for score in bleu(["a red ball"], [["the red ball", "a ball"]])[0]]
    [1.0, 0.71, 0.0, 0.0]
    """
    paired(said, references)
    return [
        _score(counts(text, some), smooth) if some else _nothing() for text, some in zip(said, references)
    ]


def corpus_bleu(
    said: Sequence[str], references: Sequence[Sequence[str]], smooth: str = "none"
) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of all captions together, each 0 to 1: counts are summed first, as Papineni et al. have it.

    Not the mean of ``bleu``. NaN where there is no caption, or an image without references.

    >>> references = [["a red ball is here"], ["the blue fish"]]
    >>> [round(score, 3) for score in corpus_bleu(["a red ball is here", "a fish"], references)]
    [0.743, 0.718, 0.764, 0.789]
    """
    paired(said, references)
    if not said or not all(references):
        return _nothing()
    found, told = [0] * len(ORDERS), [0] * len(ORDERS)
    words = wanted = 0
    for text, some in zip(said, references):
        one = counts(text, some)
        found = [a + b for a, b in zip(found, one[0])]
        told = [a + b for a, b in zip(told, one[1])]
        words, wanted = words + one[2], wanted + one[3]
    return _score((found, told, words, wanted), smooth)


def counts(text: str, references: Sequence[str]) -> Counts:
    """What BLEU sums over captions before it divides: see ``Counts``; both texts tokenised already."""
    mine, length = grams(text), len(text.split())
    most: Counter[Gram] = Counter()
    for reference in references:
        most |= grams(reference)
    found = [0] * len(ORDERS)
    for gram, count in (mine & most).items():
        found[len(gram) - 1] += count
    nearest = min((abs(n - length), n) for n in (len(reference.split()) for reference in references))[1]
    return found, [max(0, length - order + 1) for order in ORDERS], length, nearest


def _score(counts: Counts, smooth: str) -> tuple[float, ...]:
    if smooth not in SMOOTH:
        raise ValueError(f"smooth: found {smooth!r}, accepted are {', '.join(SMOOTH)}")
    found, told, words, wanted = counts
    tiny, small = (TINY, SMALL) if smooth == "coco" else (0.0, 0.0)
    ratio = (words + tiny) / (wanted + small) if wanted + small else math.inf
    brevity = min(1.0, math.exp(1 - 1 / ratio)) if ratio else 0.0
    product, scores = 1.0, []
    for order, right, all_ in zip(ORDERS, found, told):
        product *= (right + tiny) / (all_ + small) if all_ + small else 0.0
        scores.append(product ** (1 / order) * brevity)
    return tuple(scores)


def _nothing() -> tuple[float, ...]:
    return (math.nan,) * len(ORDERS)
