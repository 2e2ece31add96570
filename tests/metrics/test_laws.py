"""Laws 1 to 4 over every metric at once: neighbours, order and chunks change nothing, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from heatproof.contract import Explanation, Metric, Score
from heatproof.metrics.complexity import Complexity
from heatproof.metrics.confidence import Confidence
from heatproof.metrics.correctness import Correctness
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.fidelity import FaithfulnessCorrelation, MuFidelity, SensitivityN
from heatproof.metrics.flipping import PixelFlipping
from heatproof.metrics.infidelity import Infidelity
from heatproof.metrics.irof import Irof
from heatproof.metrics.localization import Localization
from heatproof.metrics.mosaic import GridPointing
from heatproof.metrics.mprt import EfficientMprt, SmoothMprt
from heatproof.metrics.random_logit import RandomLogit
from heatproof.metrics.randomisation import Randomisation
from heatproof.metrics.rationale import Rationale
from heatproof.metrics.road import Road
from heatproof.metrics.robustness import Sensitivity
from heatproof.metrics.segmentation import Segmentation
from heatproof.metrics.text_deletion import TextDeletion

METRICS = [
    Localization(),
    Localization(upsample="none", tolerance=3, sign="abs"),
    Deletion(steps=5),
    Deletion(steps=3, baseline="blur", sigma=1.0, output="probability", patch=3),
    Deletion(steps=4, baseline="noise", normalise="ends", sign="abs"),
    Correctness(),
    Correctness(as_released=True, within="masks", pool="sum"),
    Randomisation(levels=2),
    Randomisation(levels=2, mode="independent", order="bottom_up", similarity="ssim", upsample="bilinear"),
    SmoothMprt(samples=3, levels=2, average=True),
    EfficientMprt(),
    RandomLogit(),
    Segmentation(instances="any"),
    Segmentation(upsample="none", sign="abs"),
    GridPointing(smooth=3),
    Road(shares=(0.2, 0.6)),
    Irof(cells=3),
    Confidence(),
    PixelFlipping(steps=3),
    FaithfulnessCorrelation(subsets=12),
    MuFidelity(subsets=12, cells=3),
    SensitivityN(subsets=8),
    Infidelity(),
    Complexity(),
    Sensitivity(),
    Rationale(),
    TextDeletion(),
    TextDeletion(removal="attention"),
]
TEXT = (TextDeletion, Rationale)
WAYS = {"one by one": 1, "threes": 3, "all": 11}
RANGES = {"localization": (0, 1), "correctness": (0, 1), "randomisation": (-1, 1)}


@dataclass(frozen=True)
class Mixed:
    """Gradient maps of which some are tied, constant, fp16, unpooled, missing or broken; random text relevance."""

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [self._answer(case, g) for case, g in zip(cases, grad, strict=True)]

    def _answer(self, case, grad):
        kind = int(case.sample[1:])
        heat = (
            grad,
            grad.sum(0),
            grad.half(),
            grad.sum(0).sign(),
            torch.ones(2, 3),
            None,
            grad * float("nan"),
        )
        text = None if case.tokens is None else torch.randn(len(case.words), generator=case.generator("text"))
        if kind == 8:
            text = None
        return Explanation(image=heat[kind % 7], text=text)


def world(toys, metric):
    """Eleven cases that differ in every way a case can, and the model that they are asked of."""
    chance = torch.Generator().manual_seed(4)
    model = toys.dual() if isinstance(metric, TEXT) else toys.curved()
    cases = []
    for i in range(11):
        pixels = torch.randn(3, 6, 10, generator=chance)
        evidence = torch.zeros(2, 6, 10, dtype=torch.bool)
        evidence[0, i % 5 : i % 5 + 2, 1 : i + 1] = True
        more = {
            "evidence": None if i == 3 else evidence[: 0 if i == 4 else 2],
            "boxes": None if i == 3 else torch.tensor([[1.0, i % 5, i + 1.0, i % 5 + 2]]),
            "ignore": torch.rand(6, 10, generator=chance) < 0.2 if i % 2 else None,
        }
        texts = ("red", "red ball", "red ball on grass", "ball on grass", "grass ball red on red")
        case = toys.worded(f"s{i}", texts[i % 5], pixels, i % 3)
        cases.append(type(case)(**{**vars(case), **more}))
    return model, cases


def asked(toys, metric, chunk, order) -> dict[str, Score]:
    model, cases = world(toys, metric)
    cases, explainer, found = cases[::order], Mixed(), {}
    for first in range(0, len(cases), chunk):
        some = cases[first : first + chunk]
        model.memo.clear()
        with torch.inference_mode(False):
            answers = explainer.explain(model, some)
        with torch.inference_mode():
            scores = metric.measure(toys.trials(model, some, answers, explainer))
        found |= {case.id: score for case, score in zip(some, scores, strict=True)}
    return found


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_chunks_and_order_change_nothing(toys, metric):
    expected = asked(toys, metric, 11, 1)
    for chunk in (*WAYS.values(), 4):
        for order in (1, -1):
            found = asked(toys, metric, chunk, order)
            for name, score in found.items():
                assert (score.values, score.curves) == (expected[name].values, expected[name].curves)
    numbers = [v.number for s in expected.values() for v in s.values.values() if v.defined]
    assert len(set(numbers)) > 5  # the comparison above was of something


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_every_declared_value_is_there_and_in_range_or_has_a_reason(toys, metric):
    assert isinstance(metric, Metric)
    names = [m.name for m in metric.measures]
    low, high = RANGES.get(type(metric).__name__.lower(), (-float("inf"), float("inf")))
    for name, score in asked(toys, metric, 11, 1).items():
        assert list(score.values) == names
        for value in score.values.values():
            assert value.defined != bool(value.reason), (name, value)
            if value.defined:
                assert type(value.number) is float
                assert low <= value.number <= high
    for m in metric.measures:
        assert m.better in ("higher", "lower")
        assert m.measures in ("faithfulness", "plausibility", "sanity", "robustness", "complexity")


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_broken_and_missing_maps_have_no_number(toys, metric):
    if isinstance(metric, TEXT):
        broken = {"s8": "no text relevance"}
    else:
        broken = {"s5": "no image map", "s6": "NaN or infinity in the map"}
    found = asked(toys, metric, 11, 1)
    for case, reason in broken.items():
        assert {(v.number, v.reason) for v in found[case].values.values()} == {(None, reason)}


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_metrics_are_plain_settings(metric):
    assert type(metric)(**vars(metric)) == metric
    assert hash(metric) == hash(type(metric)(**vars(metric)))
    assert metric.measure([]) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_dual_encoders_image_curves_do_not_know_their_neighbours(toys, order):
    model, cases = world(toys, TextDeletion())
    heats = [torch.randn(3, 5, generator=c.generator("heat")) for c in cases]
    whole = Deletion(steps=3).measure(toys.trials(model, cases, heats))
    for i in range(len(cases))[::order]:
        model.memo.clear()
        (alone,) = Deletion(steps=3).measure(toys.trials(model, [cases[i]], [heats[i]]))
        assert (alone.values, alone.curves) == (whole[i].values, whole[i].curves)
