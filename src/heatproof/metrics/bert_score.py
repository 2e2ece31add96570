"""BERTScore: does each word of a caption, as a language model reads it, have a near one in what people said? (quality)

Zhang, Kishore, Wu, Weinberger, Artzi, "BERTScore: Evaluating Text Generation with BERT", ICLR 2020,
https://arxiv.org/abs/1904.09675.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.captions.files import digest
from heatproof.contract import Case, Measure, Score, Trial, Value
from heatproof.errors import Refused
from heatproof.metrics import maps
from heatproof.metrics.reading import Encoder, Read, TooLong

NOBODY = "no reference captions"
WORDLESS = "a text without words, or precision and recall that sum to 0 or less"


class Likeness(NamedTuple):
    """Precision, recall and their harmonic mean."""

    p: float
    r: float
    f: float


def greedy(
    said: Tensor,
    reference: Tensor,
    said_weights: Tensor | None = None,
    reference_weights: Tensor | None = None,
) -> Likeness:
    """Each token with the likest of the other text: P over the caption's tokens, R over the reference's, -1 to 1.

    said [T, D], reference [S, D]: vectors of any length but 0; weights [T] and [S], not negative, each 1 unless given. A
    token with weight 0 may still be another's partner. NaN: a text without weight; F where P + R is 0 or less.

    >>> a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    >>> tuple(round(x, 4) for x in greedy(a, b))
    (0.5, 1.0, 0.6667)
    """
    if not len(said) or not len(reference):
        return Likeness(math.nan, math.nan, math.nan)
    alike = F.normalize(said.double(), dim=-1) @ F.normalize(reference.double(), dim=-1).T
    p = _mean(alike.max(1).values, said_weights)
    r = _mean(alike.max(0).values, reference_weights)
    return Likeness(p, r, 2 * p * r / (p + r) if p + r > 0 else math.nan)


def _mean(values: Tensor, weights: Tensor | None) -> float:
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    return float((values * weights).sum() / weights.sum())


@dataclass(frozen=True)
class Rarity:
    """In how many of a corpus' ``texts`` each token id is; a rarer token weighs more.

    Take a fixed corpus: with the references at hand, as published numbers have it, a score depends on other images.
    """

    counts: Mapping[int, int]
    texts: int

    @classmethod
    def of(cls, texts: Sequence[str], encoder: Encoder) -> Rarity:
        """That of the texts, as the encoder cuts them."""
        return cls(Counter(token for text in texts for token in set(encoder.read(text).ids)), len(texts))

    def weight(self, token: int) -> float:
        """log((M + 1) / (m + 1)) of a token in m of M texts: smoothed as in the authors' code, so 0 where all have it.

        >>> round(Rarity({7: 1}, 3).weight(7), 3), Rarity({7: 3}, 3).weight(7)
        (0.693, 0.0)
        """
        return math.log((self.texts + 1) / (self.counts.get(token, 0) + 1))


def bert_score(
    said: Sequence[str],
    references: Sequence[Sequence[str]],
    encoder: Encoder,
    rarity: Rarity | None = None,
    *,
    mean_references: bool = False,
    special_partners: bool = False,
) -> list[Likeness]:
    """BERTScore of every caption: P, R and F by greedy matching (``greedy``), -1 to 1, mostly far above 0.

    ``said[i]`` is one caption, ``references[i]`` the captions that people gave. Of several references the one with the
    highest F counts; ``mean_references``: the mean of P, R and F over all of them. Tokens that the tokenizer added take no part;
    ``special_partners``: they weigh nothing but may be another's partner, as in the authors' code. ``rarity`` weighs tokens
    by it (the paper's idf). Not rescaled by a baseline. NaN: no references, a text of no words or no weight.
    """
    if len(said) != len(references):
        raise ValueError(f"{len(said)} captions, but references of {len(references)} images")
    found, read = [], cache(encoder.read)
    for text, some in zip(said, references, strict=True):
        mine = _weighed(read(text), rarity, special_partners=special_partners)
        theirs = [_weighed(read(other), rarity, special_partners=special_partners) for other in some]
        found.append(_of([greedy(mine[0], v, mine[1], w) for v, w in theirs], mean=mean_references))
    return found


def _weighed(read: Read, rarity: Rarity | None, *, special_partners: bool) -> tuple[Tensor, Tensor]:
    there = torch.tensor([special_partners or not special for special in read.special])
    weights = torch.tensor(
        [
            0.0 if special else 1.0 if rarity is None else rarity.weight(token)
            for token, special in zip(read.ids, read.special, strict=True)
        ]
    )
    return read.vectors[there], weights.double()[there]


def _of(scores: Sequence[Likeness], *, mean: bool) -> Likeness:
    """The mean over references, or the best of them by F; NaN where one has no value."""
    if not scores or any(math.isnan(score.f) for score in scores):
        return Likeness(math.nan, math.nan, math.nan)
    if mean:
        return Likeness(*(math.fsum(column) / len(scores) for column in zip(*scores, strict=True)))
    return max(scores, key=lambda score: score.f)


@dataclass(frozen=True)
class BertScore:
    """Precision, recall and F1 of the captions that the model writes, word by word near what people said, as a BERT reads both.

    Zhang et al. 2020 (ICLR, arXiv 1904.09675): every token of the caption with the likest of the reference, by the cosine of their
    vectors (``precision``); every token of the reference with the likest of the caption (``recall``); and their harmonic mean (``f1``).

    ``model``: a local folder of a Hugging Face encoder with its tokenizer. ``layer``: whose hidden states, 0 the embeddings, -1 the last; the
    authors have 9 for bert-base-uncased, 17 for roberta-large. ``references``: "best" (the paper's: the reference with the highest F1,
    whose precision and recall these are) | "mean" (Sun et al. 2022, arXiv 2001.01037: over every pair of a caption and a reference, so that an
    image with more references counts more). ``rescale``: three numbers b, the authors' baselines of precision, recall and F1 for this model
    and layer (lines of their rescale_baseline files), each value x then being (x - b) / (1 - b); none unless given.
    ``special_partners``: the tokens that the tokenizer adds may be a word's partner, as in the authors' code. Texts are read as they were
    written, full stops too. Words are not weighed by rarity (their idf, which they leave out by default).

    -1 to 1, mostly far above 0; higher is better. The encoder is no part of the model: cost does not count it. Undefined: an image
    without references, a text without words or longer than the encoder reads.

    Known criticism: numbers crowd below 1 and stand beside those of the same encoder, layer and baseline alone; a wrong colour, count or "not" costs
    little, as such words are near each other (Hanna and Bojar 2021); and no image is looked at.
    """

    model: str
    layer: int = -1
    references: str = "best"
    rescale: tuple[float, ...] = ()
    special_partners: bool = False
    digest: str = field(init=False)  # of the encoder's files: part of the key

    asks: ClassVar[dict[str, str]] = {"captioner": "written"}

    measures: ClassVar[tuple[Measure, ...]] = tuple(
        Measure(name, "higher", "quality", reduce="pooled_ratio") for name in ("precision", "recall", "f1")
    )

    def __post_init__(self) -> None:
        maps.accept(self, "references", ("best", "mean"))
        if not (Path(self.model) / "config.json").is_file():
            raise Refused(
                f"metrics.bert_score.model: found {self.model!r}, accepted is a folder with config.json, weights and tokenizer; for one type: "
                "hf download google-bert/bert-base-uncased --local-dir FOLDER"
            )
        if len(self.rescale) not in (0, 3) or any(b >= 1 for b in self.rescale):
            raise Refused(
                f"metrics.bert_score.rescale: found {list(self.rescale)}, accepted are three numbers below 1, for precision, recall and F1"
            )
        object.__setattr__(self, "digest", digest([Path(self.model)]))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        encoder = Encoder(self.model, layer=self.layer)
        return [self._score(trial.case, encoder) for trial in trials]

    def _score(self, case: Case, encoder: Encoder) -> Score:
        names = [m.name for m in self.measures]
        if not case.references:
            return Score(dict.fromkeys(names, Value.undefined(NOBODY)))
        mean, said = self.references == "mean", " ".join(case.spoken[1:])
        try:
            (likeness,) = bert_score(
                [said],
                [case.references],
                encoder,
                mean_references=mean,
                special_partners=self.special_partners,
            )
        except TooLong as why:
            return Score(dict.fromkeys(names, Value.undefined(str(why))))
        pairs = len(case.references) if mean else 1
        scaled = [(x - b) / (1 - b) for x, b in zip(likeness, self.rescale or (0.0,) * 3, strict=True)]
        return Score(
            {n: Value.of(x, WORDLESS, num=x * pairs, den=pairs) for n, x in zip(names, scaled, strict=True)}
        )
