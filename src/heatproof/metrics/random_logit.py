"""Random logit: does the map change when the model is asked about something else? (a sanity check)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from heatproof import contract, geometry
from heatproof.contract import (
    Case,
    Explanation,
    Measure,
    Model,
    Refused,
    Score,
    Trial,
    Unsuited,
    Value,
)
from heatproof.metrics import maps, ranking, similarity
from heatproof.metrics.maps import Undefined
from heatproof.metrics.neighbours import AskedAgain, Neighbour


def rivals(case: Case, model: Model) -> list[Any]:
    """What else the case could have been about: its choices without its target; a classifier's other classes.

    Unsuited where nothing is named that could be asked instead.
    """
    if case.choices:
        said: Any = case.target
        if model.family == "captioner" and case.tokens is not None:
            said = int(case.tokens[case.target + 1])  # a captioner's target is a place, its choices are words
        found = [choice for choice in case.choices if choice != said]
    else:
        found = [k for k in range(getattr(model, "classes", 0)) if k != case.target]
    if not found:
        hint = (
            "; a dual encoder's are the prompts of the policy \"label 'a photo of a {}': cat, dog\""
            if model.family == "dual"
            else ""
        )
        raise Unsuited(f"case {case.id} has no other choice that the model could be asked about{hint}")
    return found


def asked_of(case: Case, choice: Any, model: Model) -> Case:
    """The same image and another question: the case's own question with ``choice`` in its target's place.

    A classifier's target is the class itself. A dual encoder reads the choice as its text. A captioner is asked for
    that word after the same words. Random numbers stay the case's, so that masks and noise are no part of the change.
    """
    other: dict[str, Any] = {}
    if model.family == "dual":
        reads: Any = model
        ids, words, spoken = reads.tokenizer(choice, reads.text_length)
        other["evidence_text"] = other["named"] = None  # they are of the words that were there
        other |= {
            "target": choice,
            "tokens": torch.tensor(ids),
            "words": tuple(words),
            "spoken": tuple(spoken),
        }
    elif model.family == "captioner" and case.tokens is not None:
        other["tokens"] = case.tokens.clone()
        other["tokens"][case.target + 1] = choice
    else:
        other["target"] = choice
    return replace(Neighbour.of(case, case.pixels, f"about {choice}"), **other)


@dataclass(frozen=True)
class RandomLogit:
    """Random logit: likeness of a map to the same explainer's map for another of the case's choices.

    Sixt et al. 2020 (When explanations lie, arXiv 1912.09818): a map of one class that looks like that of another
    does not explain a class. The other choice is drawn by the case's own random numbers.

    - ``ssim``: structural similarity (Wang et al. 2004) on the image's grid
    - ``spearman``: Spearman's rho on the map's own grid, ties at their mean rank

    Both from -1 to 1; lower is better. ``sign``: signed | positive | negative | abs. For ``ssim``: maps are brought to one ``scale``:
    second_moment (ours: see Randomisation) | percentile (the authors' code, which leaves no value to a map that is hot in
    under 1 % of its places) | range | max_abs | none; ``window`` 5 px is the authors', sigma is 1.5; ``flip`` takes the higher
    of the two likenesses to the map and to its negative, as the authors do: a map whose sign alone turns has not
    changed what it shows. ``upsample``: bilinear | nearest | bicubic.

    Other choices: a classifier's are all its classes where the case names none; a dual encoder's the prompts of a
    zero-shot policy; a captioner's the other object words, asked for after the same words. Costs one explanation a case.
    Undefined: no map, NaN in it, either map constant, another shape of map. Unsuited: cases without choices, explainers that were fitted.

    Known criticism: classes share evidence, so a good map need not be unlike; a map as rough as noise is the best by
    either value. What does not look at the question (edges, the mask, noise of the case's own) has 1 and is the worst.
    """

    sign: str = "signed"
    scale: str = "second_moment"
    window: int = 5
    flip: bool = True
    pool: str = "sum"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("ssim", "lower", "sanity"),
        Measure("spearman", "lower", "sanity"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "scale", tuple(similarity.SCALES))
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if self.window < 3 or self.window % 2 == 0:
            raise Refused(f"metrics.random_logit.window: found {self.window}, accepted is odd, 3 or more")

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, explainer = trials[0].model, AskedAgain().who(trials[0])
        others = [self._other(trial) for trial in trials]
        plans, found = maps.planned(trials, self.measures, maps.image_heat)
        if plans:
            with torch.inference_mode(False):
                asked = [asked_of(trials[i].case, others[i], model) for i in plans]
            answers = contract.explain(explainer, model, asked)
            for i, answer in zip(plans, answers, strict=True):
                found[i] = self._score(trials[i], answer)
        return [found[i] for i in range(len(trials))]

    def _other(self, trial: Trial) -> Any:
        there = rivals(trial.case, trial.model)
        return there[int(torch.randint(len(there), (1,), generator=trial.case.generator("another choice")))]

    def _read(self, trial: Trial, upsample: str) -> Tensor:
        return maps.read(trial, pool=self.pool, sign=self.sign, upsample=upsample)

    def _score(self, trial: Trial, answer: Explanation) -> Score:
        again = Trial(trial.model, trial.case, trial.explainer, answer)
        try:
            own, other = (self._read(t, "none") for t in (trial, again))
            if own.shape != other.shape:
                raise Undefined("the map of the other choice has another shape")
            one, two = (self._read(t, self.upsample) for t in (trial, again))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        alike = similarity.scaled_ssim(one, two, self.scale, self.window)
        if self.flip:
            alike = max(alike, similarity.scaled_ssim(one, -two, self.scale, self.window))
        return Score(
            {
                "ssim": Value.of(alike, "a map is constant"),
                "spearman": Value.of(ranking.spearman(own, other), "a map is constant"),
            }
        )
