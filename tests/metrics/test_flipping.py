"""Pixel flipping against a pixel-by-pixel twin, closed forms, and the rows that Deletion takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Refused, Unsuited
from heatproof.metrics import baselines, flipping
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.flipping import PixelFlipping

BLANKS = ("mean", "black", "image_mean", "blur", "noise")  # the others need more than the case


def batch(toys, count, channels=3, size=(6, 9)):
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, channels, *size, generator=chance)
    heats = torch.randn(count, *size, generator=chance)
    return (
        toys.curved(channels),
        [toys.case(f"s{i}.{i}", p, i % 3) for i, p in enumerate(pixels)],
        list(heats),
    )


# ---------------------------------------------------------------- formulas


@given(st.integers(1, 50), st.floats(-5, 5), st.floats(-5, 5))
def test_a_straight_curve_falls_by_half_of_what_it_falls_in_all(steps, start, end):
    line = [start + (end - start) * k / steps for k in range(steps + 1)]
    assert flipping.aopc(line) == pytest.approx((start - end) / 2, abs=1e-9)
    assert flipping.aopc([start] * (steps + 1)) == 0
    assert flipping.abpc(line, line) == 0
    assert flipping.abpc(line, [start] * steps + [end]) == pytest.approx(
        flipping.aopc(line) - (start - end) / (steps + 1), abs=1e-9
    )


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_a_linear_model_has_its_closed_form(toys, steps):
    """12 pixels 12, 11 ... 1 of a sum: after k of them the score has fallen by their sum."""
    image = torch.arange(12.0, 0, -1).reshape(1, 3, 4)
    trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [image[0]])
    (score,) = PixelFlipping(steps=steps).measure(trials)
    gone = [int(12 * i / steps + 0.5) for i in range(steps + 1)]
    fallen = np.mean([sum(range(12, 12 - k, -1)) for k in gone])
    assert score.values["aopc"].number == pytest.approx(fallen, abs=1e-9)
    if 12 % steps == 0:
        least = np.mean([sum(range(1, k + 1)) for k in gone])
        assert score.values["aopc_lerf"].number == pytest.approx(least, abs=1e-9)
        assert score.values["abpc"].number == pytest.approx(fallen - least, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
def test_on_equal_pixels_no_order_is_better_whatever_the_steps_and_regions(toys, steps, patch, high, wide):
    """The score is the share that is left: MoRF and LeRF fall alike, also where a step's regions cannot be equal."""
    image = torch.ones(1, high, wide)
    heat = torch.randn(high, wide, generator=torch.Generator().manual_seed(high * wide))
    trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [heat])
    (score,) = PixelFlipping(steps=steps, patch=patch).measure(trials)
    assert score.values["abpc"].number == pytest.approx(0.0, abs=1e-5 * high * wide)


def slow(model, case, heat, steps, blank):
    """Samek et al. by hand: flip the regions one after the other, both ways, and average how far the score fell."""
    found = []
    for turn in (-1, 1):
        places = sorted(np.ndindex(*heat.shape), key=lambda p, turn=turn: turn * float(heat[p]))
        image, scores = case.pixels.clone(), []
        for done in range(len(places) + 1):
            if done:
                y, x = places[done - 1]
                image[:, y, x] = blank[:, y, x]
            scores.append(
                float(
                    model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[
                        0, case.target
                    ]
                )
            )
        wanted = [len(places) * i // steps for i in range(steps + 1)]
        found.append(np.mean([scores[0] - scores[k] for k in wanted]))
    return found


@pytest.mark.parametrize("baseline", BLANKS)
def test_it_is_the_slow_twin(toys, baseline, record_property):
    model, cases, heats = batch(toys, 3)
    metric, worst = PixelFlipping(steps=9, baseline=baseline, sigma=1.0), 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        morf, lerf = slow(model, case, heat, 9, baselines.blank(baseline, case, model, 1.0))
        for name, expected in (("aopc", morf), ("aopc_lerf", lerf), ("abpc", morf - lerf)):
            worst = max(worst, abs(score.values[name].number - expected))
    print(f"largest deviation from the slow twin ({baseline}): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < 1e-6


# ---------------------------------------------------------------- laws


def test_a_negated_map_swaps_the_orders(toys):
    model, cases, heats = batch(toys, 3)
    one = toys.numbers(PixelFlipping(steps=6), model, cases, heats)
    other = toys.numbers(PixelFlipping(steps=6), model, cases, [-h for h in heats])
    for a, b in zip(one, other, strict=True):
        assert (a["aopc"], a["aopc_lerf"]) == pytest.approx((b["aopc_lerf"], b["aopc"]), abs=1e-7)
        assert a["abpc"] == pytest.approx(-b["abpc"], abs=1e-7)


def test_positive_rescaling_fp16_and_channels_change_nothing(toys):
    model, cases, heats = batch(toys, 4)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(PixelFlipping(steps=4), model, cases, heats)
    for same in ([h.half() for h in heats], [h * 8 for h in heats], [torch.stack([h, h]) for h in heats]):
        assert toys.numbers(PixelFlipping(steps=4), model, cases, same) == expected


@pytest.mark.parametrize(
    "metric", [PixelFlipping(steps=5), PixelFlipping(steps=3, patch=2, output="probability")]
)
def test_chunks_and_order_change_nothing(toys, metric):
    model, cases, heats = batch(toys, 7)
    heats[1], heats[2], heats[3], heats[4] = None, heats[2].sign(), heats[3] * float("nan"), torch.ones(2, 2)
    trials = toys.trials(model, cases, heats)
    model.memo.clear()
    expected = metric.measure(trials)
    for chunk in (1, 3, len(trials)):
        for way in (1, -1):
            asked, found = trials[::way], []
            for first in range(0, len(asked), chunk):
                model.memo.clear()
                found += metric.measure(asked[first : first + chunk])
            assert [(s.values, s.curves) for s in found[::way]] == [(s.values, s.curves) for s in expected]
    reasons = [{v.reason for v in s.values.values()} for s in expected]
    assert reasons == [{""}, {"no image map"}, {""}, {"NaN or infinity in the map"}, {""}, {""}, {""}]
    assert not expected[1].curves
    assert metric.measure([]) == []


def test_its_rows_are_deletions(toys):
    model, cases, heats = batch(toys, 5)
    trials = toys.trials(model, cases, heats)
    spent = []
    for metric in (Deletion(steps=4), PixelFlipping(steps=4)):
        model.memo.clear()
        with model.part() as meter:
            metric.measure(trials)
        spent.append(dict(meter.forward))
    assert spent[0] == spent[1]
    assert spent[0] == {c.id: pytest.approx(8) for c in cases}


def test_what_deletion_refuses_it_refuses(toys):
    with pytest.raises(Refused, match=r"metrics\.flipping.* did you mean 'blur'"):
        PixelFlipping(baseline="blurr")
    with pytest.raises(Refused, match="1 step or more"):
        PixelFlipping(steps=0)
    with pytest.raises(Unsuited, match="region features"):
        PixelFlipping().measure(
            toys.trials(toys.linear(), [toys.case(pixels=torch.zeros(5, 7))], [torch.eye(2)])
        )
    image = torch.full((1, 4, 4), float("inf"))
    (found,) = toys.numbers(PixelFlipping(), toys.linear(), [toys.case(pixels=image)], [torch.eye(4)])
    assert set(found.values()) == {None}
