"""CHAIR: how many of the objects that a captioner names are not in the image? (quality)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from heatproof.captions import chair
from heatproof.captions.files import digest
from heatproof.contract import Measure, Score, Trial, Unsuited, Value
from heatproof.metrics import maps

TRUTHS = ("both", "objects", "references")


@lru_cache(maxsize=4)
def _listed(path: str, digest: str) -> Mapping[str, str]:
    return chair.read_synonyms(Path(path))


@dataclass(frozen=True)
class Chair:
    """The share of the objects named that is not in the image, and the share of captions that name such a one.

    Rohrbach et al. 2018 (arXiv 1809.02156), of the captions that the model writes. ``synonyms``: the authors' list (a line an object of COCO, its
    synonyms behind it), or "" for the words that the captioner itself knows as objects. ``truth``: both (theirs: what is annotated,
    and what the reference captions name) | objects | references.

    - ``chair_i``: mentions of what is not there over all mentions, pooled over images; lower is better. An image's own number is its own
      share, 0 where nothing is named
    - ``chair_s``: whether the caption names anything that is not there; lower is better

    Both 0 to 1. Undefined: an image that ``truth`` says nothing of. Criticism: a caption that names no object is never
    wrong, so read it beside recall (``object_words``); what is neither annotated nor told counts as hallucinated.
    """

    synonyms: str = ""
    truth: str = "both"
    digest: str = field(init=False)  # of the list's bytes: part of the key

    asks: ClassVar[dict[str, str]] = {"captioner": "written"}

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("chair_i", "lower", "quality", unit="share of mentions", reduce="pooled_ratio"),
        Measure("chair_s", "lower", "quality", unit="share of captions"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "truth", TRUTHS)
        if self.synonyms:
            chair.read_synonyms(Path(self.synonyms))  # what is wrong with it is said now
        object.__setattr__(self, "digest", digest([Path(self.synonyms)] if self.synonyms else []))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        return [self._score(trial) for trial in trials]

    def _score(self, trial: Trial) -> Score:
        case, model = trial.case, trial.model
        known = _listed(self.synonyms, self.digest) if self.synonyms else _own(model)
        labels = () if self.truth == "references" else case.things
        if labels is not None and not self.synonyms:
            labels = tuple(
                label for label in labels if label in known
            )  # of the others the captioner cannot speak
        told = () if self.truth == "objects" else case.references
        if labels is None and not told:
            return Score(
                {m.name: Value.undefined("nothing annotated and nothing told") for m in self.measures}
            )
        named, wrong = chair.hallucinated(
            " ".join(case.spoken[1:]), chair.present(known, labels or (), told), known
        )
        share = len(wrong) / len(named) if named else 0.0
        return Score(
            {
                "chair_i": Value.of(share, num=len(wrong), den=len(named)),
                "chair_s": Value.of(float(bool(wrong))),
            }
        )


def _own(model: Any) -> Mapping[str, str]:
    names: Sequence[str] | None = getattr(model, "objects", None)
    if not names:
        raise Unsuited(f"{model.name} names no objects; give `synonyms` a list")
    return {name: name for name in names}
