"""Correctness: closed forms, a slow twin, the reducer's inputs, undefined cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heatproof.metrics import correctness
from heatproof.metrics.correctness import THRESHOLDS, Correctness


def slow(heat, boxes, thresholds):
    """Sun et al. 3.3, pixel by pixel: zero M <= th, then the share inside the box."""
    top = max(max(row) for row in heat)
    found = []
    for x0, y0, x1, y1 in boxes:
        row = []
        for threshold in thresholds:
            left = [[v / top if v / top > threshold else 0.0 for v in r] for r in heat]
            inside = sum(
                left[y][x] for y in range(y0, min(y1, len(heat))) for x in range(x0, min(x1, len(heat[0])))
            )
            row.append(inside / sum(map(sum, left)))
        found.append(row)
    return found


@settings(deadline=None)
@given(
    arrays("float32", (4, 6), elements=st.sampled_from([0.0, 0.1, 0.5, 1.0, 0.75])),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)),
        min_size=1,
        max_size=3,
    ),
)
def test_it_is_the_slow_twin(toys, heat, corners):
    heat = torch.tensor(heat)
    heat[0, 0] = 1.0
    boxes = [(x, y, x + w, y + h) for x, y, w, h in corners]
    expected = slow(heat.double().tolist(), boxes, THRESHOLDS)
    case = toys.case(pixels=torch.zeros(1, 4, 6), boxes=torch.tensor(boxes).float())
    (score,) = Correctness().measure(toys.trials(None, [case], [heat]))
    best = [max(column) for column in zip(*expected, strict=True)]
    assert score.curves["inside"] == (THRESHOLDS, pytest.approx(best, abs=1e-12))
    values = {n: v.number for n, v in score.values.items()}
    area = sum((a + b) / 2 for a, b in itertools.pairwise(best)) / 9
    expected = {"inside_0": best[0], "inside_50": best[5], "inside_area": area}
    assert values == pytest.approx(expected, abs=1e-12)
    assert all(0 <= v <= 1 for v in values.values())
    assert toys.numbers(Correctness(), None, [case], [heat * 8]) == [values]


def test_the_positive_parts_are_taken_before_the_channels_are_averaged(toys):
    heat = torch.tensor([[[1.0, 0.0]], [[-1.0, 1.0]]])  # pooled first, the left pixel would vanish
    case = toys.case(pixels=torch.zeros(1, 1, 2), boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert toys.numbers(Correctness(), None, [case], [heat])[0]["inside_0"] == 0.5
    negative = toys.numbers(Correctness(sign="negative"), None, [case], [heat])[0]
    assert negative["inside_0"] == 1.0


def test_boxes_masks_and_ignored_pixels(toys):
    heat = torch.tensor([[4.0, 2.0, 2.0, 1.0]])
    mask = torch.tensor([[[True, False, False, False]], [[False, False, False, True]]])
    case = toys.case(
        pixels=torch.zeros(1, 1, 4),
        evidence=mask,
        boxes=torch.tensor([[-3.0, 0.0, 1.9, 1.0], [1.0, 0.0, 3.0, 1.0]]),
    )
    assert (
        toys.numbers(Correctness(), None, [case], [heat])[0]["inside_0"] == 4 / 9
    )  # cut to [0, 1) and [1, 3)
    assert toys.numbers(Correctness(within="masks"), None, [case], [heat])[0]["inside_50"] == 1.0
    ignoring = type(case)(**{**vars(case), "ignore": torch.tensor([[True, False, False, False]])})
    assert toys.numbers(Correctness(), None, [ignoring], [heat])[0]["inside_0"] == 4 / 5
    assert toys.numbers(Correctness(as_released=True), None, [ignoring], [heat])[0]["inside_0"] == 4 / 9


def test_as_released_later_boxes_meet_the_last_threshold(toys):
    heat = torch.tensor([[1.0, 0.5, 0.5, 0.0]])
    regions = torch.tensor([[[False, True, False, False]], [[True, False, False, False]]])
    fresh = correctness.inside(heat, regions, THRESHOLDS)
    released = correctness.inside(heat, regions, THRESHOLDS, as_released=True)
    assert fresh[1].tolist() == [0.5] * 5 + [1.0] * 5
    assert released[1].tolist() == [1.0] * 10
    assert torch.equal(released[0], fresh[0])


def test_every_value_is_reduced_by_the_best_box_and_word():
    assert {m.reduce for m in Correctness().measures} == {"max_by"}


@pytest.mark.parametrize(
    ("heat", "more", "reason"),
    [
        (None, {}, "no image map"),
        (torch.full((4, 4), math.inf), {}, "NaN or infinity in the map"),
        (torch.zeros(4, 4), {}, "no positive relevance"),
        (-torch.ones(3, 4, 4), {}, "no positive relevance"),
        (torch.ones(4, 4), {"boxes": None}, "no boxes annotated"),
        (torch.ones(4, 4), {"boxes": torch.zeros(0, 4)}, "no evidence in the image"),
        (torch.ones(4, 4), {"boxes": torch.tensor([[5.0, 5.0, 9.0, 9.0]])}, "no evidence in the image"),
    ],
)
def test_undefined_is_never_a_number(toys, heat, more, reason):
    case = toys.case(**{"boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), **more})
    (score,) = Correctness().measure(toys.trials(None, [case], [heat]))
    assert {(v.number, v.reason) for v in score.values.values()} == {(None, reason)}
    assert not score.curves
