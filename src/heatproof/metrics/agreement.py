"""Agreement with the truth: does a map find what a controlled model uses, by construction?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Score, Trial, Unsuited, Value
from heatproof.errors import NO_TEXT
from heatproof.metrics import maps
from heatproof.metrics.maps import Undefined
from heatproof.metrics.segmentation import roc_auc
from heatproof.segments import removable

TRUTH = "by construction"  # what a model's card says of the evidence that it gives with its cases


def weakest(heat: Tensor, planes: Tensor) -> float:
    """How well the part of the evidence that is found least is told from what does not matter: ROC-AUC, 0 to 1.

    heat [...] finite; planes bool [K, ...], one for each part, none empty, together not everything. Each part is held
    against the pixels that no part has; the other parts are left out.

    >>> planes = torch.tensor([[True, False, False], [False, True, False]])
    >>> weakest(torch.tensor([3.0, 1.0, 2.0]), planes), weakest(torch.tensor([3.0, 2.0, 1.0]), planes)
    (0.0, 1.0)
    """
    rest = ~planes.any(0)
    found = [torch.cat([heat[plane], heat[rest]]) for plane in planes]
    inside = [torch.arange(len(row)) < int(plane.sum()) for row, plane in zip(found, planes, strict=True)]
    return min(roc_auc(row, part) for row, part in zip(found, inside, strict=True))


def leak(heat: Tensor, truth: Tensor) -> float:
    """The share of the absolute heat on what does not matter, 0 to 1; NaN for a map without heat.

    heat [...] finite, truth bool of the same shape.

    >>> leak(torch.tensor([3.0, -1.0]), torch.tensor([True, False]))
    0.25
    """
    size = heat.double().abs()
    total = size.sum()
    return float(size[~truth].sum() / total) if total > 0 else float("nan")


@dataclass(frozen=True)
class TruthAgreement:
    """Agreement of a map with the exact answer: the pixels and words that a controlled model's score depends on.

    Asked of models whose card says that their cases' evidence is the truth "by construction"
    (``models/controlled.py``); on others evidence is an annotation, which is another question (``localization``).

    - ``pixels``: the probability that a pixel which matters has more relevance than one which does not, ties half
      (ROC-AUC): the truth 1, a constant or random map 0.5
    - ``weakest``: the same for the region that is found least, against all that does not matter: of an interaction, a map
      that shows one partner alone gets what it knows of the other
    - ``leak``: share of the absolute heat on pixels that do not matter; lower is better: the truth 0, a constant map the
      share of the image that they are
    - ``words``: as ``pixels``, of the tokens of the text; special tokens, and for captioners the word that is
      scored and those after it, take no part

    The map is pooled, enlarged and signed as the settings say; relevance of the truth is positive, so "signed" counts
    negative relevance below none. ``upsample`` "nearest", because the truth ends at a pixel and a coarse map is not to be
    blamed for a smooth enlargement. Says what is found, not how strongly: all pixels of the truth are alike.

    Between 0 and 1, unchanged when the map is multiplied by a positive number. Undefined: no map or text relevance, NaN in
    it, no pixel (no word) that matters or none that does not; ``leak`` also without heat. A map of zeros is constant: it
    has found nothing and gets 0.5. Unsuited: models that do not know the truth.
    """

    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "nearest"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("pixels", "higher", "faithfulness"),
        Measure("weakest", "higher", "faithfulness"),
        Measure("leak", "lower", "faithfulness"),
        Measure("words", "higher", "faithfulness"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if trials and not knows(trials[0].model):
            raise Unsuited(
                f"{trials[0].model.name} was not built to a known answer: its evidence is an annotation; see localization"
            )
        return [Score({**self._image(trial), "words": self._text(trial)}) for trial in trials]

    def _image(self, trial: Trial) -> dict[str, Value]:
        try:
            heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
            planes = _matter(trial.case)
        except Undefined as why:
            return dict.fromkeys(("pixels", "weakest", "leak"), Value.undefined(str(why)))
        return {
            "pixels": Value.of(roc_auc(heat, planes.any(0))),
            "weakest": Value.of(weakest(heat, planes)),
            "leak": Value.of(leak(heat, planes.any(0)), "no relevance"),
        }

    def _text(self, trial: Trial) -> Value:
        case, answer = trial.case, trial.explanation
        if answer is None or answer.text is None:
            return Value.undefined(NO_TEXT)
        if not answer.text.isfinite().all():
            return Value.undefined("NaN or infinity in the text relevance")
        places = [place for group in removable(case, trial.model.family) for place in group]
        matter = torch.tensor(
            [case.evidence_text is not None and bool(case.evidence_text[k]) for k in places]
        )
        if not matter.any():
            return Value.undefined("no word matters")
        if matter.all():
            return Value.undefined("every word matters")
        heat = geometry.read(answer.text.detach().cpu()[None], sign=self.sign)[0]
        return Value.of(roc_auc(heat[places], matter))


def knows(model: Model) -> bool:
    """Whether the evidence of this model's cases is what it truly uses."""
    return bool(getattr(model, "card", {}).get("truth") == TRUTH)


def _matter(case: Case) -> Tensor:
    """bool [K, H, W], no plane empty, not everything together."""
    planes = (
        torch.zeros(0, *maps.image_size(case), dtype=torch.bool) if case.evidence is None else case.evidence
    )
    planes = planes[planes.flatten(1).any(1)]
    if not len(planes):
        raise Undefined("no pixel matters")
    if bool(planes.any(0).all()):
        raise Undefined("every pixel matters")
    return planes
