"""CIDEr-D: how much a caption sounds like what people said, rare n-grams counting more.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015,
https://arxiv.org/abs/1411.5726, section 4 and its supplement for the D form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # words: how fast a difference in length is punished

Gram = tuple[str, ...]


def cider_d(said: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every image, 0 to 10; the corpus score is the mean.

    ``said[i]`` is one caption, ``references[i]`` the captions that people gave; words are split at spaces,
    so both must be tokenised alike. Document frequencies come from the references of all images: one
    image alone gives every n-gram the weight 0.

    >>> references = [["a red ball", "one red ball"], ["a blue fish", "the blue fish"]]
    >>> [round(score, 2) for score in cider_d(["a red ball", "a red ball"], references)]
    [5.4, 0.0]
    """
    if len(said) != len(references):
        raise ValueError(f"{len(said)} captions, but references of {len(references)} images")
    texts = [[_grams(text) for text in some] for some in references]
    frequency: Counter[Gram] = Counter()
    for some in texts:
        frequency.update({gram for grams in some for gram in grams})
    most = math.log(len(references)) if references else 0.0

    def weigh(grams: Counter[Gram]) -> dict[int, dict[Gram, float]]:
        vectors: dict[int, dict[Gram, float]] = {order: {} for order in ORDERS}
        for gram, count in grams.items():
            vectors[len(gram)][gram] = count * (most - math.log(max(1, frequency[gram])))
        return vectors

    scores = []
    for text, caption, some in zip(said, references, texts, strict=True):
        mine, length = weigh(_grams(text)), len(text.split())
        total = 0.0
        for grams, reference in zip(some, caption, strict=True):
            apart = length - len(reference.split())
            total += _alike(mine, weigh(grams)) * math.exp(-(apart**2) / (2 * SIGMA**2))
        scores.append(10.0 * total / len(some) if some else 0.0)
    return scores


def _grams(text: str) -> Counter[Gram]:
    words = text.split()
    return Counter(
        tuple(words[start : start + order]) for order in ORDERS for start in range(len(words) - order + 1)
    )


def _alike(mine: dict[int, dict[Gram, float]], theirs: dict[int, dict[Gram, float]]) -> float:
    """Mean over the orders of the clipped cosine."""
    total = 0.0
    for order in ORDERS:
        a, b = mine[order], theirs[order]
        size = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
        if size:
            total += sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b) / size
    return total / len(ORDERS)
