"""Where pixels, masks, boxes and maps live, and how they move between grids.

``Frame`` takes a photograph and what is annotated on it into a model's input by one transform.
``read`` is the only place where a map is pooled, signed and resized (law 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

MODES = ("squash", "crop", "keep")
POOLS = ("sum", "mean", "max_abs", "l2")
SIGNS = ("signed", "positive", "negative", "abs")
UPSAMPLES = ("bilinear", "nearest", "bicubic", "pyramid", "none")


@dataclass(frozen=True)
class Frame:
    """How a model wants to see an image: one transform for pixels, masks and boxes together.

    ``mode``: "squash" ignores the aspect, "crop" resizes the short edge to ``resize`` and takes the centre,
    "keep" leaves the size as it is. Pixels become ``(x * scale - mean) / std`` in ``channels`` order.
    Masks are averaged over the area of each new pixel and kept where at least half is covered.

    >>> frame = Frame(size=4, mode="crop", resize=4)
    >>> frame.box((0, 0, 8, 8), (8, 16)), round(frame.cut(np.ones((8, 16), bool)), 2)
    ((-2.0, 0.0, 2.0, 4.0), 0.5)
    """

    size: int
    mode: str = "squash"
    resize: int | None = None  # the short edge before the crop; size where not given
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    scale: float = 1 / 255
    channels: str = "rgb"
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"geometry: found {self.mode!r}, accepted are {', '.join(MODES)}")

    def _box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of the source that becomes the input, as x0, y0, x1, y1 in source pixels."""
        if self.mode != "crop":
            return 0.0, 0.0, float(width), float(height)
        factor = (self.resize or self.size) / min(height, width)
        # the resized picture has whole pixels, and the crop starts on one
        wide, high = max(self.size, round(width * factor)), max(self.size, round(height * factor))
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        x, y = width / wide, height / high
        return left * x, top * y, (left + self.size) * x, (top + self.size) * y

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return (height, width) if self.mode == "keep" else (self.size, self.size)

    def image(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, size, size], normalised."""
        high, wide = self._size(*pixels.shape[:2])
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        if (high, wide) != pixels.shape[:2]:
            way = Image.Resampling[self.resample.upper()]
            picture = picture.resize((wide, high), way, box=self._box(*pixels.shape[:2]))
        array = np.asarray(picture, dtype=np.float32)
        if self.channels == "bgr":
            array = array[..., ::-1]
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
        array = (array * np.float32(self.scale) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def picture(self, pixels: Tensor) -> np.ndarray:
        """The way back, for figures: normalised [3, H, W] -> uint8 [H, W, 3] RGB."""
        array: np.ndarray = pixels.detach().cpu().numpy().transpose(1, 2, 0)
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
        array = (array * std + mean) / np.float32(self.scale)
        if self.channels == "bgr":
            array = array[..., ::-1]
        clipped: np.ndarray = np.clip(np.rint(array), 0, 255).astype(np.uint8)
        return clipped

    def mask(self, mask: np.ndarray) -> Tensor:
        """bool [H, W] of the source -> bool [size, size]."""
        high, wide = self._size(*mask.shape)
        if (high, wide) == mask.shape:
            return torch.from_numpy(np.ascontiguousarray(mask))
        area = Image.fromarray(mask.astype(np.float32), mode="F").resize(
            (wide, high), Image.Resampling.BOX, box=self._box(*mask.shape)
        )
        return torch.from_numpy(np.asarray(area) >= 0.5)

    def box(self, box: Sequence[float], source: tuple[int, int]) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in a source of (H, W) -> the same corners in the input; may lie outside it."""
        left, top, right, bottom = self._box(*source)
        high, wide = self._size(*source)
        x, y = wide / (right - left), high / (bottom - top)
        return (
            (box[0] - left) * x,
            (box[1] - top) * y,
            (box[2] - left) * x,
            (box[3] - top) * y,
        )

    def cut(self, mask: np.ndarray) -> float:
        """The share of a source mask that this frame cuts away, 0 to 1; 0 for an empty mask."""
        total = int(mask.sum())
        if self.mode != "crop" or total == 0:
            return 0.0
        left, top, right, bottom = self._box(*mask.shape)
        ys, xs = np.nonzero(mask)
        seen = (xs + 0.5 >= left) & (xs + 0.5 < right) & (ys + 0.5 >= top) & (ys + 0.5 < bottom)
        return 1.0 - float(seen.sum()) / total


def fold(tokens: Tensor, extra: int = 1) -> Tensor:
    """Drop the first ``extra`` tokens (class, registers) and fold the rest row by row to a square.

    [T] -> [h, w]; [T, D] -> [D, h, w].

    >>> fold(torch.arange(5.0)).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    body = tokens[extra:]
    side = math.isqrt(body.shape[0])
    if side * side != body.shape[0]:
        raise ValueError(
            f"{tokens.shape[0]} tokens less {extra} special ones are {body.shape[0]}, which is no square grid"
        )
    grid = body.reshape(side, side, *body.shape[1:])
    return grid if body.ndim == 1 else grid.permute(2, 0, 1)


def read(
    heat: Tensor,
    size: tuple[int, int] | None = None,
    *,
    pool: str = "sum",
    sign: str = "signed",
    upsample: str = "bilinear",
) -> Tensor:
    """A stored map, [h, w] or [C, h, w], as one plane [H, W] by an explicit definition.

    Channels are pooled first, then the map is resized (half-pixel centres, no antialias: maps are only
    ever enlarged), then signed. ``upsample="none"`` or ``size=None`` stays on the map's own grid.

    >>> read(torch.tensor([[-1.0, 2.0]]), sign="positive").tolist()
    [[0.0, 2.0]]
    """
    for name, found, accepted in (
        ("pool", pool, POOLS),
        ("sign", sign, SIGNS),
        ("upsample", upsample, UPSAMPLES),
    ):
        if found not in accepted:
            raise ValueError(f"{name}: found {found!r}, accepted are {', '.join(accepted)}")
    plane = heat.detach().float()
    if plane.ndim == 3:
        pooled = {
            "sum": lambda: plane.sum(0),
            "mean": lambda: plane.mean(0),
            "max_abs": lambda: plane.abs().amax(0),
            "l2": lambda: plane.square().sum(0).sqrt(),
        }
        plane = pooled[pool]()
    if size is not None and upsample != "none" and tuple(plane.shape) != tuple(size):
        if upsample == "pyramid":
            plane = pyramid(plane, size)
        else:
            corners = None if upsample == "nearest" else False
            mode = "nearest-exact" if upsample == "nearest" else upsample
            plane = F.interpolate(plane[None, None], size=size, mode=mode, align_corners=corners)[0, 0]
    if sign == "positive":
        return plane.clamp(min=0)
    if sign == "negative":
        return (-plane).clamp(min=0)
    return plane.abs() if sign == "abs" else plane


def pyramid(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w] -> [H, W]: linear interpolation between cells' centres, then a Gaussian of sigma 2/6 of the enlargement.

    Interpolation mirrors at the centre of the border's cells, the Gaussian at their edge, as scikit-image's
    ``pyramid_expand`` has them by default.
    """
    factors = [new / old for new, old in zip(size, heat.shape, strict=True)]
    fine = ndimage.zoom(heat.cpu().numpy(), factors, order=1, mode="mirror", grid_mode=True)
    smooth = ndimage.gaussian_filter(fine, [2 * factor / 6 for factor in factors], mode="reflect")
    return torch.from_numpy(np.ascontiguousarray(smooth)).to(heat)
