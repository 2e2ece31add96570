"""A map times a positive number is the same map: docs/laws/rescaling.md."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXCEPT = {  # value: why it moves, and is meant to
    "infidelity": "the map is taken at its word, in units of the score",
    "local_lipschitz": "a norm of maps over a norm of images",
    **dict.fromkeys(
        ("mean", "abs_mean", "positive_mean", "max", "q0", "q10", "q20", "q30", "q40", "q50"),
        "of hallucination: read of the map as it is, and a column compares one word's with another's",
    ),
}
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_a_positive_factor_changes_nothing(world, use, factor, seed):
    here = world(use)
    plain = here.maps(seed)
    scaled = [here.answer(*(None if x is None else factor * x for x in (e.image, e.text))) for e in plain]
    if here.asks:
        plain, scaled = here.slope(), here.slope(factor)
    one, other = (here.numbers(here.metric(), here.cases(), answers) for answers in (plain, scaled))
    here.same(one, other, but=EXCEPT)
    for a, b in zip(one, other, strict=True):
        for name in set(a) & set(EXCEPT):  # an exception that is none is a mistake in the page
            assert a[name] is not None
            assert b[name] != pytest.approx(a[name], rel=1e-6) or factor == pytest.approx(1, abs=1e-3)
