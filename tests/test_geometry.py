"""Pixels, masks and boxes move together; a map is read by one explicit definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from heatproof.geometry import MODES, POOLS, SIGNS, Frame, fold, read

SIDES = st.integers(8, 60)


def square(height, width, top, left, side):
    """A white square on black, with its mask and its box."""
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    image = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    return image, mask, (left, top, left + side, top + side)


@given(SIDES, SIDES, st.sampled_from(MODES), st.data())
def test_image_mask_and_box_go_through_one_transform(height, width, mode, data):
    side = data.draw(st.integers(4, min(height, width)))
    top, left = data.draw(st.integers(0, height - side)), data.draw(st.integers(0, width - side))
    image, mask, box = square(height, width, top, left, side)
    frame = Frame(24, mode, resize=28 if mode == "crop" else None, mean=(0, 0, 0), std=(1, 1, 1))
    pixels, plane = frame.image(image), frame.mask(mask)
    assert pixels.shape[1:] == plane.shape
    x0, y0, x1, y1 = frame.box(box, (height, width))
    ys, xs = np.mgrid[: plane.shape[0], : plane.shape[1]] + 0.5
    reach = 1 + max(plane.shape) / min(height, width)  # resampling blurs over a source pixel
    inside = (xs > x0 + reach) & (xs < x1 - reach) & (ys > y0 + reach) & (ys < y1 - reach)
    outside = (xs < x0 - reach) | (xs > x1 + reach) | (ys < y0 - reach) | (ys > y1 + reach)
    assert (pixels[0].numpy()[inside] > 0.99).all()
    assert plane.numpy()[inside].all()
    assert (pixels[0].numpy()[outside] < 0.01).all()
    assert not plane.numpy()[outside].any()


def test_squash_is_pillows_resize_and_normalised():
    image = np.random.default_rng(0).integers(0, 255, (30, 50, 3)).astype(np.uint8)
    frame = Frame(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    small = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) / 255
    expected = (small - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert np.allclose(frame.image(image).numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_crop_is_resize_of_the_short_edge_and_the_centre():
    image = np.random.default_rng(0).integers(0, 255, (40, 80, 3)).astype(np.uint8)
    frame = Frame(16, "crop", resize=20, mean=(0, 0, 0), std=(1, 1, 1))
    whole = Image.fromarray(image).resize((40, 20), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((12, 2, 28, 18)), np.float32).transpose(2, 0, 1) / 255
    assert np.abs(frame.image(image).numpy() - expected).max() <= 1 / 255 + 1e-6  # rounding of two passes


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_picture_is_the_way_back(channels):
    image = np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8)
    frame = Frame(9, "keep", mean=(0.2, 0.4, 0.5), std=(0.3, 0.2, 0.1), channels=channels)
    assert (frame.picture(frame.image(image)) == image).all()
    assert (
        frame.image(image)[0].numpy().argmax() == image[..., 0 if channels == "rgb" else 2].argmax()
    ).all()


def test_scale_255_is_kept():
    frame = Frame(2, "keep", mean=(123.0, 117.0, 104.0), std=(1, 1, 1), scale=1.0)
    assert frame.image(np.full((2, 2, 3), 130, np.uint8))[:, 0, 0].tolist() == [7, 13, 26]


@given(SIDES, SIDES)
def test_cut_is_the_share_of_the_mask_outside_the_crop(height, width):
    """Counted pixel by pixel: those whose centre lands outside the input."""
    mask = np.random.default_rng(height * 100 + width).random((height, width)) < 0.3
    frame = Frame(16, "crop", resize=16)
    lost = 0
    for y, x in zip(*np.nonzero(mask), strict=True):
        x0, y0, *_ = frame.box((x + 0.5, y + 0.5, x + 0.5, y + 0.5), (height, width))
        lost += not (0 <= x0 < 16 and 0 <= y0 < 16)
    assert frame.cut(mask) == pytest.approx(lost / max(mask.sum(), 1), abs=1e-9)
    assert Frame(16).cut(mask) == 0
    assert frame.cut(np.zeros((4, 9), bool)) == 0


def test_an_unknown_mode_names_the_known():
    with pytest.raises(ValueError, match="geometry: found 'squish', accepted are squash, crop, keep"):
        Frame(4, "squish")


def test_fold_drops_special_tokens_and_says_what_does_not_fit():
    tokens = torch.arange(18.0)[:, None] * torch.tensor([1.0, 10.0])
    grid = fold(tokens, 2)
    assert grid.shape == (2, 4, 4)
    assert grid[1, 0].tolist() == [20, 30, 40, 50]
    with pytest.raises(ValueError, match="17 tokens less 2 special ones are 15, which is no square grid"):
        fold(torch.zeros(17), 2)


HEAT = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[-3.0, -1.0], [1.0, 0.0]]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("sum", [[-2, -3], [4, 0]]),
        ("mean", [[-1, -1.5], [2, 0]]),
        ("max_abs", [[3, 2], [3, 0]]),
        ("l2", [[10**0.5, 5**0.5], [10**0.5, 0]]),
    ],
)
def test_channels_are_pooled_first(pool, expected):
    assert torch.allclose(read(HEAT, pool=pool), torch.tensor(expected, dtype=torch.float32))


def test_then_resized_then_signed():
    """The positive part is taken after the resize: a negative neighbour pulls a positive value down."""
    heat = torch.tensor([[1.0, -1.0]])
    wide = read(heat, (1, 4), sign="positive")
    assert wide.tolist() == [[1.0, 0.5, 0.0, 0.0]]
    assert read(heat, (1, 4), upsample="nearest").tolist() == [[1, 1, -1, -1]]
    assert read(heat, (1, 4), upsample="none").tolist() == [[1, -1]]
    assert read(heat, sign="negative").tolist() == [[0, 1]]
    assert read(heat, sign="abs").tolist() == [[1, 1]]


@given(st.floats(0.01, 100), st.sampled_from(POOLS), st.sampled_from(SIGNS))
def test_reading_is_linear_in_a_positive_factor(factor, pool, sign):
    heat = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    whole = read(heat * factor, (9, 9), pool=pool, sign=sign)
    assert torch.allclose(whole, read(heat, (9, 9), pool=pool, sign=sign) * factor, rtol=1e-4, atol=1e-5)


def test_half_precision_maps_and_maps_with_a_graph_are_read():
    heat = torch.randn(2, 2).half().requires_grad_()
    plane = read(heat, (4, 4))
    assert plane.dtype == torch.float32
    assert not plane.requires_grad


@pytest.mark.parametrize("wrong", [{"pool": "max"}, {"sign": "plus"}, {"upsample": "cubic"}])
def test_unknown_definitions_name_the_known(wrong):
    ((name, found),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}: found '{found}', accepted are"):
        read(HEAT, (4, 4), **wrong)
