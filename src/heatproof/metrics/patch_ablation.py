"""Patch ablation: does a captioner still say a word when the patches that spoke for it are gone? (faithfulness)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking, rows
from heatproof.metrics.maps import Undefined


def hottest_patches(heat: Tensor, side: int, count: int, chance: torch.Generator) -> Tensor:
    """The ``count`` patches of ``side`` x ``side`` pixels with the highest sum of a map, tied ones by lot: bool [H, W].

    heat [H, W] finite; pixels beyond the last whole patch belong to none.

    >>> hottest_patches(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 9.0]]), 2, 1, torch.Generator()).int().tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    sums = F.avg_pool2d(heat.double()[None, None], side)[0, 0] * side**2
    gone = torch.zeros(sums.numel(), dtype=torch.bool)
    gone[ranking.order(sums, chance)[:count]] = True
    found = torch.zeros(heat.shape, dtype=torch.bool)
    whole = gone.view(sums.shape).repeat_interleave(side, 0).repeat_interleave(side, 1)
    found[: whole.shape[0], : whole.shape[1]] = whole
    return found


@dataclass(frozen=True)
class PatchAblation:
    """What becomes of a word when the image loses the patches with the most relevance, and the caption is written anew.

    Sun et al. 2022 (arXiv 2001.01037), ablation of image patches. The map (mean over channels, signed) is summed over patches of
    ``side`` pixels (8), and the ``patches`` (20) highest turn mean colour. The model writes again, as wide as it searches:

    - ``disappeared``: whether the word is in the new caption no more; higher is better
    - ``lower``: whether it is still there, and no more probable than before: 0 where it is gone, as the authors count
    - ``drop``: the probability that it lost, read where it first stands in the new caption, after the new words before it; 0 where it is gone
    - ``forced_drop``: ours: the probability lost after the old words, which is defined for every word and knows no luck of the search

    Shares and probabilities, higher is better; ``drop`` and ``forced_drop`` from -1 to 1. Undefined: no map, NaN in it, a word
    before place ``least`` (1: the first word is told by no word before it). Unsuited: models that write no captions.

    The authors enlarge attention and Grad-CAM by a Gaussian pyramid, here as ``upsample`` says. Criticism: patches of mean
    colour are nothing that the model was trained on; a word may go because the sentence was turned round.
    """

    side: int = 8
    patches: int = 20
    least: int = 1
    pool: str = "mean"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("disappeared", "higher", "faithfulness", unit="share of words"),
        Measure("lower", "higher", "faithfulness", unit="share of words"),
        Measure("drop", "higher", "faithfulness", unit="probability"),
        Measure("forced_drop", "higher", "faithfulness", unit="probability"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        if min(self.side, self.patches) < 1 or self.least < 0:
            raise Refused(
                f"metrics.patch_ablation: found side {self.side}, patches {self.patches}, least {self.least}, accepted are "
                "1 or more, and 0 or more"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model: Any = trials[0].model
        if model.family != "captioner":
            raise Unsuited(f"{model.name} is a {model.family}: it writes no captions")
        maps.needs_pixels(trials)
        images, found = maps.planned(trials, self.measures, self._masked)
        if not images:
            return [found[i] for i in range(len(trials))]
        cases, pixels = [trials[i].case for i in images], torch.stack(list(images.values()))
        clean = model.clean(cases).double().exp().tolist()
        forced = torch.tensor(rows.scored("native", model, zip(cases, pixels, strict=True))).double().exp()
        with torch.no_grad():
            written = [text.split() for text in model.write(pixels, cases)]
        again = {k: said for k, said in enumerate(written) if self._word(cases[k]) in said}
        asked = [_reread(model, cases[k], said) for k, said in again.items()]
        still = rows.scored(
            "native", model, ((case, pixels[k]) for case, k in zip(asked, again, strict=True))
        )
        now = dict(zip(again, torch.tensor(still).double().exp().tolist(), strict=True))
        for k, i in enumerate(images):
            lost = clean[k] - now[k] if k in now else 0.0
            values = float(k not in now), float(k in now and lost >= 0), lost, clean[k] - float(forced[k])
            found[i] = Score({m.name: Value.of(v) for m, v in zip(self.measures, values, strict=True)})
        return [found[i] for i in range(len(trials))]

    def _word(self, case: Case) -> str:
        place: int = case.target + 1
        return case.spoken[place]

    def _masked(self, trial: Trial) -> Tensor:
        case = trial.case
        if case.target < self.least:
            raise Undefined(f"the word stands before place {self.least} of its caption")
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        gone = hottest_patches(heat, self.side, self.patches, case.generator("tied patches"))
        return case.pixels.masked_fill(gone.to(case.pixels.device), 0.0)


def _reread(model: Any, case: Case, said: list[str]) -> Case:
    """The case about the same word where it first stands in another caption; its cost is the case's."""
    ids = [model.words.bos, *(model.words.ids.get(word, model.words.unknown) for word in said)]
    return replace(
        case,
        id=f"{case.id} in: {' '.join(said)}",
        charge=case.charge or case.id,
        target=said.index(case.spoken[case.target + 1]),
        tokens=torch.tensor(ids),
        words=tuple(range(-1, len(said))),
        spoken=("", *said),
        choices=(),
    )
