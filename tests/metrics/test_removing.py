"""What is removed: exactly k units, all sets as likely, cells that tile the image and keep the map's sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.metrics import imputation, removing
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.fidelity import FaithfulnessCorrelation
from heatproof.metrics.flipping import PixelFlipping
from heatproof.metrics.infidelity import Infidelity
from heatproof.metrics.irof import Irof
from heatproof.metrics.maps import Undefined


@given(st.floats(0.001, 0.999), st.integers(2, 3000))
def test_size_is_nearest_at_least_one_and_never_all(share, units):
    k = removing.size(share, units)
    assert 1 <= k < units
    assert abs(k - share * units) <= 0.5 + 1e-9 or k in (1, units - 1)


@settings(deadline=None)
@given(st.integers(2, 40), st.data())
def test_subsets_have_exactly_k_units_and_all_are_as_likely(units, data):
    k = data.draw(st.integers(1, units - 1))
    drawn = list(removing.subsets(units, k, 5, torch.Generator().manual_seed(units)))
    assert [len(set(gone.tolist())) for gone in drawn] == [k] * 5
    assert all(0 <= place < units for gone in drawn for place in gone.tolist())


def test_every_pair_is_drawn_as_often():
    drawn = removing.subsets(4, 2, 6000, torch.Generator().manual_seed(1))
    counts = {pair: 0 for pair in itertools.combinations(range(4), 2)}
    for gone in drawn:
        counts[tuple(sorted(gone.tolist()))] += 1
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 9))
def test_cells_tile_the_image_and_keep_the_relevance(high, wide, cells):
    if high * wide < 2:
        return
    heat = torch.randn(high, wide, generator=torch.Generator().manual_seed(cells))
    cut = removing.Cut.of(heat, cells)
    n = min(cells, high) * min(cells, wide)
    assert sorted(set(cut.unit.flatten().tolist())) == list(range(n)) == list(range(len(cut.relevance)))
    for u in range(n):
        ys, xs = np.nonzero((cut.unit == u).numpy())
        # a cell is a rectangle, its sides within one pixel of the others'
        assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        assert np.ptp(ys) + 1 in (high // min(cells, high), -(-high // min(cells, high)))
        assert np.ptp(xs) + 1 in (wide // min(cells, wide), -(-wide // min(cells, wide)))
        assert float(cut.relevance[u]) == pytest.approx(
            sum(float(heat[y, x]) for y, x in zip(ys, xs, strict=True))
        )


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 7), st.integers(0, 4), st.data())
def test_what_is_gone_is_the_blank_images_and_the_rest_the_images(channels, high, wide, cells, data):
    image, blank = torch.ones(channels, high, wide), torch.zeros(channels, high, wide)
    cut = removing.Cut.of(torch.randn(high, wide), 0 if cells == 1 else cells)
    gone = data.draw(st.sets(st.integers(0, len(cut.relevance) - 1)))
    found = cut.without("mean", image, blank, torch.tensor(sorted(gone), dtype=torch.long))
    for y, x in itertools.product(range(high), range(wide)):
        assert found[:, y, x].tolist() == [0.0 if int(cut.unit[y, x]) in gone else 1.0] * channels
    assert bool(image.all())


@pytest.mark.parametrize("metric", [Deletion, Irof, PixelFlipping, Infidelity, FaithfulnessCorrelation])
def test_every_metric_that_removes_inpaints_from_what_is_left(toys, monkeypatch, metric):
    """Whatever is asked of the net is the image with some pixels gone, those filled from the rest alone."""
    image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3))
    case, model, seen = toys.case(pixels=image), toys.curved(), []
    ask = model.scores if metric is Irof else model.score
    monkeypatch.setattr(model, ask.__name__, lambda x, cases: seen.extend(x.clone()) or ask(x, cases))
    metric(baseline="inpaint").measure(toys.trials(model, [case], [torch.randn(8, 8)]))
    partly = [row for row in seen if 0 < int((row != image).any(0).sum()) < 64]
    assert len(partly) > 5
    for row in partly:
        gone = (row != image).any(0)
        assert torch.allclose(row, imputation.fill(image, gone, "harmonic"), atol=1e-6)


@pytest.mark.parametrize("metric", [Deletion, Irof, PixelFlipping, Infidelity, FaithfulnessCorrelation])
def test_the_marginal_is_another_image_and_the_score_s_key_must_know(toys, metric):
    assert metric(baseline="marginal").needs_other
    assert not metric(baseline="blur").needs_other


def test_a_single_pixel_has_no_parts():
    with pytest.raises(Undefined, match="one unit"):
        removing.Cut.of(torch.ones(1, 1), 0)
