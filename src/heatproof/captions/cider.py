"""CIDEr: how much a caption sounds like what people said, rare n-grams counting more.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015,
https://arxiv.org/abs/1411.5726, section 4 and its supplement for the D form. What coco-caption prints as "CIDEr", and with it
nearly every paper, is CIDEr-D: held against published scores of five captioners in the tests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heatproof.captions.tokens import ORDERS, Gram, grams, paired

SIGMA = 6.0  # words: how fast a difference in length is punished

Vectors = dict[int, dict[Gram, float]]


@dataclass(frozen=True)
class Frequencies:
    """In the captions of how many of a corpus' ``images`` each n-gram is said; what is said nowhere counts as said once.

    >>> found = Frequencies.of([["a ball", "a red ball"], ["a fish"]])
    >>> found.images, found.counts["a",], found.counts["red", "ball"]
    (2, 2, 1)
    """

    counts: Mapping[Gram, int]
    images: int

    @classmethod
    def of(cls, references: Sequence[Sequence[str]]) -> Frequencies:
        """Those of a corpus: for each image, the captions that people gave."""
        counts: Counter[Gram] = Counter()
        for some in references:
            counts.update({gram for text in some for gram in grams(text)})
        return cls(counts, len(references))

    def weigh(self, text: str) -> Vectors:
        """The text's vector of each order: count times log(images / images that have it)."""
        most = math.log(self.images)
        vectors: Vectors = {order: {} for order in ORDERS}
        for gram, count in grams(text).items():
            vectors[len(gram)][gram] = count * (most - math.log(max(1, self.counts.get(gram, 0))))
        return vectors


def cider_d(
    said: Sequence[str], references: Sequence[Sequence[str]], frequencies: Frequencies | None = None
) -> list[float]:
    """CIDEr-D of every image, 0 to 10; the corpus score is the mean.

    As ``cider``, but an n-gram counts no oftener than the reference says it, and each cosine is multiplied by
    exp(-d^2 / 72) where caption and reference differ by d words: saying a sure word again and again does not pay.

    >>> references = [["a red ball", "one red ball"], ["a blue fish", "the blue fish"]]
    >>> [round(score, 2) for score in cider_d(["a red ball", "a red ball"], references)]
    [5.4, 0.0]
    """
    return _scores(said, references, frequencies, _clipped)


def cider(
    said: Sequence[str], references: Sequence[Sequence[str]], frequencies: Frequencies | None = None
) -> list[float]:
    """Plain CIDEr of every image, 0 to 10: the cosine of tf-idf vectors, averaged over references and four orders, times 10.

    The paper has no factor 10; its authors' code multiplies both forms by it. ``said[i]`` is one caption, ``references[i]``
    the captions that people gave; the paper stems the words first, its code does not, nor is it done here. A text without
    weight, as one of no words, is like nothing: 0.

    ``frequencies``: document frequencies of a fixed corpus, so that a caption's score depends on itself alone. None: of these
    references, as published tables have it: then **a score depends on which other images stand beside it**, and may be
    compared within this list only. NaN: an image without references, or a corpus of fewer than two images, in which
    no n-gram has a weight.

    >>> corpus = Frequencies.of([["a red ball"], ["a blue fish"], ["a green hat"]])
    >>> [round(score, 2) for score in cider(["a red ball", "red"], [["a red ball"]] * 2, corpus)]
    [7.5, 1.77]
    """
    return _scores(said, references, frequencies, _cosine)


def _scores(
    said: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: Frequencies | None,
    alike: Callable[[Mapping[Gram, float], Mapping[Gram, float], int], float],
) -> list[float]:
    paired(said, references)
    known = Frequencies.of(references) if frequencies is None else frequencies
    if known.images < 2:
        return [math.nan] * len(said)
    scores = []
    for text, some in zip(said, references):
        mine, length = known.weigh(text), len(text.split())
        total = 0.0
        for reference in some:
            theirs, apart = known.weigh(reference), length - len(reference.split())
            total += sum(alike(mine[order], theirs[order], apart) for order in ORDERS)
        scores.append(10 * total / len(ORDERS) / len(some) if some else math.nan)
    return scores


def _cosine(a: Mapping[Gram, float], b: Mapping[Gram, float], apart: int) -> float:
    return _over(sum(v * b[gram] for gram, v in a.items() if gram in b), a, b)


def _clipped(a: Mapping[Gram, float], b: Mapping[Gram, float], apart: int) -> float:
    dot = sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b)
    return _over(dot, a, b) * math.exp(-(apart**2) / (2 * SIGMA**2))


def _over(dot: float, a: Mapping[Gram, float], b: Mapping[Gram, float]) -> float:
    size = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return dot / size if size else 0.0
