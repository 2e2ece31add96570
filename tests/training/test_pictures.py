"""What the nets learn from: augmentation against loops, the words, the patches' own targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatproof.scenery import COLOURS, KINDS, Knobs, compose
from heatproof.training import pictures
from heatproof.training.dense import Dense, named, planes_of
from heatproof.training.recipe import Data
from heatproof.training.vocabulary import encode, scene_words, swap_sides


@pytest.fixture(scope="module")
def some():
    return pictures.paint(Data(sample=8), quiet=True)


def test_painted_pictures_are_the_scenes(some):
    assert some.pixels.shape == (8, 3, 112, 112)
    assert len({*some.labels} - {*KINDS}) == 0
    scene = compose(Knobs(), "scenes", "train", 0, 5)
    assert some.scenes[5] == scene
    assert (some.pixels[5].permute(1, 2, 0).numpy() == scene.render()).all()


def test_normalised_as_the_frame_does(some):
    ours = pictures.normalise(some.pixels[:2])
    theirs = pictures.FRAME.image(some.scenes[1].render())
    assert torch.allclose(ours[1], theirs, atol=1e-6)
    assert ours.min() >= -1
    assert ours.max() <= 1


def test_mirror_flips_the_chosen_rows(some):
    which = torch.tensor([True, False] * 4)
    flipped = pictures.mirror(some.pixels, which)
    for row in range(8):
        expected = some.pixels[row].numpy()[:, :, ::-1] if which[row] else some.pixels[row].numpy()
        assert (flipped[row].numpy() == expected).all()


def test_moved_shifts_and_repeats_the_edge(some):
    seen = set()
    for seed in range(12):
        dice = torch.Generator().manual_seed(seed)
        out = pictures.moved(some.pixels[:1], 3, dice)[0].numpy()
        down, right = torch.randint(-3, 4, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        padded = np.pad(some.pixels[0].numpy(), ((0, 0), (3, 3), (3, 3)), mode="edge")
        assert (out == padded[:, 3 + down : 115 + down, 3 + right : 115 + right]).all()
        seen.add((down, right))
    assert len(seen) > 5
    assert torch.equal(pictures.moved(some.pixels, 0, torch.Generator()), some.pixels)


def test_batches_hold_every_row(some):
    parts = list(pictures.batches(some.pixels, 3))
    assert [len(part) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat(parts), some.pixels)


def test_words_and_their_mirror():
    words = scene_words()
    ids = encode(words, ["a red ball left of a small blue kite", "right"], 12)
    assert ids.shape == (2, 12)
    assert ids[0, 0] == words.bos
    assert ids[1].tolist()[:4] == [words.bos, words.ids["right"], words.eos, words.pad]
    assert words.unknown not in ids
    swapped = swap_sides(ids, words)
    assert words.text(swapped[0].tolist()) == "a red ball right of a small blue kite".split()
    assert torch.equal(swap_sides(swapped, words), ids)


def test_planes_name_kind_and_colour_of_what_is_seen(some):
    planes = planes_of(some.scenes, quiet=True)
    colours = list(COLOURS)
    for row, scene in enumerate(some.scenes):
        masks = np.stack(scene.masks())
        assert not planes[row][:, ~masks.any(0)].any()
        for index, thing in enumerate(scene.things):
            alone = masks[index] & (masks.sum(0) == 1)
            seen = planes[row, 0].numpy()[alone]
            assert set(np.unique(seen)) <= {0, KINDS.index(thing.kind) + 1}
            assert (seen > 0).mean() > 0.8
            assert set(np.unique(planes[row, 1].numpy()[alone])) <= {0, colours.index(thing.colour) + 1}


def test_patches_are_named_as_a_loop_would(some):
    plane = planes_of(some.scenes, quiet=True)[:, 0]
    found = named(plane, 16, len(KINDS) + 1)
    for row, patch in [(0, 0), (1, 24), (2, 17), (3, 31), (4, 40), (5, 25), (6, 10)]:
        top, left = 16 * (patch // 7), 16 * (patch % 7)
        cell = plane[row, top : top + 16, left : left + 16].numpy().ravel()
        counts = np.bincount(cell, minlength=len(KINDS) + 1).astype(float)
        counts[0] *= 0.3
        assert found[row, patch] == counts.argmax()
    assert (found > 0).any()


def test_dense_loss_falls_to_nothing_when_every_patch_is_right(some):
    planes = planes_of(some.scenes, quiet=True)
    dense = Dense(width=len(KINDS) + len(COLOURS) + 2, patch=16)
    with torch.no_grad():
        for head in (dense.kind, dense.colour):
            head.weight.zero_()
            head.bias.zero_()
        dense.kind.weight[:, : len(KINDS) + 1] = 50 * torch.eye(len(KINDS) + 1)
        dense.colour.weight[:, len(KINDS) + 1 :] = 50 * torch.eye(len(COLOURS) + 1)
    hot = [
        torch.nn.functional.one_hot(named(plane, 16, n), n).float()
        for plane, n in zip(planes.unbind(1), (len(KINDS) + 1, len(COLOURS) + 1), strict=True)
    ]
    assert dense(torch.cat(hot, -1), planes) < 1e-6
    assert dense(torch.cat(hot, -1).roll(1, 1), planes) > 1
