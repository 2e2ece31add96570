"""The number of steps moves an area only by what the trapezoids miss: docs/laws/steps.md."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heatproof.metrics.deletion import Deletion
from heatproof.metrics.flipping import PixelFlipping
from heatproof.metrics.irof import Irof, area_over

FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def straight(here, slope):
    """The world's model, its score replaced by ``slope`` times the share of pixels that are left, plus 1."""
    model = here.model()
    (case,) = here.cases(1)

    def score(x, cases):
        left = (x != 0).any(1).double().mean((1, 2))  # the blank is 0 everywhere
        return 1.0 + slope * left

    model.score = score
    return model, case


@pytest.mark.parametrize("slope", [0.0, 2.0])
@FEW
@given(st.integers(1, 48), st.integers(0, 2**31))
def test_flat_and_straight_curves_have_one_area_whatever_the_steps(world, slope, steps, seed):
    here = world("deletion")
    model, case = straight(here, slope)
    (score,) = here.measure(Deletion(steps=steps), model, [case], here.maps(seed, count=1))
    found = {n: v.number for n, v in score.values.items()}
    assert found["deletion"] == pytest.approx(1 + slope / 2, abs=1e-9)
    assert found["insertion"] == pytest.approx(1 + slope / 2, abs=1e-9)
    assert found["srg"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cells", [2, 3, 4])
@FEW
@given(st.integers(0, 2**31))
def test_irof_does_not_know_how_many_segments_there_are(world, cells, seed):
    here = world("irof")
    model, case = straight(here, 2.0)
    metric = Irof(cells=cells, over="pixels", baseline="mean", output="native")
    (score,) = here.measure(metric, model, [case], here.maps(seed, count=1))
    assert score.values["irof"].number == pytest.approx(1 - (1 + 2 / 2) / 3, abs=1e-9)
    assert area_over([0, 1], [3.0, 1.0]) == pytest.approx(1 / 3)


def test_the_mean_over_steps_is_the_one_that_moves_and_says_so(world):
    here = world("flipping")
    found = []
    for steps in (2, 24):
        model, case = straight(here, 2.0)
        (score,) = here.measure(PixelFlipping(steps=steps), model, [case], here.maps(1, count=1))
        found.append(score.values["aopc"].number)
    assert found == pytest.approx([1.0, 1.0])  # a straight fall has its mean at any number of steps ...
    model, case = straight(here, 2.0)
    bent = model.score
    model.score = lambda x, cases: bent(x, cases).square()
    few, many = (
        here.measure(PixelFlipping(steps=steps), model, [case], here.maps(1, count=1))[0]
        .values["aopc"]
        .number
        for steps in (2, 24)
    )
    assert abs(few - many) > 0.1  # ... a bent one has not
    assert "unlike the areas" in PixelFlipping.__doc__
