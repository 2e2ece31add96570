"""Remove and retrain for dual encoders: do images and captions still find each other for a model that never saw what is marked?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof import seeds
from heatproof.contract import Case, Explainer, Measure, Model, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps
from heatproof.metrics.corruption import ALONE, SIDES, Corruption, hit
from heatproof.metrics.maps import Undefined
from heatproof.metrics.retraining import learned

COLDEST = 100.0  # the greatest factor of the cosines, as in CLIP
FACTOR = 1 / 0.07  # where the net has none of its own: CLIP's before its training
WEIGHTS = "weights "  # how their names begin in what is learned


def contrastive(image: Tensor, text: Tensor, factor: Tensor | float) -> Tensor:
    """The symmetric InfoNCE of N pairs: image, text [N, D], row by row -> a scalar in nats, log N where nothing is told apart.

    The mean of two cross-entropies over the cosines times ``factor``: which caption is an image's, which image a caption's.

    >>> round(float(contrastive(torch.eye(2), torch.eye(2), 1.0)), 4)
    0.3133
    """
    like = factor * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    here = torch.arange(len(like), device=like.device)
    return (F.cross_entropy(like, here) + F.cross_entropy(like.T, here)) / 2


@dataclass(frozen=True)
class RoarPlus(Corruption):
    """Remove and retrain on pairs: the accuracy of a dual encoder tuned, and tested, without what the map marks.

    After ROAR+ of M2IB (Wang et al. 2023, arXiv 2312.17174), which carries ROAR (Hooker et al. 2019) over to CLIP: pairs are
    corrupted by the explainer's own maps, the model is tuned on what is left, and asked about pairs treated alike. **Their training
    protocol was not found in print or code**: of theirs are the corruption, told at Retrieval, and that the model is
    tuned and not begun anew. Everything else is ours, so no number of theirs can be compared.

    - ``i2t``: whether an image's own caption is the nearest to it, 0 or 1 (1/n where tied with n - 1 others), among those of
      the fit split, whose pairs lost what is marked in them as well; a column's mean is the accuracy
    - ``t2i``: whether a caption's own image is the nearest to it

    Lower is better: what was marked was needed, and not to be learned from the rest. ``side``: image | text: which of a pair is
    corrupted; the other stays whole. ``image_share``, ``fill``, ``text_share``, ``removal``, ``by_threshold``: as in Retrieval.
    All of the net is tuned, from the model's own weights, by the symmetric InfoNCE over batches of ``batch`` pairs with the net's
    own temperature: ``epochs``, ``rate`` and ``decay`` (AdamW), seeded, the same orders for all explainers, no augmentation.

    Costs a training for each model and explainer, done once and stored ("fit"), which no cell is charged for; then two
    rows a case. Undefined: no map of that side, NaN in it; a fit split of one photograph. Unsuited: what is no dual encoder;
    explainers without such a map for every pair of the fit split; a fit split of one pair.

    Known criticism: that of Roar (a blurred map does well, the outline of what was removed tells what it was), and that
    of Retrieval (the gallery decides how high an accuracy is). A model tuned for a moment remembers what it knew.
    """

    side: str = "image"
    epochs: int = 5
    batch: int = 32
    rate: float = 1e-4
    decay: float = 0.05

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("i2t", "lower", "faithfulness"),
        Measure("t2i", "lower", "faithfulness"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        maps.accept(self, "side", SIDES)
        if self.epochs < 1 or self.batch < 2 or self.rate <= 0 or self.decay < 0:
            raise Refused(
                f"metrics.roar_pairs: found epochs {self.epochs}, batch {self.batch}, rate {self.rate}, decay {self.decay}, "
                "accepted are 1 epoch or more, batches of 2 or more, a rate above 0 and a decay from 0"
            )

    def fit(self, model: Model, feed: Iterable[Sequence[Case]], explainer: Explainer) -> dict[str, Tensor]:
        """The weights, named "weights NAME", and the gallery by the tuned model: "image", "text" [N, D], "photograph" int64 [N]."""
        if model.family != "dual":
            raise Unsuited(f"{model.name} is a {model.family}: only a dual encoder finds images and captions")
        pairs, without = [], 0
        for cases in feed:
            for case, answer in zip(cases, explainer.explain(model, cases), strict=True):
                try:
                    pairs.append(self._pair(Trial(model, case, explainer, answer)))
                except Undefined:
                    without += 1
        if without or len(pairs) < 2:
            raise Unsuited(
                f"{without} of {without + len(pairs)} pairs of the fit split have no {self.side} map to be corrupted by; "
                "two at least must"
            )
        weights = self._tuned(model, pairs)
        image, text = self._embedded(_twin(model, weights), pairs)
        photograph = torch.tensor([seeds.number(case.sample) for _, case in pairs])
        found = {WEIGHTS + name: value for name, value in weights.items()}
        return found | {"image": image, "text": text, "photograph": photograph}

    def measure(self, trials: Sequence[Trial], fitted: Mapping[str, Tensor]) -> list[Score]:
        if not trials:
            return []
        pairs, found = maps.planned(trials, self.measures, self._pair)
        if pairs:
            weights = {n.removeprefix(WEIGHTS): v for n, v in fitted.items() if n.startswith(WEIGHTS)}
            images, texts = self._embedded(_twin(trials[0].model, weights), list(pairs.values()))
            for (i, (_, case)), image, text in zip(pairs.items(), images, texts, strict=True):
                others = fitted["photograph"] != seeds.number(case.sample)
                if not others.any():
                    found[i] = maps.undefined(self.measures, Undefined(ALONE))
                    continue
                found[i] = Score(
                    {
                        "i2t": Value.of(hit(image, text, fitted["text"][others])),
                        "t2i": Value.of(hit(text, image, fitted["image"][others])),
                    }
                )
        return [found[i] for i in range(len(trials))]

    def _pair(self, trial: Trial) -> tuple[Tensor, Case]:
        """What is seen, and the case that tells what is read."""
        if self.side == "image":
            return self.image(trial), trial.case
        return trial.case.pixels, self.text(trial)

    def _tuned(self, model: Any, pairs: Sequence[tuple[Tensor, Case]]) -> dict[str, Tensor]:
        net = copy.deepcopy(model.net)
        towers = {"image": model.image_stages(net), "text": model.text_stages(net)}
        ids, context = model.read([case for _, case in pairs])

        def run(tower: str, x: Tensor, rows: Tensor) -> Tensor:
            x = x.to(model.device)
            beside = {name: value[rows].to(model.device) for name, value in context.items()}
            for stage in towers[tower]:
                x = stage.run(x, beside)
            return x

        def loss(rows: Tensor) -> Tensor:
            seen = torch.stack([pairs[k][0] for k in rows.tolist()])
            own = getattr(net, "logit_scale", None)
            factor = FACTOR if own is None else own.exp().clamp(max=COLDEST)
            return contrastive(run("image", seen, rows), run("text", ids[rows], rows), factor)

        return learned(
            net,
            loss,
            len(pairs),
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            decay=self.decay,
            names=(pairs[0][1].seed, "roar_pairs"),
        )

    def _embedded(self, twin: Model, pairs: Sequence[tuple[Tensor, Case]]) -> tuple[Tensor, Tensor]:
        cases = [case for _, case in pairs]
        with torch.no_grad():
            return twin.embed(torch.stack([seen for seen, _ in pairs]), cases).cpu(), twin.embed_text(
                cases
            ).cpu()


def _twin(model: Model, weights: Mapping[str, Tensor]) -> Model:
    seal = blake2b(digest_size=8)
    for name, value in sorted(weights.items()):
        seal.update(name.encode() + value.contiguous().numpy().tobytes())

    def edit(net: nn.Module) -> None:
        net.load_state_dict(weights)

    with torch.inference_mode(False):
        return model.twin(edit, f"tuned {seal.hexdigest()}")
