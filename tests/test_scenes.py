"""The generated scenes: the same bytes everywhere, masks that tell the truth, knobs that do what they say."""

from __future__ import annotations

import pickle
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import shelf
from heatproof.contract import Refused
from heatproof.scenery import COLOURS, HOME, KINDS, PARTNERS, TEXTURES, Knobs, compose
from heatproof.scenery.scene import draw, visible
from heatproof.training.vocabulary import scene_words

Scenes = shelf.load(shelf.house() / "datasets" / "scenes.py").Scenes

# pixels, masks and texts of the first six test scenes; a change here changes every frozen result
FROZEN = "9a4e693ce0d8dcedf9380cb7"


@pytest.fixture(scope="module")
def plain():
    return Scenes(split="test", sample=40).samples()


def seal(samples) -> str:
    told = blake2b(digest_size=12)
    for sample in samples:
        told.update(sample.read().tobytes())
        told.update("".join((*sample.captions, *sample.rationales, str(sample.label))).encode())
        for thing in sample.objects:
            told.update(np.packbits(thing.mask).tobytes())
    return told.hexdigest()


def test_the_bytes_are_frozen(plain):
    assert seal(plain[:6]) == FROZEN


def test_more_samples_only_add_to_the_end(plain):
    assert seal(Scenes(split="test", sample=3).samples()) == seal(plain[:3])


def test_splits_and_seeds_share_no_scene():
    scenes = [
        sample.extras["scene"]
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for sample in Scenes(split=split, sample=10, seed=seed).samples()
    ]
    assert len(set(scenes)) == 60


def test_a_mask_is_what_changes_without_the_thing(plain):
    hidden = 0
    for sample in plain:
        scene, picture = sample.extras["scene"], sample.read()
        for index, thing in enumerate(sample.objects):
            changed = (scene.render(without=index) != picture).any(-1)
            assert not (changed & ~thing.mask).any()  # everywhere else: the same bytes
            assert (thing.mask & ~changed).sum() <= 0.01 * thing.mask.sum() + 2  # equal by chance
            hidden += visible(scene.things)[index].sum() < 0.97 * draw(scene.things[index]).alpha.sum()
    assert hidden > 10  # and some are partly occluded


def test_recolouring_changes_the_thing_alone(plain):
    for sample in plain[:10]:
        scene, picture = sample.extras["scene"], sample.read()
        other = "blue" if scene.things[0].colour != "blue" else "red"
        changed = (scene.recolour(0, other).render() != picture).any(-1)
        assert not (changed & ~sample.objects[0].mask).any()
        assert changed.sum() > 0.3 * sample.objects[0].mask.sum()
        assert scene.recolour(0, other).captions()[1] != scene.captions()[1]
    with pytest.raises(Refused, match="'mauve' is not one of red"):
        scene.recolour(0, "mauve")


def test_visible_shares_against_a_loop_over_pixels(plain):
    things = plain[3].extras["scene"].things
    shown = visible(things)
    nearest = sorted(range(len(things)), key=lambda i: things[i].depth, reverse=True)
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, 112, (300, 2)):
        free = 1.0
        for index in nearest:
            drawn = draw(things[index])
            rows, columns = drawn.window
            inside = rows.start <= row < rows.stop and columns.start <= column < columns.stop
            alpha = drawn.alpha[row - drawn.top, column - drawn.left] if inside else 0.0
            assert shown[index][row, column] == pytest.approx(alpha * free, abs=1e-6)
            free *= 1.0 - alpha


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.floats(0.5, 1.1),
    clutter=st.integers(0, 5),
    partner=st.sampled_from([None, 0.0, 1.0]),
)
def test_the_label_is_the_clearly_largest_and_nothing_is_hidden(seed, size, clutter, partner):
    scene = compose(Knobs(partner=partner, size=size, clutter=clutter), "any", seed)
    shown = [share.sum() for share in visible(scene.things)]
    assert all(shown[0] >= 1.5 * other for other in shown[1:])
    for thing, share in zip(scene.things, shown, strict=True):
        assert share >= 0.4 * draw(thing).alpha.sum()
    assert len({thing.kind for thing in scene.things}) == len(scene.things)


def test_boxes_fit_their_masks(plain):
    for thing in (thing for sample in plain for thing in sample.objects):
        x0, y0, x1, y1 = map(int, thing.box)
        assert thing.mask[y0:y1, x0:x1].sum() == thing.mask.sum()
        inside = thing.mask[y0:y1, x0:x1]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


def test_captions_say_what_is_there(plain):
    words = scene_words()
    assert len(words.ids) <= 80
    for sample in plain:
        scene = sample.extras["scene"]
        there = {thing.kind for thing in scene.things}
        assert len(sample.captions) == 5
        assert len(set(sample.captions)) == 5
        for caption in sample.captions:
            said = caption.split()
            assert caption == caption.lower()
            assert set(said) <= set(words.ids)
            assert f"{scene.things[0].colour} {sample.label}" in caption
            assert {word for word in said if word in KINDS} <= there
        main, other = scene.things[:2]
        for side, true in (
            ("left of", main.x < other.x),
            ("right of", main.x > other.x),
            ("above", main.y < other.y),
            ("below", main.y > other.y),
        ):
            assert true or f" {side} " not in sample.captions[0]


def test_colour_is_independent_of_kind_without_bias():
    things = [t for i in range(600) for t in compose(Knobs(clutter=2), "stats", i).things]
    table = np.zeros((len(KINDS), len(COLOURS)))
    colours = list(COLOURS)
    for thing in things:
        table[KINDS.index(thing.kind), colours.index(thing.colour)] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    square = ((table - expected) ** 2 / expected).sum()
    assert square < 103.4  # chi square, 63 degrees of freedom, p = 0.001
    assert {thing.texture for thing in things} == set(TEXTURES)


@pytest.mark.parametrize(("bias", "low", "high"), [(0.0, 0.06, 0.2), (0.5, 0.48, 0.65), (1.0, 1.0, 1.0)])
def test_colour_bias(bias, low, high):
    things = [t for i in range(150) for t in compose(Knobs(colour_bias=bias), "bias", i).things]
    share = np.mean([thing.colour == HOME[thing.kind] for thing in things])
    assert low <= share <= high


@pytest.mark.parametrize(
    ("partner", "low", "high"), [(None, 0.12, 0.33), (0.0, 0, 0), (0.7, 0.6, 0.8), (1.0, 1, 1)]
)
def test_partner(partner, low, high):
    scenes = [compose(Knobs(partner=partner), "pairs", i) for i in range(200)]
    there = [PARTNERS[s.things[0].kind] in {t.kind for t in s.things[1:]} for s in scenes]
    assert low <= np.mean(there) <= high


def test_partners_are_mutual():
    assert all(PARTNERS[PARTNERS[kind]] == kind != PARTNERS[kind] for kind in KINDS)


def test_a_knob_moves_only_what_it_is_about():
    for i in range(10):
        one, other = (compose(Knobs(colour_bias=b), "same", i) for b in (0.0, 1.0))
        places = [[(t.kind, t.x, t.y, t.radius, t.texture) for t in s.things] for s in (one, other)]
        assert places[0] == places[1]
        assert one.background == other.background


def test_masked_size_and_clutter():
    samples = Scenes(sample=80, masked=0.3, clutter=2).samples()
    with_masks = [sample.objects[0].mask is not None for sample in samples]
    assert 0.15 <= np.mean(with_masks) <= 0.45
    assert all(len({t.mask is None for t in sample.objects}) == 1 for sample in samples)
    assert {len(sample.objects) for sample in samples} == {2, 3}
    assert {len(sample.objects) for sample in Scenes(sample=5, clutter=0).samples()} == {1}
    areas = [
        np.mean([s.objects[0].mask.sum() for s in Scenes(sample=30, size=size).samples()])
        for size in (0.6, 1.0)
    ]
    assert 0.25 < areas[0] / areas[1] < 0.5  # about 0.6 squared


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"split": "trian"}, "split is 'trian'; accepted are train, val, test"),
        ({"colour_bias": 1.5}, "colour_bias is 1.5; accepted is a share"),
        ({"partner": -1}, "partner is -1"),
        ({"sample": 0}, "sample is 0"),
        ({"size": 3.0}, "size is 3.0"),
        ({"clutter": 9}, "clutter is 9"),
    ],
)
def test_wrong_knobs_are_refused(wrong, told):
    with pytest.raises(Refused, match=told):
        Scenes(**wrong)


def test_samples_travel_to_other_processes(plain):
    there = pickle.loads(pickle.dumps(plain[0]))
    assert there.digest() == plain[0].digest()
