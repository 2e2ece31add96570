"""Drawing lots for a scene: what, where, how large, in which colour; the knobs of a data set of scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heatproof import seeds
from heatproof.scenery.canvas import BACKGROUNDS, COLOURS, SIDE, TEXTURES
from heatproof.scenery.dice import Dice
from heatproof.scenery.scene import Scene, Thing, draw, visible
from heatproof.scenery.shapes import KINDS

# the colour a kind is drawn to under colour bias, and the kind it is often seen with
HOME = {
    "ball": "red",
    "star": "yellow",
    "cup": "blue",
    "house": "brown",
    "tree": "green",
    "fish": "orange",
    "key": "purple",
    "boat": "blue",
    "kite": "pink",
    "mushroom": "red",
}
PARTNERS = {
    "ball": "kite",
    "kite": "ball",
    "star": "mushroom",
    "mushroom": "star",
    "cup": "key",
    "key": "cup",
    "house": "tree",
    "tree": "house",
    "fish": "boat",
    "boat": "fish",
}
TILT = {"ball": 0.5, "star": 0.4, "fish": 0.16, "key": 0.35, "kite": 0.22}  # others stand: 0.05

MAIN_SHOWN = 0.6  # least visible share of the main thing
OTHER_SHOWN = 0.45  # and of the others
LARGER = 1.5  # the main thing shows at least so many times the pixels of any other


@dataclass(frozen=True)
class Knobs:
    """How scenes are biased and how hard they are.

    ``colour_bias``: chance that a thing wears its kind's home colour instead of any.
    ``partner``: chance that the main thing's partner kind is there; None leaves it to luck.
    ``size``: factor on every radius. ``clutter``: most things beside the main one (the least is one).
    """

    colour_bias: float = 0.0
    partner: float | None = None
    size: float = 1.0
    clutter: int = 3


def compose(knobs: Knobs, *names: object) -> Scene:
    """The scene that belongs to these names; the same knobs and names give the same scene anywhere.

    Kinds, looks and places are drawn from streams of their own, so a knob moves only what it is about.
    """
    what, look = Dice(*names, "what"), Dice(*names, "look")
    background = what.pick(BACKGROUNDS)
    kinds = _kinds(what, knobs)
    looks = []
    for kind in kinds:
        free, home = look.pick(tuple(COLOURS)), look.unit() < knobs.colour_bias
        looks.append((HOME[kind] if home else free, look.pick(TEXTURES)))
    for attempt in range(1000):
        things = _place(Dice(*names, "where", attempt), knobs, kinds, looks)
        if things is not None:
            return Scene(background, seeds.number(*names, "ground"), things)
    raise AssertionError(f"no room for {kinds} at size {knobs.size}")


def _kinds(dice: Dice, knobs: Knobs) -> list[str]:
    """The main kind, its partner if the lot says so, and others; all different."""
    main, *rest = dice.shuffled(KINDS)
    count = 1 + dice.below(knobs.clutter) if knobs.clutter else 0
    lot = dice.unit()
    if knobs.partner is not None:
        rest.remove(PARTNERS[main])
        if lot < knobs.partner:
            rest.insert(0, PARTNERS[main])
    return [main, *rest[:count]]


def _place(
    dice: Dice, knobs: Knobs, kinds: list[str], looks: list[tuple[str, str]]
) -> tuple[Thing, ...] | None:
    """Things at random places and depths, or None where one is hidden too much."""
    depths = dice.shuffled(range(len(kinds)))
    things = []
    for index, (kind, (colour, texture)) in enumerate(zip(kinds, looks, strict=True)):
        radius = (dice.between(24, 33) if index == 0 else dice.between(11.5, 16)) * knobs.size
        radius = min(radius, SIDE * 0.36)
        tilt = TILT.get(kind, 0.05)
        turn = dice.between(-tilt, tilt)
        x, y = (dice.between(radius * 1.15, SIDE - radius * 1.15) for _ in range(2))
        things.append(Thing(kind, colour, texture, x, y, radius, turn, depths[index]))
    whole = [float(draw(thing).alpha.sum()) for thing in things]
    shown = [float(share.sum()) for share in visible(things)]
    return tuple(things) if _fair(np.array(whole), np.array(shown)) else None


def _fair(whole: np.ndarray, shown: np.ndarray) -> bool:
    """Nothing is hidden too much, and the main thing is clearly the largest."""
    least = np.full(len(whole), OTHER_SHOWN)
    least[0] = MAIN_SHOWN
    others = shown[1:].max() if len(shown) > 1 else 0.0
    return bool((shown >= least * whole).all() and shown[0] >= LARGER * others)
