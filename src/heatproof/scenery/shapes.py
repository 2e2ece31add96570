"""The ten things a scene can hold, drawn from signed distances: which part of the paper is which.

A drawing takes local coordinates (x to the right, y downwards, the thing inside about [-1, 1]) and
returns its parts from back to front: a signed distance (negative inside) and a paint. Only + - * / and
square roots are used: they are rounded alike on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import maximum, minimum

Plane = np.ndarray
Part = tuple[Plane, str]  # signed distance, paint: see canvas.paint
Drawing = Callable[[Plane, Plane], list[Part]]


def circle(x: Plane, y: Plane, cx: float, cy: float, r: float) -> Plane:
    """Distance to a disc."""
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - r


def ellipse(x: Plane, y: Plane, cx: float, cy: float, a: float, b: float) -> Plane:
    """Distance to an ellipse with half axes a and b, to first order (exact on its edge)."""
    dx, dy = (x - cx) / a, (y - cy) / b
    far = np.sqrt(dx * dx + dy * dy) + 1e-9
    steep = np.sqrt(dx * dx / (a * a) + dy * dy / (b * b)) + 1e-9
    return far * (far - 1.0) / steep


def box(x: Plane, y: Plane, cx: float, cy: float, a: float, b: float) -> Plane:
    """Distance to a rectangle with half sides a and b (a bound at its corners)."""
    return maximum(abs(x - cx) - a, abs(y - cy) - b)


def convex(x: Plane, y: Plane, *corners: tuple[float, float]) -> Plane:
    """Distance to a convex polygon, its corners clockwise on the screen (a bound at the corners)."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        sides.append((x - x0) * nx + (y - y0) * ny)
    inside: Plane = sides[0]
    for side in sides[1:]:
        inside = maximum(inside, side)
    return inside


def ball(x: Plane, y: Plane) -> list[Part]:
    body = circle(x, y, 0, 0, 0.93)
    shade = maximum(body, -circle(x, y, -0.22, -0.24, 0.95))
    return [(body, "fill"), (shade, "dark"), (ellipse(x, y, -0.36, -0.42, 0.2, 0.14), "cream")]


def star(x: Plane, y: Plane) -> list[Part]:
    # five corners on the unit circle, folded onto one by reflections
    x, y = abs(x), -(y - 0.06)
    for nx, ny in ((0.8090169943749475, -0.5877852522924731), (-0.8090169943749475, -0.5877852522924731)):
        over = 2.0 * maximum(nx * x + ny * y, 0.0)
        x, y = x - over * nx, y - over * ny
    x, y = abs(x), y - 1.0
    ax, ay = 0.5 * 0.5877852522924731, 0.5 * 0.8090169943749475 - 1.0
    along = minimum(maximum((x * ax + y * ay) / (ax * ax + ay * ay), 0.0), 1.0)
    dx, dy = x - ax * along, y - ay * along
    side = y * ax - x * ay
    return [(np.sqrt(dx * dx + dy * dy) * np.sign(side) - 0.05, "fill")]


def cup(x: Plane, y: Plane) -> list[Part]:
    handle = abs(ellipse(x, y, 0.55, 0.08, 0.34, 0.4)) - 0.11
    body = convex(x, y, (-0.8, -0.66), (0.52, -0.66), (0.34, 0.86), (-0.62, 0.86))
    rim = ellipse(x, y, -0.14, -0.66, 0.67, 0.17)
    drink = ellipse(x, y, -0.14, -0.65, 0.52, 0.09)
    return [(handle, "dark"), (minimum(body, rim), "fill"), (rim, "cream"), (drink, "wood")]


def house(x: Plane, y: Plane) -> list[Part]:
    chimney = box(x, y, 0.45, -0.6, 0.12, 0.3)
    walls = box(x, y, 0.0, 0.38, 0.72, 0.5)
    roof = convex(x, y, (0.0, -0.95), (0.98, -0.05), (-0.98, -0.05))
    door = box(x, y, -0.28, 0.55, 0.16, 0.33)
    window = box(x, y, 0.3, 0.34, 0.2, 0.18)
    bars = minimum(box(x, y, 0.3, 0.34, 0.03, 0.18), box(x, y, 0.3, 0.34, 0.2, 0.03))
    return [
        (chimney, "wood"),
        (walls, "fill"),
        (roof, "dark"),
        (door, "wood"),
        (window, "cream"),
        (bars, "wood"),
    ]


def tree(x: Plane, y: Plane) -> list[Part]:
    trunk = convex(x, y, (-0.14, 0.2), (0.14, 0.2), (0.22, 0.95), (-0.22, 0.95))
    low = minimum(circle(x, y, -0.42, 0.02, 0.42), circle(x, y, 0.42, 0.02, 0.42))
    crown = minimum(low, minimum(circle(x, y, 0, -0.45, 0.5), circle(x, y, 0, 0.05, 0.4)))
    return [(trunk, "wood"), (crown, "fill")]


def fish(x: Plane, y: Plane) -> list[Part]:
    tail = minimum(
        convex(x, y, (0.35, 0.0), (0.98, -0.52), (0.84, 0.0)),
        convex(x, y, (0.84, 0.0), (0.98, 0.52), (0.35, 0.0)),
    )
    back = convex(x, y, (-0.3, -0.35), (0.2, -0.72), (0.3, -0.3))
    body = ellipse(x, y, -0.18, 0.0, 0.76, 0.46)
    fin = convex(x, y, (-0.12, 0.04), (0.22, -0.02), (0.12, 0.26))
    eye, pupil = circle(x, y, -0.6, -0.1, 0.13), circle(x, y, -0.63, -0.1, 0.06)
    return [
        (minimum(tail, back), "dark"),
        (body, "fill"),
        (fin, "dark"),
        (eye, "cream"),
        (pupil, "ink"),
    ]


def key(x: Plane, y: Plane) -> list[Part]:
    bow = abs(circle(x, y, -0.5, 0.0, 0.33)) - 0.15
    shaft = box(x, y, 0.4, 0.0, 0.56, 0.12)
    teeth = minimum(box(x, y, 0.83, 0.2, 0.11, 0.24), box(x, y, 0.52, 0.16, 0.1, 0.2))
    return [(minimum(minimum(shaft, teeth), bow), "fill")]


def boat(x: Plane, y: Plane) -> list[Part]:
    mast = box(x, y, -0.02, -0.2, 0.06, 0.72)
    main = convex(x, y, (0.1, -0.9), (0.8, 0.22), (0.1, 0.22))
    jib = convex(x, y, (-0.12, -0.7), (-0.12, 0.22), (-0.72, 0.22))
    hull = convex(x, y, (-0.98, 0.32), (0.98, 0.32), (0.62, 0.86), (-0.62, 0.86))
    return [(mast, "wood"), (main, "cream"), (jib, "light"), (hull, "fill")]


def kite(x: Plane, y: Plane) -> list[Part]:
    sail = convex(x, y, (0.0, -0.98), (0.62, -0.3), (0.0, 0.52), (-0.62, -0.3))
    half = maximum(sail, x)
    cross = maximum(sail, minimum(abs(x), abs(y + 0.3)) - 0.035)
    string = box(x, y, 0.0, 0.72, 0.03, 0.25)
    bows = minimum(
        convex(x, y, (-0.2, 0.56), (0.0, 0.66), (-0.2, 0.76)),
        convex(x, y, (0.2, 0.56), (0.2, 0.76), (0.0, 0.66)),
    )
    ends = minimum(
        convex(x, y, (-0.2, 0.82), (0.0, 0.92), (-0.2, 1.02)),
        convex(x, y, (0.2, 0.82), (0.2, 1.02), (0.0, 0.92)),
    )
    return [
        (string, "ink"),
        (minimum(bows, ends), "dark"),
        (sail, "fill"),
        (half, "fill"),
        (cross, "dark"),
    ]


def mushroom(x: Plane, y: Plane) -> list[Part]:
    stem = convex(x, y, (-0.22, -0.1), (0.22, -0.1), (0.32, 0.9), (-0.32, 0.9))
    cap = maximum(ellipse(x, y, 0.0, 0.06, 0.94, 0.95), y - 0.14)
    spots = minimum(
        minimum(circle(x, y, -0.02, -0.56, 0.17), circle(x, y, -0.5, -0.22, 0.14)),
        circle(x, y, 0.46, -0.24, 0.16),
    )
    return [(stem, "cream"), (cap, "fill"), (maximum(cap, spots), "cream")]


DRAWINGS: dict[str, Drawing] = {
    "ball": ball,
    "star": star,
    "cup": cup,
    "house": house,
    "tree": tree,
    "fish": fish,
    "key": key,
    "boat": boat,
    "kite": kite,
    "mushroom": mushroom,
}
KINDS = tuple(DRAWINGS)

# how much larger a thing is drawn, so that one radius means about one area
STRETCH = {
    "ball": 0.9,
    "star": 1.2,
    "cup": 1.05,
    "house": 0.95,
    "tree": 1.1,
    "fish": 1.15,
    "key": 1.3,
    "boat": 1.15,
    "kite": 1.3,
    "mushroom": 1.0,
}
