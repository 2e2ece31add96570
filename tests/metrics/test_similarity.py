"""Likeness of maps against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof.metrics import similarity

PAIRS = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-4, 4), min_size=n, max_size=n)] * 2)
)


@given(PAIRS)
def test_kendall_counts_pairs(pair):
    a, b = pair
    sign = lambda x: (x > 0) - (x < 0)
    both = [(sign(a[i] - a[j]), sign(b[i] - b[j])) for i, j in itertools.combinations(range(len(a)), 2)]
    scale = math.sqrt(sum(x != 0 for x, _ in both) * sum(y != 0 for _, y in both))
    found = similarity.kendall_tau(torch.tensor(a).float(), torch.tensor(b).float())
    if scale == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum(x * y for x, y in both) / scale, abs=1e-12)


@given(PAIRS)
def test_distances_are_the_loops(pair):
    a, b = (torch.tensor(v).float() for v in pair)
    gaps = [abs(x - y) for x, y in zip(*pair, strict=True)]
    assert similarity.manhattan(a, b) == sum(gaps)
    assert similarity.euclidean(a, b) == pytest.approx(math.sqrt(sum(g * g for g in gaps)))
    assert similarity.mean_squared_error(a, b) == pytest.approx(sum(g * g for g in gaps) / len(gaps))
