"""Infidelity against captum with the very same perturbations, the paper's sums in loops, and closed forms."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import captum.metrics
import numpy as np
import pytest
import scipy.stats
import torch
from captum.attr import IntegratedGradients
from captum.testing.helpers.basic_models import BasicModel2
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Explanation, Metric, Refused, Unsuited
from heatproof.metrics import baselines, infidelity, spaces
from heatproof.metrics.infidelity import Infidelity

SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
VECTORS = Path(os.environ.get("HEATPROOF_CONFORMANCE", SHARED)) / "vectors.json"
ALL = [
    Infidelity(samples=9),
    Infidelity(samples=5, baseline="blur", sigma=1.0, attribution="local", output="probability"),
    Infidelity(samples=7, perturbation="noise", attribution="local"),
    Infidelity(samples=4, perturbation="noisy_baseline", attribution="local", channels="pooled"),
    Infidelity(samples=7, channels="pooled", pool="l2", largest=1.0, baseline="noise"),
]
NUMBERS = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20)

BLANKS = ("mean", "black", "image_mean", "blur", "noise")  # the others need more than the case


def batch(toys, count, channels=3, size=(5, 6)):
    """Random cases and maps of the input's own shape, and a model that bends."""
    chance = torch.Generator().manual_seed(6)
    pixels, heats = torch.randn(2, count, channels, *size, generator=chance)
    return toys.curved(channels), [toys.case(f"s{i}", p, i % 3) for i, p in enumerate(pixels)], list(heats)


def forward(model, target):
    """The net by hand, for captum."""
    return lambda x: model.net.last(torch.tanh(model.net.mix(x)).square().mean((2, 3)))[:, target]


# ---------------------------------------------------------------- the formula


@given(NUMBERS)
def test_the_best_scale_is_the_least_squares_one(pairs):
    dots, drops = (list(column) for column in zip(*pairs, strict=True))
    raw, scaled = infidelity.infidelity(dots, drops), infidelity.infidelity(dots, drops, scale=True)
    assert raw == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs), abs=1e-9)
    if sum(a * a for a in dots) < 1e-9:
        return
    (beta,), *_ = np.linalg.lstsq(np.array(dots)[:, None], np.array(drops), rcond=None)
    best = sum((beta * a - b) ** 2 for a, b in pairs) / len(pairs)
    assert scaled == pytest.approx(best, abs=1e-9)
    assert 0 <= scaled <= raw + 1e-9
    for factor in (-2.0, 0.5, 3.0):
        again = infidelity.infidelity([factor * a for a in dots], drops, scale=True)
        assert again == pytest.approx(scaled, abs=1e-9)


def test_no_forecast_has_no_scale():
    assert math.isnan(infidelity.infidelity([0.0, 0.0], [1.0, 2.0], scale=True))
    assert infidelity.infidelity([0.0, 0.0], [1.0, 2.0]) == 2.5
    assert math.isnan(infidelity.infidelity([], []))


def test_the_vector_of_captum_and_its_analytic_value():
    """x = (3, 1), f = relu(relu(x1) - 1 - relu(x2)); I is taken from x. The score falls by what I1 and I2 say."""
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    entry = {e["id"]: e for e in json.loads(VECTORS.read_text())}["captum-infidelity-basic2"]
    net, x = BasicModel2(), [torch.tensor([[v]]) for v in entry["inputs"]]
    step = [torch.tensor([[v]]) for v in entry["perturbation"]]
    heats = IntegratedGradients(net).attribute(tuple(x))
    phi = [h / v for h, v in zip(heats, x, strict=True)]
    dot = float(sum(p * s for p, s in zip(phi, step, strict=True)))
    drop = float(net(*x) - net(*(v - s for v, s in zip(x, step, strict=True))))
    found = infidelity.infidelity([dot], [drop])
    assert found == pytest.approx(entry["expect"]["infidelity"], abs=entry["expect"]["atol"])
    # IG from zero: the path leaves the flat part where 2 t = 1, so half of it has the slopes 1 and -1
    analytic = ((0.5 * 0.0009 - 0.5 * 0.0121) - (0.0009 - 0.0121)) ** 2
    assert analytic == pytest.approx(3.136e-05)
    theirs = captum.metrics.infidelity(
        net, lambda *_: (tuple(step), tuple(v - s for v, s in zip(x, step, strict=True))), tuple(x), tuple(phi),
        n_perturb_samples=1,
    )  # fmt: skip
    print(
        f"deviation from the analytic value {abs(found - analytic):.1e}, from captum {abs(found - float(theirs)):.1e}"
    )
    assert found == pytest.approx(float(theirs), rel=1e-6)  # theirs is float32
    assert found == pytest.approx(
        analytic, rel=0.02
    )  # IG's quadrature straddles the kink, the drop is float32


# ---------------------------------------------------------------- against captum


@pytest.mark.parametrize("kind", ["noise", "noisy_baseline"])
def test_noise_is_captums_with_the_same_noise(toys, kind):
    model, cases, heats = batch(toys, 4)
    metric = Infidelity(samples=25, perturbation=kind, attribution="local", deviation=0.3, baseline="black")
    worst = 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        dice, size = case.generator(f"infidelity {kind}"), 0.3 * float(case.pixels.std(correction=0))
        noise = torch.stack([size * torch.randn(3, 5, 6, generator=dice) for _ in range(25)])
        start = case.pixels if kind == "noise" else baselines.blank("black", case, model)
        step = case.pixels - start + noise
        for scale, name in ((False, "infidelity"), (True, "infidelity_scaled")):
            theirs = captum.metrics.infidelity(
                forward(model, case.target), lambda x, step=step: (step, x - step), case.pixels[None], heat[None],
                n_perturb_samples=25, normalize=scale,
            )  # fmt: skip
            worst = max(worst, abs(score.values[name].number / float(theirs) - 1))
    print(f"largest deviation from captum {worst:.1e} of the value")
    assert worst < 1e-5


@pytest.mark.parametrize("attribution", ["global", "local"])
@pytest.mark.parametrize("baseline", BLANKS)
def test_squares_are_captums_with_the_same_squares(toys, attribution, baseline):
    """captum's decorator divides I by x - baseline for maps that hold it already: one where a pixel went, else zero."""
    model, cases, heats = batch(toys, 3)
    metric = Infidelity(samples=20, attribution=attribution, baseline=baseline, sigma=1.0, largest=0.6)
    worst = 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        blank = baselines.blank(baseline, case, model, 1.0)
        planes = list(infidelity.squares(5, 6, 3, 20, case.generator("infidelity square")))
        changed = torch.stack([torch.where(plane, blank, case.pixels) for plane in planes])
        if attribution == "global":
            told = torch.stack([plane.expand(3, 5, 6).float() for plane in planes])
        else:
            told = case.pixels - changed
        for scale, name in ((False, "infidelity"), (True, "infidelity_scaled")):
            theirs = captum.metrics.infidelity(
                forward(model, case.target), lambda x, told=told, changed=changed: (told, changed),
                case.pixels[None], heat[None], n_perturb_samples=20, normalize=scale,
            )  # fmt: skip
            worst = max(worst, abs(score.values[name].number / float(theirs) - 1))
    print(f"largest deviation from captum {worst:.1e} of the value")
    assert worst < 2e-4  # captum sums in float32, and expands the scaled square


def test_it_is_the_slow_twin_in_loops(toys):
    model, cases, heats = batch(toys, 3)
    metric = Infidelity(samples=15, largest=0.5, baseline="black", output="probability")
    worst = 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):

        def chance(image, case=case):
            logits = model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))
            return float(logits.softmax(1)[0, case.target])

        blank, pairs = baselines.blank("black", case, model), []
        for plane in infidelity.squares(5, 6, 2, 15, case.generator("infidelity square")):
            image, told = case.pixels.clone(), 0.0
            for y, x in plane.nonzero().tolist():
                image[:, y, x] = blank[:, y, x]
                told += sum(float(v) for v in heat[:, y, x])
            pairs.append((told, chance(case.pixels) - chance(image)))
        raw = sum((a - b) ** 2 for a, b in pairs) / 15
        beta = sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs)
        scaled = sum((beta * a - b) ** 2 for a, b in pairs) / 15
        worst = max(worst, abs(score.values["infidelity"].number / raw - 1))
        worst = max(worst, abs(score.values["infidelity_scaled"].number / scaled - 1))
    print(f"largest deviation {worst:.1e} of the value")
    assert worst < 1e-5


# ---------------------------------------------------------------- perturbations


def test_squares_are_whole_inside_and_all_as_likely():
    high, wide, largest = 3, 4, 2
    drawn = Counter()
    for plane in infidelity.squares(high, wide, largest, 9000, torch.Generator().manual_seed(2)):
        ys, xs = np.nonzero(plane.numpy())
        side = np.ptp(ys) + 1
        assert side == np.ptp(xs) + 1 <= largest
        assert len(ys) == side**2
        drawn[side, ys.min(), xs.min()] += 1
    assert len(drawn) == 3 * 4 + 2 * 3
    assert scipy.stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_spread_is_the_deviation_of_all_numbers():
    image = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    assert infidelity.spread(image) == pytest.approx(np.std(image.double().numpy()), abs=1e-12)
    assert infidelity.spread(torch.full((3, 7, 7), 0.1)) == 0


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("channels", [1, 3])
def test_the_exact_map_of_a_linear_model_errs_by_nothing(toys, channels):
    """The score is the sum: its gradient is one everywhere, and the image itself is what each pixel gave."""
    image = torch.randn(channels, 6, 7, generator=torch.Generator().manual_seed(3))
    case, ones = toys.case(pixels=image), torch.ones(channels, 6, 7)
    for metric, heat in (
        (Infidelity(samples=12), image),
        (Infidelity(samples=12), image.sum(0)),  # pooled, and shared out over the channels
        (Infidelity(samples=12, channels="pooled"), image),
        (Infidelity(samples=12, attribution="local"), ones),
        (Infidelity(samples=12, attribution="local", perturbation="noise"), ones),
        (Infidelity(samples=12, attribution="local", perturbation="noisy_baseline"), ones),
    ):
        (score,) = metric.measure(toys.trials(toys.linear(channels), [case], [heat]))
        assert [v.number for v in score.values.values()] == pytest.approx([0.0, 0.0], abs=1e-9)
        (wrong,) = metric.measure(toys.trials(toys.linear(channels), [case], [3 * heat]))
        assert wrong.values["infidelity"].number > 0.1  # taken at its word
        assert wrong.values["infidelity_scaled"].number == pytest.approx(0, abs=1e-9)


def test_a_coarse_map_keeps_its_sum(toys):
    """Four cells, each worth what its quarter gives: shared out, their sums are the quarters' again."""
    image = torch.ones(3, 4, 4)
    case, heat = toys.case(pixels=image), torch.full((2, 2), 12.0)
    metric = Infidelity(samples=9, upsample="nearest")
    (score,) = metric.measure(toys.trials(toys.linear(3), [case], [heat]))
    assert score.values["infidelity"].number == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("metric", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_does_not_know_the_maps_scale_and_raw_does(toys, metric, channels):
    model, cases, heats = batch(toys, 4, channels)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(metric, model, cases, heats)
    assert toys.numbers(metric, model, cases, [h.half() for h in heats]) == expected
    for factor in (8.0, 0.3, -2.0):
        if factor < 0 and metric.pool == "l2":
            continue
        found = toys.numbers(metric, model, cases, [h * factor for h in heats])
        for a, b in zip(found, expected, strict=True):
            assert a["infidelity_scaled"] == pytest.approx(b["infidelity_scaled"], rel=1e-5)
            assert a["infidelity"] != pytest.approx(b["infidelity"], rel=1e-3)
            assert 0 <= b["infidelity_scaled"] <= b["infidelity"]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(2, 7), st.sampled_from(ALL), st.integers(0, 9))
def test_both_are_no_less_than_zero_whatever_the_map(toys, high, wide, metric, seed):
    chance = torch.Generator().manual_seed(seed)
    case = toys.case("c", torch.randn(3, high, wide, generator=chance))
    for heat in (torch.randn(3, high, wide, generator=chance), torch.ones(1, 1), torch.eye(2)):
        (score,) = metric.measure(toys.trials(toys.curved(), [case], [heat]))
        numbers = [v.number for v in score.values.values()]
        assert numbers[0] >= 0
        assert numbers[1] is None or 0 <= numbers[1] <= numbers[0] + 1e-12


def test_flips_of_image_map_and_squares_change_nothing(toys, monkeypatch):
    image, heat = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    drawn = list(infidelity.squares(4, 6, 3, 8, torch.Generator().manual_seed(5)))
    found = []
    for axes in ((), (-1,), (-2,), (-1, -2)):
        monkeypatch.setattr(
            infidelity, "squares", lambda *_, axes=axes: (plane.flip(axes) for plane in drawn)
        )
        trials = toys.trials(toys.linear(3), [toys.case(pixels=image.flip(axes))], [heat.flip(axes)])
        (score,) = Infidelity(samples=8).measure(trials)
        found.append([v.number for v in score.values.values()])
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


# ---------------------------------------------------------------- undefined


def test_what_has_no_number_says_why(toys):
    model, (case, *_), (heat, *_) = batch(toys, 1)
    (zero,) = Infidelity().measure(toys.trials(model, [case], [torch.zeros(5, 6)]))
    assert zero.values["infidelity"].number > 0
    assert zero.values["infidelity_scaled"].reason == "the map foretells 0 for every perturbation"
    flat = toys.case("flat", torch.full((3, 5, 6), 0.2))
    noise = Infidelity(perturbation="noise", attribution="local")
    (score,) = noise.measure(toys.trials(model, [flat], [heat]))
    assert {v.reason for v in score.values.values()} == {
        "a constant image has no deviation to measure noise in"
    }
    wild = toys.case("wild", torch.full((1, 4, 4), float("inf")))
    (score,) = Infidelity().measure(toys.trials(toys.linear(), [wild], [torch.eye(4)]))
    assert {(v.number, v.reason) for v in score.values.values()} == {(None, "not a finite number")}


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_broken_cases_cost_nothing_and_leave_the_others_alone(toys, metric):
    model, cases, heats = batch(toys, 4)
    expected = metric.measure(toys.trials(model, cases, heats))
    broken = [None, heats[1], torch.full((2, 2), float("nan")), heats[3]]
    with model.part() as spent:
        found = metric.measure(toys.trials(model, cases, broken))
    assert set(spent.forward) == {cases[1].id, cases[3].id}
    for i, reason in ((0, "no image map"), (2, "NaN or infinity in the map")):
        assert {(v.number, v.reason) for v in found[i].values.values()} == {(None, reason)}
    for i in (1, 3):
        assert found[i].values == expected[i].values
    assert metric.measure([]) == []


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_chunks_and_order_change_nothing(toys, metric):
    kinds = (
        lambda h: h, lambda h: h.sum(0), lambda h: h.half(), lambda h: h.sum(0).sign(),
        lambda h: torch.ones(2, 3), lambda h: None, lambda h: h * float("nan"), lambda h: torch.zeros(2, 2),
    )  # fmt: skip

    def asked(chunk, order):
        model, cases, heats = batch(toys, 11, size=(5, 7))
        heats = [kinds[i % 8](h) for i, h in enumerate(heats)]
        pairs, found = list(zip(cases, heats, strict=True))[::order], {}
        for first in range(0, len(pairs), chunk):
            some = pairs[first : first + chunk]
            model.memo.clear()
            with torch.inference_mode():
                scores = metric.measure(toys.trials(model, *zip(*some, strict=True)))
            found |= {case.id: s.values for (case, _), s in zip(some, scores, strict=True)}
        return found

    expected = asked(11, 1)
    for chunk in (1, 3, 4, 11):
        for order in (1, -1):
            assert asked(chunk, order) == expected
    assert len({v.number for values in expected.values() for v in values.values() if v.defined}) > 8


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_a_row_a_sample_and_the_untouched_image_once(toys, metric):
    model, cases, heats = batch(toys, 8)
    model.memo.on = True
    trials = toys.trials(model, cases, heats)
    metric.measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    seen = []
    model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with model.part() as spent:
        metric.measure(trials)
    assert dict(spent.forward) == {c.id: pytest.approx(metric.samples + 1) for c in cases}
    assert sum(seen) == 8 * (metric.samples + 1)
    spaces.clean(metric.output, model, cases)
    metric.measure(trials)
    assert sum(seen) == 8 * (2 * metric.samples + 1)  # the clean scores are known by now


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_it_is_plain_settings_and_leaves_all_as_found(toys, metric):
    assert isinstance(metric, Metric)
    assert type(metric)(**vars(metric)) == metric
    model, cases, heats = batch(toys, 2)
    before = {n: p.clone() for n, p in model.net.named_parameters()}
    kept = [c.pixels.clone() for c in cases]
    with torch.inference_mode():
        metric.measure(toys.trials(model, cases, heats))
    assert all(torch.equal(p, before[n]) for n, p in model.net.named_parameters())
    assert all(torch.equal(c.pixels, p) for c, p in zip(cases, kept, strict=True))


def test_models_it_cannot_serve(toys):
    model = toys.dual()
    case = toys.worded("c", "red ball", torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
    trials = toys.trials(model, [case], [Explanation(image=torch.eye(4))])
    assert all(v.defined for v in Infidelity(samples=3).measure(trials)[0].values.values())
    with pytest.raises(Unsuited, match="cosine"):
        Infidelity(output="probability").measure(trials)
    regions = toys.case(pixels=torch.zeros(5, 7))
    with pytest.raises(Unsuited, match="region features"):
        Infidelity().measure(toys.trials(toys.linear(), [regions], [torch.eye(2)]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"perturbation": "squares"}, "did you mean 'square'"),
        ({"attribution": "both"}, "no attribution 'both'"),
        ({"perturbation": "noise"}, 'accepted is "local"'),
        ({"perturbation": "noisy_baseline"}, 'accepted is "local"'),
        ({"channels": "all"}, "no channels 'all'"),
        ({"baseline": "white"}, "no baseline 'white'"),
        ({"samples": 0}, "found samples 0"),
        ({"largest": 0.0}, "largest 0.0"),
        ({"deviation": 0.0}, "deviation 0.0"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Infidelity(**setting)
