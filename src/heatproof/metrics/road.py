"""Road: does the score follow the map when pixels are removed so that neither edge nor hole betrays them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Measure, Model, Refused, Score, Trial, Value
from heatproof.metrics import imputation, maps, ranking, rows, spaces
from heatproof.metrics.maps import Undefined


def most(order: Tensor, share: float, first: bool) -> Tensor:
    """The hottest (``first``) or the coldest pixels that make up a share of all: exactly k of them, k to the nearest.

    order int64 [n], from the hottest down -> int64 [k]. Where half a pixel is left, it counts as one.

    >>> most(torch.tensor([4, 0, 2, 1, 3]), 0.4, True).tolist(), most(torch.tensor([4, 0, 2, 1, 3]), 0.4, False).tolist()
    ([4, 0], [1, 3])
    """
    count = int(share * len(order) + 0.5)
    return order[:count] if first else order[len(order) - count :]


def combined(morf: float, lerf: float) -> float:
    """Half the mean score without the least relevant pixels less that without the most relevant ones.

    As in pytorch-grad-cam's ROADCombined, whose untouched scores cancel out.

    >>> combined(morf=0.25, lerf=0.75)
    0.25
    """
    return (lerf - morf) / 2


@dataclass(frozen=True)
class Road:
    """ROAD, Remove And Debias (Rong et al. 2022): pixels are removed by noisy linear imputation and the score is read.

    The pooled, enlarged and signed map ranks the pixels; all channels of a pixel go together, tied ones in the case's
    own random order. For each of the ``shares`` exactly that many pixels, to the nearest one, are removed: the hottest
    (MoRF, most relevant first), and in another image the coldest (LeRF). A removed pixel becomes the weighted mean of
    its neighbours plus a little noise (``imputation.noisy_fill``). 2 x the number of shares rows a case.

    - ``road_morf``: mean score over the shares, the most relevant pixels removed; lower is better
    - ``road_lerf``: mean score over the shares, the least relevant pixels removed; higher is better
    - ``road``: (LeRF minus MoRF) / 2, as pytorch-grad-cam's ROADCombined; higher is better, about 0 for a random order

    ``shares``: 20, 40, 60 and 80 %, as pytorch-grad-cam's tutorial has it (its class defaults to 10, 20 ... 90 %). The
    untouched image is not asked for, so the values are scores, where pytorch-grad-cam has MoRF and LeRF as
    differences from the untouched score; ``road`` is the same. ``imputation``: linear (the paper) | harmonic (4
    neighbours, no diagonals). ``noise``: the standard deviation as a share of the photograph's range, 0.01 in the
    authors' code, which adds it before the model's normalisation; pytorch-grad-cam adds 0.01 after it. 0 for none.
    ``output``: native (the model's own logit, cosine or log-probability) | probability; the authors report accuracy
    over a data set. ``sign`` "signed" counts negative relevance as the least.

    Undefined: no map, NaN in it, a share that is every pixel of a tiny image (nothing to impute from), a score that is
    not finite. A constant map has the scores of a random order. Known criticism: smooth fillings suit smooth masks, so
    blurred and otherwise coarse maps score well whether or not they say more (Song et al. 2023): compare with the
    blurred control. About 0.2 s an image of 224 x 224 at 80 %, beside the forwards.
    """

    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    imputation: str = "linear"
    noise: float = 0.01
    output: str = "native"
    pool: str = "sum"
    sign: str = "signed"
    upsample: str = "bilinear"

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("road_morf", "lower", "faithfulness", unit="score"),
        Measure("road_lerf", "higher", "faithfulness", unit="score"),
        Measure("road", "higher", "faithfulness", unit="score"),
    )

    def __post_init__(self) -> None:
        maps.accept(self, "imputation", tuple(imputation.RULES))
        maps.accept(self, "output", spaces.OUTPUTS)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))
        rising = all(a < b for a, b in pairwise((0.0, *self.shares, 1.0)))
        if not self.shares or not rising or not 0 <= self.noise < float("inf"):
            raise Refused(
                f"metrics.road: found shares {self.shares} and noise {self.noise}, accepted are one share or more "
                "between 0 and 1 in rising order, and a noise of 0 or more"
            )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        spaces.check(self.output, model, [trial.case for trial in trials])
        maps.needs_pixels(trials)
        orders, found = maps.planned(trials, self.measures, self._order)
        asked = ((trials[i].case, image) for i in orders for image in self._images(trials[i], orders[i]))
        scores = iter(rows.scored(self.output, model, asked))
        for i, order in orders.items():
            morf, lerf = ([next(scores) for _ in self.shares] for _ in range(2))
            found[i] = self._score(order, morf, lerf)
        return [found[i] for i in range(len(trials))]

    def _order(self, trial: Trial) -> Tensor:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        order = ranking.order(heat, trial.case.generator("tied pixels"))
        if len(most(order, self.shares[-1], first=True)) == len(order):
            raise Undefined("every pixel removed: there is none left to impute from")
        return order

    def _images(self, trial: Trial, order: Tensor) -> Iterator[Tensor]:
        """The imputed images, [C, H, W] each: the shares with the hottest pixels removed, then with the coldest."""
        case, noise = trial.case, trial.case.generator("imputation noise")
        deviation = self._deviation(trial.model)
        for first in (True, False):
            for share in self.shares:
                removed = torch.zeros(len(order), dtype=torch.bool)
                removed[most(order, share, first)] = True
                plane = removed.reshape(maps.image_size(case))
                yield imputation.noisy_fill(case.pixels.cpu(), plane, deviation, noise, self.imputation)

    def _deviation(self, model: Model) -> Tensor:
        """The noise of each channel, in the model's normalised units."""
        frame = cast("geometry.Frame", model.frame)  # type: ignore[attr-defined]  # every implementation has one
        return self.noise * 255 * frame.scale / torch.tensor(frame.std)

    def _score(self, order: Tensor, morf: list[float], lerf: list[float]) -> Score:
        gone = [len(most(order, share, first=True)) / len(order) for share in self.shares]
        first, last = (sum(scores) / len(scores) for scores in (morf, lerf))
        return Score(
            {
                "road_morf": Value.of(first),
                "road_lerf": Value.of(last),
                "road": Value.of(combined(first, last)),
            },
            {"morf": (gone, morf), "lerf": (gone, lerf)},
        )
