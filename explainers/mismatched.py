"""Control: a method's map of this image for the caption of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from heatproof import Explanation, Unsuited
from heatproof.contract import Case, Explainer, explain


@dataclass(frozen=True)
class Mismatched:
    """What ``of`` answers for this image and the text of the case's ``other``: does the map listen to the text?

    A method whose map stays where it was shows what stands out in the image, not what the caption says. Image alone: the
    other text's tokens are none of this one's. Nothing where there is no other image; the work is charged to this
    case. The other's text may fit here too where scenes are alike: chance, not error, makes the control good there.
    A captioner is asked for the other's word after the other's words; a classifier reads no text.
    """

    of: Explainer

    needs_other: ClassVar[bool] = True

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if any(case.tokens is None for case in cases):
            raise Unsuited(f"{model.name} is a {model.family}: there is no caption to exchange")
        others = [None if case.other is None else case.other() for case in cases]
        asked = [
            self._told(case, other) for case, other in zip(cases, others, strict=True) if other is not None
        ]
        answers = iter(explain(self.of, model, asked) if asked else [])
        return [
            Explanation() if other is None else Explanation(image=next(answers).image) for other in others
        ]

    def _told(self, case: Case, other: Case) -> Case:
        return replace(
            case,
            id=f"{case.id} told {other.id}",
            charge=case.charge or case.id,
            about=other.about,
            target=other.target,
            choices=other.choices,
            tokens=other.tokens,
            words=other.words,
            spoken=other.spoken,
            evidence_text=other.evidence_text,
            named=None,  # it is of the words that were there
        )
