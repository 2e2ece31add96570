"""Scenes as samples: what a data set of scenes yields."""

from __future__ import annotations

from functools import partial

import numpy as np

from heatproof.contract import Object, Sample
from heatproof.scenery.compose import Knobs, compose
from heatproof.scenery.dice import Dice

SPLITS = ("train", "val", "test")


def sample(knobs: Knobs, masked: float, split: str, seed: int, index: int) -> Sample:
    """One sample; with chance ``masked`` its objects carry their masks, else boxes alone."""
    names = ("scenes", split, seed, index)
    scene = compose(knobs, *names)
    with_masks = Dice(*names, "masked").unit() < masked
    main = scene.things[0]
    return Sample(
        id=f"{split}-{seed}-{index:05d}",
        read=scene.render,
        label=main.kind,
        captions=scene.captions(),
        objects=tuple(
            Object(thing.kind, box(mask), mask if with_masks else None, without=partial(scene.render, index))
            for index, (thing, mask) in enumerate(zip(scene.things, scene.masks(), strict=True))
        ),
        rationales=scene.rationales(),
        extras={"background": scene.background, "colour": main.colour, "scene": scene},
    )


def box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 around the pixels of a mask; the far edges are one past the last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
