"""Confidence: what is left of the score where only what the map shows is left to see? (faithfulness)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Model, Score, Trial, Unsuited, Value
from heatproof.metrics import baselines, maps, ranking, rows, spaces
from heatproof.metrics.confidence_text import Text, above_median, untouched, upper_half
from heatproof.metrics.maps import Undefined

OUTPUTS = ("probability", "native", "cosine")
MASKS = {"pixel": "black", "normalised": "mean"}  # what a pixel of weight 0 becomes, a rule of baselines
RELATIVE, ABSOLUTE = "relative", "absolute"
HARD = ("pad", "unknown", "mask", "delete", "attention")  # how a token goes that does not fade
NAMES = ("drop", "increase", "gain")  # of each side's values
NO_RATIO = "the untouched score is not above 0: there is no ratio to it"


def scaled(heat: Tensor, how: str = "minmax") -> Tensor:
    """A map as weights from 0 to 1: heat [...] finite -> float64 of the same shape.

    - "minmax": the least value becomes 0 and the greatest 1. Undefined is raised for a constant map
    - "max": divided by the greatest value, what is negative becomes 0. Undefined where nothing is positive

    Values tied with the greatest have weight 1: rounding neither dims a plateau nor makes a constant map look cut.

    >>> scaled(torch.tensor([1.0, 2.0, 3.0])).tolist(), scaled(torch.tensor([-1.0, 2.0, 4.0]), "max").tolist()
    ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    """
    heat = heat.clamp(min=0) if how == "max" else heat
    highest = ranking.maxima(heat)
    low, top = (float(heat.min()) if how == "minmax" else 0.0), float(heat.max())
    if top <= low or (how == "minmax" and highest.all()):
        raise Undefined("a constant map cannot be scaled" if how == "minmax" else "no positive relevance")
    return ((heat.double() - low) / (top - low)).masked_fill(highest, 1)


def weighted(image: Tensor, blank: Tensor, weight: Tensor) -> Tensor:
    """The image where the weight is 1, the blank where it is 0, and mixed by the weight in between.

    image, blank [C, H, W], weight [H, W] in 0 to 1. With a black blank this is the photograph times the weight, in
    whatever way the model normalises it; with zeros the normalised image times the weight.

    >>> weighted(torch.tensor([[[2.0, 2.0]]]), torch.tensor([[[-1.0, -1.0]]]), torch.tensor([[1.0, 0.5]])).tolist()
    [[[2.0, 0.5]]]
    """
    return torch.lerp(blank.double(), image.double(), weight.double()).to(image.dtype)


def drop(clean: float, shown: float, rule: str = RELATIVE) -> float:
    """How much of the score is lost when only what the map shows is left; 0 where nothing is.

    clean: the untouched image's score; shown: that of the explanation map.

    - "relative": max(0, clean - shown) / clean, 0 to 1 for scores that are not negative (Chattopadhay et al. 2018,
      Grad-CAM++: Average Drop is its mean in per cent). NaN where clean is not above 0
    - "absolute": max(0, clean - shown), in units of the score (M2IB's released code)

    >>> drop(0.5, 0.25), drop(0.5, 0.25, "absolute"), drop(0.5, 0.75)
    (0.5, 0.25, 0.0)
    """
    lost = max(0.0, clean - shown)
    if rule == ABSOLUTE:
        return lost
    return lost / clean if clean > 0 else math.nan


def increase(clean: float, shown: float) -> float:
    """1 where the score rises, else 0; its mean is Increase in Confidence (Chattopadhay et al. 2018, Grad-CAM++).

    >>> increase(0.5, 0.75), increase(0.5, 0.5)
    (1.0, 0.0)
    """
    return float(shown > clean)


def gain(clean: float, shown: float, rule: str = RELATIVE) -> float:
    """How much the score gains when only what the map shows is left; 0 where it does not.

    - "relative": max(0, shown - clean) / (1 - clean), 0 to 1, for scores of at most 1 (Zhang et al. 2023, Opti-CAM:
      Average Gain is its mean in per cent). A clean score of 1 has nothing to gain: 0
    - "absolute": max(0, shown - clean), in units of the score

    >>> gain(0.5, 0.75), gain(0.5, 0.75, "absolute"), gain(0.5, 0.25)
    (0.5, 0.25, 0.0)
    """
    won = max(0.0, shown - clean)
    if rule == ABSOLUTE:
        return won
    return won / (1 - clean) if clean < 1 else 0.0


@dataclass(frozen=True)
class Confidence:
    """Average Drop and Increase in Confidence (Grad-CAM++) and Average Gain (Opti-CAM): the input times its map.

    The pooled, enlarged and signed map is scaled to 0 ... 1 and multiplied with the image; the score of what that
    leaves is compared with the untouched one. One row a case beside the untouched score, and another for the text.

    - ``image_drop``: what the score loses; lower is better
    - ``image_increase``: whether it rises, so that the mean is the share of cases; higher is better
    - ``image_gain``: what it gains; higher is better
    - ``text_drop``, ``text_increase``, ``text_gain``: the same of the text, by ``text_mask``

    ``drop``: relative (the papers) | absolute (M2IB: plain differences). The unit hangs on it: relative values are
    shares, and increase is 0 or 1; absolute ones are times 100, as M2IB gives them (cosine points x 100), and increase
    is 0 or 100. ``output``: probability (the papers) | native | cosine (native, refused where that is none).
    ``image_mask``: pixel (the photograph is multiplied: what is hidden turns black; Grad-CAM++) | normalised (the
    model's input is: it turns the mean colour; M2IB, pytorch-grad-cam, torch-cam). ``scale``: minmax | max. ``sign``:
    positive, as CAMs are rectified; "signed" with minmax hides the most negative alone. ``text_mask``: "" (no text
    values) | embedding (soft: token embeddings times their weights) | median (hard: the upper half of the tokens stays, n // 2
    of n, tied ones by lot; the others go by ``text_removal``: pad | unknown | mask | delete | attention). Special
    tokens stay, and so do, for a captioner, the word that is scored and those after it.

    Quirks of released evaluations (M2IB, Wang et al. 2023, arXiv 2312.17174, and NIB's rerun of it), each with a switch, all of
    them with ``as_released``. ``row0``: the first row of the enlarged and scaled map stands for all rows (no batch axis; NIB
    has it). ``no_ends``: captions go without begin and end token, before and after, and are read where the library
    happens to look: in a CLIP of today at the first word, which sees itself alone. Of "median": ``by_threshold``: tokens
    strictly above the median stay, fewer than half where some are tied; ``zero_ids``: one that goes becomes token id 0,
    CLIP's "!". Of "embedding": ``scale_with_ends``: the ends' relevance, in M2IB's maps far the largest, takes part in the
    scaling; ``tied_words``: a token that stands twice has the product of both weights in both places.

    Undefined: no map, NaN in it, one that cannot be scaled (minmax: constant; max: nothing positive), a score that is
    not finite; relative drop where the untouched score is not above 0 (always so for a native log-probability), and
    relative gain where 1 is no upper bound (a native logit or log-probability). Text values: no text relevance, no
    token that may be removed, a model that reads no text. A ratio of logits is given where it can be, and means little.
    Known criticism: a map that is 1 everywhere is perfect, so broad maps are favoured, also such as know nothing of the
    model (Poppi et al. 2021); one pixel of the map sets the scale of all others.
    """

    output: str = "probability"
    drop: str = RELATIVE
    image_mask: str = "pixel"
    scale: str = "minmax"
    text_mask: str = ""
    text_removal: str = "pad"
    pool: str = "sum"
    sign: str = "positive"
    upsample: str = "bilinear"
    row0: bool = False
    by_threshold: bool = False
    zero_ids: bool = False
    no_ends: bool = False
    scale_with_ends: bool = False
    tied_words: bool = False
    as_released: bool = False

    def __post_init__(self) -> None:
        maps.accept(self, "output", OUTPUTS)
        maps.accept(self, "drop", (RELATIVE, ABSOLUTE))
        maps.accept(self, "image_mask", tuple(MASKS))
        maps.accept(self, "scale", ("minmax", "max"))
        maps.accept(self, "text_mask", ("", "embedding", "median"))
        maps.accept(self, "text_removal", HARD)
        maps.accept(self, "pool", geometry.POOLS)
        maps.accept(self, "sign", geometry.SIGNS)
        maps.accept(self, "upsample", tuple(way for way in geometry.UPSAMPLES if way != "none"))

    @property
    def measures(self) -> tuple[Measure, ...]:
        unit, cases = ("points x 100", "% of cases") if self.drop == ABSOLUTE else ("share", "share of cases")
        told = (("lower", unit), ("higher", cases), ("higher", unit))
        return tuple(
            Measure(f"{side}_{name}", better, "faithfulness", unit=unit)
            for side in ("image", "text")[: 2 if self.text_mask else 1]
            for name, (better, unit) in zip(NAMES, told, strict=True)
        )

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        if not trials:
            return []
        model = trials[0].model
        if self.output == "cosine" and model.space != "cosine":
            raise Unsuited(f"{model.name}'s score is a {model.space}, no cosine")
        spaces.check(self._output, model, [trial.case for trial in trials])
        maps.needs_pixels(trials, "multiply")
        shown = lambda output, model, *masked: rows.scored(output, model, zip(*masked, strict=True))
        found = self._side("image", trials, self._image, untouched, shown)
        if self.text_mask:
            text = self._text
            values = self._side("text", trials, text.keep, text.clean, text.shown)
            found = [one | other for one, other in zip(found, values, strict=True)]
        return [Score(values) for values in found]

    @property
    def _output(self) -> str:
        return "native" if self.output == "cosine" else self.output

    def _side(
        self,
        side: str,
        trials: Sequence[Trial],
        mask: Callable[[Trial], Tensor],
        clean: Callable[[str, Model, list[Case]], list[float]],
        ask: Callable[[str, Model, list[Case], list[Tensor]], list[float]],
    ) -> list[dict[str, Value]]:
        """The values of one side, case by case: mask what can be masked, and ask for all of it at once."""
        model, found, masked = trials[0].model, {}, {}
        for i, trial in enumerate(trials):
            try:
                masked[i] = mask(trial)
            except Undefined as why:
                found[i] = dict.fromkeys(NAMES, Value.undefined(str(why)))
        if masked:
            cases = [trials[i].case for i in masked]
            before = clean(self._output, model, cases)
            after = ask(self._output, model, cases, list(masked.values()))
            for i, y, o in zip(masked, before, after, strict=True):
                found[i] = self._values(model, y, o)
        return [{f"{side}_{name}": value for name, value in found[i].items()} for i in range(len(trials))]

    def _values(self, model: Model, clean: float, shown: float) -> dict[str, Value]:
        if not (math.isfinite(clean) and math.isfinite(shown)):
            return dict.fromkeys(NAMES, Value.undefined("not a finite number"))
        unit = 100 if self.drop == ABSOLUTE else 1
        bounded = self.drop == ABSOLUTE or self._output == "probability" or model.space == "cosine"
        gained = gain(clean, shown, self.drop) if bounded else math.nan
        return {
            "drop": Value.of(unit * drop(clean, shown, self.drop), NO_RATIO),
            "increase": Value.of(unit * increase(clean, shown)),
            "gain": Value.of(unit * gained, f"a {model.space} has no upper bound of 1 to gain towards"),
        }

    def _image(self, trial: Trial) -> Tensor:
        heat = maps.read(trial, pool=self.pool, sign=self.sign, upsample=self.upsample)
        blank = baselines.blank(MASKS[self.image_mask], trial.case, trial.model)
        weight = scaled(heat, self.scale)
        if self._released("row0"):
            weight = weight[:1].expand_as(weight)
        return weighted(trial.case.pixels.cpu(), blank.cpu(), weight)

    @property
    def _text(self) -> Text:
        hard = "zero" if self._released("zero_ids") else self.text_removal
        quirks = (self._released(quirk) for quirk in ("no_ends", "scale_with_ends", "tied_words"))
        return Text(self._weigh, "embedding" if self.text_mask == "embedding" else hard, self.sign, *quirks)

    def _weigh(self, relevance: Tensor, case: Case) -> Tensor:
        if self.text_mask == "embedding":
            return scaled(relevance, self.scale)
        if self._released("by_threshold"):
            return above_median(relevance)
        return upper_half(relevance, case.generator("tied tokens"))

    def _released(self, quirk: str) -> bool:
        return self.as_released or bool(getattr(self, quirk))
