"""One thing on the raster: which share of each pixel it takes, and in which colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from heatproof.scenery.canvas import COLOURS, CREAM, INK, SIDE, mix, paint, planes, weave
from heatproof.scenery.shapes import DRAWINGS, STRETCH, Part

OUTLINE = 1.3  # pixels


@dataclass(frozen=True)
class Sketch:
    """A window of the picture with a thing in it; ``u`` and ``v`` are pixels along the thing's own axes."""

    colour: str
    texture: str
    radius: float
    top: int
    left: int
    u: np.ndarray
    v: np.ndarray
    parts: list[Part]  # distances in units of ``radius``
    edge: np.ndarray  # distance to the silhouette, in pixels

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.edge.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @cached_property
    def alpha(self) -> np.ndarray:
        """Share of each pixel, float32 [h, w]; slivers below a tenth count as none."""
        share = cover(self.edge)
        return np.where(share < 0.1, 0.0, share)

    def paint(self) -> np.ndarray:
        """Colours, float32 [3, h, w]: the parts from back to front, light from the top left, an outline."""
        colour = COLOURS[self.colour]
        picture = np.zeros((3, *self.edge.shape), np.float32)
        second = weave(self.texture, self.u, self.v, self.radius)
        other = mix(colour, INK, 0.3) if self.colour == "yellow" else mix(colour, CREAM, 0.62)
        tone = planes(other)
        for distance, name in self.parts:
            share = cover(distance * self.radius)
            flat = planes(paint(name, colour))
            if name == "fill" and second is not None:
                flat = flat + second * (tone - flat)
            picture += share * (flat - picture)
        picture *= 1.0 - (self.u + self.v) * (0.11 / self.radius)
        rim = cover(-self.edge - OUTLINE)
        picture += rim * (planes(mix(colour, INK, 0.72)) - picture)
        return picture


def cover(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside an edge at this signed distance in pixels."""
    return np.minimum(np.maximum(0.5 - distance, 0.0), 1.0)


def sketch(
    kind: str, colour: str, texture: str, centre: tuple[float, float], radius: float, turn: float
) -> Sketch:
    """Lay a thing out; ``turn`` is the tangent of half its angle, so that no sine is needed."""
    unit = radius * STRETCH[kind]
    reach = unit * 1.12 + 2.0
    cx, cy = centre
    left, right = max(0, int(cx - reach)), min(SIDE, int(cx + reach) + 1)
    top, bottom = max(0, int(cy - reach)), min(SIDE, int(cy + reach) + 1)
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - cx)[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - cy)[:, None]
    square = turn * turn
    cosine, sine = (1.0 - square) / (1.0 + square), 2.0 * turn / (1.0 + square)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    parts = DRAWINGS[kind](u / unit, v / unit)
    edge = parts[0][0]
    for distance, _ in parts[1:]:
        edge = np.minimum(edge, distance)
    return Sketch(colour, texture, unit, top, left, u, v, parts, edge * unit)
