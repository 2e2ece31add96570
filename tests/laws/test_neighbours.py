"""Neither chunks nor order nor what was asked before change a bit of a score: docs/laws/neighbours.md."""

from __future__ import annotations

import pytest

COUNT = 7


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_score_does_not_know_its_neighbours(world, use, chunk, order):
    here = world(use)
    metric, cases = here.metric(), here.cases(COUNT)
    answers = [m for seed in range(COUNT) for m in here.maps(seed, count=1)]
    whole = here.scores(metric, cases, here.slope() if here.asks else answers)
    wanted = {case.id: (score.values, score.curves) for case, score in zip(cases, whole, strict=True)}
    turned, given = cases[::order], answers[::order]
    for first in range(0, COUNT, chunk):
        some = slice(first, first + chunk)
        scores = here.scores(metric, turned[some], here.slope() if here.asks else given[some])
        for case, score in zip(turned[some], scores, strict=True):
            assert (score.values, score.curves) == wanted[case.id]
    assert any(v.defined for score in whole for v in score.values.values())
