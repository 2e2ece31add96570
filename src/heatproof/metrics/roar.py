"""Remove and retrain: does a model that is trained without the marked pixels still do its work? (faithfulness)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor, nn

from heatproof import geometry
from heatproof.contract import Case, Explainer, Measure, Model, Refused, Score, Trial, Unsuited, Value
from heatproof.metrics import maps, ranking
from heatproof.metrics.deletion import area
from heatproof.metrics.maps import Undefined
from heatproof.metrics.retraining import logits_of, retrained

STARTS = ("fresh", "trained")
FILLS = ("data_mean", "zero")


def how_many(share: float, total: int) -> int:
    """The whole number of things nearest to a share of ``total``; halves up.

    >>> how_many(0.5, 5), how_many(0.1, 12544)
    (3, 1254)
    """
    return int(share * total + 0.5)


def mean_height(share: Sequence[float], height: Sequence[float]) -> float:
    """The area under a curve over its own width, by trapezoids; of one point, its height.

    >>> mean_height([0.5], [0.8]), mean_height([0.1, 0.5, 0.9], [1.0, 0.5, 0.0])
    (0.8, 0.5)
    """
    if len(share) == 1:
        return height[0]
    return area(share, height) / (share[-1] - share[0])


def _masked(pixels: Tensor, gone: Tensor, fill: Tensor, rows: Tensor) -> Tensor:
    """Some rows of pixels [N, C, H, W], with what is gone (bool [N, 1, H, W]) filled by a colour [C]."""
    return torch.where(gone[rows], fill[:, None, None], pixels[rows])


@dataclass(frozen=True)
class Roar:
    """Remove and retrain: the accuracy of a model trained, and tested, on images without their most relevant pixels.

    ROAR, Hooker et al. 2019 (A benchmark for interpretability methods, arXiv 1806.10758). On every image of the spec's
    fit split, the explainer's own map says which ``shares`` of the pixels go (exactly that many, all channels; ties
    in the case's own random order); a model of the same architecture is trained on what is left, once a share, and asked about test
    images that were treated alike. So nothing is out of distribution, and what still can be learned was not removed.

    - ``accuracy``: whether the retrained model has the case's target highest, 0 or 1 (1/n where tied with n - 1 others):
      a column's mean is the accuracy. The mean height of the curve over ``shares``; of one share, its own
    - ``probability``: the same of the target's softmax probability, which needs fewer images to tell two maps apart

    Both from 0 to 1; lower is better: what was marked was needed. The curves tell each share. ``shares`` 10, 30, 50, 70
    and 90 % are the authors'. ``fill``: data_mean (the authors': each channel's mean over the fit split) | zero (of the
    model's normalised input). ``start``: fresh (the authors': weights drawn anew from where the architecture begins; the
    same draw for all explainers) | trained (fine-tuning from the model's own weights: cheaper, and it remembers). ``repeats``: trainings with other
    draws, averaged (authors 5). ``epochs``, ``batch``, ``rate`` and ``decay`` (AdamW) are ours, as in recipes/: the authors' 90 epochs of
    ImageNet serve a ResNet-50. The target policy should be "label"; there is no augmentation.

    Costs ``repeats`` trainings a share for each model and explainer, done once and stored ("fit"), which no cell is charged for;
    then ``repeats`` rows a share and case. Undefined: no map, NaN in it. Unsuited: what is no classifier; explainers without
    a map for every image of the fit split.

    Known criticism: **it pays for blur and for shapes**. A smooth mask takes whole things away where a sharp one leaves
    them to be guessed from what is around, and the outline of what was removed tells the class to the retrained model
    (Rong et al. 2022, arXiv 2202.00449; Song et al. 2023, arXiv 2304.13836). It judges a map by another model than the one that it
    explains, and a model that can do without the marked pixels may still have used them.
    """

    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    start: str = "fresh"
    fill: str = "data_mean"
    repeats: int = 1
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    keeps: ClassVar[bool] = False  # whether the marked pixels are those that stay

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "lower", "faithfulness"),
        Measure("probability", "lower", "faithfulness"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "start", STARTS)
        maps.accept(self, "fill", FILLS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not self.shares or not rising or not 0 <= self.shares[0] <= self.shares[-1] <= 1:
            raise Refused(f"metrics.roar.shares: found {self.shares}, accepted are rising shares from 0 to 1")
        if min(self.repeats, self.epochs, self.batch) < 1 or self.rate <= 0 or self.decay < 0:
            raise Refused(
                f"metrics.roar: found repeats {self.repeats}, epochs {self.epochs}, batch {self.batch}, rate {self.rate}, "
                f"decay {self.decay}, accepted are 1 or more, a rate above 0 and a decay from 0"
            )

    def fit(self, model: Model, feed: Iterable[Sequence[Case]], explainer: Explainer) -> dict[str, Tensor]:
        """Weights by share, repeat and name ("0.5/0/fc.weight"), and the fill of each channel ("fill" [C])."""
        logits_of(model, model.net)  # type: ignore[attr-defined]  # says at once which model cannot be trained again
        seen, orders, without = [], [], 0
        for cases in feed:
            for case, answer in zip(cases, explainer.explain(model, cases), strict=True):
                try:
                    orders.append(self._order(Trial(model, case, explainer, answer)))
                    seen.append(case)
                except Undefined:
                    without += 1
        if without or not seen:
            raise Unsuited(
                f"{without} of {without + len(seen)} images of the fit split have no map to be masked by"
            )
        if len({c.pixels.shape for c in seen}) > 1:
            raise Unsuited(f"{model.name} takes images of any size, and what is trained in batches needs one")
        pixels, labels = torch.stack([c.pixels for c in seen]), torch.tensor([int(c.target) for c in seen])
        fill = pixels.double().mean((2, 3)).sum(0) / len(pixels)
        fill = (fill if self.fill == "data_mean" else torch.zeros_like(fill)).float()
        found = {"fill": fill}
        for share in self.shares:
            gone = torch.stack([self._gone(order, share) for order in orders]).reshape(
                -1, 1, *pixels.shape[2:]
            )
            for repeat in range(self.repeats):
                weights = retrained(
                    model,
                    partial(_masked, pixels, gone, fill),
                    labels,
                    start=self.start,
                    epochs=self.epochs,
                    batch=self.batch,
                    rate=self.rate,
                    decay=self.decay,
                    names=(seen[0].seed, "roar", share, repeat),
                )
                found |= {f"{share}/{repeat}/{name}": value for name, value in weights.items()}
        return found

    def measure(self, trials: Sequence[Trial], fitted: Mapping[str, Tensor]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        orders, found = maps.planned(trials, self.measures, self._order)
        cases = [trials[i].case for i in orders]
        heights: list[list[list[float]]] = []  # by share, then by value, then by case
        for share in self.shares if cases else ():
            images = [
                torch.where(
                    self._gone(order, share).reshape(c.pixels.shape[1:]),
                    fitted["fill"][:, None, None],
                    c.pixels,
                )
                for c, order in zip(cases, orders.values(), strict=True)
            ]
            each = [self._judged(model, fitted, f"{share}/{k}/", images, cases) for k in range(self.repeats)]
            heights.append(
                [[sum(of) / len(of) for of in zip(*value, strict=True)] for value in zip(*each, strict=True)]
            )
        for place, i in enumerate(orders):
            told = {m.name: [h[k][place] for h in heights] for k, m in enumerate(self.measures)}
            found[i] = Score(
                {name: Value.of(mean_height(self.shares, height)) for name, height in told.items()},
                {name: (self.shares, height) for name, height in told.items()},
            )
        return [found[i] for i in range(len(trials))]

    def _order(self, trial: Trial) -> Tensor:
        """The image's pixels from the most relevant down, int32 [H * W]."""
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        return ranking.order(heat, trial.case.generator("tied pixels")).int()

    def _gone(self, order: Tensor, share: float) -> Tensor:
        """bool [H * W]: what is replaced at a share."""
        k = how_many(share, len(order))
        gone = torch.full((len(order),), self.keeps)
        gone[order[:k].long()] = not self.keeps
        return gone

    def _judged(
        self,
        model: Model,
        fitted: Mapping[str, Tensor],
        of: str,
        images: Sequence[Tensor],
        cases: Sequence[Case],
    ) -> tuple[list[float], list[float]]:
        """Accuracy and probability of each case's target, by one of the retrained models."""
        weights = {name.removeprefix(of): value for name, value in fitted.items() if name.startswith(of)}
        seal = blake2b(digest_size=8)
        for name, value in sorted(weights.items()):
            seal.update(name.encode() + value.numpy().tobytes())

        def edit(net: nn.Module) -> None:
            net.load_state_dict(weights)

        with torch.inference_mode(False):
            twin = model.twin(edit, f"retrained {seal.hexdigest()}")
        with torch.no_grad():
            logits = twin.scores(torch.stack(list(images)), cases).cpu()
        accuracy, probability = [], []
        for case, row in zip(cases, logits.double(), strict=True):
            own = row[case.choices.index(case.target) if case.choices else int(case.target)]
            accuracy.append(float(own == row.max()) / int((row == row.max()).sum()))
            probability.append(float((own - row.logsumexp(0)).exp()))
        return accuracy, probability


@dataclass(frozen=True)
class Kar(Roar):
    """Keep and retrain: the accuracy of a model trained, and tested, on images of their most relevant pixels alone.

    KAR, Hooker et al. 2019 (appendix), the counterpart of Roar: the most relevant ``shares`` of the pixels stay and all others are
    replaced. Values, settings, costs and undefined cases are those of Roar; both values from 0 to 1, higher is better: what was marked is enough. Known
    criticism is the same, the other way round: a map that spells the class by its outline keeps it readable.
    """

    keeps: ClassVar[bool] = True

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "higher", "faithfulness"),
        Measure("probability", "higher", "faithfulness"),
    )

    def measure(self, trials: Sequence[Trial], fitted: Mapping[str, Tensor]) -> list[Score]:
        return super().measure(trials, fitted)  # the shelf reads the verb in the class itself
