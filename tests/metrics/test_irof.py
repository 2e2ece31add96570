"""IROF against a segment-by-segment twin, closed forms, and a meter that counts its rows."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import baselines, irof
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.irof import Irof
from heatproof.metrics.maps import Undefined

BLANKS = ("mean", "black", "image_mean", "blur", "noise")  # the others need more than the case


def curved(toys, channels=3):
    model = toys.curved(channels)
    model.frame = Frame(8, mean=(0.5,) * channels, std=(0.5,) * channels)
    return model


def batch(toys, count, channels=3, size=(8, 11)):
    """Blocks of colour: superpixels of plain noise join into one segment."""
    chance = torch.Generator().manual_seed(5)
    blocks = torch.randn(count, channels, 3, 4, generator=chance) / 2
    pixels = torch.nn.functional.interpolate(blocks, size=size, mode="nearest-exact")
    heats = torch.randn(count, *size, generator=chance)
    cases = [toys.case(f"s{i}.{i}", p, i % 3) for i, p in enumerate(pixels)]
    return curved(toys, channels), cases, list(heats)


# ---------------------------------------------------------------- segments


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_a_grid_has_equal_cells_in_reading_order(high, wide, cells):
    found = irof.grid((high, wide), cells)
    assert found.shape == (high, wide)
    assert found.unique().tolist() == list(range(min(cells, high) * min(cells, wide)))
    for lines in (found, found.T):
        firsts = lines[:, 0]
        sizes = torch.bincount(torch.unique(firsts, return_inverse=True)[1])
        assert sizes.max() - sizes.min() <= 1
        assert bool((firsts[1:] >= firsts[:-1]).all())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_the_plan_removes_whole_segments_by_their_mean(seed, number):
    chance = torch.Generator().manual_seed(seed)
    segments = torch.randint(0, number, (6, 7), generator=chance)
    segments = torch.unique(segments, return_inverse=True)[1]
    heat = torch.randn(6, 7, generator=chance)
    plan = irof.segment_plan(heat, segments, chance)
    flat, means = segments.reshape(-1), []
    for first, last in zip(plan.gone[:-1], plan.gone[1:], strict=True):
        gone = plan.order[first:last]
        (segment,) = flat[gone].unique().tolist()
        assert sorted(gone.tolist()) == (flat == segment).nonzero().reshape(-1).tolist()
        means.append(float(np.mean(heat.reshape(-1).double().numpy()[gone])))
    assert means == sorted(means, reverse=True)
    assert plan.gone[-1] == 42
    assert irof.segment_means(heat, segments).max() == pytest.approx(means[0], abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_slic_cuts_the_photograph_and_not_its_normalisation(channels):
    pytest.importorskip("skimage")
    frames = [Frame(24, mean=(m,) * channels, std=(s,) * channels) for m, s in ((0.5, 0.5), (0.1, 0.3))]
    picture = (
        torch.arange(256.0)[:channels, None, None] * 40
        + torch.arange(30.0) * 4
        + torch.arange(24.0)[:, None] * 3
    )
    picture[:, :, 13:] -= 60
    picture = picture.clamp(0, 255)
    cuts = []
    for frame in frames:
        mean, std = (torch.tensor(v)[:, None, None] for v in (frame.mean, frame.std))
        cuts.append(irof.slic((picture / 255 - mean) / std, 16, 10.0, frame))
    assert torch.equal(*cuts)
    assert cuts[0].shape == (24, 30)
    assert cuts[0].unique().tolist() == list(range(int(cuts[0].max()) + 1))
    assert 4 < int(cuts[0].max()) < 40
    assert all(len(cuts[0][:, x].unique()) > 1 for x in (12, 13))
    assert not set(cuts[0][:, 12].tolist()) & set(cuts[0][:, 13].tolist()), "no segment crosses the edge"


# ---------------------------------------------------------------- the curve


def test_area_over_is_one_less_the_relative_area():
    assert irof.area_over([0, 0.25, 1], [2.0, 2.0, 2.0]) == 0
    assert irof.area_over([0, 0.5, 1], [2.0, 0.0, 0.0]) == 0.75
    assert irof.area_over([0, 0.5, 1], [1.0, 3.0, 1.0]) == -1
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(Undefined, match="not score above 0"):
            irof.area_over([0, 1], [bad, 0.0])


@pytest.mark.parametrize("cells", [2, 4])
def test_a_linear_model_has_its_closed_form(toys, cells):
    """Pixels 16 ... 1 of a sum, black in their stead; cells of the map's own image."""
    image = torch.arange(16.0, 0, -1).reshape(1, 4, 4)
    trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [image[0]])
    (score,) = Irof(cells=cells, baseline="black", output="native").measure(trials)
    side = 4 // cells
    sums = sorted(
        (
            float(image[0, y : y + side, x : x + side].sum())
            for y in range(0, 4, side)
            for x in range(0, 4, side)
        ),
        reverse=True,
    )
    curve = [1 - sum(sums[:k]) / 136 for k in range(cells**2 + 1)]
    assert score.curves["irof"][1] == pytest.approx(curve, abs=1e-6)
    area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / cells**2
    assert score.values["irof"].number == pytest.approx(1 - area, abs=1e-6)


def test_it_does_not_know_the_number_of_segments_where_the_curve_is_straight(toys):
    image = torch.ones(1, 12, 12)
    for cells in (2, 3, 4, 6, 12):
        trials = toys.trials(toys.linear(), [toys.case(pixels=image)], [torch.rand(12, 12)])
        (found,) = Irof(cells=cells, baseline="black", output="native").measure(trials)
        assert found.values["irof"].number == pytest.approx(0.5, abs=1e-6)


def slow(model, case, heat, segments, blank, over):
    """The paper by hand: rank the segments by their mean, take them away one by one, divide by the first score."""
    names = sorted(np.unique(segments), key=lambda s: -float(heat.double().numpy()[segments == s].mean()))
    image, scores, gone = case.pixels.clone(), [], [0]
    ask = lambda x: float(
        model.net.last(torch.tanh(model.net.mix(x[None])).square().mean((2, 3))).softmax(1)[0, case.target]
    )
    scores.append(ask(image))
    for name in names:
        image[:, torch.from_numpy(segments == name)] = blank[:, torch.from_numpy(segments == name)]
        scores.append(ask(image))
        gone.append(gone[-1] + int((segments == name).sum()))
    x = [g / gone[-1] for g in gone] if over == "pixels" else [k / len(names) for k in range(len(names) + 1)]
    return 1 - np.trapezoid([s / scores[0] for s in scores], x)


@pytest.mark.parametrize("over", ["segments", "pixels"])
@pytest.mark.parametrize("segments", irof.SEGMENTS)
@pytest.mark.parametrize("baseline", BLANKS)
def test_it_is_the_slow_twin(toys, baseline, segments, over, record_property):
    if segments == "slic":
        pytest.importorskip("skimage")
    model, cases, heats = batch(toys, 3, size=(10, 12))
    metric = Irof(segments=segments, cells=3, over=over, baseline=baseline, sigma=1.0)
    worst = 0.0
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        cut = irof.grid((10, 12), 3) if segments == "grid" else irof.slic(case.pixels, 9, 10.0, model.frame)
        blank = baselines.blank(baseline, case, model, 1.0)
        expected = slow(model, case, heat, cut.numpy(), blank, over)
        worst = max(worst, abs(score.values["irof"].number - expected))
    print(f"largest deviation from the slow twin ({segments}, {baseline}, {over}): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < 1e-6


def test_exactly_the_segments_go_whatever_the_ties(toys):
    trials = toys.trials(toys.linear(), [toys.case(pixels=torch.ones(1, 4, 6))], [torch.zeros(4, 6)])
    (score,) = Irof(cells=2, baseline="black", output="native", over="pixels").measure(trials)
    assert score.curves["irof"][0] == [0, 0.25, 0.5, 0.75, 1]
    assert score.curves["irof"][1] == [1, 0.75, 0.5, 0.25, 0]


# ---------------------------------------------------------------- laws


def test_positive_rescaling_fp16_and_channels_change_nothing(toys):
    model, cases, heats = batch(toys, 4)
    heats = [h.half().float() for h in heats]
    expected = toys.numbers(Irof(cells=3), model, cases, heats)
    for same in ([h.half() for h in heats], [h * 8 for h in heats], [torch.stack([h, h]) for h in heats]):
        assert toys.numbers(Irof(cells=3), model, cases, same) == expected


def test_flips_of_image_and_map_change_nothing(toys):
    chance = torch.Generator().manual_seed(2)
    image, heat = torch.rand(1, 6, 8, generator=chance), torch.randn(6, 8, generator=chance)
    metric = Irof(cells=2, output="native")
    (expected,) = toys.numbers(metric, toys.linear(), [toys.case(pixels=image)], [heat])
    for flip in ([0], [1], [0, 1]):
        turned = toys.case(pixels=image.flip([d + 1 for d in flip]))
        (found,) = toys.numbers(metric, toys.linear(), [turned], [heat.flip(flip)])
        assert found["irof"] == pytest.approx(expected["irof"], abs=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.integers(2, 4))
def test_a_probability_never_gives_more_than_one(toys, seed, channels, cells):
    chance = torch.Generator().manual_seed(seed)
    case = toys.case(pixels=torch.randn(channels, 5, 7, generator=chance))
    (found,) = toys.numbers(
        Irof(cells=cells), curved(toys, channels), [case], [torch.randn(2, 3, generator=chance)]
    )
    assert found["irof"] < 1


@pytest.mark.parametrize(
    "metric",
    [
        Irof(cells=3),
        Irof(segments="slic", cells=3, over="pixels"),
        Irof(cells=2, output="native", sign="abs"),
    ],
)
def test_chunks_and_order_change_nothing(toys, metric):
    """Segment counts vary from image to image, and so may the reasons for which there is no number."""
    if metric.segments == "slic":
        pytest.importorskip("skimage")
    model, cases, heats = batch(toys, 8, size=(10, 12))
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
    reasons = [s.values["irof"].reason for s in expected]
    assert (reasons[1], reasons[3]) == ("no image map", "NaN or infinity in the map")
    if metric.output == "native":
        assert "the untouched image does not score above 0: there is no ratio to it" in reasons
    else:
        assert sum(r == "" for r in reasons) == 6
    assert metric.measure([]) == []


def test_one_row_more_than_segments(toys):
    model, cases, heats = batch(toys, 5)
    trials = toys.trials(model, cases, heats)
    Irof(cells=2).measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    with model.part() as spent:
        Irof(cells=3).measure(trials)
    assert dict(spent.forward) == {c.id: pytest.approx(10) for c in cases}


def test_clean_and_blank_scores_are_shared_with_deletion(toys):
    model, cases, heats = batch(toys, 4)
    model.memo.on = True
    trials = toys.trials(model, cases, heats)
    Deletion(steps=2, output="probability", baseline="image_mean").measure(trials)
    run = model.meter.run
    Irof(cells=2).measure(trials)
    assert model.meter.run - run == pytest.approx(4 * 3)


def test_a_case_that_ends_early_costs_no_more_than_its_end(toys):
    image = torch.stack([torch.full((1, 4, 4), -1.0), torch.ones(1, 4, 4)])
    cases = [toys.case("below", image[0]), toys.case("above", image[1])]
    model = toys.linear()
    trials = toys.trials(model, cases, [torch.eye(4)] * 2)
    Irof(cells=2, output="native").measure(trials)
    model.memo.clear()
    with model.part() as spent:
        below, above = Irof(cells=2, output="native").measure(trials)
    assert dict(spent.forward) == {"below": pytest.approx(1), "above": pytest.approx(5)}
    assert not below.values["irof"].defined
    assert not below.curves
    assert above.values["irof"].defined


# ---------------------------------------------------------------- undefined, unsuited, refused


def test_one_segment_is_undefined_with_a_reason(toys):
    cases = [toys.case("flat", torch.full((3, 8, 8), 0.2)), toys.case("one", torch.zeros(3, 1, 1))]
    for metric in (Irof(cells=1), Irof(segments="slic", cells=1)):
        if metric.segments == "slic":
            pytest.importorskip("skimage")
        for score in metric.measure(toys.trials(curved(toys), cases[:1], [torch.rand(8, 8)])):
            assert score.values["irof"].reason == "the image is one segment: there is nothing to rank"
    (score,) = Irof().measure(toys.trials(curved(toys), cases[1:], [torch.rand(1, 1)]))
    assert score.values["irof"].reason == "the image is one segment: there is nothing to rank"


def test_a_score_that_is_no_number_is_undefined(toys):
    image = torch.full((1, 4, 4), float("inf"))
    found = toys.numbers(
        Irof(cells=2, output="native"), toys.linear(), [toys.case(pixels=image)], [torch.eye(4)]
    )
    assert set(found[0].values()) == {None}


def test_what_it_cannot_serve_is_unsuited(toys):
    worded = toys.worded("w", "red ball", torch.zeros(3, 4, 4))
    with pytest.raises(Unsuited, match="cosine"):
        Irof().measure(toys.trials(toys.dual(), [worded], [torch.eye(2)]))
    with pytest.raises(Unsuited, match="region features"):
        Irof().measure(toys.trials(toys.linear(), [toys.case(pixels=torch.zeros(5, 7))], [torch.eye(2)]))


def test_without_scikit_image_slic_is_refused_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(Refused, match="pip install scikit-image"):
        Irof(segments="slic")
    assert Irof().segments == "grid"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"segments": "slick"}, "did you mean 'slic'"),
        ({"over": "segment"}, "did you mean 'segments'"),
        ({"cells": 0}, "1 cell or more"),
        ({"compactness": 0.0}, "compactness and a sigma above 0"),
        ({"baseline": "grey"}, "no baseline 'grey'"),
        ({"output": "logit"}, "no output 'logit'"),
        ({"upsample": "none"}, "no upsample 'none'"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Irof(**setting)
