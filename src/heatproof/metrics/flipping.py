"""PixelFlipping: how far does the score fall, step by step, as the relevant pixels are flipped? (faithfulness)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from heatproof.contract import Measure, Refused, Score, Trial, Value
from heatproof.metrics import baselines
from heatproof.metrics.deletion import Deletion


def aopc(score: Sequence[float]) -> float:
    """The area over a perturbation curve: the mean over all steps, step 0 too, of how far the score has fallen.

    score [L + 1]: after 0 ... L steps. In units of the score. Samek et al. 2017, for one image; their number is the
    mean over images. The more steps, the less step 0, which never has fallen, weighs.

    >>> aopc([4.0, 2.0, 0.0])
    2.0
    """
    return sum(score[0] - value for value in score) / len(score)


def abpc(morf: Sequence[float], lerf: Sequence[float]) -> float:
    """The area between the perturbation curves of least and most relevant first: the mean difference over the steps.

    morf, lerf [L + 1]: after 0 ... L steps, the same shares of the image gone. Samek et al. 2017; scaled to the
    curves' ends it is the degradation score of Schulz et al. 2020 (IBA).

    >>> abpc([4.0, 1.0, 0.0], [4.0, 4.0, 0.0])
    1.0
    """
    return sum(kept - lost for lost, kept in zip(morf, lerf, strict=True)) / len(morf)


@dataclass(frozen=True)
class PixelFlipping:
    """Pixel flipping (Bach et al. 2015) and region perturbation (Samek et al. 2017): the area over their curve, AOPC.

    The curves are those of ``Deletion`` with the same settings, and so are the rows: 2 x ``steps`` a case. The
    hottest pixels, or regions of ``patch`` px, go first (MoRF), or the coldest (LeRF: insertion, read backwards), an
    equal number a step until nothing is left.

    - ``aopc``: mean over steps 0 ... L of the untouched score less the score after the step, MoRF; higher is better
    - ``aopc_lerf``: the same, LeRF; lower is better
    - ``abpc``: area between the two curves, aopc minus aopc_lerf; higher is better, about 0 for a random order

    In units of the score, any sign. Samek et al. run 100 steps of 9 x 9 regions, which is about a sixth of their
    images, and draw what stands there anew from a uniform distribution; here the whole image goes, so AOPC is
    dominated by how the score ends; the nearest baseline is "noise". The number of LeRF pixels that are gone after
    a step may differ from MoRF's by half a region: its curve is read at MoRF's shares, linearly in between.

    ``steps``, ``baseline``, ``sigma``, ``output``, ``patch``, ``pool``, ``sign``, ``upsample``: see ``Deletion``.
    Undefined: no map, NaN in it, a score that is not finite. A constant map has the areas of a random order. Known
    criticism: as for deletion, the baseline decides much, and flipped images are none that the model was trained on;
    unlike the areas under ``Deletion``'s curves, the mean over steps moves with their number.
    """

    steps: int = 10
    baseline: str = "mean"
    sigma: float = 5.0
    output: str = "native"
    patch: int = 1
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("aopc", "higher", "faithfulness", unit="score"),
        Measure("aopc_lerf", "lower", "faithfulness", unit="score"),
        Measure("abpc", "higher", "faithfulness", unit="score"),
    )

    def __post_init__(self) -> None:
        try:
            self._curves()
        except Refused as no:
            raise Refused(f"metrics.flipping, whose curves are deletion's: {no}") from no

    @property
    def needs_other(self) -> bool:
        return baselines.needs_other(self.baseline)

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(curves) for curves in self._curves().measure(trials)]

    def _curves(self) -> Deletion:
        return Deletion(**vars(self))

    def _score(self, found: Score) -> Score:
        if not found.curves:
            reason = found.values["deletion"].reason
            return Score({m.name: Value.undefined(reason) for m in self.measures})
        (share, morf), (kept, inserted) = found.curves["deletion"], found.curves["insertion"]
        removed = [1 - k for k in reversed(kept)]
        lerf = np.interp(share, removed, list(reversed(inserted))).tolist()
        return Score(
            {
                "aopc": Value.of(aopc(morf)),
                "aopc_lerf": Value.of(aopc(lerf)),
                "abpc": Value.of(abpc(morf, lerf)),
            },
            {"morf": (share, morf), "lerf": (share, lerf)},
        )
