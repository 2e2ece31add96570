"""DeepLIFT: what each pixel adds to the difference from a blank image, activation by activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation
from heatproof.contract import Case
from heatproof.errors import Refused
from heatproof.lrp.rescale import differences

BASELINES = ("mean", "black")


@dataclass(frozen=True)
class DeepLift:
    """Shrikumar et al. 2017 (ICML), the rescale rule: (x - baseline) times multipliers, [C, H, W], signed.

    At an activation function the multiplier is the change of its output over the change of its input between baseline
    and image; linear layers have their weights; a maximum hands each change to the places that won. It sums to
    score(x) - score(baseline). ``baseline``: "mean", the model's mean colour, which is 0 after normalisation, or "black".
    Two forwards and one backward a case.

    Defined for nets of the modules in ``heatproof.lrp.rescale`` with additions between them: CNN classifiers.
    Not where activations multiply each other (attention, gates, LSTM cells) or a norm depends on the image: Captum's
    DeepLift computes there all the same, as if these were linear. Where both are defined they agree, but for a maximum
    right above an activation function, which breaks Captum's sum and not this one.

    Criticism: multipliers depend on how a function is written as layers (Sundararajan et al. 2017, implementation
    invariance), and on the baseline.
    """

    baseline: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.baseline not in BASELINES:
            raise Refused(f"deeplift: baseline: found {self.baseline!r}, accepted are {', '.join(BASELINES)}")
        return [Explanation(image=heat) for heat in differences(model, self._blank(model), cases)]

    def _blank(self, model: Any) -> Tensor:
        """The image that stands for nothing, [C, 1, 1], or [1, 1, 1] where all its channels are alike."""
        if self.baseline == "mean":
            return torch.zeros(1, 1, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.frame.mean, model.frame.std))
        return -mean / std
