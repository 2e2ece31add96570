"""BERTScore: does each word of a caption, as a language model reads it, have a near one in what people said?

Zhang, Kishore, Wu, Weinberger, Artzi, "BERTScore: Evaluating Text Generation with BERT", ICLR 2020,
https://arxiv.org/abs/1904.09675.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.errors import Refused


class Likeness(NamedTuple):
    """Precision, recall and their harmonic mean."""

    p: float
    r: float
    f: float


class Read(NamedTuple):
    """A text as the encoder reads it: token ids [T], vectors [T, D], and which tokens the tokenizer added."""

    ids: tuple[int, ...]
    vectors: Tensor
    special: tuple[bool, ...]


@dataclass(frozen=True)
class Encoder:
    """A Hugging Face encoder from a local folder or the hub's cache: ``name``, ``revision``.

    ``layer``: whose hidden states are compared, 0 the embeddings, -1 the last. The paper picks it by model on WMT16, its
    code has 9 of bert-base-uncased's 12 and 17 of roberta-large's 24. Each text is read by itself, without padding, so that no
    other moves its vectors (law 1).
    """

    name: str
    revision: str | None = None
    layer: int = -1

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.revision)
            net = AutoModel.from_pretrained(self.name, revision=self.revision, dtype=torch.float32)
        except Exception as error:  # absent files, unknown kinds and no network come as many
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Refused(f"BERTScore: encoder {self.name!r} cannot be loaded: {why}") from error
        depth = net.config.num_hidden_layers + 1
        if not -depth <= self.layer < depth:
            raise Refused(
                f"BERTScore: layer: found {self.layer}, accepted are 0 to {depth - 1}, or -1 for the last, of {self.name}"
            )
        return tokenizer, net.eval().requires_grad_(False)

    def read(self, text: str) -> Read:
        """The text's tokens with their vectors, float32; Refused where it is longer than the encoder reads."""
        tokenizer, net = self._parts
        found = tokenizer(text, return_special_tokens_mask=True)
        ids = found["input_ids"]
        most = min(tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", math.inf))
        if len(ids) > most:
            raise Refused(f"BERTScore: {text[:40]!r}... has {len(ids)} tokens, and {self.name} reads {most}")
        with torch.inference_mode():
            states = net(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        return Read(tuple(ids), states[self.layer][0], tuple(map(bool, found["special_tokens_mask"])))


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
