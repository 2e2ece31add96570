"""The text's side of Confidence: how much of each token stays, and captions without their ends, as M2IB's release reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Model, Trial
from heatproof.metrics import maps, ranking, spaces
from heatproof.metrics.maps import Undefined
from heatproof.metrics.neighbours import Neighbour
from heatproof.segments import removable


def upper_half(relevance: Tensor, generator: torch.Generator) -> Tensor:
    """1 for the upper half of the values and 0 for the others: exactly n // 2 of n, tied ones in a random order.

    relevance [n] finite -> float32 [n]. Without ties the same as ``above_median``.

    >>> upper_half(torch.tensor([3.0, 1.0, 2.0, 4.0, 0.0]), torch.Generator()).tolist()
    [1.0, 0.0, 0.0, 1.0, 0.0]
    """
    kept = torch.zeros(len(relevance))
    kept[ranking.order(relevance, generator)[: len(relevance) // 2]] = 1
    return kept


def above_median(relevance: Tensor) -> Tensor:
    """1 for what is strictly above the median (the mean of the middle two of an even number), 0 for the others.

    relevance [n] finite -> float32 [n]. Never more than half are 1, fewer where values are tied.

    >>> above_median(torch.tensor([3.0, 1.0, 2.0, 4.0])).tolist(), above_median(torch.tensor([1.0, 2.0, 2.0])).tolist()
    ([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    """
    values = relevance.double()
    return (values > values.quantile(0.5)).float()


def untouched(output: str, model: Model, cases: list[Case]) -> list[float]:
    """The cases' own scores, from the chunk's memo."""
    return [float(y) for y in spaces.clean(output, model, cases)]


def inside(case: Case) -> Tensor:
    """Which tokens are no special ones, bool [T]."""
    return torch.tensor([word >= 0 for word in case.words])


def bare(case: Case) -> Case:
    """The case without its special tokens. Its cost is the case's, its place in the memo its own."""
    if case.tokens is None:
        return case
    here = inside(case)
    there = [place for place, stays in enumerate(here.tolist()) if stays]
    return replace(
        Neighbour.of(case, case.pixels, "without ends"),
        tokens=case.tokens[here],
        words=tuple(case.words[place] for place in there),
        spoken=tuple(case.spoken[place] for place in there if place < len(case.spoken)),
        evidence_text=None,
    )


@dataclass(frozen=True)
class Text:
    """How a caption is masked and asked about.

    ``weigh``: the relevance [n] of the tokens that may go, and the case -> how much of each stays, [n] in 0 to 1.
    ``removal``: one of those that ``model.score_text`` knows. ``no_ends``: without special tokens, here and untouched.
    Of removal "embedding": ``scale_with_ends``: all tokens are weighed together; ``tied_words``: the same token's
    weights are multiplied.
    """

    weigh: Callable[[Tensor, Case], Tensor]
    removal: str
    sign: str
    no_ends: bool = False
    scale_with_ends: bool = False
    tied_words: bool = False

    def keep(self, trial: Trial) -> Tensor:
        """How much of each of the case's tokens stays, float [T]; special tokens stay whole."""
        case, model = trial.case, trial.model
        if model.family == "classifier":
            raise Undefined("the model reads no text")
        if model.family != "dual" and (self.no_ends or self.removal == "zero"):
            raise Undefined(
                f"no_ends and zero_ids are of a dual encoder's captions: the model is a {model.family}"
            )
        heat = maps.text_heat(trial)
        free = [place for group in removable(case, model.family) for place in group]
        if not free:
            raise Undefined("no token that may be removed")
        relevance = geometry.read(heat[None], sign=self.sign)[0]
        keep = torch.ones(len(case.words))
        soft = self.removal == "embedding"
        every = soft and self.scale_with_ends
        keep[free] = (
            self.weigh(relevance, case)[free] if every else self.weigh(relevance[free], case)
        ).float()
        if soft and self.tied_words and case.tokens is not None:
            same = case.tokens[:, None] == case.tokens
            keep = torch.where(same, keep, torch.ones_like(keep)).prod(1)
        return keep

    def clean(self, output: str, model: Model, cases: list[Case]) -> list[float]:
        """The untouched texts' scores, from the chunk's memo."""
        if not self.no_ends:
            return untouched(output, model, cases)

        def compute(some: list[Case]) -> list[float]:
            every = torch.ones(len(some), max(len(case.words) for case in some))
            with torch.no_grad():
                return [float(y) for y in model.score_text(every, some, "delete")]

        return model.recall("clean without ends", self._asked(model, cases), compute)

    def shown(self, output: str, model: Model, cases: list[Case], keeps: list[Tensor]) -> list[float]:
        """The scores of what the weights leave."""
        if self.no_ends:
            keeps = [keep[inside(case)] for keep, case in zip(keeps, cases, strict=True)]
            cases = self._asked(model, cases)
        keep = torch.nn.utils.rnn.pad_sequence(keeps, batch_first=True, padding_value=1.0)
        with torch.no_grad():
            found = model.score_text(keep, cases, self.removal)
        rule = spaces.alone(model) if output == "probability" else None
        return [float(o) for o in (rule(found) if rule else found)]

    def _asked(self, model: Model, cases: Sequence[Case]) -> list[Case]:
        """The cases without their ends; the image is the same one, and so is its embedding: none is computed twice."""
        own = {case.id: case for case in cases}
        asked = {name: bare(case) for name, case in own.items()}
        origin = {short.id: own[name] for name, short in asked.items()}

        def compute(some: list[Case]) -> list[Tensor]:
            with torch.no_grad():
                return list(model.embed(model.stack(some), some))

        def known(some: list[Case]) -> list[Tensor]:
            return model.recall("image embedding", [origin[short.id] for short in some], compute)

        model.recall("image embedding", list(asked.values()), known)  # the name that the model has for it
        return [asked[case.id] for case in cases]
