"""Maps drawn on their images, and the example maps that a run kept. No torch, no matplotlib.

Warm colours speak for the answer, cool ones against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from heatproof.records import Result
from heatproof.summary import Block

Picture = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

BRIGHT = 0.99  # a few pixels may outshine the scale, or pixel-fine maps would look empty
WARM = ((1.00, 0.86, 0.45), (0.96, 0.45, 0.13), (0.66, 0.05, 0.15))
COOL = ((0.62, 0.86, 0.95), (0.20, 0.55, 0.83), (0.07, 0.22, 0.55))


def overlay(
    image: Picture, heat: npt.NDArray[Any], evidence: npt.NDArray[np.bool_] | None = None, side: int = 224
) -> Picture:
    """A map on its image in grey, uint8 RGB [side, side * W/H, 3]; the evidence, if any, outlined.

    A map with negative values keeps its zero: warm above, cool below, on one scale. A map without starts at
    its minimum. Full colour is reached at the 99th percentile of the size. For the eye only.
    """
    base = _sized(image, side).astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    grey = 64 + 0.7 * base[..., None]
    value = _sized_heat(_unit(np.asarray(heat, dtype=np.float64)), base.shape)
    level = np.rint(127 * value).astype(np.int64) + 127
    colour, cover = _scale()
    mixed = (grey + cover[level] * (colour[level] - grey)).astype(np.uint8)
    return outlined(mixed, evidence)


def outlined(picture: Picture, evidence: npt.NDArray[np.bool_] | None) -> Picture:
    """The picture with the border of the evidence drawn in white, with a thin black edge."""
    if evidence is None or not evidence.any():
        return picture
    high, wide = picture.shape[:2]
    soft = Image.fromarray(evidence.astype(np.float32)).resize((wide, high), Image.Resampling.BILINEAR)
    mask = np.asarray(soft) > 0.5
    outer, inner = _grown(mask, 2), _grown(mask, 3)
    out = picture.copy()
    out[inner & ~outer] = 20
    out[outer & ~mask] = 255
    return out


def _grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    for _ in range(by):
        padded = np.pad(mask, 1)
        mask = (
            mask | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        )  # one pixel in each direction
    return mask


def framed(image: Picture, evidence: npt.NDArray[np.bool_] | None = None, side: int = 224) -> Picture:
    """The photograph itself at the size of an overlay, its evidence outlined."""
    return outlined(_sized(image, side), evidence)


def _sized(image: Picture, side: int) -> Picture:
    wide = round(side * image.shape[1] / image.shape[0])
    return np.asarray(Image.fromarray(image).resize((wide, side), Image.Resampling.BICUBIC))


def _sized_heat(heat: Array, shape: tuple[int, ...]) -> Array:
    flat = Image.fromarray(heat.astype(np.float32))
    size = (shape[1], shape[0])
    return np.asarray(flat.resize(size, Image.Resampling.BILINEAR), dtype=np.float64).clip(-1, 1)


def _unit(heat: Array) -> Array:
    heat = np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0)
    size, low = np.abs(heat), float(heat.min())
    if low >= -1e-6 * size.max():
        heat = size = heat - low
    top = float(np.quantile(size, BRIGHT)) or float(size.max())
    return (heat / top).clip(-1, 1) if top > 0 else heat


@lru_cache(maxsize=1)
def _scale() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colours [255, 3] from -1 to 1, and how much of the image each covers [255, 1]."""
    level = np.linspace(-1, 1, 255)
    stops = [COOL[2], COOL[1], COOL[0], WARM[0], WARM[1], WARM[2]]
    places = [-1, -0.5, -1e-9, 0, 0.5, 1]
    colour = np.stack([np.interp(level, places, [s[i] for s in stops]) for i in range(3)], axis=-1)
    cover = 0.92 * np.abs(level[:, None]) ** 0.65
    return (255 * colour).astype(np.float32), cover.astype(np.float32)


# ---------------------------------------------------------------- the kept example maps


@dataclass(frozen=True, eq=False)
class Example:
    """One kept case: image uint8 [H, W, 3], evidence bool [H, W], signed maps and texts by explainer."""

    model: str
    family: str
    case: str
    about: str
    image: Picture
    evidence: npt.NDArray[np.bool_] | None
    maps: Mapping[str, Array]
    spoken: Sequence[str] = ()
    texts: Mapping[str, Array] = field(default_factory=dict)


def examples(result: Result) -> list[Example]:
    """What ``NAME.strip.npz`` holds; nothing where no maps were kept."""
    if not result.strip.exists():
        return []
    out = []
    with np.load(result.strip) as kept:
        for row in json.loads(str(kept["index"])):
            n, names = row["row"], row["explainers"]
            seen = {
                k: {e: kept[key] for e in names if (key := f"{n}/{k}/{e}") in kept} for k in ("map", "text")
            }
            out.append(
                Example(
                    row["model"],
                    row["family"],
                    row["case"],
                    row["about"],
                    kept[f"{n}/image"],
                    kept[key] if (key := f"{n}/evidence") in kept else None,
                    {e: heat.astype(np.float64) for e, heat in seen["map"].items()},
                    row.get("spoken") or (),
                    {e: text.astype(np.float64) for e, text in seen["text"].items()},
                )
            )
    return out


def chosen(example: Example, block: Block, most: int = 8) -> list[str]:
    """The explainers that a strip shows: methods in rank order, then the best blind control with a map."""
    column = block.columns[0]
    methods = [m for m in block.methods if m in example.maps][:most]
    controls = column.ranked(c for c in column.valued(column.blind) if c in example.maps)
    return [*methods, *controls[:1]]
