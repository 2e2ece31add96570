"""Word pointing: does each word of a text light up the thing that it names, and not the others? (plausibility)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Explanation, Measure, Score, Trial, Unsuited, Value
from heatproof.errors import NO_IMAGE
from heatproof.metrics import maps
from heatproof.metrics.localization import pointing_game
from heatproof.metrics.maps import Undefined


def words_of(named: Tensor, words: Sequence[int]) -> dict[int, Tensor]:
    """The words that name a thing of the image: word -> which of K instances, bool [K].

    >>> found = words_of(torch.tensor([[False, False], [True, False], [False, True]]), (-1, 0, 1))
    >>> {word: which.tolist() for word, which in found.items()}
    {0: [True, False], 1: [False, True]}
    """
    found: dict[int, Tensor] = {}
    for row, word in zip(named, words, strict=True):
        if word >= 0 and bool(row.any()):
            found[word] = found.get(word, torch.zeros_like(row)) | row
    return found


@dataclass(frozen=True)
class WordPointing:
    """Of the things that a caption names, is the one a word names the hottest in the word's own map?

    For explanations of pairs (image cell times token): a word's map is the sum of its tokens' columns. An explanation without
    pairs has one map for all words, and is judged by that: it cannot tell them apart. After the
    pointing game recognition of FIxLIP (Baniecki et al. 2025) on images of several objects; their exact rule was not found,
    so the values are ours, free of the things' sizes and of a fixed grid:

    - ``word_pointing``: whether the mean relevance is highest on the word's own thing, 0 or 1 (1/n where n tie). One map for all
      gets exactly 1/K where each of K things is named once
    - ``word_mass``: the relevance of the sign on the word's own thing over that on all named things; 1/K for a flat map of
      things of one size

    Both from 0 to 1, higher is better, the mean over the case's words that name something. Instances of one name count as one thing.
    Undefined: fewer than two things named apart, no map, NaN in it; ``word_mass`` without relevance of the sign on any named thing.
    Unsuited: classifiers and captioners, whose cases are about one thing or one word.
    """

    pool: str = "sum"
    sign: str = "positive"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("word_pointing", "higher", "plausibility"),
        Measure("word_mass", "higher", "plausibility"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", ("positive", "negative", "abs"))
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if trials and trials[0].model.family != "dual":
            raise Unsuited(f"{trials[0].model.name} reads no caption: no word of it names a thing")
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            things = self._things(trial)
            found = [self._judged(self._heat(trial, word), own, things) for word, own in things.items()]
        except Undefined as why:
            return maps.undefined(self.measures, why)
        hits, shares = zip(*found, strict=True)
        cold = f"no relevance of the sign {self.sign} on any named thing"
        return Score(
            {
                "word_pointing": Value.of(sum(hits) / len(hits)),
                "word_mass": Value.of(sum(shares) / len(shares), cold),
            }
        )

    def _things(self, trial: Trial) -> dict[int, Tensor]:
        """What each word that names something names, bool [H, W]."""
        case = trial.case
        if case.named is None or case.evidence is None or not len(case.evidence):
            raise Undefined("nothing annotated that the text names")
        counted = torch.ones(maps.image_size(case), dtype=torch.bool) if case.ignore is None else ~case.ignore
        words = words_of(case.named, case.words)
        found = {word: case.evidence[which].any(0) & counted for word, which in words.items()}
        found = {word: plane for word, plane in found.items() if plane.any()}
        if len({plane.numpy().tobytes() for plane in found.values()}) < 2:
            raise Undefined("fewer than two things that the text names apart")
        return found

    def _heat(self, trial: Trial, word: int) -> Tensor:
        """The word's own map on the image's grid, of the sign that counts."""
        said, case = trial.explanation, trial.case
        if said is None or (said.pairs is None and said.image is None):
            raise Undefined(NO_IMAGE)
        if said.pairs is not None:
            tokens = torch.tensor([k for k, w in enumerate(case.words) if w == word])
            if said.pairs.ndim != 2 or said.pairs.shape[1] != len(case.words):
                raise ValueError(
                    f"{trial.explainer!r} gave case {case.id} pairs of shape {list(said.pairs.shape)}, accepted is "
                    f"[h*w, {len(case.words)}], a column a token"
                )
            plane = geometry.fold(said.pairs[:, tokens].sum(1), 0)
            trial = replace(trial, explanation=Explanation(image=plane))
        return maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)

    def _judged(self, heat: Tensor, own: Tensor, things: dict[int, Tensor]) -> tuple[float, float]:
        planes = list({plane.numpy().tobytes(): plane for plane in things.values()}.values())
        means = torch.stack([heat[plane].double().mean() for plane in planes])
        mine = torch.tensor([bool(torch.equal(plane, own)) for plane in planes])
        everywhere = torch.stack(planes).any(0)
        total = float(heat[everywhere].double().sum())
        share = float(heat[own].double().sum()) / total if total > 0 else float("nan")
        return pointing_game(means, mine), share
