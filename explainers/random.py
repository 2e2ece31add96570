"""Control: uniform noise that has seen neither the model nor the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heatproof import Explanation
from heatproof.contract import Case


@dataclass(frozen=True)
class Random:
    """[cells, cells] independent numbers in [0, 1), and one for each token of a text.

    ``cells`` = 7 is the grid of most methods' maps: noise pixel by pixel would remove salt and pepper, another thing.
    ``spare`` of a captioner's words, the last ones before the target, have 0: Sun et al. 2022's baseline of preceding words spares one,
    which the methods may take.
    """

    cells: int = 7
    spare: int = 0

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:
            chance = case.generator("random")
            image = torch.rand(self.cells, self.cells, generator=chance)
            text = None
            if case.tokens is not None:
                text = torch.rand(len(case.tokens), generator=chance)
                if self.spare and model.family == "captioner":
                    text[max(0, case.target + 1 - self.spare) : case.target + 1] = 0.0
            found.append(Explanation(image=image, text=text))
        return found
