"""The pointing game against the paper's rule played point by point, its averages, ties and instances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heatproof.contract import Refused
from heatproof.metrics.localization import Localization
from heatproof.metrics.pointing import Pointing
from heatproof.records import Record
from heatproof.reducers import Numbering, reduce

FEW = st.sampled_from([0.0, 1.0, 2.0, -1.0])


@st.composite
def scenes(draw, elements=FEW):
    size = draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
    heat = draw(arrays(np.float32, size, elements=elements))
    mask = draw(arrays(bool, size))
    mask.flat[0], mask.flat[-1] = True, False
    return torch.tensor(heat), torch.tensor(mask)


def judged(toys, heat, evidence, metric=None, channels=1, **more):
    evidence = evidence[None] if evidence.ndim == 2 else evidence
    case = toys.case(pixels=torch.zeros(channels, *evidence.shape[1:]), evidence=evidence, **more)
    (score,) = (metric or Pointing()).measure(toys.trials(None, [case], [heat]))
    assert score.values["pointing"] == score.values["pointing_class"]
    return score.values["pointing"]


def ask(toys, *told, **more):
    return judged(toys, *told, **more).number


def played(heat, mask, tolerance) -> float:
    """The share of the hottest points that have a pixel of the mask strictly within the tolerance, or are one."""
    spots = [(y, x) for y in range(len(heat)) for x in range(len(heat[0]))]
    top = max(heat[y][x] for y, x in spots)
    truth = [p for p in spots if mask[p[0]][p[1]]]
    points = [p for p in spots if heat[p[0]][p[1]] == top]
    hits = [any(p == q or math.dist(p, q) < tolerance for q in truth) for p in points]
    return sum(hits) / len(hits)


@settings(deadline=None)
@given(scenes(), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 15.0]), st.sampled_from(["positive", "signed"]))
def test_it_is_the_game_of_the_paper(toys, scene, tolerance, sign):
    heat, mask = scene
    seen = heat if sign == "signed" else heat.clamp(min=0)
    expected = played(seen.tolist(), mask.tolist(), tolerance)
    assert ask(toys, heat, mask, Pointing(tolerance=tolerance, sign=sign)) == pytest.approx(
        expected, abs=1e-12
    )


def test_the_default_tolerance_is_fifteen_pixels_and_strict(toys):
    mask = torch.zeros(9, 60, dtype=torch.bool)
    mask[4, 0] = True
    for distance, hit in ((14, 1.0), (15, 0.0)):
        heat = torch.zeros(9, 60)
        heat[4, distance] = 1.0
        assert ask(toys, heat, mask) == hit
        assert ask(toys, heat, mask, Pointing(tolerance=0)) == 0.0


@settings(deadline=None)
@given(scenes())
def test_without_tolerance_it_is_the_localization_of_before(toys, scene):
    heat, mask = scene
    case = toys.case(pixels=torch.zeros(1, *mask.shape), evidence=mask[None])
    (other,) = toys.numbers(Localization(), None, [case], [heat])
    assert ask(toys, heat, mask, Pointing(tolerance=0)) == other["pointing"]


def test_the_two_averages(toys):
    """Three cats of which two are hit and one dog that is missed, through the declared reducers."""
    mask = torch.zeros(1, 4, 40, dtype=torch.bool)
    mask[0, 0, 0] = True
    hit, miss = torch.zeros(4, 40), torch.zeros(4, 40)
    hit[0, 0] = miss[3, 39] = 1.0
    asked = [("cat", hit), ("cat", hit), ("cat", miss), ("dog", miss)]
    rows = {}
    for i, (about, heat) in enumerate(asked):
        case = toys.case(f"s{i}", pixels=torch.zeros(3, 4, 40), evidence=mask)
        (score,) = Pointing().measure(toys.trials(None, [case], [heat]))
        for name, v in score.values.items():
            rows.setdefault(name, []).append(
                Record(
                    "b", "m", "f", 0, "e", "method", f"s{i}", "c", about, "pointing", name, v.number, v.parts
                )
            )
    how = {m.name: m.reduce for m in Pointing.measures}
    found = {n: reduce(how[n], Numbering.of(some).rows(some, how[n])) for n, some in rows.items()}
    assert found == {"pointing": 0.5, "pointing_class": pytest.approx((2 / 3 + 0) / 2)}


@settings(deadline=None)
@given(scenes(st.floats(-4, 4, width=16)), st.integers(-8, 8))
def test_range_and_positive_rescaling(toys, scene, power):
    heat, mask = scene
    found = ask(toys, heat, mask, Pointing(tolerance=2))
    assert 0 <= found <= 1
    assert ask(toys, heat * 2.0**power, mask, Pointing(tolerance=2)) == found


@settings(deadline=None)
@given(st.randoms(use_true_random=False), scenes(), st.sampled_from(["bilinear", "none"]))
def test_flipping_image_and_map_together_changes_nothing(toys, chance, scene, upsample):
    _, mask = scene
    metric = Pointing(tolerance=2, upsample=upsample)
    heat = torch.tensor(chance.sample(range(1, 100), mask.numel())).float().reshape(mask.shape)
    small = torch.tensor(chance.sample(range(1, 100), 4)).float().reshape(2, 2)
    for how in (lambda x: x.flip(0), lambda x: x.flip(1)):
        assert ask(toys, how(heat), how(mask), metric) == ask(toys, heat, mask, metric)
        assert ask(toys, how(small), how(mask), Pointing(tolerance=2, upsample="none")) == ask(
            toys, small, mask, Pointing(tolerance=2, upsample="none")
        )


def test_a_constant_map_gets_the_share_of_the_image_that_hits(toys):
    mask = torch.zeros(31, 31, dtype=torch.bool)
    mask[15, 15] = True
    near = sum((y - 15) ** 2 + (x - 15) ** 2 < 36 for y in range(31) for x in range(31))
    for level in (0.0, 0.3, -2.0):
        assert ask(toys, torch.full((7, 7), level), mask, Pointing(tolerance=6)) == pytest.approx(
            near / 31**2
        )


def test_tolerance_is_in_pixels_of_the_image_on_any_grid(toys):
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[:, :2] = True
    heat = torch.zeros(2, 4)  # cells of 8 px
    heat[0, 1] = 1.0  # from pixel 8 to 15: the mask ends at 1
    near = Pointing(upsample="none", tolerance=11)  # up to pixel 11: half of the cell
    assert ask(toys, heat, mask, near) == 1.0
    assert ask(toys, heat, mask, Pointing(upsample="none", tolerance=10)) == 0.0
    tiny = torch.zeros(16, 32, dtype=torch.bool)
    tiny[0, 0] = True
    value = judged(toys, heat, tiny, Pointing(upsample="none", tolerance=0))
    assert (value.number, value.reason) == (None, "no cell of the map's grid is near enough to the evidence")


def test_fp16_channels_and_colours(toys):
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4, :6] = True
    small = torch.tensor([[1.0, -2.0], [0.25, 0.0]])
    for heat in (small, small.half(), torch.stack([small, small])):
        assert ask(toys, heat, mask, channels=3) == ask(toys, small, mask, Pointing(tolerance=0)) == 1.0


def test_instances(toys):
    planes = torch.zeros(2, 3, 40, dtype=torch.bool)
    planes[0, 0, 0] = planes[1, 0, 39] = True
    heat = torch.zeros(3, 40)
    heat[0, 0] = 2.0  # on the first
    found = {how: ask(toys, heat, planes, Pointing(instances=how, tolerance=2)) for how in ("union", "any")}
    assert found == {"union": 1.0, "any": 1.0}
    heat[2, 20] = 1.0  # where the second is looked for, the first's pixel is no answer
    assert ask(toys, heat, planes, Pointing(instances="instance", tolerance=2)) == 0.5
    heat[0, 38] = 1.5  # near the second
    assert ask(toys, heat, planes, Pointing(instances="instance", tolerance=2)) == 1.0
    heat[2, 20] = 3.0  # on nothing
    for how in ("union", "any", "instance"):
        assert ask(toys, heat, planes, Pointing(instances=how, tolerance=2)) == 0.0


def test_ignored_pixels_take_no_part(toys):
    heat = torch.tensor([[9.0, 1.0, 3.0, 0.0]])
    mask = torch.tensor([[True, False, True, False]])
    ignore = torch.tensor([[True, False, False, False]])
    assert ask(toys, heat, mask, Pointing(tolerance=0), ignore=ignore) == 1.0
    heat = torch.tensor([[9.0, 3.0, 1.0, 0.0]])
    assert ask(toys, heat, mask, Pointing(tolerance=0), ignore=ignore) == 0.0
    assert ask(toys, heat, mask, Pointing(tolerance=1.5), ignore=ignore) == 1.0  # near the one that is left


@pytest.mark.parametrize(
    ("heat", "evidence", "reason"),
    [
        (None, "some", "no image map"),
        (torch.tensor([[0.0, math.nan]]), "some", "NaN or infinity in the map"),
        (torch.ones(2, 2), None, "nothing annotated"),
        (torch.ones(2, 2), torch.zeros(0, 4, 4, dtype=torch.bool), "no evidence in the image"),
        (torch.ones(2, 2), torch.zeros(1, 4, 4, dtype=torch.bool), "no evidence in the image"),
        (torch.ones(2, 2), torch.ones(1, 4, 4, dtype=torch.bool), "evidence everywhere"),
    ],
)
@pytest.mark.parametrize("how", ["union", "any", "instance"])
def test_undefined_is_never_a_number(toys, heat, evidence, reason, how):
    if isinstance(evidence, str):
        evidence = torch.zeros(1, 4, 4, dtype=torch.bool)
        evidence[0, 0, 0] = True
    (score,) = Pointing(instances=how).measure(toys.trials(None, [toys.case(evidence=evidence)], [heat]))
    assert [(n, v.number, v.reason) for n, v in score.values.items()] == [
        (m.name, None, reason) for m in Pointing.measures
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sign": "plus"}, "pointing: no sign 'plus'"),
        ({"instances": "each"}, "pointing: no instances 'each'"),
        ({"tolerance": -1.0}, "found tolerance -1.0"),
        ({"tolerance": math.nan}, "found tolerance nan"),
        ({"tolerance": math.inf}, "found tolerance inf"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Pointing(**setting)
