"""Control: a method's own map, of another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from heatproof import Explanation
from heatproof.contract import Case, Explainer, explain


@dataclass(frozen=True)
class Swapped:
    """What ``of`` answers for the case's ``other``: right in style, grid and smoothness, wrong in place.

    Image alone: another text's tokens are no tokens of this one. Nothing where there is no other image; the work is
    charged to this case.
    """

    of: Explainer

    needs_other: ClassVar[bool] = True

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        others = [None if case.other is None else case.other() for case in cases]
        asked = [
            replace(other, charge=case.charge or case.id)
            for case, other in zip(cases, others, strict=True)
            if other is not None
        ]
        answers = iter(explain(self.of, model, asked) if asked else [])
        return [
            Explanation() if other is None else Explanation(image=next(answers).image) for other in others
        ]
