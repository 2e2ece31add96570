"""METEOR: which words of a caption find a partner in what people said, and in how few unbroken runs.

Banerjee and Lavie, "METEOR: An Automatic Metric for MT Evaluation with Improved Correlation with Human Judgments", 2005,
https://aclanthology.org/W05-0909; Denkowski and Lavie, "Meteor Universal", 2014, https://aclanthology.org/W14-3348 (1.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path

from heatproof.captions.aligning import Pair, align, chunks
from heatproof.captions.tokens import paired, plain
from heatproof.errors import Refused

STAGES = ("exact", "stem", "synonym")


@dataclass(frozen=True)
class Settings:
    """What METEOR is made of.

    P and R: of the caption's words, and of the reference's, the weight that found a partner, each partner worth what its
    stage is; a content word weighs ``delta`` and a function word 1 - ``delta``. F = P R / (alpha P + (1 - alpha) R). The
    penalty for m pairs in c unbroken runs is gamma (c / m)^beta; the score is F (1 - penalty). ``unbroken``: a run in
    which both texts are paired whole does not count, so that a caption somebody gave word for word gets 1.

    ``stem``: a word -> its stem; None leaves the stage out. ``synonyms``: a word -> words that may stand for it, read in
    both directions; empty leaves the stage out. ``function_words``: none unless given, and then delta changes nothing.

    The numbers are those of METEOR 1.5 for English (its "rank" task). Its list of function words, its WordNet synonyms and
    its table of paraphrases are not here, so never set these scores beside the Java program's: for four captioners on
    Flickr8k it prints 0.189 to 0.196, the exact stage alone is 0.008 to 0.011 above, with stems 0.013 to 0.015.
    """

    alpha: float = 0.85
    beta: float = 0.2
    gamma: float = 0.6
    delta: float = 0.75
    weights: tuple[float, float, float] = (1.0, 0.6, 0.8)  # of exact, stem and synonym
    unbroken: bool = True
    stem: Callable[[str], str] | None = None
    synonyms: Mapping[str, Collection[str]] = field(default_factory=dict)
    function_words: Collection[str] = frozenset()

    def stage(self, a: str, b: str) -> int | None:
        """The first stage in which two words are partners, by its place in ``STAGES``; None where they are not."""
        if a == b:
            return 0
        if self.stem is not None and self.stem(a) == self.stem(b):
            return 1
        return 2 if b in self.synonyms.get(a, ()) or a in self.synonyms.get(b, ()) else None

    def weight(self, words: Sequence[str]) -> float:
        """What these words weigh together."""
        return math.fsum(1 - self.delta if word in self.function_words else self.delta for word in words)


LATE = Settings()
# theirs ran a stage only on what the stage before had left; here the stages are aligned together, as since 2011
EARLY = Settings(0.9, 3.0, 0.5, 0.5, (1.0, 1.0, 1.0), unbroken=False)  # Banerjee and Lavie 2005


@dataclass(frozen=True)
class Counts:
    """What a METEOR score is computed from; of several captions, they add up. P is found / said, R is met / wanted."""

    found: float = 0.0
    said: float = 0.0
    met: float = 0.0
    wanted: float = 0.0
    pairs: int = 0
    runs: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other))))

    def score(self, how: Settings) -> float:
        """METEOR, 0 to 1."""
        if not self.pairs or not self.found:
            return 0.0
        p, r = self.found / self.said, self.met / self.wanted
        mean: float = p * r / (how.alpha * p + (1 - how.alpha) * r)
        penalty: float = how.gamma * (self.runs / self.pairs) ** how.beta
        return max(0.0, mean * (1 - penalty))


def meteor(said: Sequence[str], references: Sequence[Sequence[str]], how: Settings = LATE) -> list[float]:
    """METEOR of every caption by itself, 0 to 1: that of the reference with which it is highest.

    ``said[i]`` is one caption, ``references[i]`` the captions that people gave. Words are aligned one to one so that most
    have a partner, then in the fewest runs (``aligning``). A caption of no words gets 0. NaN: no references.

    >>> round(meteor(["a red ball"], [["the red ball"]])[0], 3)
    0.318
    >>> meteor(["two dogs run"], [["a dog", "two dogs run"]])
    [1.0]
    """
    return [math.nan if one is None else one.score(how) for one in _best(said, references, how)]


def corpus_meteor(said: Sequence[str], references: Sequence[Sequence[str]], how: Settings = LATE) -> float:
    """METEOR of all captions together, 0 to 1, as its program gives it: the counts of each caption's best reference summed.

    Not the mean of ``meteor``. NaN where there is no caption, or an image without references.

    >>> round(corpus_meteor(["a red ball", "fish"], [["the red ball"], ["a fish"]]), 3)
    0.276
    """
    total = Counts()
    for one in _best(said, references, how):
        if one is None:
            return math.nan
        total += one
    return total.score(how) if said else math.nan


@cache
def stemmer() -> Callable[[str], str]:
    """The Snowball stemmer for English (Porter 2001), which METEOR 1.5 uses: for ``Settings(stem=stemmer())``.

    >>> stemmer()("running"), stemmer()("happily")
    ('run', 'happili')
    """
    try:
        import snowballstemmer
    except ImportError as error:
        raise Refused(
            "METEOR: stem: the stemmer is not installed: type pip install snowballstemmer, or leave the stage out"
        ) from error
    inner = snowballstemmer.stemmer("english")
    return cache(inner.stemWord)


def read_synonyms(path: Path) -> dict[str, frozenset[str]]:
    """A word list as word -> all that may stand for it: a line holds words that mean the same, with commas between.

    A word of several lines has the synonyms of each, and these are not therefore each other's. A phrase of several words is left out, as
    words are aligned one to one; so is nothing else: what is not there in its plural is not found in it. Raises Refused where there
    is no such file, or no line in it with two words.
    """
    if not path.is_file():
        raise Refused(
            f"METEOR: synonyms: there is no file {path}; a line of it is for example: dog, puppy, hound"
        )
    found: dict[str, frozenset[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = frozenset(word for part in line.split(",") if (word := plain(part)) and " " not in word)
        if len(words) > 1:
            found |= {word: found.get(word, frozenset()) | words for word in words}
    if not found:
        raise Refused(
            f"METEOR: synonyms: {path} has no line of two words with a comma between: dog, puppy, hound"
        )
    return found


def _best(said: Sequence[str], references: Sequence[Sequence[str]], how: Settings) -> list[Counts | None]:
    """For each caption, the counts of the reference that gives the highest score, of equals the first."""
    paired(said, references)
    found: list[Counts | None] = []
    for text, some in zip(said, references):
        counts = [_counts(text.split(), reference.split(), how) for reference in some]
        found.append(max(counts, key=lambda one: one.score(how), default=None))
    return found


def _counts(a: Sequence[str], b: Sequence[str], how: Settings) -> Counts:
    options: list[list[Pair]] = [
        [Pair(i, j, stage) for j, other in enumerate(b) if (stage := how.stage(word, other)) is not None]
        for i, word in enumerate(a)
    ]
    pairs = align(options)
    whole = how.unbroken and len(pairs) == len(a) == len(b) and chunks(pairs) == 1
    return Counts(
        found=math.fsum(how.weights[pair.stage] * how.weight([a[pair.i]]) for pair in pairs),
        said=how.weight(a),
        met=math.fsum(how.weights[pair.stage] * how.weight([b[pair.j]]) for pair in pairs),
        wanted=how.weight(b),
        pairs=len(pairs),
        runs=0 if whole else chunks(pairs),
    )
