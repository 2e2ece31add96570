"""Half precision, one channel or three, any shape, pooled or not: docs/laws/inputs.md."""

from __future__ import annotations

import pytest
import torch

SUITS = {  # metrics that ask the explainer again take its own maps, and those of text no map of an image
    "test_a_half_precision_map_is_the_map_of_its_numbers": lambda world: not world.asks,
    "test_a_map_of_one_channel_is_a_pooled_map": lambda world: not (world.asks or world.of_text),
    "test_a_map_on_the_images_grid_need_not_be_enlarged": lambda world: (
        world.takes("upsample") and not world.asks
    ),
    "test_a_map_of_no_shape_that_a_map_has_is_said_to_be_wrong": lambda world: (
        not (world.asks or world.of_text)
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(6, 8), (8, 6), (7, 7)])
def test_images_of_any_shape_and_channels_have_numbers(world, use, channels, size):
    here = world(use, channels=channels, size=size)
    if here.of_text or here.of_pairs or here.of_speech:
        here = world(use, size=size)  # dual encoders and captioners read three channels
    answers = here.slope() if here.asks else here.maps(3)
    found = here.numbers(here.metric(), here.cases(), answers)
    silent = {n for n in found[0] if all(f[n] is None for f in found)}
    if use == "mosaic" and size != (6, 8):
        silent.discard("grid_argmax")  # the cell of an odd image is none of the grid's
    if use in ("agreement", "counterfactual"):
        silent -= {"words", "words_kendall"}  # the model reads no text
    if use == "confidence":
        silent -= {"image_drop", "image_increase", "image_gain"}  # a saturated case may have nothing to gain
    assert not silent, (found, size)


def test_a_half_precision_map_is_the_map_of_its_numbers(world, use):
    here = world(use)
    halves = [
        here.answer(*(None if x is None else x.half() for x in (e.image, e.text))) for e in here.maps(5)
    ]
    whole = [here.answer(*(None if x is None else x.float() for x in (e.image, e.text))) for e in halves]
    one, other = (here.numbers(here.metric(), here.cases(), answers) for answers in (halves, whole))
    here.same(one, other, rel=1e-6)


def test_a_map_of_one_channel_is_a_pooled_map(world, use):
    here = world(use)
    flat = here.maps(6)
    deep = [here.answer(e.image[None], e.text) for e in flat]
    one, other = (here.numbers(here.metric(), here.cases(), answers) for answers in (flat, deep))
    here.same(one, other, rel=1e-6)


def test_a_map_on_the_images_grid_need_not_be_enlarged(world, use):
    here = world(use)
    maps = here.maps(8, size=here.size)
    one, other = (
        here.numbers(here.metric(upsample=way), here.cases(), maps) for way in ("bilinear", "nearest")
    )
    here.same(one, other, rel=1e-6)


def test_a_map_of_no_shape_that_a_map_has_is_said_to_be_wrong(world, use):
    here = world(use)
    with pytest.raises(ValueError, match=r"gave case s0 an image map of shape \[1, 1, 2, 2\]"):
        here.numbers(here.metric(), here.cases(1), [here.answer(torch.ones(1, 1, 2, 2))])
