"""Imputation against the dense system written from the paper, scipy's, and a plain list-of-lists build for speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.metrics import imputation

WEIGHTS = {
    "linear": {
        (dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
    },
    "harmonic": {(0, 1): 1 / 4, (1, 0): 1 / 4, (0, -1): 1 / 4, (-1, 0): 1 / 4},
}


def dense(image: np.ndarray, removed: np.ndarray, rule: str) -> np.ndarray:
    """One equation a removed pixel, by hand: itself less the weighted mean of what lies around it is 0."""
    height, width = removed.shape
    places = [tuple(p) for p in np.argwhere(removed)]
    left, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for line, (y, x) in enumerate(places):
        around = {(y + dy, x + dx): w for (dy, dx), w in WEIGHTS[rule].items()}
        around = {p: w for p, w in around.items() if 0 <= p[0] < height and 0 <= p[1] < width}
        whole = sum(around.values())
        left[line, line] = 1
        for place, weight in around.items():
            if removed[place]:
                left[line, places.index(place)] -= weight / whole
            else:
                right[line] += weight / whole * image[:, place[0], place[1]]
    found = image.copy()
    found[:, removed] = np.linalg.solve(left, right).T
    return found


def masks(size: tuple[int, int]) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    noise = torch.rand(*size, generator=chance)
    smooth = torch.from_numpy(scipy.ndimage.gaussian_filter(noise.numpy(), 2))
    all_but_one = torch.ones(size, dtype=torch.bool)
    all_but_one[size[0] // 2, 0] = False
    return {
        "scattered": noise > 0.5,
        "most": noise > 0.1,
        "blob": smooth > smooth.quantile(0.5),
        "all but one": all_but_one,
        "one": noise == noise.max(),
        "none": torch.zeros(size, dtype=torch.bool),
    }


@pytest.mark.parametrize("rule", list(imputation.RULES))
@pytest.mark.parametrize(("size", "channels"), [((12, 17), 3), ((9, 5), 1), ((1, 8), 2), ((7, 1), 1)])
def test_it_is_the_dense_solution(rule, size, channels, record_property):
    image = torch.randn(channels, *size, generator=torch.Generator().manual_seed(1))
    worst = 0.0
    for removed in masks(size).values():
        found = imputation.fill(image, removed, rule)
        expected = dense(image.double().numpy(), removed.numpy(), rule)
        worst = max(worst, float(np.abs(found.double().numpy() - expected).max()))
        assert torch.equal(found[:, ~removed], image[:, ~removed])
        exact = imputation.fill(image.double(), removed, rule)
        assert np.abs(exact.numpy() - expected).max() < 1e-11
    print(f"largest deviation from numpy.linalg.solve ({rule}, {size}): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < 1e-6


def test_a_plane_and_a_saddle_come_back():
    """Harmonic functions of the grid keep their values inside: both rules are symmetric, so both know them."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    image = torch.stack([2 * x - y + 3, x * y, x**2 - y**2]).double()
    removed = torch.zeros(9, 11, dtype=torch.bool)
    removed[2:7, 3:8] = True
    for rule in imputation.RULES:
        assert (imputation.fill(image, removed, rule) - image).abs().max() < 1e-11


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_values_stay_in_the_known_range_and_only_the_mask_changes(data):
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    removed = torch.rand(*size, generator=chance) < data.draw(st.floats(0, 0.95))
    removed[0, 0] = False
    image = torch.randn(2, *size, generator=chance)
    before = image.clone()
    rule = data.draw(st.sampled_from(sorted(imputation.RULES)))
    found = imputation.fill(image, removed, rule)
    low, high = image[:, ~removed].amin(1), image[:, ~removed].amax(1)
    assert bool(
        (found.flatten(1) >= low[:, None] - 1e-6).all() & (found.flatten(1) <= high[:, None] + 1e-6).all()
    )
    assert torch.equal(image, before)
    noisy = imputation.noisy_fill(image, removed, torch.tensor([0.5, 2.0]), chance, rule)
    assert torch.equal((noisy != image).any(0), removed)
    for flip in ([1], [2], [1, 2]):
        turned = imputation.fill(image.flip(flip), removed.flip([d - 1 for d in flip]), rule)
        assert (turned.flip(flip) - found).abs().max() < 1e-6


def test_noise_is_normal_by_channel_and_repeats():
    image, removed = torch.zeros(2, 60, 50), torch.ones(60, 50, dtype=torch.bool)
    removed[0] = False
    noisy = [
        imputation.noisy_fill(image, removed, torch.tensor([0.1, 3.0]), torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*noisy)
    assert noisy[0][:, removed].std(1).tolist() == pytest.approx([0.1, 3.0], rel=0.05)
    assert noisy[0][:, removed].mean(1).tolist() == pytest.approx([0.0, 0.0], abs=0.2)
    still = imputation.noisy_fill(image + 1, removed, torch.zeros(2), torch.Generator())
    assert (still - 1).abs().max() < 1e-6


def test_nothing_left_to_fill_from_is_said():
    with pytest.raises(ValueError, match="every pixel is removed"):
        imputation.fill(torch.zeros(1, 2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_half_precision_comes_back_as_it_was():
    image = torch.tensor([[[1.0, 0.0, 4.0]]], dtype=torch.float16)
    found = imputation.fill(image, torch.tensor([[False, True, False]]))
    assert found.dtype == torch.float16
    assert found.tolist() == [[[1.0, 2.5, 4.0]]]


# ---------------------------------------------------------------- speed


def by_lists(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The system as it is built elsewhere: rows of Python lists (lil_matrix), offset by offset, then spsolve."""
    height, width = removed.shape
    flat, places = removed.reshape(-1), np.flatnonzero(removed)
    number = np.zeros(flat.size, dtype=int)
    number[places] = np.arange(len(places))
    pixels, y, x = image.reshape(len(image), -1), places // width, places % width
    left = scipy.sparse.lil_matrix((len(places), len(places)))
    right, whole = np.zeros((len(places), len(image))), np.zeros(len(places))
    for (dy, dx), weight in WEIGHTS["linear"].items():
        line = np.flatnonzero((y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width))
        near = places[line] + dy * width + dx
        whole[line] += weight
        known = ~flat[near]
        right[line[known]] += weight * pixels[:, near[known]].T
        left[line[~known], number[near[~known]]] = -weight
    left[np.arange(len(places)), np.arange(len(places))] = whole
    found = image.copy()
    found[:, removed] = scipy.sparse.linalg.spsolve(scipy.sparse.csc_matrix(left), right).T
    return found


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_it_is_no_slower_than_a_system_of_lists(share, record_property):
    chance = np.random.default_rng(0)
    image = chance.normal(size=(3, 112, 112))
    heat = scipy.ndimage.gaussian_filter(chance.normal(size=(112, 112)), 5)
    removed = heat >= np.quantile(heat, 1 - share)
    ways = {
        "ours": lambda: imputation.fill(torch.from_numpy(image), torch.from_numpy(removed)).numpy(),
        "lists": lambda: by_lists(image, removed),
    }
    took, found = dict.fromkeys(ways, float("inf")), {}
    for _ in range(5):  # in turns, so that a busy machine is busy for both
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            took[name] = min(took[name], time.perf_counter() - start)
    apart = np.abs(found["ours"] - found["lists"]).max()
    print(
        f"112 x 112, {share:.0%} removed: ours {took['ours'] * 1e3:.0f} ms, lists {took['lists'] * 1e3:.0f} ms, "
        f"apart {apart:.1e}"
    )
    record_property("took", {name: float(t) for name, t in took.items()})
    assert apart < 1e-9
    assert took["ours"] <= took["lists"]
