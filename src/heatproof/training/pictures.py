"""Scenes kept in memory for training, and the cheap augmentations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from heatproof.geometry import Frame
from heatproof.scenery import SIDE, Scene, compose
from heatproof.training.recipe import Data

FRAME = Frame(SIDE, "squash")  # pixels become (x / 255 - 0.5) / 0.5


@dataclass(frozen=True, eq=False)
class Pictures:
    """``pixels`` uint8 [N, 3, 112, 112] and the scene behind each."""

    pixels: Tensor
    scenes: tuple[Scene, ...]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def labels(self) -> list[str]:
        return [scene.things[0].kind for scene in self.scenes]


def paint(data: Data, quiet: bool = False) -> Pictures:
    """Draw every scene once."""
    pixels = torch.empty(data.sample, 3, SIDE, SIDE, dtype=torch.uint8)
    scenes = []
    rows = track(range(data.sample), f"drawing {data.sample} scenes ({data.split})", disable=quiet)
    for row in rows:
        scene = compose(data.knobs, "scenes", data.split, data.seed, row)
        pixels[row] = torch.from_numpy(scene.render()).permute(2, 0, 1)
        scenes.append(scene)
    return Pictures(pixels, tuple(scenes))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 -> float32 as every small model wants it."""
    return (pixels.float() * FRAME.scale - FRAME.mean[0]) / FRAME.std[0]


def batches(rows: Tensor, size: int = 64) -> Iterator[Tensor]:
    """Consecutive rows, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def mirror(pixels: Tensor, which: Tensor) -> Tensor:
    """The rows of ``which`` (bool [N]) flipped left to right."""
    return torch.where(which[:, None, None, None], pixels.flip(-1), pixels)


def moved(pixels: Tensor, by: int, dice: torch.Generator) -> Tensor:
    """The whole batch shifted by up to ``by`` pixels both ways; the edge is repeated."""
    down, right = torch.randint(-by, by + 1, (2,), generator=dice).tolist()
    rows = (torch.arange(pixels.shape[-2]) + down).clamp(0, pixels.shape[-2] - 1)
    columns = (torch.arange(pixels.shape[-1]) + right).clamp(0, pixels.shape[-1] - 1)
    return pixels.index_select(-2, rows).index_select(-1, columns)
