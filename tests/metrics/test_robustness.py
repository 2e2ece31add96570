"""Sensitivity against captum with the very same noise, closed forms, whose seeds and whose costs; input invariance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import captum.metrics
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heatproof.contract import Explanation, Metric, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import neighbours, robustness
from heatproof.metrics.neighbours import Neighbour
from heatproof.metrics.robustness import InputInvariance, Sensitivity
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier

NAMES = ["max_sensitivity", "average_sensitivity", "local_lipschitz"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score, times a factor, perhaps times the image."""

    gain: float = 1.0
    times: bool = False

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        grad = grad * pixels.detach() if self.times else grad
        return [Explanation(image=self.gain * g) for g in grad]


@dataclass(frozen=True)
class Image:
    """The image itself, with noise of the case's own."""

    noise: float = 0.0
    gain: float = 1.0

    def explain(self, model, cases):
        return [
            Explanation(
                image=self.gain * c.pixels
                + self.noise * torch.randn(c.pixels.shape, generator=c.generator("own noise"))
            )
            for c in cases
        ]


@dataclass(frozen=True)
class Blind:
    """Knows nothing of the image: the same random map whatever it shows."""

    def explain(self, model, cases):
        return [Explanation(image=torch.rand(7, 7, generator=c.generator("random"))) for c in cases]


@dataclass(frozen=True)
class Level:
    """A flat map as high as the untouched score, from the memo."""

    def explain(self, model, cases):
        return [Explanation(image=level * torch.ones(2, 2)) for level in model.clean(cases)]


@dataclass(frozen=True)
class Fickle:
    """What it answers about a copy of the image is broken in a way of the case's."""

    def explain(self, model, cases):
        return [self._answer(c) for c in cases]

    def _answer(self, case):
        heat = torch.ones(3, 3)
        if not isinstance(case, Neighbour):
            return Explanation(image=heat)
        broken = {"a": heat * math.nan, "b": torch.ones(4, 4), "c": None, "d": 2 * heat}
        return Explanation(image=broken[case.sample])


def batch(toys, explainer, count=4, channels=3, size=(6, 7), model=None):
    model = model or toys.curved(channels)
    chance = torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(channels, *size, generator=chance), i % 3) for i in range(count)]
    return toys.trials(model, cases, [e.image for e in explainer.explain(model, cases)], explainer)


def noisy(case, samples, radius):
    """The copies as the docstring tells them: one generator, draw after draw."""
    dice, size = case.generator("noise in a radius"), radius * float(case.pixels.double().std(correction=0))
    return torch.stack(
        [case.pixels + size * (2 * torch.rand(case.pixels.shape, generator=dice) - 1) for _ in range(samples)]
    )


# ---------------------------------------------------------------- against captum and loops


@pytest.mark.parametrize("channels", [1, 3])
def test_max_sensitivity_is_captums_with_the_same_noise(toys, channels):
    trials = batch(toys, Gradient(), 5, channels)
    model, worst = trials[0].model, 0.0

    def theirs(case):
        def explain(x):
            x = (x[0] if isinstance(x, tuple) else x).detach().requires_grad_()
            with torch.enable_grad():
                out = model.net.last(torch.tanh(model.net.mix(x)).square().mean((2, 3)))[:, case.target]
                (grad,) = torch.autograd.grad(out.sum(), x)
                return (grad.contiguous(),)  # captum wants a tuple for a tuple

        copies = noisy(case, 12, 0.3)
        return captum.metrics.sensitivity_max(
            explain, case.pixels[None], lambda x: copies, n_perturb_samples=12
        )

    scores = Sensitivity(samples=12, radius=0.3).measure(trials)
    for trial, score in zip(trials, scores, strict=True):
        worst = max(worst, abs(score.values["max_sensitivity"].number / float(theirs(trial.case)) - 1))
    print(f"largest deviation from captum {worst:.1e} of the value")
    assert worst < 1e-5


@pytest.mark.parametrize("channels", ["own", "pooled"])
def test_all_three_are_the_slow_twins(toys, channels):
    explainer = Gradient(times=True)
    trials = batch(toys, explainer)
    metric, worst = Sensitivity(samples=6, radius=0.2, channels=channels, pool="max_abs"), 0.0

    def phi(model, case):
        heat = explainer.explain(model, [case])[0].image
        return (heat if channels == "own" else heat.abs().amax(0)).flatten().tolist()

    def norm(values):
        return math.sqrt(math.fsum(v * v for v in values))

    for trial, score in zip(trials, metric.measure(trials), strict=True):
        before, relative, absolute = phi(trial.model, trial.case), [], []
        for pixels in noisy(trial.case, 6, 0.2):
            after = phi(trial.model, replace(trial.case, pixels=pixels))
            change = norm([a - b for a, b in zip(after, before, strict=True)])
            relative.append(change / norm(before))
            absolute.append(change / norm((pixels - trial.case.pixels).flatten().tolist()))
        expected = max(relative), sum(relative) / 6, max(absolute)
        for name, value in zip(NAMES, expected, strict=True):
            worst = max(worst, abs(score.values[name].number / value - 1))
    print(f"largest deviation {worst:.1e} of the value")
    assert worst < 1e-6


# ---------------------------------------------------------------- closed forms


def test_a_map_that_is_the_image_moves_as_the_image(toys):
    trials = batch(toys, Image(gain=3.0))
    for trial, score in zip(trials, Sensitivity(samples=5).measure(trials), strict=True):
        steps = [(p - trial.case.pixels).double().norm() for p in noisy(trial.case, 5, 0.1)]
        size = trial.case.pixels.double().norm()
        expected = [float(max(steps) / size), float(sum(steps) / 5 / size), 3.0]
        assert [score.values[n].number for n in NAMES] == pytest.approx(expected, rel=1e-6)


def test_the_explainers_own_noise_stays_the_cases(toys):
    """The image plus fixed noise moves as the image: other draws would add their own distance, ten times as far."""
    trials = batch(toys, Image(noise=1.0))
    for score in Sensitivity(samples=5).measure(trials):
        assert score.values["local_lipschitz"].number == pytest.approx(1.0, rel=1e-5)


def test_blind_maps_are_best_which_is_the_metrics_known_fault(toys):
    for score in Sensitivity(samples=3).measure(batch(toys, Blind())):
        assert [v.number for v in score.values.values()] == [0.0, 0.0, 0.0]


def test_what_the_memo_holds_of_a_copy_is_the_copys(toys):
    trials = batch(toys, Level())
    for trial, score in zip(trials, Sensitivity(samples=4, radius=0.5).measure(trials), strict=True):
        case, model = trial.case, trial.model
        with torch.no_grad():
            levels = model.score(noisy(case, 4, 0.5), [case] * 4)
        clean = float(model.clean([case]))
        expected = max(abs(float(level) - clean) for level in levels) / abs(clean)
        assert score.values["max_sensitivity"].number == pytest.approx(expected, rel=1e-5)
        assert clean == pytest.approx(float(model.score(case.pixels[None], [case])))


def test_noise_fills_the_radius_in_units_of_the_images_deviation(toys):
    case = toys.case("c", 5 + 3 * torch.randn(3, 30, 40, generator=torch.Generator().manual_seed(1)))
    copies = list(Sensitivity(samples=4, radius=0.2)._neighbours(case))
    bound = 0.2 * float(case.pixels.std(correction=0))
    for copy in copies:
        step = copy.pixels - case.pixels
        assert 0.99 * bound < float(step.abs().max()) <= bound * (1 + 1e-5)
        assert float(step.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert abs(float(step.mean())) < 0.05 * bound
    more = list(Sensitivity(samples=6, radius=0.2)._neighbours(case))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(copies, more, strict=False))
    assert [a.id for a in copies] == [b.id for b in more[:4]]
    assert len({a.id for a in more}) == 6
    (other,) = Sensitivity(samples=1, radius=0.1)._neighbours(case)
    assert other.id not in {a.id for a in more}


def test_the_copies_can_carry_gradients_as_the_runner_asks(toys):
    case = toys.case("c", torch.randn(3, 4, 4))
    with torch.inference_mode():
        copies = list(Sensitivity(samples=2)._neighbours(case))
    assert not any(copy.pixels.is_inference() for copy in copies)


def test_a_neighbour_is_the_case_but_for_its_pixels(toys):
    case = toys.case(
        "c", torch.randn(3, 4, 4), 2, choices=(1, 2), charge="payer", evidence=torch.ones(1, 4, 4)
    )
    other = Neighbour.of(case, case.pixels + 1, "moved")
    assert (other.id, other.sample, other.target, other.choices, other.charge) == (
        "c~moved",
        "c",
        2,
        (1, 2),
        "payer",
    )
    assert other.evidence is case.evidence
    assert Neighbour.of(toys.case("d"), case.pixels, "moved").charge == "d"
    draws = [torch.rand(3, generator=c.generator("x")) for c in (case, other, replace(other, choices=()))]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    twice = Neighbour.of(other, case.pixels, "again")
    assert torch.equal(draws[0], torch.rand(3, generator=twice.generator("x")))


# ---------------------------------------------------------------- properties


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9), st.floats(0.1, 9))
def test_relative_change_knows_no_scale_sign_or_flip(pairs, factor):
    before, after = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = neighbours.relative_change(before, after)
    if not before.any():
        assert math.isnan(found)
        return
    if float(before.norm()) < 1e-3:
        return
    assert found >= 0
    assert neighbours.relative_change(before, before) == 0
    for a, b in ((before * factor, after * factor), (-before, -after), (before.flip(0), after.flip(0))):
        assert neighbours.relative_change(a, b) == pytest.approx(found, rel=1e-4, abs=1e-6)
    assert robustness.local_lipschitz(before, after, before) == pytest.approx(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_maps_scale_changes_lipschitz_alone(toys, channels):
    one, other = (
        Sensitivity(samples=4).measure(batch(toys, Gradient(g), channels=channels)) for g in (1.0, 8.0)
    )
    for a, b in zip(one, other, strict=True):
        x, y = ([s.values[n].number for n in NAMES] for s in (a, b))
        assert x[:2] == y[:2]
        assert 8 * x[2] == y[2]
        assert x[0] >= x[1] > 0


def test_maps_in_fp16_are_read_as_they_are(toys):
    @dataclass(frozen=True)
    class Half(Gradient):
        def explain(self, model, cases):
            return [Explanation(image=e.image.half()) for e in super().explain(model, cases)]

    one, other = (Sensitivity(samples=3, radius=0.5).measure(batch(toys, e())) for e in (Gradient, Half))
    for a, b in zip(one, other, strict=True):
        assert b.values[NAMES[0]].number == pytest.approx(a.values[NAMES[0]].number, rel=1e-2)


# ---------------------------------------------------------------- undefined, unsuited


def test_what_has_no_number_says_why_and_the_others_are_asked(toys):
    cases = [
        toys.case(name, torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))) for name in "abcd"
    ]
    trials = toys.trials(toys.linear(), cases, [torch.ones(3, 3)] * 4, Fickle())
    found = [s.values["max_sensitivity"] for s in Sensitivity(samples=3).measure(trials)]
    assert [v.reason for v in found[:3]] == [
        "NaN or infinity in the map", "the map of the changed image has another shape", "no image map",
    ]  # fmt: skip
    assert found[3].number == 1.0


@pytest.mark.parametrize(
    ("heat", "image", "reason"),
    [
        (None, torch.eye(4), "no image map"),
        (torch.tensor([[0.0, math.nan]]), torch.eye(4), "NaN or infinity in the map"),
        (torch.zeros(2, 2), torch.eye(4), "the map is all 0: it has no norm to compare with"),
        (
            torch.ones(2, 2),
            torch.full((4, 4), 0.3),
            "a constant image has no deviation to measure a radius in",
        ),
    ],
)
def test_a_case_that_cannot_be_compared_costs_nothing(toys, heat, image, reason):
    trials = toys.trials(toys.linear(), [toys.case("c", image[None])], [heat], Gradient())
    with trials[0].model.part() as spent:
        (score,) = Sensitivity().measure(trials)
    assert list(score.values) == NAMES
    assert {(v.number, v.reason) for v in score.values.values()} == {(None, reason)}
    assert not spent.forward


@pytest.mark.parametrize("metric", [Sensitivity(), InputInvariance()])
def test_explainers_that_cannot_be_asked_again(toys, metric):
    trials = batch(toys, Image(), model=shifting())
    with pytest.raises(Unsuited, match="no explainer"):
        metric.measure([replace(trials[0], explainer=None)])

    class Fitted(Image):
        def fit(self, model, feed):
            return {}

    with pytest.raises(Unsuited, match="was fitted"):
        metric.measure([replace(trials[0], explainer=Fitted())])
    assert metric.measure([]) == []
    assert isinstance(metric, Metric)
    assert {m.measures for m in metric.measures} == {"robustness"}
    assert type(metric)(**vars(metric)) == metric


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"channels": "all"}, "no channels 'all'"),
        ({"pool": "avg"}, "no pool 'avg'"),
        ({"samples": 0}, "found samples 0"),
        ({"radius": 0.0}, "radius 0.0"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Sensitivity(**setting)


# ---------------------------------------------------------------- laws


def world(toys, model):
    """Gradient maps of eleven cases, one a constant image, one without a map, one all zero."""
    trials = batch(toys, Gradient(), 11, model=model)
    trials[3] = replace(trials[3], explanation=Explanation())
    trials[5] = replace(trials[5], explanation=Explanation(image=torch.zeros(3, 6, 7)))
    return trials


@pytest.mark.parametrize(
    "metric", [Sensitivity(samples=3), Sensitivity(samples=2, channels="pooled"), InputInvariance()]
)
def test_chunks_and_order_change_nothing(toys, metric):
    def asked(chunk, order):
        model = shifting()
        trials, found = world(toys, model)[::order], {}
        for first in range(0, len(trials), chunk):
            some = trials[first : first + chunk]
            model.memo.clear()
            with torch.inference_mode():
                scores = metric.measure(some)
            found |= {t.case.id: s.values for t, s in zip(some, scores, strict=True)}
        return found

    expected = asked(11, 1)
    for chunk in (1, 3, 4, 11):
        for order in (1, -1):
            assert asked(chunk, order) == expected
    assert len({v.number for values in expected.values() for v in values.values()}) > 6


@pytest.mark.parametrize("memo", [True, False])
def test_an_explanation_a_sample_paid_by_the_case(toys, memo):
    trials = batch(toys, Gradient(), 8)
    model, seen = trials[0].model, []
    model.memo.on = memo
    model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with torch.inference_mode(), model.part() as spent:  # as the runner asks
        Sensitivity(samples=4).measure(trials)
    assert sum(seen) == 8 * 4
    assert dict(spent.forward) == {t.case.id: pytest.approx(4) for t in trials}
    assert dict(spent.backward) == {t.case.id: pytest.approx(4) for t in trials}
    with torch.inference_mode(), model.part() as again:
        Sensitivity(samples=4, channels="pooled").measure(trials)  # the same copies
    assert sum(seen) == 8 * 4 * (1 if memo else 2)
    assert dict(again.forward) == {t.case.id: pytest.approx(4) for t in trials}


def test_images_and_model_are_left_as_found(toys):
    trials = batch(toys, Gradient(), model=shifting())
    net = trials[0].model.net
    before = {n: p.clone() for n, p in net.named_parameters()}
    kept = [t.case.pixels.clone() for t in trials]
    for metric in (Sensitivity(samples=2), InputInvariance()):
        with torch.inference_mode():
            metric.measure(trials)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert all(torch.equal(t.case.pixels, p) for t, p in zip(trials, kept, strict=True))


# ---------------------------------------------------------------- input invariance


class Valid(nn.Module):
    """A convolution without padding, with a bias, and a head; ``leak`` lets the image past it."""

    def __init__(self, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = leak
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.mix, self.last = nn.Conv2d(3, 5, 3), nn.Linear(5, 3)


def shifting(leak=0.0):
    def stages(net):
        return [
            Stage("image.conv 0", lambda x, c: torch.tanh(net.mix(x)) + net.leak * x.mean()),
            Stage(None, lambda x, c: net.last(x.square().mean((2, 3)))),
        ]

    return Classifier(
        "valid", Valid(leak), Frame(8), stages=stages, labels={"a": (0,), "b": (1,), "c": (2,)}, channels=3
    )


@pytest.mark.parametrize("shift", [1.0, -0.5])
def test_a_gradient_is_invariant_and_gradient_times_input_moves_by_the_shift(toys, shift):
    model = shifting()
    for score in InputInvariance(shift=shift).measure(batch(toys, Gradient(), model=model)):
        assert score.values["input_invariance"].number < 1e-5
    trials = batch(toys, Gradient(times=True), model=model)
    for trial, score in zip(trials, InputInvariance(shift=shift).measure(trials), strict=True):
        grad = Gradient().explain(model, [trial.case])[0].image.double()
        expected = float((shift * grad).norm() / (trial.case.pixels * grad).norm())
        assert score.values["input_invariance"].number == pytest.approx(expected, rel=1e-4)
    for score in InputInvariance(shift=shift).measure(batch(toys, Blind(), model=model)):
        assert score.values["input_invariance"].number == 0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_twin_answers_the_shifted_image_as_the_model_the_image(groups, stride):
    layer = nn.Conv2d(4, 6, 3, groups=groups, stride=stride).requires_grad_(False)
    x = torch.randn(2, 4, 9, 8)
    before, weight = layer(x), layer.weight.clone()
    robustness.compensate(nn.Sequential(nn.ReLU(), layer), 0.7)
    assert torch.allclose(layer(x + 0.7), before, atol=1e-5)
    assert torch.equal(layer.weight, weight)


def test_invariance_costs_one_explanation_and_one_row(toys):
    model = shifting()
    trials = batch(toys, Gradient(), 8, model=model)
    with torch.inference_mode(), model.part() as spent:
        InputInvariance().measure(trials)
    assert dict(spent.forward) == {t.case.id: pytest.approx(3) for t in trials}  # and the untouched image
    assert {c: n for c, n in spent.backward.items() if n} == {t.case.id: pytest.approx(1) for t in trials}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda toys: toys.curved(), "pads with zeros"),
        (lambda toys: toys.linear(3), "has no bias"),
        (lambda toys: toys.dual(), "no convolution"),
    ],
)
def test_nets_that_cannot_take_a_shift_back(toys, make, said):
    case = toys.worded("c", "red ball", torch.randn(3, 6, 6), 0)
    trials = toys.trials(make(toys), [case], [torch.eye(3)], Image())
    with pytest.raises(Unsuited, match=said):
        InputInvariance().measure(trials)


def test_a_net_whose_image_goes_another_way_too_is_undefined(toys):
    (score,) = InputInvariance().measure(batch(toys, Image(), 1, model=shifting(leak=1.0)))
    assert score.values["input_invariance"].reason == (
        "the shifted model does not answer alike: its first layer is another"
    )
