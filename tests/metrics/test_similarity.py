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


# ---------------------------------------------------------------- structure


def slow_ssim(a, b, window, sigma, span):
    """Wang et al. 2004, window by window, weight by weight."""
    reach = window // 2
    bell = [math.exp(-(k * k) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    total, places = sum(bell) ** 2, []
    for y in range(reach, a.shape[0] - reach):
        for x in range(reach, a.shape[1] - reach):
            sums = [0.0] * 5
            for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
                w = bell[i + reach] * bell[j + reach] / total
                p, q = float(a[y + i, x + j]), float(b[y + i, x + j])
                for n, v in enumerate((p, q, p * p, q * q, p * q)):
                    sums[n] += w * v
            p, q, pp, qq, pq = sums
            c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
            top = (2 * p * q + c1) * (2 * (pq - p * q) + c2)
            places.append(top / ((p * p + q * q + c1) * (pp - p * p + qq - q * q + c2)))
    return sum(places) / len(places)


def pair_of_maps(seed, size=(13, 17), mix=0.5):
    chance = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*size, generator=chance) for _ in range(2))
    return a, mix * a + (1 - mix) * b


@pytest.mark.parametrize(("window", "size"), [(11, (13, 17)), (5, (6, 8)), (3, (4, 4))])
def test_ssim_is_the_slow_one(window, size):
    a, b = pair_of_maps(window, size)
    wanted = slow_ssim(a, b, window, 1.5, 2.0)
    assert similarity.ssim(a, b, window, span=2.0) == pytest.approx(wanted, abs=1e-12)
    # what does not fit is cut to the largest odd window that does
    assert similarity.ssim(a, b, 2 * window + 5, span=2.0) == pytest.approx(
        slow_ssim(a, b, min(size) - 1 + min(size) % 2, 1.5, 2.0), abs=1e-12
    ) or 2 * window + 5 <= min(size)


def test_ssim_is_scikit_images(capsys):
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    worst = 0.0
    for seed in range(20):
        a, b = pair_of_maps(seed, (23, 31), seed / 20)
        for scale, span in similarity.SCALES.items():
            x, y = (similarity.scaled(heat, scale) for heat in (a, b))
            low = min(0.0, float(x.min()), float(y.min()))  # lifted: images have no values below 0
            x, y = x - low, y - low
            joint = float(max(x.max(), y.max()) - min(x.min(), y.min()))
            wanted = theirs(
                x.numpy(),
                y.numpy(),
                gaussian_weights=True,
                use_sample_covariance=False,
                data_range=span or joint,
            )
            worst = max(worst, abs(similarity.scaled_ssim(a, b, scale) - wanted))
    with capsys.disabled():
        print(f" [ssim: largest deviation from scikit-image {worst:.1e}]", end="")
    assert worst < 1e-12


@pytest.mark.parametrize("scale", [s for s in similarity.SCALES if s != "none"])
@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3))
def test_a_scale_takes_a_positive_factor_away(scale, seed, factor):
    a, b = pair_of_maps(seed)
    one, other = (similarity.scaled_ssim(x, b, scale) for x in (a, a.double() * factor))
    assert other == pytest.approx(one, abs=1e-9)
    assert -1 <= one <= 1
    assert similarity.scaled_ssim(a, a, scale) == pytest.approx(1, abs=1e-12)


def test_scales_by_hand():
    heat = torch.tensor([[-2.0, 0.0], [1.0, 1.0]])
    root = math.sqrt(6 / 4)
    assert similarity.scaled(heat, "second_moment").flatten().tolist() == pytest.approx(
        [-2 / root, 0, 1 / root, 1 / root]
    )
    assert similarity.scaled(heat, "max_abs").flatten().tolist() == [-1, 0, 0.5, 0.5]
    assert similarity.scaled(heat, "range").flatten().tolist() == pytest.approx([0, 2 / 3, 1, 1])
    assert similarity.scaled(heat, "none").equal(heat.double())
    ramp = torch.arange(101.0)
    assert similarity.scaled(ramp, "percentile")[[0, 1, 50, 99, 100]].tolist() == [0, 0, 0.5, 1, 1]
    for scale in similarity.SCALES:
        assert not similarity.scaled(torch.zeros(3, 3), scale).any()
    with pytest.raises(ValueError, match="accepted are second_moment"):
        similarity.scaled(heat, "l2")


def test_on_a_fixed_range_one_hot_pixel_makes_noise_alike_and_in_second_moments_less():
    """Binder et al. 2023: maps that say nothing must not be the best, nor alike, for one outlier's sake."""
    a, b = pair_of_maps(3, (24, 24), mix=0.0)
    a[5, 5], b[18, 12] = 30.0, 30.0
    found = {scale: similarity.scaled_ssim(a, b, scale) for scale in ("max_abs", "second_moment")}
    assert found["max_abs"] > 0.3
    assert abs(found["second_moment"]) < 0.1
    assert math.isnan(similarity.ssim(a, torch.ones(24, 24)))


@pytest.mark.parametrize("scale", similarity.SCALES)
def test_the_negative_of_a_map_is_not_like_it(scale):
    """Without the lift two negative factors, of means and of structure, multiply to a likeness."""
    a = torch.rand(20, 20, generator=torch.Generator().manual_seed(1)) + 1
    assert similarity.ssim(a.double(), -a.double(), span=2.0) > 0.5
    assert similarity.scaled_ssim(a, -a, scale) < -0.1


def test_what_only_rounding_tells_apart_is_constant():
    flat = torch.nn.functional.interpolate(torch.full((1, 1, 3, 5), 0.7), (14, 18), mode="bilinear")[0, 0]
    assert similarity.constant(flat + torch.rand(14, 18) * 1e-8)
    assert math.isnan(similarity.scaled_ssim(flat, torch.eye(14, 18), "range"))
    assert not similarity.constant(torch.eye(3) * 1e-20)
