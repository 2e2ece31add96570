"""Metrics by correlation against loops written from the papers, closed forms, scipy, and AIX360's rule."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Explanation, Metric, Refused, Unsuited
from heatproof.metrics import baselines, fidelity, spaces
from heatproof.metrics.fidelity import FaithfulnessCorrelation, Monotonicity, MuFidelity, SensitivityN

SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
VECTORS = Path(os.environ.get("HEATPROOF_CONFORMANCE", SHARED)) / "vectors.json"
ALL = [
    FaithfulnessCorrelation(share=0.2, subsets=12),
    FaithfulnessCorrelation(cells=3, share=0.3, subsets=9, baseline="noise", output="probability"),
    MuFidelity(cells=4, subsets=12, baseline="blur", sigma=1.0),
    SensitivityN(shares=(0.05, 0.3, 0.8), subsets=7),
    Monotonicity(cells=3),
    Monotonicity(cells=0, sign="abs", pool="l2"),
]

BLANKS = ("mean", "black", "image_mean", "blur", "noise")  # the others need more than the case


def batch(toys, count, channels=3, size=(5, 6)):
    """Random cases and unpooled maps of the image's grid, and a model that bends."""
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, channels, *size, generator=chance)
    heats = torch.randn(count, 2, *size, generator=chance)
    return toys.curved(channels), [toys.case(f"s{i}", p, i % 3) for i, p in enumerate(pixels)], list(heats)


# ---------------------------------------------------------------- formulas


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_pearson_is_scipys(pairs):
    a, b = (torch.tensor(column, dtype=torch.float64) / 7 for column in zip(*pairs, strict=True))
    found = fidelity.pearson(a, b)
    if len(set(a.tolist())) == 1 or len(set(b.tolist())) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-12)
        assert -1 <= found <= 1
        assert fidelity.pearson(b, a) == pytest.approx(found, abs=1e-12)


def test_rounding_noise_is_constant():
    noisy = 0.1 + 1e-9 * torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    assert math.isnan(fidelity.pearson(noisy, torch.arange(20.0)))
    assert math.isnan(fidelity.pearson(torch.zeros(5), torch.arange(5.0)))


# ---------------------------------------------------------------- against loops


def logit(model, image, case):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[0, case.target]


def chance(model, image, case):
    logits = model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))
    return logits.softmax(1)[0, case.target]


def corners(size, cells):
    """The pixels of each unit, by hand: row i belongs to cell floor(i cells / H)."""
    high, wide = size
    rows, columns = (cells or high), (cells or wide)
    home = {}
    for y in range(high):
        for x in range(wide):
            home.setdefault((y * rows // high, x * columns // wide), []).append((y, x))
    return [home[key] for key in sorted(home)]


def slow(model, case, heat, blank, k, many, cells, space, dice):
    """The paper's definition: remove a set, read the score, sum the map over the set, drop by drop."""
    homes = corners(heat.shape, cells)
    sums, drops = [], []
    whole = float(space(model, case.pixels, case))
    for _ in range(many):
        gone = torch.randperm(len(homes), generator=dice)[:k].tolist()
        image, total = case.pixels.clone(), 0.0
        for unit in gone:
            for y, x in homes[unit]:
                image[:, y, x] = blank[:, y, x]
                total += float(heat[y, x])
        sums.append(total)
        drops.append(whole - float(space(model, image, case)))
    return sums, drops


@pytest.mark.parametrize("baseline", BLANKS)
@pytest.mark.parametrize(("output", "space"), [("native", logit), ("probability", chance)])
@pytest.mark.parametrize("cells", [0, 3])
def test_faithfulness_correlation_and_mu_fidelity_are_the_slow_twins(toys, baseline, output, space, cells):
    model, cases, heats = batch(toys, 3)
    made = {"share": 0.3, "subsets": 20, "cells": cells, "baseline": baseline, "sigma": 1.0, "output": output}
    k = round(0.3 * (cells**2 or 30))
    worst = 0.0
    for metric, rule, name in (
        (FaithfulnessCorrelation(**made), scipy.stats.pearsonr, "faithfulness_correlation"),
        (MuFidelity(**made), scipy.stats.spearmanr, "mu_fidelity"),
    ):
        scores = metric.measure(toys.trials(model, cases, heats))
        for case, heat, score in zip(cases, heats, scores, strict=True):
            blank = baselines.blank(baseline, case, model, 1.0)
            dice = case.generator("fidelity subsets")
            told = slow(model, case, heat.sum(0), blank, k, 20, cells, space, dice)
            worst = max(worst, abs(score.values[name].number - rule(*told).statistic))
    print(f"largest deviation {worst:.1e}")
    assert worst < 2e-5  # the scores are float32


@pytest.mark.parametrize("cells", [0, 4])
def test_sensitivity_n_is_the_slow_twin_size_by_size(toys, cells):
    model, cases, heats = batch(toys, 3)
    metric = SensitivityN(shares=(0.8, 0.01, 0.02, 0.3), subsets=15, cells=cells)
    units = cells**2 or 30
    sizes = [1, round(0.3 * units), round(0.8 * units)]  # two of the shares are one unit
    worst = 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        expected = []
        for k in sizes:
            dice = case.generator(f"fidelity subsets of {k}")
            told = slow(model, case, heat.sum(0), torch.zeros(3, 5, 6), k, 15, cells, logit, dice)
            expected.append(scipy.stats.pearsonr(*told).statistic)
        x, y = score.curves["sensitivity_n"]
        assert x == [k / units for k in sizes]
        worst = max(worst, float(np.abs(np.array(y) - expected).max()))
        assert score.values["sensitivity_n"].number == pytest.approx(np.mean(expected), abs=5e-5)
    print(f"largest deviation {worst:.1e}")
    assert worst < 5e-5  # single pixels move the score by 1e-3 of it


def aix360(space, image, blank, homes, relevance):
    """Features return by rising coefficient; the scores from the first on must never fall (numpy's argsort and diff)."""
    now, scores = blank.clone(), []
    for unit in np.argsort(np.array(relevance)):
        for y, x in homes[unit]:
            now[:, y, x] = image[:, y, x]
        scores.append(float(space(now)))
    return scores, bool(np.all(np.diff(scores) >= 0)), float(np.mean(np.diff(scores) >= 0))


@pytest.mark.parametrize("cells", [0, 3])
def test_monotonicity_is_aix360s(toys, cells):
    model, cases, heats = batch(toys, 6)
    scores = Monotonicity(cells=cells).measure(toys.trials(model, cases, heats))
    homes, worst = corners((5, 6), cells), 0.0
    for case, heat, score in zip(cases, heats, scores, strict=True):
        relevance = [sum(float(heat[:, y, x].sum()) for y, x in home) for home in homes]
        y, every, share = aix360(
            lambda now, case=case: logit(model, now, case),
            case.pixels,
            torch.zeros(3, 5, 6),
            homes,
            relevance,
        )
        worst = max(worst, float(np.abs(np.array(score.curves["monotonicity"][1]) - y).max()))
        assert score.values["monotonicity"].number == float(every)
        assert score.values["monotone_steps"].number == pytest.approx(share)
        assert score.curves["monotonicity"][0] == pytest.approx(
            [(i + 1) / len(homes) for i in range(len(homes))]
        )
    print(f"largest deviation {worst:.1e}")
    assert worst < 1e-6


def test_monotone_counts_steps_and_forgives_rounding():
    assert fidelity.monotone([0.0, 1.0, 1.0, 3.0]) == 1
    assert fidelity.monotone([3.0, 2.0, 1.0]) == 0
    assert fidelity.monotone([100.0, 100.0 - 1e-5, 101.0]) == 1
    assert fidelity.monotone([100.0, 100.0 - 1e-3, 101.0]) == 0.5


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("sign", [1, -1])
def test_the_vector_of_xplique(toys, sign):
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    entry = {e["id"]: e for e in json.loads(VECTORS.read_text())}["xplique-mufidelity-sum"]
    expected = entry["expect"]["mu_fidelity_pos" if sign > 0 else "mu_fidelity_neg"]
    image = torch.rand(1, 12, 13, generator=torch.Generator().manual_seed(0))
    trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [sign * image[0]])
    worst = 0.0
    for metric in (
        MuFidelity(baseline="black"),
        MuFidelity(cells=0),
        FaithfulnessCorrelation(),
        SensitivityN(),
    ):
        (value,) = metric.measure(trials)[0].values.values()
        worst = max(worst, abs(value.number - expected))
    print(f"largest deviation {worst:.1e}")
    assert worst < 1e-6


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.95), st.integers(0, 4))
def test_exactly_k_pixels_go_whatever_the_map(toys, share, kind):
    """The sum of an image of ones is what is left, so that equal subsets leave equal scores, and nothing to rank."""
    heat = (
        torch.eye(4, 6),
        torch.rand(4, 6),
        torch.ones(4, 6),
        torch.arange(24.0).reshape(4, 6),
        torch.eye(2),
    )[kind]
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 4, 6))], [heat])
    (score,) = FaithfulnessCorrelation(share=share, subsets=5).measure(trials)
    reasons = {"all subsets have the same score", "all subsets have the same relevance"}
    assert score.values["faithfulness_correlation"].reason in reasons
    (rising,) = Monotonicity(cells=0).measure(trials)
    assert rising.curves["monotonicity"][1] == list(range(1, 25))
    assert rising.values["monotonicity"].number == 1


def test_a_unit_that_speaks_against_the_score_is_a_fall(toys):
    image = torch.tensor([[[3.0, -1.0, 2.0, 4.0]]])
    trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [image[0]])
    (score,) = Monotonicity(cells=0).measure(trials)
    assert score.curves["monotonicity"] == ([0.25, 0.5, 0.75, 1.0], [-1.0, 1.0, 4.0, 8.0])
    assert [v.number for v in score.values.values()] == [
        1.0,
        1.0,
    ]  # its fall is from the blank image, which has no part
    (other,) = Monotonicity(cells=0).measure(
        toys.trials(toys.linear(), [toys.case(pixels=image)], [-image[0]])
    )
    assert other.curves["monotonicity"][1] == [4.0, 7.0, 9.0, 8.0]
    assert [v.number for v in other.values.values()] == [0.0, pytest.approx(2 / 3)]


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("metric", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_positive_rescaling_fp16_and_channels_change_nothing(toys, metric, channels):
    model, cases, heats = batch(toys, 4, channels)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(metric, model, cases, heats)
    for same in ([h.half() for h in heats], [h * 8 for h in heats]):
        assert toys.numbers(metric, model, cases, same) == expected
    found = toys.numbers(metric, model, cases, [h * 0.3 for h in heats])
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("metric", [m for m in ALL if not isinstance(m, Monotonicity)], ids=repr)
def test_a_negated_map_has_the_negated_correlation(toys, metric):
    model, cases, heats = batch(toys, 4)
    one = toys.numbers(metric, model, cases, heats)
    other = toys.numbers(metric, model, cases, [-h for h in heats])
    for a, b in zip(one, other, strict=True):
        assert {k: -v for k, v in b.items()} == pytest.approx(a, abs=1e-9)
        assert all(-1 <= v <= 1 for v in a.values())


def test_flips_of_image_and_map_leave_monotonicity(toys):
    """Without ties the order goes with the pixels. (Random subsets do not flip: their scores agree on average alone.)"""
    model = toys.linear(3)
    for size in ((4, 4), (3, 7)):
        chance = torch.Generator().manual_seed(7)
        image = torch.randn(3, *size, generator=chance)
        heat = torch.randperm(size[0] * size[1], generator=chance).reshape(size).float()
        found = []
        for axes in ((), (-1,), (-2,), (-1, -2)):
            trials = toys.trials(model, [toys.case(f"{size} {axes}", image.flip(axes))], [heat.flip(axes)])
            found.append(Monotonicity(cells=0).measure(trials)[0])
        for other in found[1:]:
            assert other.curves["monotonicity"][1] == pytest.approx(
                found[0].curves["monotonicity"][1], abs=1e-5
            )


def test_a_faithful_map_beats_a_random_one_beats_its_negative(toys):
    """On a model that is nearly additive: input times gradient, noise, and the reverse."""
    model, cases, _ = batch(toys, 8, size=(6, 6))
    pixels = model.stack(cases).requires_grad_()
    (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
    good = list(pixels.detach() * grad)
    noise = [torch.randn(6, 6, generator=c.generator("noise")) for c in cases]
    for metric in (FaithfulnessCorrelation(), MuFidelity(cells=3), SensitivityN(shares=(0.1, 0.3))):
        means = [
            np.mean([next(iter(n.values())) for n in toys.numbers(metric, model, cases, heats)])
            for heats in (good, noise, [-g for g in good])
        ]
        assert means[0] > 0.4 > abs(means[1]) + 0.1
        assert means[2] == pytest.approx(-means[0], abs=1e-9)


# ---------------------------------------------------------------- undefined


@pytest.mark.parametrize("metric", [m for m in ALL if not isinstance(m, Monotonicity)], ids=repr)
@pytest.mark.parametrize("level", [0.0, -2.0, 0.1])
def test_a_constant_map_is_undefined(toys, metric, level):
    model, (case, *_), _ = batch(toys, 1, size=(4, 4) if metric.cells in (0, 4) else (6, 6))
    (score,) = metric.measure(toys.trials(model, [case], [torch.full((3, 3), level)]))
    (value,) = score.values.values()
    assert value.number is None
    assert value.reason.startswith("all subsets have the same relevance")


def test_a_score_that_does_not_move_or_is_no_number_is_undefined(toys):
    heat = torch.rand(4, 4)
    still = toys.case("still", torch.zeros(1, 4, 4))
    wild = toys.case("wild", torch.full((1, 4, 4), float("inf")))
    for metric in (FaithfulnessCorrelation(), MuFidelity(cells=2), SensitivityN()):
        for case, said in ((still, "the same score"), (wild, "not a finite number")):
            (score,) = metric.measure(toys.trials(toys.linear(), [case], [heat]))
            (value,) = score.values.values()
            assert value.number is None
            assert said in value.reason
            assert not score.curves
    (score,) = Monotonicity(cells=0).measure(toys.trials(toys.linear(), [wild], [heat]))
    assert {v.reason for v in score.values.values()} == {"a score is not a finite number"}


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
        assert (found[i].values, found[i].curves) == (expected[i].values, expected[i].curves)
    assert metric.measure([]) == []
    assert metric.measure(toys.trials(model, cases[:1], [None]))[0].values


def test_one_pixel_has_no_parts(toys):
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 1, 1))], [torch.ones(1, 1)])
    for metric in ALL[:1] + ALL[3:5]:
        (score,) = metric.measure(trials)
        assert {v.reason for v in score.values.values()} == {
            "the image is one unit: there are no parts to compare"
        }


# ---------------------------------------------------------------- laws


def world(toys):
    """Eleven cases, the maps tied, constant, fp16, unpooled, coarse, missing or broken."""
    model, cases, heats = batch(toys, 11, size=(5, 7))
    kinds = (
        lambda h: h, lambda h: h.sum(0), lambda h: h.half(), lambda h: h.sum(0).sign(),
        lambda h: torch.ones(2, 3), lambda h: None, lambda h: h * float("nan"), lambda h: h[:, :2, :3],
    )  # fmt: skip
    return model, cases, [kinds[i % 8](h) for i, h in enumerate(heats)]


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_chunks_and_order_change_nothing(toys, metric):
    def asked(chunk, order):
        model, cases, heats = world(toys)
        pairs, found = list(zip(cases, heats, strict=True))[::order], {}
        for first in range(0, len(pairs), chunk):
            some = pairs[first : first + chunk]
            model.memo.clear()
            with torch.inference_mode():
                scores = metric.measure(toys.trials(model, *zip(*some, strict=True)))
            found |= {case.id: (s.values, s.curves) for (case, _), s in zip(some, scores, strict=True)}
        return found

    expected = asked(11, 1)
    for chunk in (1, 3, 4, 11):
        for order in (1, -1):
            assert asked(chunk, order) == expected
    numbers = {v.number for values, _ in expected.values() for v in values.values() if v.defined}
    assert len(numbers) > 2


@pytest.mark.parametrize("memo", [True, False])
@pytest.mark.parametrize(
    ("metric", "rows"),
    [
        (FaithfulnessCorrelation(subsets=7), 7),
        (FaithfulnessCorrelation(subsets=7, output="probability", baseline="blur"), 7),
        (MuFidelity(cells=3, subsets=9), 9),
        (SensitivityN(shares=(0.1, 0.11, 0.5), subsets=5), 10),  # two shares mean 3 of 30 pixels
        (Monotonicity(cells=3), 9),
        (Monotonicity(cells=0, output="probability"), 30),
    ],
)
def test_what_it_costs_by_meter_and_by_hook(toys, metric, rows, memo):
    model, cases, heats = batch(toys, 8)
    trials = toys.trials(model, cases, heats)
    metric.measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    model.memo.on = memo
    seen = []
    hook = model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with model.part() as spent:
        metric.measure(trials)
    hook.remove()
    assert dict(spent.forward) == {c.id: pytest.approx(rows) for c in cases}
    assert sum(seen) == 8 * rows
    assert not any(spent.backward.values())


def test_the_untouched_image_is_asked_once_for_all(toys):
    model, cases, heats = batch(toys, 8)
    model.memo.on = True
    spaces.clean("native", model, cases)
    seen = []
    model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    Monotonicity(cells=3).measure(toys.trials(model, cases, heats))
    assert sum(seen) == 8 * 8


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_the_model_and_the_images_are_left_as_found(toys, metric):
    model, cases, heats = batch(toys, 2)
    before = {n: p.clone() for n, p in model.net.named_parameters()}
    kept = [c.pixels.clone() for c in cases]
    with torch.inference_mode():
        metric.measure(toys.trials(model, cases, heats))
    assert all(torch.equal(p, before[n]) for n, p in model.net.named_parameters())
    assert all(torch.equal(c.pixels, p) for c, p in zip(cases, kept, strict=True))
    pixels = model.stack(cases).requires_grad_()
    model.score(pixels, cases).sum().backward()
    assert bool(pixels.grad.any())


@pytest.mark.parametrize("metric", ALL, ids=repr)
def test_metrics_are_plain_settings(metric):
    assert isinstance(metric, Metric)
    assert type(metric)(**vars(metric)) == metric
    assert hash(metric) == hash(type(metric)(**vars(metric)))
    assert {m.measures for m in metric.measures} == {"faithfulness"}


def test_a_dual_encoder_is_served_in_its_own_space(toys):
    model = toys.dual()
    pixels = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    cases = [toys.worded(f"c{i}", "red ball", p) for i, p in enumerate(pixels)]
    heats = [Explanation(image=torch.randn(4, 4, generator=c.generator("heat"))) for c in cases]
    for metric in (FaithfulnessCorrelation(subsets=5), Monotonicity(cells=2)):
        assert all(
            v.defined for s in metric.measure(toys.trials(model, cases, heats)) for v in s.values.values()
        )
    with pytest.raises(Unsuited, match="cosine"):
        MuFidelity(output="probability").measure(toys.trials(model, cases, heats))
    regions = toys.case(pixels=torch.zeros(5, 7))
    with pytest.raises(Unsuited, match="region features"):
        SensitivityN().measure(toys.trials(toys.linear(), [regions], [torch.eye(2)]))


@pytest.mark.parametrize(
    ("cls", "setting", "said"),
    [
        (FaithfulnessCorrelation, {"baseline": "blurr"}, "did you mean 'blur'"),
        (FaithfulnessCorrelation, {"output": "logit"}, "no output 'logit'"),
        (FaithfulnessCorrelation, {"upsample": "none"}, "no upsample 'none'"),
        (FaithfulnessCorrelation, {"share": 1.0}, r"found shares \(1.0,\)"),
        (FaithfulnessCorrelation, {"subsets": 2}, "3 subsets or more"),
        (FaithfulnessCorrelation, {"cells": 1}, "found cells 1"),
        (MuFidelity, {"share": 0.0}, "metrics.mufidelity"),
        (MuFidelity, {"sigma": 0.0}, "a sigma above 0"),
        (SensitivityN, {"shares": ()}, r"found shares \(\)"),
        (SensitivityN, {"shares": (0.5, 1.5)}, "metrics.sensitivityn"),
        (Monotonicity, {"cells": -1}, "metrics.monotonicity: found cells -1"),
        (Monotonicity, {"sign": "plus"}, "no sign 'plus'"),
    ],
)
def test_wrong_settings_are_refused(cls, setting, said):
    with pytest.raises(Refused, match=said):
        cls(**setting)


def test_spearman_breaks_no_ties(toys):
    """Half of the image is worth 1, half 0: drops have few levels, and scipy's mean ranks give the same number."""
    image = torch.cat([torch.ones(1, 4, 2), torch.zeros(1, 4, 2)], 2)
    heat = torch.arange(16.0).reshape(4, 4)
    case = toys.case(pixels=image)
    (score,) = MuFidelity(cells=0, share=0.3, subsets=40).measure(toys.trials(toys.linear(), [case], [heat]))
    dice, sums, drops = case.generator("fidelity subsets"), [], []
    for _ in range(40):
        gone = torch.randperm(16, generator=dice)[:5]
        sums.append(float(heat.flatten()[gone].sum()))
        drops.append(float(image.flatten()[gone].sum()))
    expected = scipy.stats.spearmanr(sums, drops).statistic
    assert score.values["mu_fidelity"].number == pytest.approx(expected, abs=1e-12)
