"""A scene: what stands where, and the same scene without a thing or with it in another colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from heatproof.contract import Refused
from heatproof.scenery import words
from heatproof.scenery.canvas import COLOURS, SIDE, ground
from heatproof.scenery.dice import Dice
from heatproof.scenery.raster import Sketch, sketch


@dataclass(frozen=True)
class Thing:
    """One object: ``x``, ``y``, ``radius`` in pixels, ``turn`` the tangent of half its angle, deeper = nearer."""

    kind: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float
    depth: int


@dataclass(frozen=True)
class Scene:
    """Everything that fixes a picture; ``things[0]`` is the main one, whose kind is the label.

    >>> scene = Scene("sky", 7, (Thing("ball", "red", "plain", 56, 56, 30, 0.0, 0),))
    >>> scene.render().shape, int(scene.masks()[0].sum()) > 1000
    ((112, 112, 3), True)
    """

    background: str
    seed: int
    things: tuple[Thing, ...]

    def render(self, without: int | None = None) -> np.ndarray:
        """uint8 [112, 112, 3]; ``without`` leaves one thing out and every other pixel as it was."""
        picture = ground(self.background, Dice(self.seed, "ground"))
        for index in self._order():
            if index == without:
                continue
            drawn = draw(self.things[index])
            under = picture[:, *drawn.window]
            under += drawn.alpha * (drawn.paint() - under)
        levels = np.minimum(np.maximum(picture, 0.0), 1.0) * 255.0 + 0.5
        return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))

    def masks(self) -> list[np.ndarray]:
        """A plane a thing, bool [112, 112]: every pixel that shows any of it. At a shared edge both have the pixel."""
        return [shown > 0 for shown in visible(self.things)]

    def recolour(self, index: int, colour: str) -> Scene:
        """The same scene with one thing in another colour."""
        if colour not in COLOURS:
            raise Refused(f"recolour: colour {colour!r} is not one of {', '.join(COLOURS)}")
        things = list(self.things)
        things[index] = replace(things[index], colour=colour)
        return replace(self, things=tuple(things))

    def captions(self) -> tuple[str, ...]:
        """Five sentences about the scene."""
        return words.captions(self.things, self.background)

    def rationales(self) -> tuple[str, ...]:
        """Reasons for the label."""
        return words.rationales(self.things)

    def _order(self) -> list[int]:
        return sorted(range(len(self.things)), key=lambda index: self.things[index].depth)


@lru_cache(maxsize=16)
def draw(thing: Thing) -> Sketch:
    """The thing on the raster; kept for a moment, because a scene is drawn, masked and rendered in a row."""
    return sketch(thing.kind, thing.colour, thing.texture, (thing.x, thing.y), thing.radius, thing.turn)


def visible(things: Sequence[Thing]) -> list[np.ndarray]:
    """The share of each pixel that each thing has in the end, float32 [112, 112] a thing."""
    free = np.ones((SIDE, SIDE), np.float32)
    shown = [np.zeros((SIDE, SIDE), np.float32) for _ in things]
    for index in sorted(range(len(things)), key=lambda at: -things[at].depth):
        drawn = draw(things[index])
        shown[index][drawn.window] = drawn.alpha * free[drawn.window]
        free[drawn.window] *= 1.0 - drawn.alpha
    return shown
