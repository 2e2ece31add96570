"""Prefix ablation: is a word less probable without the words before it that spoke for it? (faithfulness)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Measure, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking
from heatproof.metrics.maps import Undefined
from heatproof.segments import removable


@dataclass(frozen=True)
class PrefixAblation:
    """The probability that a captioner's word loses with the ``count`` (3) most relevant words before it.

    Sun et al. 2022 (arXiv 2001.01037), ablation of preceding words: they are deleted, the rest closes up, the image stays. <start> is never
    deleted, and words before place ``least`` (6, counted from 0) are left out, since little would be left of their prefix.

    - ``lower``: whether the word is no more probable than before; the mean is a share of words
    - ``drop``: the probability that it lost, -1 to 1

    Higher is better. Signed relevance (``sign``), tied words by lot; ``removal``: delete (the authors') | pad | unknown | mask.
    The authors' random baseline never takes the word just before; the control ``random`` may, like every explainer. They tell
    object words and stop words apart: two target policies ("said objects", "said words 'a, the, ...'"). Undefined: no relevance of words,
    NaN in it, a word too early. Unsuited: models that write no captions.
    """

    count: int = 3
    least: int = 6
    removal: str = "delete"
    sign: str = "signed"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("lower", "higher", "faithfulness", unit="share of words"),
        Measure("drop", "higher", "faithfulness", unit="probability"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "removal", ("delete", "pad", "unknown", "mask"))
        if not 1 <= self.count <= self.least:
            raise Refused(
                f"metrics.prefix_ablation: found count {self.count} and least {self.least}, accepted are 1 to `least` words"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        if model.family != "captioner":
            raise Unsuited(f"{model.name} is a {model.family}: it writes no captions")
        keeps, found = maps.planned(trials, self.measures, self._keep)
        if keeps:
            cases = [trials[i].case for i in keeps]
            clean = model.clean(cases).double().exp()
            keep = torch.nn.utils.rnn.pad_sequence(list(keeps.values()), batch_first=True, padding_value=1.0)
            with torch.no_grad():
                left = model.score_text(keep, cases, self.removal).double().exp()
            for i, lost in zip(keeps, (clean - left).tolist(), strict=True):
                found[i] = Score({"lower": Value.of(float(lost >= 0)), "drop": Value.of(lost)})
        return [found[i] for i in range(len(trials))]

    def _keep(self, trial: Trial) -> Tensor:
        case = trial.case
        if case.target < self.least:
            raise Undefined(f"the word stands before place {self.least} of its caption")
        relevance = maps.text_heat(trial)
        places = [place for (place,) in removable(case, "captioner")]
        heat = geometry.read(relevance[places][None], sign=self.sign)[0]
        first = ranking.order(heat, case.generator("tied words"))[: self.count]
        keep = torch.ones(len(case.words))
        keep[[places[k] for k in first.tolist()]] = 0.0
        return keep
