"""Control: the evidence itself, as annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heatproof import Explanation
from heatproof.contract import Case


@dataclass(frozen=True)
class Oracle:
    """1 on the case's evidence and 0 elsewhere, [H, W] and [T]; nothing where nothing is annotated (no map of zeros).

    It is the best that a plausibility metric can give, and no more than a strong guess for faithfulness.
    """

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = []
        for case in cases:
            image = case.mask.float() if case.mask is not None and case.mask.any() else None
            text = case.evidence_text
            found.append(Explanation(image=image, text=None if text is None else text.float()))
        return found
