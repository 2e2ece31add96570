"""Deletion against closed forms, a pixel-by-pixel twin, and a hook that counts what is forwarded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Refused, Unsuited
from heatproof.metrics import baselines, deletion, spaces
from heatproof.metrics.deletion import Deletion


def batch(toys, count, channels=3, size=(8, 8), model=None):
    """Random cases and 2 x 2 maps, and a model that bends."""
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, channels, *size, generator=chance)
    heats = torch.randn(count, 2, 2, generator=chance)
    cases = [toys.case(f"s{i}.{i % 3}", p, i % 3) for i, p in enumerate(pixels)]
    return model or toys.curved(channels), cases, list(heats)


# ---------------------------------------------------------------- formulas


@given(st.integers(0, 5000), st.integers(1, 60))
def test_counts_go_from_none_to_all_and_are_nearest(total, steps):
    found = deletion.counts(total, steps)
    assert (found[0], found[-1], len(found)) == (0, total, steps + 1)
    assert all(abs(k - i * total / steps) <= 0.5 for i, k in enumerate(found))


@given(st.integers(1, 100), st.floats(-10, 10), st.floats(-10, 10))
def test_areas_of_constant_and_straight_curves_do_not_know_the_steps(steps, start, end):
    share = [k / 997 for k in deletion.counts(997, steps)]
    line = [start + (end - start) * x for x in share]
    assert deletion.area(share, [start] * (steps + 1)) == pytest.approx(start, abs=1e-12)
    assert deletion.area(share, line) == pytest.approx((start + end) / 2, abs=1e-12)


def test_patches_go_whole_and_the_cut_ones_by_their_own_mean():
    heat = torch.zeros(5, 3)
    heat[4, 2] = 1.0  # a patch of one pixel
    heat[0:2, 0:2] = 0.5
    plan = deletion.Plan.of(heat, 3, 2, torch.Generator())
    assert plan.order[:5].tolist() == [14, 0, 1, 3, 4]
    assert plan.gone[0::3] == [0, 15]
    assert plan.gone[1] == 5
    rest = [sorted(part.tolist()) for part in plan.order[5:].split([plan.gone[2] - 5, 15 - plan.gone[2]])]
    whole = [{2, 5}, {6, 7, 9, 10}, {8, 11}, {12, 13}]
    assert all(patch <= set(part) or not patch & set(part) for patch in whole for part in rest)


def test_blur_is_scipys():
    image = torch.randn(3, 9, 14, generator=torch.Generator().manual_seed(0))
    for sigma in (0.5, 2.0, 5.0):
        expected = scipy.ndimage.gaussian_filter(
            image.double().numpy(), (0, sigma, sigma), mode="nearest", truncate=4.0
        )
        found = baselines.gaussian_blur(image, sigma).numpy()
        assert np.abs(found - expected).max() < 1e-6


def test_baselines_are_what_they_say(toys):
    model, (case, *_), _ = batch(toys, 1)
    other = toys.case(pixels=torch.randn(3, 8, 8))
    case = replace(case, other=lambda: other)
    blank = {rule: baselines.blank(rule, case, model, 2.0) for rule in baselines.RULES}
    assert {tuple(b.shape) for b in blank.values()} == {(3, 8, 8)}
    assert not blank["mean"].any()
    assert (model.frame.picture(blank["black"]) == 0).all()
    assert torch.equal(blank["image_mean"][:, 0, 0], case.pixels.mean((1, 2)))
    assert torch.equal(blank["noise"], baselines.blank("noise", case, model))
    assert 0.7 < float(blank["noise"].std()) < 1.3
    assert torch.equal(blank["marginal"], other.pixels)
    assert not blank["inpaint"].any()  # nothing is left to inpaint from
    with pytest.raises(Refused, match=r"marginal.*knows no other image"):
        baselines.blank("marginal", replace(case, other=None), model)


# ---------------------------------------------------------------- curves


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_a_linear_model_has_its_closed_form(toys, steps):
    """Pixels 16, 15, ... 1 of a sum: after k of them the sum of the rest, whichever way."""
    image = torch.arange(16.0, 0, -1).reshape(1, 4, 4)
    (score,) = Deletion(steps=steps).measure(
        toys.trials(toys.linear(), [toys.case(pixels=image)], [image[0]])
    )
    gone = [16 * i // steps for i in range(steps + 1)]
    falling = [sum(range(1, 17 - k)) for k in gone]
    assert score.curves["deletion"] == ([k / 16 for k in gone], falling)
    assert score.curves["insertion"] == ([k / 16 for k in gone], [136 - y for y in falling])
    areas = [v.number for v in score.values.values()]
    assert areas[1] == 136 - areas[0]
    assert areas[2] == areas[1] - areas[0]


@pytest.mark.parametrize("steps", [1, 3, 5, 16])
def test_a_constant_map_on_a_constant_image_does_not_know_the_steps(toys, steps):
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 4, 4))], [torch.ones(2, 2)])
    (score,) = Deletion(steps=steps).measure(trials)
    assert score.values["deletion"].number == pytest.approx(8.0, abs=1e-6)
    assert score.values["srg"].number == pytest.approx(0.0, abs=1e-6)


def membrane(image, gone):
    """Every gone pixel the mean of its neighbours, by sweeping until nothing moves (Jacobi), in float64."""
    image, (high, wide) = image.double().clone(), gone.shape
    image[:, gone] = 0
    if bool(gone.all()):
        return image
    for _ in range(20_000):
        before = image.clone()
        for y, x in np.argwhere(gone.numpy()):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [before[:, a, b] for a, b in beside if 0 <= a < high and 0 <= b < wide]
            image[:, y, x] = sum(inside) / len(inside)
        if float((image - before).abs().max()) < 1e-11:
            return image
    raise AssertionError("the twin did not settle")


def test_inpainting_is_the_slow_membrane_both_ways(toys):
    model, (case, *_), _ = batch(toys, 1, size=(4, 5))
    heat = torch.randn(4, 5, generator=case.generator("heat"))
    (score,) = Deletion(steps=5, baseline="inpaint").measure(toys.trials(model, [case], [heat]))
    order = heat.flatten().argsort(descending=True)
    for name, places in (("deletion", order), ("insertion", order.flip(0))):
        expected = []
        for k in (0, 4, 8, 12, 16, 20):
            gone = torch.zeros(20, dtype=torch.bool)
            gone[places[:k]] = True
            expected.append(float(logit(model, membrane(case.pixels, gone.view(4, 5)).float(), case)))
        expected = expected if name == "deletion" else expected[::-1]
        assert score.curves[name][1] == pytest.approx(expected, abs=1e-6)


def slow(model, case, heat, steps, blank, space):
    """RISE by hand: sort the pixels, take them away one by one, read the score, one image at a time."""
    places = sorted(np.ndindex(*heat.shape), key=lambda p: -float(heat[p]))
    n, curves = len(places), []
    for start, end in ((case.pixels, blank), (blank, case.pixels)):
        image, points = start.clone(), {}
        points[0] = image.clone()
        for done, (y, x) in enumerate(places, 1):
            image[:, y, x] = end[:, y, x]
            points[done] = image.clone()
        wanted = [int(i * n / steps + 0.5) for i in range(steps + 1)]
        curves.append(([k / n for k in wanted], [float(space(model, points[k], case)) for k in wanted]))
    return curves


def logit(model, image, case):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[0, case.target]


def chance(model, image, case):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3))).softmax(1)[
        0, case.target
    ]


def margin(model, image, case):
    logits = model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[0].tolist()
    return logits[case.target] - max(v for i, v in enumerate(logits) if i != case.target)


def right(model, image, case):
    return float(margin(model, image, case) > 0)


@pytest.mark.parametrize("baseline", [rule for rule in baselines.RULES if rule != "inpaint"])
@pytest.mark.parametrize(
    ("output", "space"),
    [("native", logit), ("probability", chance), ("margin", margin), ("accuracy", right)],
)
def test_it_is_the_slow_twin(toys, baseline, output, space):
    model, cases, _ = batch(toys, 3, size=(5, 6))
    cases = [replace(c, other=lambda o=o: o) for c, o in zip(cases, cases[1:] + cases[:1], strict=True)]
    heats = [torch.randn(5, 6, generator=c.generator("heat")) for c in cases]
    metric = Deletion(steps=7, baseline=baseline, sigma=1.0, output=output)
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        blank = baselines.blank(baseline, case, model, 1.0)
        down, up = slow(model, case, heat, 7, blank, space)
        for name, (x, y) in (("deletion", down), ("insertion", up)):
            assert score.curves[name][0] == pytest.approx(x, abs=1e-12)
            assert score.curves[name][1] == pytest.approx(y, abs=1e-6)
            assert score.values[name].number == pytest.approx(np.trapezoid(y, x), abs=1e-6)
        gain = np.trapezoid(up[1], up[0]) - np.trapezoid(down[1], down[0])
        assert score.values["srg"].number == pytest.approx(gain, abs=1e-6)


def test_insertion_is_the_mirrored_curve(toys):
    """Removing the least relevant first is the negated map's deletion curve (tie-free), read the other way."""
    model, cases, _ = batch(toys, 4)
    heats = [torch.randn(8, 8, generator=c.generator("heat")) for c in cases]
    one = Deletion(steps=8).measure(toys.trials(model, cases, heats))
    other = Deletion(steps=8).measure(toys.trials(model, cases, [-h for h in heats]))
    for a, b in zip(one, other, strict=True):
        assert a.curves["insertion"][1] == b.curves["deletion"][1][::-1]
        assert a.values["srg"].number == pytest.approx(-b.values["srg"].number, abs=1e-7)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2))
def test_exactly_k_pixels_are_gone_whatever_the_ties(toys, steps, patch, kind):
    """The sum of an image of ones is the number of pixels that are left, on both curves."""
    heat = (torch.zeros(3, 5), torch.eye(3, 5), torch.arange(15.0).reshape(3, 5))[kind]
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 3, 5))], [heat])
    (score,) = Deletion(steps=steps, patch=patch).measure(trials)
    x, y = score.curves["deletion"]
    assert y == pytest.approx([15 * (1 - s) for s in x], abs=1e-5)
    assert score.curves["insertion"][1] == pytest.approx([15 * s for s in x], abs=1e-5)
    if patch == 1:
        assert [round(15 * s) for s in x] == deletion.counts(15, steps)


def test_positive_rescaling_fp16_and_channels_change_nothing(toys):
    model, cases, heats = batch(toys, 4)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(Deletion(steps=4), model, cases, heats)
    for same in ([h.half() for h in heats], [h * 8 for h in heats], [torch.stack([h, h]) for h in heats]):
        assert toys.numbers(Deletion(steps=4), model, cases, same) == expected


def test_ends_scales_each_case_and_refuses_one_that_does_not_fall(toys):
    image = torch.tensor([[[3.0, 1.0]]])
    cases = [toys.case("up", image), toys.case("down", -image)]
    up, down = toys.numbers(Deletion(steps=2, normalise="ends"), toys.linear(), cases, [image[0]] * 2)
    assert up == {"deletion": 0.375, "insertion": 0.625, "srg": 0.25}
    assert set(down.values()) == {None}


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("memo", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("output", spaces.OUTPUTS)
def test_two_rows_a_step_and_case_by_meter_and_by_hook(toys, steps, memo, output):
    model, cases, heats = batch(toys, 8)
    trials, metric = toys.trials(model, cases, heats), Deletion(steps=steps, output=output)
    metric.measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    model.memo.on = memo
    seen = []
    hook = model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with model.part() as spent:
        metric.measure(trials)
    hook.remove()
    expected = {c.id: 2 * steps for c in cases}
    assert {c: pytest.approx(n) for c, n in expected.items()} == dict(spent.forward)
    assert sum(seen) == 8 * 2 * steps  # 8 cases fill whole blocks, so nothing is padding
    with model.part() as again:  # a second metric on the same baseline costs as much alone
        metric.measure(trials)
    assert dict(again.forward) == dict(spent.forward)


def test_the_clean_and_blank_scores_are_shared_by_explainers(toys):
    model, cases, heats = batch(toys, 8)
    Deletion(steps=3).measure(toys.trials(model, cases, heats))
    seen = []
    model.net.mix.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    Deletion(steps=3).measure(toys.trials(model, cases, heats[::-1]))
    assert sum(seen) == 8 * 4


def test_undefined_cases_cost_nothing_and_leave_the_others_alone(toys):
    model, cases, heats = batch(toys, 4)
    expected = Deletion(steps=4).measure(toys.trials(model, cases, heats))
    broken = [None, heats[1], torch.full((2, 2), float("nan")), heats[3]]
    with model.part() as spent:
        found = Deletion(steps=4).measure(toys.trials(model, cases, broken))
    assert set(spent.forward) == {cases[1].id, cases[3].id}
    assert [s.values["srg"].reason for s in found] == ["no image map", "", "NaN or infinity in the map", ""]
    for i in (1, 3):
        assert (found[i].values, found[i].curves) == (expected[i].values, expected[i].curves)
    assert Deletion().measure([]) == []
    assert all(not s.curves for s in Deletion().measure(toys.trials(model, cases[:1], [None])))


def test_a_score_that_is_no_number_is_undefined(toys):
    image = torch.full((1, 4, 4), float("inf"))
    found = toys.numbers(Deletion(), toys.linear(), [toys.case(pixels=image)], [torch.eye(4)])
    assert set(found[0].values()) == {None}


def test_the_model_is_left_as_found_and_gradients_still_flow(toys):
    model, cases, heats = batch(toys, 3)
    before = {n: (t.clone(), t.requires_grad) for n, t in model.net.named_parameters()}
    kept = [c.pixels.clone() for c in cases]
    with torch.inference_mode():  # as the runner asks
        Deletion(baseline="blur").measure(toys.trials(model, cases, heats))
    assert all(
        torch.equal(t, before[n][0]) and t.requires_grad == before[n][1]
        for n, t in model.net.named_parameters()
    )
    assert all(torch.equal(c.pixels, p) for c, p in zip(cases, kept, strict=True))
    pixels = model.stack(cases).requires_grad_()
    model.score(pixels, cases).sum().backward()
    assert bool(pixels.grad.any())


def test_probability_of_a_log_probability_is_its_exponential(toys):
    model, cases, _ = batch(toys, 2)
    model.space = "log-probability"
    found = spaces.score("probability", model, model.stack(cases), cases)
    assert torch.equal(found, model.score(model.stack(cases), cases).exp())
    assert torch.equal(spaces.clean("probability", model, cases), found)


def test_probability_is_over_the_choices(toys):
    model, (case, *_), _ = batch(toys, 1)
    two = toys.case("two", case.pixels, 2, choices=(1, 2))
    found = spaces.score("probability", model, model.stack([two]), [two])
    logits = model.logits(model.stack([two]))[0]
    assert float(found) == pytest.approx(float(logits[1:].softmax(0)[1]))
    with pytest.raises(Refused, match="none of its choices"):
        spaces.score(
            "probability", model, case.pixels[None], [toys.case("x", case.pixels, 0, choices=(1, 2))]
        )


def test_what_it_cannot_serve_is_unsuited(toys):
    pair = toys.dual()
    case = toys.worded("w", "red ball", torch.zeros(3, 4, 4))
    with pytest.raises(Unsuited, match="cosine"):
        Deletion(output="probability").measure(toys.trials(pair, [case], [torch.eye(2)]))
    regions = toys.case(pixels=torch.zeros(5, 7))
    with pytest.raises(Unsuited, match="region features"):
        Deletion().measure(toys.trials(toys.linear(), [regions], [torch.eye(2)]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"baseline": "blurr"}, "did you mean 'blur'"),
        ({"output": "logit"}, "no output 'logit'"),
        ({"normalise": "clean"}, "no normalise 'clean'"),
        ({"upsample": "none"}, "no upsample 'none'"),
        ({"steps": 0}, "1 step or more"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Deletion(**setting)
