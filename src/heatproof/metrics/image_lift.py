"""Image lift: does a captioner say a word because of the image, or because of its language? (quality)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from heatproof.contract import Measure, Score, Trial, Value
from heatproof.metrics import baselines, maps, rows
from heatproof.metrics.hallucination import TRUTHS, Hallucination
from heatproof.metrics.maps import Undefined


@dataclass(frozen=True)
class ImageLift:
    """How much the image adds to the log-probability of each word, and whether that tells true words from hallucinated ones.

    The word is read twice after the words before it: with the image, and with a ``blank`` one (mean | image_mean | black | blur), which leaves
    the language's prior. In nats:

    - ``lift``: the log-probability with the image less that without; 0 where the image is ignored
    - ``prior``: the log-probability without the image; near 0 the words before it are enough
    - ``grounded``: the area under the ROC curve of ``lift``, true words against hallucinated ones: 1 where what is made up
      never has more of the image in it than what is there, 0.5 where lift tells nothing

    ``truth`` as in ``hallucination``: "references" | "objects". It is a metric of the captioner itself, asked about the words of the spec's
    target policy; beside ``hallucination`` it says whether a map tells more than the two probabilities do. One more row a word.

    Undefined: ``grounded`` without references or annotation. Known criticism: a blank image is nothing that the model was trained on,
    so that the prior is the language's as the model has it there.
    """

    blank: str = "mean"
    truth: str = "references"

    asks: ClassVar[dict[str, str]] = {"captioner": ""}

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("lift", "higher", "quality", unit="nats"),
        Measure("prior", "lower", "quality", unit="nats"),
        Measure("grounded", "higher", "quality", unit="AUC", reduce="roc_auc"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "blank", ("mean", "image_mean", "black", "blur"))
        maps.accept(self, "truth", TRUTHS)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model, cases = trials[0].model, [trial.case for trial in trials]
        seen = model.clean(cases).tolist()
        with torch.no_grad():
            blind = rows.scored("native", model, ((c, baselines.blank(self.blank, c, model)) for c in cases))
        judge, found = Hallucination(truth=self.truth), []
        for case, with_, without in zip(cases, seen, blind, strict=True):
            lift = with_ - without
            try:
                grounded = Value.of(lift, label=int(judge.true(case)), score=lift)
            except Undefined as why:
                grounded = Value.undefined(str(why))
            found.append(Score({"lift": Value.of(lift), "prior": Value.of(without), "grounded": grounded}))
        return found
