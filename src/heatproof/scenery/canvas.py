"""Paint and ground: the palette, the textures of things and the six backgrounds, as float32 planes."""

from __future__ import annotations

import numpy as np

from heatproof.scenery.dice import Dice

SIDE = 112  # pixels, both ways

Colour = tuple[float, float, float]  # red, green, blue in 0 .. 1

COLOURS: dict[str, Colour] = {
    "red": (0.84, 0.15, 0.16),
    "orange": (0.97, 0.55, 0.10),
    "yellow": (0.98, 0.84, 0.18),
    "green": (0.20, 0.62, 0.27),
    "blue": (0.16, 0.38, 0.82),
    "purple": (0.50, 0.24, 0.68),
    "pink": (0.97, 0.52, 0.72),
    "brown": (0.48, 0.29, 0.15),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("sky", "meadow", "beach", "floor", "wall", "fog")

INK: Colour = (0.13, 0.12, 0.16)
CREAM: Colour = (0.99, 0.97, 0.90)
WOOD: Colour = (0.42, 0.29, 0.20)

_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """``one`` with a share of ``other`` in it."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(one, other, strict=True))
    return red, green, blue


def planes(colour: Colour) -> np.ndarray:
    """[3, 1, 1], to be broadcast over a picture."""
    return np.array(colour, np.float32)[:, None, None]


def paint(name: str, colour: Colour) -> Colour:
    """The colour of a part: its paint, for a thing of this colour."""
    if name == "dark":
        return mix(colour, INK, 0.38)
    if name == "light":
        return mix(colour, CREAM, 0.45)
    return {"fill": colour, "cream": CREAM, "wood": WOOD, "ink": INK}[name]


def weave(texture: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray | None:
    """How much of the second tone shows, [h, w] in 0 .. 1; ``u`` and ``v`` in pixels along the thing."""
    if texture == "plain":
        return None
    period = max(5.0, 0.36 * radius)
    if texture == "striped":
        return _ramp((_wave(u / period + v / (2 * period)) - 0.5) * period)
    if texture == "checked":
        a, b = _wave(u / period) - 0.5, _wave(v / period) - 0.5
        return _ramp(np.where(abs(a) < abs(b), a * np.sign(b), b * np.sign(a)) * period)
    a, b = _wave(u / period), _wave(v / period)
    return _ramp((0.55 - np.sqrt(a * a + b * b)) * period)


def _wave(t: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1: 0 at whole numbers, 1 half way."""
    return 2.0 * abs(t - np.floor(t + 0.5))


def _ramp(t: np.ndarray) -> np.ndarray:
    """A soft step one pixel wide."""
    soft: np.ndarray = np.minimum(np.maximum(t + 0.5, 0.0), 1.0)
    return soft


def _blend(low: Colour, high: Colour, share: np.ndarray) -> np.ndarray:
    """[H, W] shares -> [3, H, W]."""
    base, top = planes(low), planes(high)
    mixed: np.ndarray = base + share * (top - base)
    return mixed


def _clouds(dice: Dice, cells: int) -> np.ndarray:
    """Smooth noise [SIDE, SIDE] in 0 .. 1: a coarse grid, blended linearly."""
    grid = dice.noise(cells + 2, cells + 2)
    at = np.arange(SIDE, dtype=np.float32) * (cells / SIDE)
    low = at.astype(np.int64)
    part = at - low
    rows: np.ndarray = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    smooth: np.ndarray = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return smooth


def ground(name: str, dice: Dice) -> np.ndarray:
    """One background, float32 [3, SIDE, SIDE] in about 0 .. 1, with its own light and noise."""
    light = dice.between(-0.05, 0.05)
    horizon = dice.between(0.36, 0.56) * SIDE
    step = dice.between(13.0, 21.0)
    tone = dice.unit()
    grain = (dice.noise(SIDE, SIDE) - 0.5) * 0.045
    soft = _clouds(dice, 6)
    up = _ROWS / SIDE
    if name == "sky":
        picture = _blend((0.47, 0.70, 0.93), (0.86, 0.94, 0.99), up)
        picture = picture + _ramp((soft - 0.55) * 5.0) * (0.97 - picture) * 0.8
    elif name == "meadow":
        hill = horizon + (soft - 0.5) * 14.0
        grass = _blend((0.62, 0.80, 0.45), (0.42, 0.66, 0.33), (_ROWS - hill) / SIDE + soft * 0.3)
        above = _blend((0.66, 0.83, 0.95), (0.90, 0.96, 0.98), up)
        picture = np.where(hill < _ROWS, grass, above)
    elif name == "beach":
        shore = horizon + 16.0 + (soft - 0.5) * 10.0
        sand = _blend((0.93, 0.84, 0.63), (0.87, 0.75, 0.52), soft)
        foam = _ramp((_wave(_ROWS / 9.0 + soft) - 0.8) * 6.0) * 0.5
        sea = _blend((0.25, 0.58, 0.70), (0.62, 0.84, 0.88), foam)
        above = _blend((0.72, 0.88, 0.96), (0.95, 0.95, 0.90), up * 1.6)
        picture = np.where(shore < _ROWS, sand, sea)
        picture = np.where(horizon > _ROWS, above, picture)
    elif name == "floor":
        odd = (np.floor(_ROWS / step) + np.floor(_COLUMNS / step)) % 2
        joint = ((_ROWS % step < 1.5) | (_COLUMNS % step < 1.5)).astype(np.float32)
        picture = _blend((0.86, 0.82, 0.77), (0.70, 0.66, 0.62), odd)
        picture = picture * (1.0 - 0.22 * joint)
    elif name == "wall":
        pair = _ramp((_wave(_COLUMNS / step) - 0.5) * step)
        picture = _blend((0.95, 0.90, 0.82), mix((0.80, 0.86, 0.80), (0.90, 0.80, 0.78), tone), pair)
        board = (_ROWS > SIDE - 17).astype(np.float32)
        picture = picture * (1.0 - 0.16 * board)
    else:
        picture = _blend((0.86, 0.88, 0.90), (0.58, 0.63, 0.68), soft * 0.8 + up * 0.2)
    return picture + (grain + light)
