"""Orders and ties, held against plain loops, all permutations, and scipy."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from heatproof.metrics import ranking

FEW = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, 0.5 + 1e-8, 3.0])  # many ties, one of them by rounding
SMOOTH = st.floats(-1, 1, width=32, allow_subnormal=False)
MAPS = st.one_of(
    arrays(np.float32, array_shapes(min_dims=1, max_dims=2, max_side=7), elements=FEW),
    arrays(np.float32, array_shapes(min_dims=1, max_dims=2, max_side=7), elements=SMOOTH),
)


def slow_levels(values: list[float]) -> list[int]:
    """Walk down the sorted values: a gap opens a run, and a run is cut every tolerance from its top."""
    width = max(1e-6 * (max(values) - min(values)), 2**-22 * max(map(abs, values)))
    level, top, floor, last, found = -1, 0.0, 0.0, math.inf, {}
    for value in sorted(values, reverse=True):
        if width == 0:
            found[value] = 0
            continue
        if last - value > width:
            level, top, floor = level + 1, value, 1
        cell = max(math.ceil((top - value) / width), 1)
        if cell > floor:
            level, floor = level + 1, cell
        found[value], last = level, value
    return [found[v] for v in values]


@given(MAPS)
def test_levels_are_those_of_the_slow_walk(heat):
    assert ranking.levels(torch.tensor(heat)).reshape(-1).tolist() == slow_levels(heat.reshape(-1).tolist())


@settings(deadline=None)
@given(MAPS, st.integers(0, 5))
def test_every_pixel_comes_once_and_hotter_goes_first(heat, seed):
    heat = torch.tensor(heat)
    order = ranking.order(heat, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(heat.numel()))
    assert bool((ranking.levels(heat).reshape(-1)[order].diff() >= 0).all())


@settings(deadline=None)
@given(MAPS, st.integers(-20, 20))
def test_a_positive_power_of_two_changes_nothing(heat, power):
    heat = torch.tensor(heat).double()
    scaled = heat * 2.0**power
    assert torch.equal(ranking.levels(heat), ranking.levels(scaled))
    one, other = (ranking.order(h, torch.Generator().manual_seed(0)) for h in (heat, scaled))
    assert torch.equal(one, other)


def test_rounding_noise_on_a_plateau_and_on_a_constant_is_a_tie():
    noise = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 1e-7
    assert ranking.levels(torch.cat([torch.tensor([0.0, 1.0]), 0.5 + noise])).unique().tolist() == [0, 1, 2]
    assert ranking.levels(0.1 + noise / 100).unique().tolist() == [0]
    assert ranking.levels(torch.zeros(5)).tolist() == [0] * 5


def test_values_further_apart_than_the_tolerance_are_never_tied():
    crowd = 0.5 + torch.arange(501, dtype=torch.float64) * 2e-7  # gaps of a fifth of the tolerance
    heat = torch.cat([torch.tensor([0.0, 1.0]).double(), crowd])
    level = ranking.levels(heat)
    for one in level.unique():
        tied = heat[level == one]
        assert float(tied.max() - tied.min()) <= 1e-6 + 1e-12
    assert 100 <= len(level.unique()) <= 105  # and the crowd is cut into as few levels as that allows


def test_tied_pixels_come_in_every_order_equally_often():
    heat = torch.tensor([1.0, 1.0, 1.0])
    seen = [tuple(ranking.order(heat, torch.Generator().manual_seed(s)).tolist()) for s in range(1200)]
    counts = [seen.count(order) for order in itertools.permutations(range(3))]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert seen[:50] == [
        tuple(ranking.order(heat, torch.Generator().manual_seed(s)).tolist()) for s in range(50)
    ]


@given(st.lists(FEW, min_size=1, max_size=5), st.data())
def test_top_share_is_the_mean_over_all_orders(values, data):
    inside = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    k = data.draw(st.integers(1, len(values)))
    level = slow_levels([float(np.float32(v)) for v in values])
    shares = [
        sum(inside[i] for i in order[:k]) / k
        for order in itertools.permutations(range(len(values)))
        if all(level[a] <= level[b] for a, b in itertools.pairwise(order))
    ]
    found = ranking.top_share(torch.tensor(values), torch.tensor(inside), k)
    assert found == pytest.approx(sum(shares) / len(shares), abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_top_share_refuses_a_k_that_is_not_there(k):
    with pytest.raises(ValueError, match="accepted is 1 to 3"):
        ranking.top_share(torch.zeros(3), torch.ones(3, dtype=torch.bool), k)


def test_spearman_is_scipys():
    dice = random.Random(0)
    for _ in range(50):
        a = [dice.choice([0, 0.5, 1, 2, 3]) for _ in range(30)]
        b = [dice.gauss(0, 1) for _ in range(30)]
        expected = scipy.stats.spearmanr(a, b).statistic
        assert ranking.spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, abs=1e-12)
    ranks = ranking.mean_ranks(torch.tensor(a))
    assert ranks.tolist() == scipy.stats.rankdata([-v for v in a]).tolist()
    assert math.isnan(ranking.spearman(torch.zeros(4), torch.arange(4.0)))
