"""How a captioner writes: the settings that its loaders share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from heatproof.contract import Refused
from heatproof.models.adaptive import AdaptiveCaptioner
from heatproof.models.captioner_nets import CaptionNet

ENDINGS = ("with", "in", "on", "of", "a", "at", "to", "for", "an", "this", "his", "her", "that", "the")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """``beam`` is the width searched with (1: greedy); ``search``: "beam", or "diverse" with ``groups`` of so many beams.

    ``diversity`` is what a word loses for each time that an earlier group says it. The caption is then the likeliest of the
    groups' captions; ``Captioner.variants`` gives all of them. ``strip_endings`` takes articles and prepositions off the
    end, as the released code does with its captions; there the ids keep them, here tokens and text go together.
    """

    beam: int = 3
    search: Literal["beam", "diverse"] = "beam"
    groups: int = 3
    diversity: float = 0.5
    strip_endings: bool = False

    def writing(self, name: str, net: CaptionNet) -> dict[str, Any]:
        """The fields of a ``Captioner`` that these settings mean; raises Refused, naming model and field."""
        if self.search not in ("beam", "diverse"):
            raise Refused(f"model {name}: search: found {self.search!r}, accepted are 'beam', 'diverse'")
        for field in ("beam", "groups"):
            if getattr(self, field) < 1:
                raise Refused(f"model {name}: {field}: found {getattr(self, field)}, accepted are 1, 2, ...")
        more = ("and",) if isinstance(net, AdaptiveCaptioner) else ()  # their list for this net has it
        return {
            "beam": self.beam,
            "groups": self.groups if self.search == "diverse" else 1,
            "diversity": self.diversity,
            "endings": ENDINGS + more if self.strip_endings else (),
        }
