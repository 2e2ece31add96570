"""ROUGE-L: how much of a caption stands, in order, in what people said.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, https://aclanthology.org/W04-1013; several references as in
Lin and Och, ACL 2004, https://aclanthology.org/P04-1077.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from heatproof.captions.tokens import paired


def rouge_l(said: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> list[float]:
    """ROUGE-L of every caption, 0 to 1; the corpus score is the mean.

    ``said[i]`` is one caption, ``references[i]`` the captions that people gave. L is the longest common subsequence of words;
    P the largest L / words said, R the largest L / words of the reference, each over all references by itself (Lin and Och);
    the score is (1 + b^2) P R / (R + b^2 P) with b = ``beta``, coco-caption's 1.2. A caption of no words gets 0. NaN: no
    references.

    >>> rouge_l(["a red ball"], [["a ball", "a very red ball here"]])
    [1.0]
    >>> [round(score, 3) for score in rouge_l(["a red ball"], [["a big ball here"]])]
    [0.557]
    """
    paired(said, references)
    return [_one(text.split(), [r.split() for r in some], beta) for text, some in zip(said, references)]


def _one(words: list[str], references: list[list[str]], beta: float) -> float:
    if not references:
        return math.nan
    common = [subsequence(words, reference) for reference in references]
    precision = max(common) / len(words) if words else 0.0
    recall = max(n / len(reference) if reference else 0.0 for n, reference in zip(common, references))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence: words of both in the same order, not always side by side.

    >>> subsequence("a b c d".split(), "b x d a".split())
    2
    """
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
