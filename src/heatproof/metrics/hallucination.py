"""Hallucination: does a word's map tell what is in the image from what the captioner made up? (plausibility)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Score, Trial, Unsuited, Value
from heatproof.errors import unknown
from heatproof.metrics import maps
from heatproof.metrics.maps import Undefined

QUANTILES = (0, 10, 20, 30, 40, 50)  # per cent
STATISTICS = ("mean", "abs_mean", "positive_mean", "max", *(f"q{q}" for q in QUANTILES))
TRUTHS = ("references", "objects")


def statistics_of(heat: Tensor) -> dict[str, float]:
    """What Sun et al. 2022 read of a map [h, w] as it is: means of all, of absolute and of positive values (0 for none), the
    highest, and the quantiles 0 to 50 %, interpolated linearly; to six digits, so that what differs by rounding alone is tied.

    >>> told = statistics_of(torch.tensor([[-1.0, 1.0], [3.0, 5.0]]))
    >>> told["mean"], told["abs_mean"], told["positive_mean"], told["q50"]
    (2.0, 2.5, 3.0, 2.0)
    """
    flat = heat.flatten().double()
    warm = flat[flat > 0]
    shares = torch.tensor([q / 100 for q in QUANTILES], dtype=torch.float64)
    values = [flat.mean(), flat.abs().mean(), warm.mean() if len(warm) else flat.new_zeros(()), flat.max()]
    told = [
        float(f"{float(v):.6g}") for v in (*values, *flat.quantile(shares))
    ]  # the mean of attention is 1 / cells: no news
    return dict(zip(STATISTICS, told, strict=True))


@dataclass(frozen=True)
class Hallucination:
    """How well each statistic of a word's map tells true words from hallucinated ones: areas under ROC curves.

    Sun et al. 2022 (arXiv 2001.01037), section on hallucinated words: of the map as the explainer gave it (mean over channels, signed, not
    normalised) one number is read: ``mean``, ``abs_mean``, ``positive_mean``, ``max``, or a quantile, ``q0`` (the least) to
    ``q50``; ``statistics`` says which. A column is the probability that a true word's number is higher than a hallucinated one's (ties half): 0.5 tells
    nothing, below 0.5 it is the other way round. Higher is better.

    ``truth``: "references" (the authors': a word is true if one of the image's reference captions has it, as it stands) | "objects"
    (if a thing that it names is annotated in the image). Each said word counts once. ``as_released``: of a word that an image's
    caption repeats the highest true and the lowest false number alone, which can raise an area; and every word has the
    quantiles of its image's last word.

    Undefined: no map, NaN in it, an image without references or annotation. A column without words of both sorts has no value.
    Unsuited: models that write no captions. Criticism: a map's scale follows the word's own logit, so that a number may tell
    what a probability would.
    """

    truth: str = "references"
    pool: str = "mean"
    statistics: tuple[str, ...] = STATISTICS
    as_released: bool = False

    @property
    def measures(self) -> tuple[Measure, ...]:
        def how(name: str) -> str:
            if not self.as_released:
                return "roc_auc"
            return "auc_of_last" if name.startswith("q") else "auc_extremes"

        return tuple(
            Measure(name, "higher", "plausibility", unit="AUC", reduce=how(name)) for name in self.statistics
        )

    def __post_init__(self) -> None:
        maps.accept(self, "truth", TRUTHS)
        maps.accept(self, "pool", geometry.POOLS)
        for name in self.statistics:
            if name not in STATISTICS:
                raise unknown("metrics: hallucination", "statistic", name, STATISTICS)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if trials and trials[0].model.family != "captioner":
            raise Unsuited(f"{trials[0].model.name} is a {trials[0].model.family}: it says no words")
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        try:
            true = self.true(trial.case)
            told = statistics_of(geometry.read(maps.image_heat(trial), pool=self.pool))
        except Undefined as why:
            return maps.undefined(self.measures, why)
        more = {"place": trial.case.target} if self.as_released else {}
        values = {name: told[name] for name in self.statistics}
        return Score({name: Value.of(v, label=int(true), score=v, **more) for name, v in values.items()})

    def true(self, case: Case) -> bool:
        """Whether the case's word is true; Undefined where nothing says so."""
        if self.truth == "objects":
            if case.evidence is None:
                raise Undefined("nothing annotated")
            return bool(case.evidence.any())
        if not case.references:
            raise Undefined("no reference captions")
        word = case.spoken[case.target + 1]
        return any(word in re.findall(r"\w+", text.lower()) for text in case.references)
