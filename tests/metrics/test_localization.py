"""Localization against loops written from the papers' formulas, its ranges, ties and undefined cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heatproof import geometry
from heatproof.contract import Explanation, Refused
from heatproof.metrics import localization as loc
from heatproof.metrics.localization import Localization

NAMES = ("pointing", "mass", "rank", "energy", "iou", "iou_pooled")
SIZE = st.tuples(st.integers(2, 6), st.integers(2, 6))


@st.composite
def scenes(draw, elements=None):
    """A map and a mask of one size; the mask neither empty nor everything."""
    size = draw(SIZE)
    values = st.sampled_from([0.0, 0.25, 1.0, 2.0, -1.0]) if elements is None else elements
    heat = draw(arrays(np.float32, size, elements=values))
    mask = draw(arrays(bool, size))
    mask.flat[0], mask.flat[-1] = True, False
    return torch.tensor(heat), torch.tensor(mask)


def ask(toys, heat, mask, metric=None, **more):
    pixels = torch.zeros(1, *mask.shape)
    case = toys.case(pixels=pixels, evidence=mask[None], **more)
    return toys.numbers(metric or Localization(), None, [case], [heat])[0]


def slow(
    heat: list[list[float]], mask: list[list[bool]], tolerance: float, threshold: float
) -> dict[str, float]:
    """The papers' formulas, pixel by pixel, on maps whose values are equal or far apart."""
    spots = [(y, x) for y in range(len(mask)) for x in range(len(mask[0]))]
    hot = {p: max(heat[p[0]][p[1]], 0.0) for p in spots}
    inside = [p for p in spots if mask[p[0]][p[1]]]
    near = [p for p in spots if any(p == q or math.dist(p, q) < tolerance for q in inside)]
    top = [p for p in spots if hot[p] == max(hot.values())]
    ys, xs = [y for y, _ in inside], [x for _, x in inside]
    box = [p for p in spots if min(ys) <= p[0] <= max(ys) and min(xs) <= p[1] <= max(xs)]
    total = sum(hot.values())
    k, order = len(inside), sorted(spots, key=lambda p: -hot[p])
    edge = hot[order[k - 1]]
    above = [p for p in spots if hot[p] > edge]
    level = [p for p in spots if hot[p] == edge]
    share = sum(p in inside for p in level) / len(level)
    found = {
        "pointing": sum(p in near for p in top) / len(top),
        "rank": (sum(p in inside for p in above) + (k - len(above)) * share) / k,
    }
    if total:
        region = {p for p in spots if hot[p] >= threshold * max(hot.values())}
        found["mass"] = sum(hot[p] for p in inside) / total
        found["iou"] = len(region & set(inside)) / len(region | set(inside))
        if len(box) < len(spots):
            found["energy"] = sum(hot[p] for p in box) / total
    return found


@settings(deadline=None)
@given(scenes(), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 15.0]), st.sampled_from([0.2, 0.5, 1.0]))
def test_it_is_the_slow_twin(toys, scene, tolerance, threshold):
    heat, mask = scene
    expected = slow(heat.tolist(), mask.tolist(), tolerance, threshold)
    found = ask(toys, heat, mask, Localization(tolerance=tolerance, threshold=threshold))
    assert found.pop("iou_pooled") == found["iou"]
    assert {n: v for n, v in found.items() if v is not None} == pytest.approx(expected, abs=1e-12)
    assert set(found) == set(NAMES) - {"iou_pooled"}


@settings(deadline=None)
@given(scenes(st.floats(-4, 4, width=16)), st.integers(-8, 8))
def test_range_and_positive_rescaling(toys, scene, power):
    heat, mask = scene
    found = ask(toys, heat, mask)
    assert all(v is None or 0 <= v <= 1 for v in found.values())
    assert ask(toys, heat * 2.0**power, mask) == found
    for name, value in ask(toys, heat * 3.7, mask).items():
        assert (value is None) == (found[name] is None)
        if name in ("mass", "energy") and value is not None:
            assert value == pytest.approx(found[name], abs=1e-6)


@settings(deadline=None)
@given(scenes(st.floats(0.0, 4, width=32)))
def test_flipping_image_and_map_together_changes_nothing(toys, scene):
    heat, mask = scene
    other = ask(toys, heat.flip(1), mask.flip(1), Localization(tolerance=2))
    for name, value in ask(toys, heat, mask, Localization(tolerance=2)).items():
        assert other[name] == pytest.approx(value, abs=1e-12) if value is not None else other[name] is None


def test_fp16_channels_and_the_image_grid(toys):
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4, :6] = True
    small = torch.tensor([[1.0, -2.0], [0.25, 0.0]])
    plain = ask(toys, small, mask)
    assert ask(toys, small.half(), mask) == plain
    assert ask(toys, torch.stack([small, small]), mask) == plain  # twice the sum is the same map
    assert ask(toys, geometry.read(small, (8, 12)), mask) == plain
    native = ask(toys, small, mask, Localization(upsample="none"))
    assert native == {**dict.fromkeys(NAMES, 1.0), "mass": 0.8, "energy": 0.8}


def test_a_mask_too_small_for_the_maps_own_grid_is_undefined(toys):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 0] = True
    metric = Localization(upsample="none")
    case = toys.case(pixels=torch.zeros(1, 8, 8), evidence=mask[None])
    (score,) = metric.measure(toys.trials(None, [case], [torch.ones(2, 2)]))
    assert {v.reason for v in score.values.values()} == {
        "no evidence left outside ignored regions, on the map's grid"
    }


def test_ignored_pixels_take_no_part(toys):
    heat = torch.tensor([[9.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    ignore = torch.tensor([[True, False, False], [False, False, False]])
    found = ask(toys, heat, mask, ignore=ignore)
    assert (found["pointing"], found["mass"], found["rank"], found["iou"]) == (0.0, 0.25, 0.0, 0.0)
    assert ask(toys, heat, mask)["pointing"] == 1.0


def test_energy_reads_the_boxes_and_mass_the_mask(toys):
    heat = torch.ones(4, 4)
    mask = torch.eye(4, dtype=torch.bool)[None] & (torch.arange(4) < 3)
    found = ask(toys, heat, mask[0])
    assert (found["mass"], found["energy"]) == (3 / 16, 9 / 16)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [3.0, 3.0, 9.0, 9.0]])
    assert ask(toys, heat, mask[0], boxes=boxes)["energy"] == 3 / 16
    assert ask(toys, heat, mask[0], boxes=torch.tensor([[-5.0, -5.0, 9.0, 9.0]]))["energy"] is None


def test_pooled_iou_sums_before_it_divides(toys):
    heat = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    masks = torch.tensor([[[True, False, False, False]], [[True, True, True, False]]])
    cases = [toys.case(str(i), torch.zeros(1, 1, 4), evidence=m[None]) for i, m in enumerate(masks)]
    scores = Localization().measure(toys.trials(None, cases, [heat, heat]))
    parts = [s.values["iou_pooled"].parts for s in scores]
    assert parts == [{"num": 1, "den": 2}, {"num": 2, "den": 3}]
    assert {m.name: m.reduce for m in Localization().measures}["iou_pooled"] == "pooled_ratio"


@pytest.mark.parametrize(
    ("heat", "more", "reason"),
    [
        (None, {"evidence": "some"}, "no image map"),
        (torch.tensor([[0.0, math.nan]]), {"evidence": "some"}, "NaN or infinity in the map"),
        (torch.ones(2, 2), {}, "nothing annotated"),
        (torch.ones(2, 2), {"evidence": torch.zeros(0, 4, 4, dtype=torch.bool)}, "no evidence in the image"),
        (torch.ones(2, 2), {"evidence": torch.zeros(1, 4, 4, dtype=torch.bool)}, "no evidence in the image"),
        (torch.ones(2, 2), {"evidence": torch.ones(1, 4, 4, dtype=torch.bool)}, "evidence everywhere"),
    ],
)
def test_undefined_is_never_a_number(toys, heat, more, reason):
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    if isinstance(more.get("evidence"), str):
        more = {"evidence": mask}
    trials = toys.trials(None, [toys.case(**more)], [heat])
    (score,) = Localization().measure(trials)
    assert set(score.values) == set(NAMES)
    assert all(v.number is None and v.reason == reason for v in score.values.values())


@pytest.mark.parametrize("heat", [torch.zeros(2, 2), torch.full((2, 2), -3.0)])
def test_a_map_without_positive_relevance_has_ranks_but_no_mass(toys, heat):
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0] = True
    found = toys.numbers(Localization(), None, [toys.case(evidence=mask)], [heat])[0]
    assert found == {
        "pointing": 0.25,
        "rank": 0.25,
        "mass": None,
        "energy": None,
        "iou": None,
        "iou_pooled": None,
    }
    assert ask(toys, heat - 1, mask[0], Localization(sign="negative"))["mass"] == 0.25


def test_tolerance_is_strict_and_euclidean():
    mask = torch.zeros(31, 31, dtype=torch.bool)
    mask[15, 15] = True
    wide = loc.widened(mask, 15)
    assert not wide[0, 15]
    assert wide[1, 15]  # 15 px away, and 14
    assert not wide[3, 6]
    assert wide[3, 7]  # sqrt(144 + 81) is 15 exactly, sqrt(144 + 64) is less
    assert int(wide.sum()) == sum((y - 15) ** 2 + (x - 15) ** 2 < 225 for y in range(31) for x in range(31))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sign": "signed"}, "localization: no sign 'signed'"),
        ({"pool": "maxabs"}, "did you mean 'max_abs'"),
        ({"tolerance": -1.0}, "accepted are a tolerance of 0 px or more"),
        ({"threshold": 0.0}, "accepted are a tolerance of 0 px or more"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said.replace("(", r"\(")):
        Localization(**setting)


def test_a_map_of_the_wrong_rank_is_named(toys):
    with pytest.raises(ValueError, match=r"accepted are \[h, w\] and \[C, h, w\]"):
        toys.numbers(Localization(), None, [toys.case()], [Explanation(image=torch.zeros(3))])
