"""ROAD against an image-by-image twin, its number of pixels, and a hook that counts and sees what is forwarded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import imputation, road, spaces
from heatproof.metrics.road import Road

VECTORS = (
    Path(os.environ.get("HEATPROOF_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared/conformance"))
    / "vectors.json"
)


def batch(toys, count, channels=3, size=(8, 10)):
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, channels, *size, generator=chance)
    heats = torch.randn(count, *size, generator=chance)
    return (
        curved(toys, channels),
        [toys.case(f"s{i}.{i}", p, i % 3) for i, p in enumerate(pixels)],
        list(heats),
    )


def curved(toys, channels=3):
    model = toys.curved(channels)
    model.frame = Frame(8, mean=(0.5,) * channels, std=(0.5,) * channels)
    return model


def forwarded(model, metric, trials):
    """The images that the net saw, in order."""
    metric.measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    seen = []
    hook = model.net.mix.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    metric.measure(trials)
    hook.remove()
    return torch.cat(seen)


# ---------------------------------------------------------------- formulas


@given(st.integers(2, 3000), st.floats(0.01, 0.99))
def test_the_most_and_the_least_are_k_to_the_nearest(n, share):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    hot, cold = road.most(order, share, first=True), road.most(order, share, first=False)
    assert len(hot) == len(cold)
    assert abs(len(hot) - share * n) <= 0.5 + 1e-9
    assert torch.equal(hot, order[: len(hot)])
    assert torch.equal(cold.flip(0), order.flip(0)[: len(cold)])


def chance_of(model, image, case):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3))).softmax(1)[
        0, case.target
    ]


def logit_of(model, image, case):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[0, case.target]


@pytest.mark.parametrize("rule", list(imputation.RULES))
@pytest.mark.parametrize(("output", "space"), [("native", logit_of), ("probability", chance_of)])
def test_it_is_the_slow_twin(toys, output, space, rule, record_property):
    """Sort in Python, drop k pixels, impute without noise, ask one image at a time, average."""
    model, cases, heats = batch(toys, 3)
    shares, worst = (0.1, 0.25, 0.9), 0.0
    metric = Road(shares=shares, noise=0.0, output=output, imputation=rule)
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        order = sorted(range(80), key=lambda p: -float(heat.reshape(-1)[p]))
        means = {}
        for name, down in (("morf", order), ("lerf", order[::-1])):
            curve = []
            for share in shares:
                removed = torch.zeros(80, dtype=torch.bool)
                removed[down[: round(share * 80)]] = True
                image = imputation.fill(case.pixels, removed.reshape(8, 10), rule)
                curve.append(float(space(model, image, case)))
            assert score.curves[name][0] == pytest.approx(shares, abs=1e-12)
            assert score.curves[name][1] == pytest.approx(curve, abs=1e-6)
            means[name] = float(np.mean(curve))
        expected = {
            "road_morf": means["morf"],
            "road_lerf": means["lerf"],
            "road": (means["lerf"] - means["morf"]) / 2,
        }
        for name, value in expected.items():
            worst = max(worst, abs(score.values[name].number - value))
    print(f"largest deviation from the slow twin ({output}, {rule}): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < 1e-6


def test_on_a_constant_image_nothing_can_be_removed(toys):
    """A mean of equal pixels is the pixel: without noise the score of a sum stays, whatever the map."""
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 4, 4))], [torch.eye(4)])
    (score,) = Road(noise=0.0).measure(trials)
    assert score.values["road_morf"].number == pytest.approx(16.0, abs=1e-5)
    assert score.values["road"].number == pytest.approx(0.0, abs=1e-6)


def test_a_spot_is_found_by_the_map_that_knows_it(toys):
    """A bright square on black, the score its sum: removing it imputes black; removing anything else leaves it."""
    image = torch.zeros(1, 10, 10)
    image[0, 2:6, 3:7] = 1.0
    case = toys.case(pixels=image)
    metric = Road(shares=(0.16,), noise=0.0)
    right, wrong = toys.numbers(metric, toys.linear(), [case, case], [image[0], -image[0]])
    assert right["road_morf"] == wrong["road_lerf"] == 0.0
    assert right["road_lerf"] >= 16  # what is removed beside the square fills up with its light
    assert wrong["road_morf"] >= 16
    assert right["road"] == right["road_lerf"] / 2


# ---------------------------------------------------------------- exactly k


def test_the_sparse_map_loses_205_pixels():
    """A map of zeros but for 7 x 7 ones: at the top 20 % of 32 x 32 pytorch-grad-cam removes all 1024."""
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    (entry,) = (e for e in json.loads(VECTORS.read_text()) if e["id"] == "PATHO-road-sparse-cam")
    heat = torch.zeros(32, 32)
    heat[4:11, 4:11] = 1.0
    order = road.ranking.order(heat, torch.Generator().manual_seed(0))
    removed = road.most(order, 0.2, first=True)
    assert len(removed.unique()) == entry["expect"]["removed_pixels"] == 205
    ones = set(heat.reshape(-1).nonzero().reshape(-1).tolist())
    assert ones <= set(removed.tolist())


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 3),
    st.sampled_from([(0.2,), (0.05, 0.5, 0.95), (0.2, 0.4, 0.6, 0.8)]),
    st.sampled_from([1, 3]),
)
def test_exactly_k_pixels_change_whatever_the_ties(toys, kind, shares, channels):
    """Seen at the net's door: noise tells every imputed pixel apart from what it was, in all channels at once."""
    heat = (torch.zeros(7, 9), torch.eye(7, 9), torch.arange(63.0).reshape(7, 9), -torch.eye(7, 9))[kind]
    image = torch.randn(channels, 7, 9, generator=torch.Generator().manual_seed(kind))
    model = curved(toys, channels)
    seen = forwarded(model, Road(shares=shares), toys.trials(model, [toys.case(pixels=image)], [heat]))
    changed = (seen != image).all(1).flatten(1)
    assert torch.equal(changed, (seen != image).any(1).flatten(1))
    counts = [int(s * 63 + 0.5) for s in shares]
    assert changed.sum(1)[: 2 * len(shares)].tolist() == [*counts, *counts]
    morf, lerf = changed[: len(shares)], changed[len(shares) : 2 * len(shares)]
    assert bool((morf[:-1] <= morf[1:]).all()), "what is gone stays gone"
    flat = heat.reshape(-1)
    for rows, sign in ((morf, 1), (lerf, -1)):
        for row in rows:
            assert (sign * flat[row]).min() >= (sign * flat[~row]).max()
    if sum(shares[-1:]) <= 0.5:
        assert not (morf & lerf).any()


def test_the_noise_is_a_share_of_the_photographs_range(toys):
    """0.01 of 0 ... 255 in the photograph is 0.01 / 0.5 after a normalisation by 0.5."""
    model = curved(toys)
    case = toys.case(pixels=torch.full((3, 60, 60), 0.25))
    heat = torch.arange(3600.0).reshape(60, 60)
    (row, *_) = forwarded(model, Road(shares=(0.5,), noise=0.01), toys.trials(model, [case], [heat]))
    noise = row[:, row[0] != 0.25] - 0.25
    assert noise.shape[1] == 1800
    assert noise.std(1).tolist() == pytest.approx([0.02] * 3, rel=0.1)


# ---------------------------------------------------------------- invariances


def test_positive_rescaling_fp16_and_channels_change_nothing(toys):
    model, cases, heats = batch(toys, 4)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(Road(), model, cases, heats)
    for same in ([h.half() for h in heats], [h * 8 for h in heats], [torch.stack([h, h]) for h in heats]):
        assert toys.numbers(Road(), model, cases, same) == expected


def test_flips_of_image_and_map_change_nothing(toys):
    """On a sum, which does not know where a pixel lies (tie-free map, no noise)."""
    chance = torch.Generator().manual_seed(2)
    image, heat = torch.randn(1, 6, 9, generator=chance), torch.randn(6, 9, generator=chance)
    (expected,) = toys.numbers(Road(noise=0.0), toys.linear(), [toys.case(pixels=image)], [heat])
    for flip in ([0], [1], [0, 1]):
        turned = toys.case(pixels=image.flip([d + 1 for d in flip]))
        (found,) = toys.numbers(Road(noise=0.0), toys.linear(), [turned], [heat.flip(flip)])
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_negated_map_swaps_the_curves(toys):
    model, cases, heats = batch(toys, 3)
    one = toys.numbers(Road(noise=0.0), model, cases, heats)
    other = toys.numbers(Road(noise=0.0), model, cases, [-h for h in heats])
    for a, b in zip(one, other, strict=True):
        assert (a["road_morf"], a["road_lerf"], a["road"]) == (b["road_lerf"], b["road_morf"], -b["road"])


def mixed(toys, count=8):
    """Cases in every shape a map comes in, two of them undefined."""
    model, cases, heats = batch(toys, count)
    kinds = [
        lambda h: h, lambda h: h.sign(), lambda h: torch.ones(2, 3), lambda h: h.half(),
        lambda h: None, lambda h: torch.stack([h, h * h]), lambda h: h * float("nan"), lambda h: h[:3, :2],
    ]  # fmt: skip
    return model, cases, [kinds[i % 8](h) for i, h in enumerate(heats)]


@pytest.mark.parametrize(
    "metric", [Road(), Road(shares=(0.3,), output="probability", imputation="harmonic", sign="abs")]
)
def test_chunks_and_order_change_nothing(toys, metric):
    model, cases, heats = mixed(toys)
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
    reasons = [s.values["road"].reason for s in expected]
    assert reasons == ["", "", "", "", "no image map", "", "NaN or infinity in the map", ""]
    assert len({s.values["road"].number for s in expected}) == 7


@pytest.mark.parametrize("output", spaces.OUTPUTS)
def test_two_rows_a_share_and_no_more(toys, output):
    model, cases, heats = batch(toys, 8)
    trials, metric = toys.trials(model, cases, heats), Road(shares=(0.2, 0.5, 0.7), output=output)
    with model.part() as spent:
        seen = forwarded(model, metric, trials)
    first = cases[0].id  # asked once more, to weigh the stages
    assert {c.id: pytest.approx(12 if c.id == first else 6) for c in cases} == dict(spent.forward)
    assert len(seen) == 8 * 6


# ---------------------------------------------------------------- undefined, unsuited, refused


def test_a_tiny_image_of_which_nothing_is_left_is_undefined(toys):
    (score,) = Road(shares=(0.5, 0.9)).measure(
        toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 1, 2))], [torch.tensor([[1.0, 0.0]])])
    )
    assert {v.reason for v in score.values.values()} == {
        "every pixel removed: there is none left to impute from"
    }


def test_a_score_that_is_no_number_is_undefined(toys):
    image = torch.full((1, 4, 4), float("inf"))
    found = toys.numbers(Road(), toys.linear(), [toys.case(pixels=image)], [torch.eye(4)])
    assert set(found[0].values()) == {None}


def test_model_and_cases_are_left_as_found(toys):
    model, cases, heats = batch(toys, 2)
    before = [t.clone() for t in model.net.parameters()], [c.pixels.clone() for c in cases]
    with torch.inference_mode():
        Road().measure(toys.trials(model, cases, heats))
    assert all(map(torch.equal, before[0], model.net.parameters()))
    assert all(map(torch.equal, before[1], (c.pixels for c in cases)))
    assert Road().measure([]) == []


def test_what_it_cannot_serve_is_unsuited(toys):
    worded = toys.worded("w", "red ball", torch.zeros(3, 4, 4))
    with pytest.raises(Unsuited, match="cosine"):
        Road(output="probability").measure(toys.trials(toys.dual(), [worded], [torch.eye(2)]))
    assert Road().measure(toys.trials(toys.dual(), [worded], [torch.eye(2)]))[0].values["road"].defined
    with pytest.raises(Unsuited, match="region features"):
        Road().measure(toys.trials(toys.linear(), [toys.case(pixels=torch.zeros(5, 7))], [torch.eye(2)]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"shares": ()}, "one share or more"),
        ({"shares": (0.5, 0.2)}, "rising order"),
        ({"shares": (0.2, 1.0)}, "between 0 and 1"),
        ({"shares": (20, 40)}, "between 0 and 1"),
        ({"noise": -0.1}, "noise of 0 or more"),
        ({"imputation": "liner"}, "did you mean 'linear'"),
        ({"output": "logit"}, "no output 'logit'"),
        ({"upsample": "none"}, "no upsample 'none'"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Road(**setting)
