"""The smooth and the efficient parameter randomisation test, against plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics import mprt, randomisation
from heatproof.metrics.mprt import EfficientMprt, SmoothMprt
from heatproof.metrics.randomisation import Randomisation


@dataclass(frozen=True)
class Edges:
    """Knows nothing of the model: the image itself."""

    def explain(self, model, cases):
        return [Explanation(image=c.pixels.mean(0)) for c in cases]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score; ``broken``: with NaN where the image is not the case's own."""

    broken: bool = False

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        if self.broken:
            grad = grad * torch.tensor([math.nan if "~" in c.id else 1.0 for c in cases])[:, None, None, None]
        return [Explanation(image=g) for g in grad]


@dataclass(frozen=True)
class Noise:
    """The case's own random numbers, whatever the model and the pixels."""

    def explain(self, model, cases):
        return [Explanation(image=torch.rand(8, 8, generator=c.generator("noise"))) for c in cases]


def batch(toys, explainer, count=4):
    model = toys.curved()
    chance = torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(3, 8, 8, generator=chance), i % 3) for i in range(count)]
    return toys.trials(model, cases, explainer.explain(model, cases), explainer)


def whole_twin(model):
    names = [name for name, _ in model.net.named_parameters()]
    return model.twin(lambda net: randomisation.randomise(net, names, 0), "by hand")


# ---------------------------------------------------------------- smooth


@pytest.mark.parametrize("samples", [2, 4])
def test_a_smooth_map_is_the_mean_over_noisy_images_and_the_image(toys, samples):
    trials = batch(toys, Gradient())
    model = trials[0].model
    twin, seen = whole_twin(model), []
    for trial in trials:
        case = trial.case
        chance = case.generator("noise to smooth a map")
        size = 0.1 * (case.pixels.max() - case.pixels.min())
        noisy = [case.pixels + size * torch.randn(3, 8, 8, generator=chance) for _ in range(samples - 1)]
        maps = []
        for net in (model, twin):
            sums = np.zeros((3, 8, 8))
            for pixels in [*noisy, case.pixels]:
                (told,) = Gradient().explain(net, [type(case)(**{**vars(case), "pixels": pixels})])
                sums += told.image.double().numpy() / samples
            maps.append(sums.sum(0).ravel())
        seen.append(scipy.stats.spearmanr(*maps).statistic)
    found = [s.values["randomisation_signed"].number for s in SmoothMprt(samples=samples).measure(trials)]
    assert found == pytest.approx(seen, abs=1e-9)


def test_one_sample_is_the_plain_test_to_the_last_bit(toys):
    trials = batch(toys, Gradient())
    for more in (
        {},
        {"levels": 2, "order": "bottom_up", "average": True},
        {"mode": "independent", "levels": 2},
    ):
        plain, smooth = Randomisation(**more).measure(trials), SmoothMprt(samples=1, **more).measure(trials)
        for a, b in zip(plain, smooth, strict=True):
            assert (a.values, a.curves) == (b.values, b.curves)


def test_what_does_not_look_at_the_model_stays(toys):
    for explainer in (Edges(), Noise()):
        for score in SmoothMprt(samples=3).measure(batch(toys, explainer)):
            assert [v.number for v in score.values.values()] == pytest.approx([1.0, 1.0])


def test_what_a_smooth_map_costs(toys):
    trials = batch(toys, Gradient())
    model = trials[0].model
    model.score(model.stack([trials[0].case]), [trials[0].case])
    with torch.inference_mode(), model.part() as spent:
        SmoothMprt(levels=2, samples=5).measure(trials)
    # three models, five images each, less the map that is there
    assert dict(spent.forward) == {t.case.id: pytest.approx(3 * 5 - 1) for t in trials}
    assert dict(spent.backward) == {t.case.id: pytest.approx(3 * 5 - 1) for t in trials}


def test_a_smooth_map_without_a_number(toys):
    for score in SmoothMprt(samples=3).measure(batch(toys, Gradient(broken=True))):
        assert {v.reason for v in score.values.values()} == {"NaN or infinity in the map"}
    trials = batch(toys, Edges())
    (nothing,) = SmoothMprt(samples=3).measure(
        toys.trials(trials[0].model, [trials[0].case], [None], Edges())
    )
    assert {v.reason for v in nothing.values.values()} == {"no image map"}
    with pytest.raises(Refused, match="samples 0"):
        SmoothMprt(samples=0)


# ---------------------------------------------------------------- efficient


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30), st.integers(2, 12))
def test_the_entropy_of_a_histogram_is_the_loops(values, bins):
    low, high = min(values), max(values)
    counts = [0] * bins
    for v in values if high > low else ():
        edges = [low + (high - low) * k / bins for k in range(1, bins)]
        counts[sum(v >= edge for edge in edges)] += 1
    shares = [c / len(values) for c in counts if c]
    found = mprt.histogram_entropy(torch.tensor(values), bins)
    if all(abs(v - (low + (high - low) * k / bins)) > 1e-9 for v in values for k in range(1, bins)):
        assert found == pytest.approx(-sum(s * math.log(s) for s in shares), abs=1e-9)
    assert 0 <= found <= math.log(bins) + 1e-12
    wanted = scipy.stats.entropy(np.histogram(np.array(values, dtype=float), bins)[0])
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("sign", ["signed", "abs"])
def test_the_rise_is_relative_to_the_maps_own_entropy(toys, sign, capsys):
    trials, worst = batch(toys, Gradient(), 8), 0.0
    after = Gradient().explain(whole_twin(trials[0].model), [t.case for t in trials])
    for trial, again, score in zip(trials, after, EfficientMprt(sign=sign).measure(trials), strict=True):
        h = []
        for told in (trial.explanation, again):
            heat = told.image.sum(0).double().numpy()
            h.append(scipy.stats.entropy(np.histogram(abs(heat) if sign == "abs" else heat, 100)[0]))
        worst = max(worst, abs(score.values["rise"].number - (h[1] - h[0]) / h[0]))
    with capsys.disabled():
        print(f" [rise: largest deviation {worst:.1e}]", end="")
    assert worst < 1e-6


def test_what_does_not_look_at_the_model_does_not_rise(toys):
    for explainer in (Edges(), Noise()):
        assert [s.values["rise"].number for s in EfficientMprt().measure(batch(toys, explainer))] == [0.0] * 4


def test_its_one_explanation_is_that_of_the_plain_test(toys):
    trials = batch(toys, Gradient())
    model = trials[0].model
    model.score(model.stack([trials[0].case]), [trials[0].case])
    with torch.inference_mode(), model.part() as spent:
        Randomisation().measure(trials)
    before = model.meter.run
    with torch.inference_mode(), model.part() as again:
        EfficientMprt().measure(trials)
    assert model.meter.run == before  # from the memo
    assert dict(again.forward) == dict(spent.forward) == {t.case.id: pytest.approx(1) for t in trials}


def test_a_constant_map_has_nothing_to_rise_from_and_a_dead_twin_falls_by_all(toys):
    @dataclass(frozen=True)
    class Dies:
        def explain(self, model, cases):
            alive = "~" not in model.name
            return [Explanation(image=c.pixels.mean(0) * alive) for c in cases]

    for score in EfficientMprt().measure(batch(toys, Dies())):
        assert score.values["rise"].number == -1
    trials = batch(toys, Edges())
    flat = toys.trials(trials[0].model, [t.case for t in trials], [torch.ones(4, 4)] * 4, Edges())
    for score in EfficientMprt().measure(flat):
        assert score.values["rise"].reason == "the map is constant: it has no entropy to rise from"


def test_who_cannot_be_asked(toys):
    trials = batch(toys, Edges())

    class Fitted(Edges):
        def fit(self, model, feed):
            return {}

    for metric in (SmoothMprt(samples=2), EfficientMprt()):
        with pytest.raises(Unsuited, match="no explainer"):
            metric.measure(toys.trials(trials[0].model, [trials[0].case], [None]))
        with pytest.raises(Unsuited, match="was fitted"):
            metric.measure(toys.trials(trials[0].model, [trials[0].case], [torch.eye(8)], Fitted()))
    with pytest.raises(Refused, match="found 1, accepted is 2"):
        EfficientMprt(bins=1)
