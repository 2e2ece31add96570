"""Retrieval: is a caption still found by its image, and an image by its caption, when one lost what the map marks? (faithfulness)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heatproof import seeds
from heatproof.contract import Case, Explainer, Measure, Model, Score, Trial, Unsuited, Value
from heatproof.metrics.corruption import ALONE, SIDES, Corruption, hit, images


@dataclass(frozen=True)
class Retrieval(Corruption):
    """Retrieval: the share of a dual encoder's zero-shot accuracy that is lost with the marked pixels, or words.

    As the authors of AdaIB have it (OpenReview NuYcnDYQuQ, after M2IB's corruption, arXiv 2312.17174), without training
    again: (A - B) / A, where A is how often the right caption is the nearest to its image (i2t), or the right image to its
    caption (t2i), and B the same where every image (co), or every caption (oc), lost what its own map marks.

    - ``i2t_oc``, ``t2i_oc``: captions corrupted, images whole
    - ``i2t_co``, ``t2i_co``: images corrupted, captions whole

    1: nothing is found any more; 0: all is; below 0 where more is. Higher is better: what was marked was needed. A column is
    the ratio of the sums over cases; a case's own number is its A - B, each 0 or 1 (1/n where tied with n - 1 others).

    **Who is there to choose from** decides every accuracy, so it is fixed: a case among the pairs of the spec's fit
    split, whichever cases stand beside it; pairs of the same photograph left out. They are corrupted by the same explainer's maps of them.
    Compare columns of one fit split alone; equal captions in it are ties.

    ``image_share`` of the pixels go, filled by ``fill``: image_mean (the image's own mean colour; theirs) | mean (zero in the
    model's input) | black. ``text_share`` of the tokens but special ones go by ``removal``: pad (theirs) | unknown | mask | delete; the
    sentence is read at its own end, also where pad and end are one token. 0.25 and 0.1 are theirs, as the 75th and 90th
    percentile: as many go as lie above it where nothing is tied, at least one, and exactly so many, ties by lot.
    ``by_threshold``: what is strictly above it, fewer where values are tied; that is their rule.

    Costs four rows a case, and once as many for each pair of the fit split and explainer, stored ("fit"), which no cell is
    charged for. Undefined: no map, or no text relevance, NaN in it, of the case or of a pair of the fit split; a fit split
    of one photograph. Unsuited: what is no dual encoder; explainers without maps for either side of the fit split.

    Known criticism: what is left is out of distribution, and a hole in the image may be what misleads (Hooker et al. 2019); an
    easy gallery (few, unlike pairs) hides every loss. Zero-shot accuracy is coarse: it takes many cases to tell two maps apart.
    """

    measures: ClassVar[tuple[Measure, ...]] = tuple(
        Measure(name, "higher", "faithfulness", unit="share lost", reduce="pooled_ratio")
        for name in ("i2t_oc", "i2t_co", "t2i_oc", "t2i_co")
    )

    def fit(self, model: Model, feed: Iterable[Sequence[Case]], explainer: Explainer) -> dict[str, Tensor]:
        """The gallery: "image" and "text" [N, D], "... corrupted" where all have a map, and "photograph" int64 [N]."""
        if model.family != "dual":
            raise Unsuited(f"{model.name} is a {model.family}: only a dual encoder finds images and captions")
        found: dict[str, list[Tensor]] = defaultdict(list)
        without: dict[str, str] = {}
        for cases in feed:
            answers = explainer.explain(model, cases)
            trials = [Trial(model, c, explainer, e) for c, e in zip(cases, answers, strict=True)]
            found["photograph"] += [torch.tensor(seeds.number(case.sample)) for case in cases]
            found["image"] += images(model, cases)
            found["text"] += list(model.embed_text(cases))
            for side in SIDES:
                corrupted, lost = self.embedded(side, trials)
                found[f"{side} corrupted"] += list(corrupted.values())
                if lost:
                    without[side] = next(iter(lost.values()))
        for side in without:
            del found[f"{side} corrupted"]
        if len(without) == len(SIDES) or not found:
            raise Unsuited(
                f"the fit split cannot be corrupted: {', '.join(without.values()) or 'it is empty'}"
            )
        return {name: torch.stack(rows).cpu() for name, rows in found.items()}

    def measure(self, trials: Sequence[Trial], fitted: Mapping[str, Tensor]) -> list[Score]:
        if not trials:
            return []
        model, cases = trials[0].model, [trial.case for trial in trials]
        whole = {
            "image": [x.cpu() for x in images(model, cases)],
            "text": list(model.embed_text(cases).cpu()),
        }
        corrupted, lost = zip(*(self.embedded(side, trials) for side in SIDES), strict=True)
        found = []
        for i, case in enumerate(cases):
            own = {side: whole[side][i] for side in SIDES}
            own |= {f"{side} corrupted": x[i] for side, x in zip(SIDES, corrupted, strict=True) if i in x}
            why = {side: reasons.get(i, "") for side, reasons in zip(SIDES, lost, strict=True)}
            others = fitted["photograph"] != seeds.number(case.sample)
            gallery = {name: rows[others] for name, rows in fitted.items()}
            found.append(Score({m.name: self._value(m.name, own, gallery, why) for m in self.measures}))
        return found

    def _value(
        self, name: str, own: Mapping[str, Tensor], gallery: Mapping[str, Tensor], why: Mapping[str, str]
    ) -> Value:
        asked, answer = SIDES if name.startswith("i2t") else SIDES[::-1]
        side = "text" if name.endswith("oc") else "image"
        if why[side]:
            return Value.undefined(why[side])
        if not len(gallery[answer]):
            return Value.undefined(ALONE)
        now = {k: f"{k} corrupted" if k == side else k for k in SIDES}
        if now[answer] not in gallery:
            return Value.undefined(f"a pair of the fit split has no {side} map to be corrupted by")
        before = hit(own[asked], own[answer], gallery[answer])
        after = hit(own[now[asked]], own[now[answer]], gallery[now[answer]])
        return Value.of(before - after, num=before - after, den=before)
