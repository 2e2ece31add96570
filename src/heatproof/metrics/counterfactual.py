"""Counterfactual: does the heat on each thing follow what the score really loses without it? (true effects)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Score, Trial, Unsuited, Value, Without
from heatproof.errors import NO_TEXT
from heatproof.metrics import maps, ranking, rows
from heatproof.metrics.maps import Undefined
from heatproof.segments import removable

MASSES = ("mean", "sum", "positive")
# words that name no thing, property or event: removing one leaves what is said
FUNCTION_WORDS = frozenset({
    "a", "an", "the", "this", "that", "these", "those", "some", "any", "no", "it", "its", "he", "she", "they",
    "his", "her", "their", "there", "here", "is", "are", "was", "were", "be", "been", "being", "has", "have",
    "had", "do", "does", "did", "can", "will", "and", "or", "but", "not", "of", "in", "on", "at", "by", "to",
    "from", "with", "without", "for", "into", "onto", "over", "under", "above", "below", "near", "next",
    "beside", "behind", "between", "through", "as", "than", "then", "while", "which", "who",
})  # fmt: skip

_Side = tuple[Tensor, Tensor] | Undefined  # masses and effects, or why there are none


def object_mass(heat: Tensor, planes: Tensor, mass: str = "mean") -> Tensor:
    """The relevance of each thing: the heat inside its mask, averaged or summed; float64 [K].

    heat [H, W] finite; planes bool [K, H, W], none of them empty. "positive" sums what is above zero.

    >>> object_mass(torch.tensor([[3.0, -1.0]]), torch.tensor([[[True, True]], [[False, True]]])).tolist()
    [1.0, -1.0]
    """
    flat = heat.double().clamp(min=0) if mass == "positive" else heat.double()
    sums = torch.stack([flat[plane].sum() for plane in planes])
    return sums / planes.flatten(1).sum(1) if mass == "mean" else sums


def true_effects(clean: float, without: Sequence[float]) -> Tensor:
    """What the score loses without each thing: float64 [K], in units of the score; 0 where float32 resolves nothing.

    >>> true_effects(4.0, [1.0, 4.0000001, 6.0]).tolist()
    [3.0, 0.0, -2.0]
    """
    scores = torch.tensor(without, dtype=torch.float64)
    effects = clean - scores
    unresolved = effects.abs() <= ranking.RESOLUTION * scores.abs().clamp(min=abs(clean))
    return effects.masked_fill(unresolved, 0.0)


def kendall(a: Tensor, b: Tensor) -> float:
    """Kendall's rank correlation tau-b, -1 to 1: concordant less discordant pairs, corrected for ties.

    a, b: the same number of values, finite. NaN where one is constant. Kendall 1945 (ties in ranking problems).

    >>> kendall(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
    0.3333333333333333
    """
    x, y = (ranking.levels(v).reshape(-1).double() for v in (a, b))
    one, other = ((v[:, None] - v).sign() for v in (x, y))
    scale = float(one.square().sum() * other.square().sum()) ** 0.5
    return float((one * other).sum()) / scale if scale > 0 else float("nan")


@dataclass(frozen=True)
class Counterfactual:
    """Rank agreement of a map's mass on each thing of the image with what the score loses when the thing is not there.

    Where the data set can draw the same image without one of its things (``case.without``: generated scenes), score
    minus score without it is the thing's true effect, and neither image is out of distribution. The map is pooled,
    enlarged and signed, and its ``mass`` inside each thing's visible mask taken: mean (against the effect a pixel) | sum
    (against the whole effect) | positive (the sum of what is above zero). Sums pay for size alone: where the largest
    thing is the one asked about, as in the scenes, a random map gets 0.7 by them, and about -0.1 by means.

    - ``spearman``, ``kendall``: rank correlation (tau-b) of mass and effect over the things of one image
    - ``words``, ``words_kendall``: the same over the words of the text: relevance summed over a word's tokens, against
      the score lost when the word is removed (``removal``, as in ``text_deletion``). ``vocabulary`` "all" takes every word,
      "content" leaves articles, prepositions, pronouns and auxiliaries (English) out: before a captioner's word there
      is often one left. The rest is asked as it stands, maybe no sentence: a true effect, of an unusual text.

    All from -1 to 1, higher is better, unchanged when the map is multiplied by a positive number; ties at their mean rank.
    Coarse case by case: with two things a case is -1 or 1. Of two things needed together both have the whole effect, of
    two that stand for each other none. Finding the thing asked about scores well: its effect is mostly the largest.

    Costs a row for each thing, and the clean score, from the memo; for words a row each, and one of the whole text.
    The curves "things" and "words" hold (mass, effect), from the least mass to the most.

    Undefined: no map or text relevance, NaN in it, fewer than two things or words, equal masses, equal effects, a score
    that is not finite, an image that cannot be drawn without its things (a classifier is then unsuited).
    """

    mass: str = "mean"
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"
    removal: str = "delete"
    vocabulary: str = "all"

    measures: ClassVar[tuple[Measure, ...]] = tuple(
        Measure(name, "higher", "faithfulness") for name in ("spearman", "kendall", "words", "words_kendall")
    )

    def __post_init__(self) -> None:
        maps.accept(self, "mass", MASSES)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        maps.accept(self, "vocabulary", ("content", "all"))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        if model.family == "classifier" and all(trial.case.without is None for trial in trials):
            raise Unsuited("these images cannot be drawn without their things, so no true effect is known")
        things = self._agreements(trials, self._things, self._without_things)
        words = self._agreements(trials, self._words, self._without_words)
        found = []
        for image, text in zip(things, words, strict=True):
            values = zip(self.measures, (*_values(image), *_values(text)), strict=True)
            sides = {"things": image, "words": text}
            curves = {name: _curve(*side) for name, side in sides.items() if isinstance(side, tuple)}
            found.append(Score({m.name: value for m, value in values}, curves))
        return found

    def _agreements(
        self,
        trials: Sequence[Trial],
        read: Callable[[Trial], Tensor],
        ask: Callable[[Model, list[Case]], list[Tensor]],
    ) -> list[_Side]:
        """Mass and effects of each trial, or why there are none; only those with unequal masses are asked about."""
        found: dict[int, _Side] = {}
        masses: dict[int, Tensor] = {}
        for i, trial in enumerate(trials):
            try:
                masses[i] = _differing(read(trial), "equal relevance everywhere")
            except Undefined as why:
                found[i] = why
        cases = [trials[i].case for i in masses]
        effects = ask(trials[0].model, cases) if cases else []
        for (i, mass), effect in zip(masses.items(), effects, strict=True):
            try:
                found[i] = mass, _differing(effect, "every removal has the same effect")
            except Undefined as why:
                found[i] = why
        return [found[i] for i in range(len(trials))]

    # ------------------------------------------------------------------ things of the image

    def _things(self, trial: Trial) -> Tensor:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        if trial.case.without is None:
            raise Undefined("the image cannot be drawn without its things")
        things = _seen(trial.case)
        if len(things) < 2:
            raise Undefined("fewer than two things in the image")
        return object_mass(heat, torch.stack([thing.mask for thing in things]), self.mass)

    def _without_things(self, model: Model, cases: list[Case]) -> list[Tensor]:
        def compute(some: list[Case]) -> list[list[float]]:
            each = ((case, thing.pixels()) for case in some for thing in _seen(case))
            scores = iter(rows.scored("native", model, each))
            return [list(islice(scores, len(_seen(case)))) for case in some]

        found = model.recall("scores without each thing", cases, compute)
        effects = [true_effects(c, s) for c, s in zip(model.clean(cases).tolist(), found, strict=True)]
        if self.mass != "mean":
            return effects
        areas = [[int(thing.mask.sum()) for thing in _seen(case)] for case in cases]
        return [effect / torch.tensor(area) for effect, area in zip(effects, areas, strict=True)]

    # ------------------------------------------------------------------ words of the text

    def _words(self, trial: Trial) -> Tensor:
        case, answer = trial.case, trial.explanation
        if trial.model.family == "classifier":
            raise Undefined("a classifier reads no text")
        if answer is None or answer.text is None:
            raise Undefined(NO_TEXT)
        if not answer.text.isfinite().all():
            raise Undefined("NaN or infinity in the text relevance")
        groups = self._groups(case, trial.model.family)
        if len(groups) < 2:
            raise Undefined("fewer than two words that may be removed")
        relevance = answer.text.detach().cpu().double()
        summed = torch.stack([relevance[group].sum() for group in groups])
        return geometry.read(summed[None], sign=self.sign)[0]

    def _groups(self, case: Case, family: str) -> list[list[int]]:
        groups = removable(case, family, "word")
        if self.vocabulary == "all":
            return groups
        return [g for g in groups if "".join(case.spoken[k] for k in g).lower() not in FUNCTION_WORDS]

    def _without_words(self, model: Model, cases: list[Case]) -> list[Tensor]:
        def compute(some: list[Case]) -> list[list[float]]:
            longest = max(len(case.words) for case in some)
            keep, each, sizes = [], [], []
            for case in some:
                words = self._groups(case, model.family)
                rows = torch.ones(1 + len(words), longest)
                for row, places in enumerate(words, 1):
                    rows[row, places] = 0
                keep.append(rows)
                sizes.append(len(rows))
                each += [case] * len(rows)
            with torch.no_grad():
                scores = model.score_text(torch.cat(keep), each, self.removal)
            return [part.tolist() for part in scores.split(sizes)]

        found = model.recall(f"scores without each word {self.removal} {self.vocabulary}", cases, compute)
        return [true_effects(whole, without) for whole, *without in found]


def _differing(values: Tensor, why: str) -> Tensor:
    if not values.isfinite().all():
        raise Undefined("a score is not a finite number")
    if not ranking.levels(values).any():
        raise Undefined(why)
    return values


def _values(side: _Side) -> tuple[Value, Value]:
    if isinstance(side, Undefined):
        return Value.undefined(str(side)), Value.undefined(str(side))
    return Value.of(ranking.spearman(*side)), Value.of(kendall(*side))


def _curve(mass: Tensor, effects: Tensor) -> tuple[list[float], list[float]]:
    order = mass.argsort(stable=True)
    return mass[order].tolist(), effects[order].tolist()


def _seen(case: Case) -> list[Without]:
    """The things that the model's frame shows any of."""
    return [thing for thing in case.without or () if thing.mask.any()]
