"""Object words: of the things that a captioner names, how many are there, and how many of those there does it name? (quality)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from heatproof.contract import Measure, Refused, Score, Trial, Value

FLICKR = (
    *("dogs", "building", "person", "background", "field", "women", "hat", "ball", "children", "child"),
    *("water", "street", "boy", "dog", "girl", "men", "shirt", "people", "woman", "man"),
)
NAMES = ("precision", "recall", "f1")
FIRST = Measure("map", "higher", "quality", unit="share", reduce="ratio_over_fewer")


def counted(said: str, references: Sequence[str], words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Whether a caption, and whether one of the references, has each of the words as it stands: two lists of 0 and 1.

    >>> counted("a man with a dog", ["a man", "cats"], ["man", "dog", "cat"])
    ([1, 1, 0], [1, 0, 0])
    """
    mine = set(re.findall(r"\w+", said.lower()))
    theirs = {word for text in references for word in re.findall(r"\w+", text.lower())}
    return [int(w in mine) for w in words], [int(w in theirs) for w in words]


@dataclass(frozen=True)
class ObjectWords:
    """Precision, recall and F1 of frequent object words in a captioner's own captions, against reference captions.

    Sun et al. 2022 (arXiv 2001.01037), who call the mean precision "mAP": a word counts once an image, whether it is in the caption and in
    any of its references. ``precision``, ``recall``, ``f1`` are of each word over all images, then the mean over the ``words`` (their 20
    of Flickr30k). 0 to 1, higher is better. A word that is never said has no precision, and takes no part in the mean;
    ``as_released`` counts it as 0. An image's own number is of its words together, 1 where there are none.

    ``first_release``: what the authors' first code printed as "mAP" beside them, ``map``: the recalls' sum (not the precisions') over one
    word less than there are; it can be above 1. The 51.6 to 64.6 in comments of that code are such numbers.
    """

    words: tuple[str, ...] = FLICKR
    as_released: bool = False
    first_release: bool = False

    asks: ClassVar[dict[str, str]] = {"captioner": "written"}

    @property
    def measures(self) -> tuple[Measure, ...]:
        how = "ratio_or_zero" if self.as_released else "pooled_ratio"
        found = tuple(Measure(name, "higher", "quality", unit="share", reduce=how) for name in NAMES)
        return (*found, FIRST) if self.first_release else found

    def __post_init__(self) -> None:
        least = 2 if self.first_release else 1
        if len(self.words) < least or len(set(self.words)) < len(self.words):
            raise Refused(
                f"metrics.object_words.words: found {self.words}, accepted are different words, {least} at least"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        case = trial.case
        if not case.references:
            return Score({m.name: Value.undefined("no reference captions") for m in self.measures})
        said, there = counted(" ".join(case.spoken[1:]), case.references, self.words)
        both = [a * b for a, b in zip(said, there, strict=True)]
        sums = [a + b for a, b in zip(said, there, strict=True)]
        parts: dict[str, tuple[list[int], list[int]]] = {
            "precision": (both, said),
            "recall": (both, there),
            "f1": ([2 * b for b in both], sums),
        }
        if self.first_release:
            parts["map"] = parts["recall"]
        return Score({name: _share(num, den) for name, (num, den) in parts.items()})


def _share(num: list[int], den: list[int]) -> Value:
    return Value.of(sum(num) / sum(den) if sum(den) else 1.0, num=num, den=den)
