"""Grid-pointing mosaics: four photographs of four ImageNet classes in one image (Böhle et al. 2021)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from heatproof.contract import Card, Object, Refused, Sample


@dataclass(frozen=True)
class Mosaics:
    """``count`` mosaics of ``grid`` x ``grid`` cells of ``cell`` px, each cell another class, drawn by ``seed``.

    ``images`` is a zip of files named WNID_label.EXT, one class each. An object's name is its wnid, its mask the
    whole cell: a map that answers for one class should stay in that class's cell. The objects are listed from a cell
    drawn at random on, so that a policy which asks about one of them (all are equally large) asks about any place:
    were it always the same, a map of another mosaic would do as well.
    """

    images: str
    count: int = 64
    grid: int = 2
    cell: int = 128
    seed: int = 0

    card: ClassVar[Card] = Card(
        source="one photograph a class of ImageNet-1k, a public sample",
        revision="the zip given",
        licence="ImageNet terms: non-commercial research; the photographs may not be published",
        cite="Böhle, Fritz, Schiele. Convolutional Dynamic Alignment Networks. CVPR 2021 (grid pointing game)",
        leaks="the photographs are probably training images of the models",
    )

    def samples(self) -> Sequence[Sample]:
        """The mosaics in the order they are drawn; pixels are read when asked for."""
        path = Path(self.images)
        if not path.is_file():
            raise Refused(f"{path}: there is no such file; it should be a zip of WNID_label.JPEG files")
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if not n.endswith("/"))
        cells = self.grid**2
        if len(names) < cells:
            raise Refused(f"{path}: found {len(names)} images, a mosaic needs {cells}")
        dice = np.random.default_rng(self.seed)
        drawn = [dice.choice(len(names), cells, replace=False) for _ in range(self.count)]
        starts = dice.integers(cells, size=self.count).tolist()
        return [
            self._sample(i, path, [names[k] for k in picks], start)
            for i, (picks, start) in enumerate(zip(drawn, starts, strict=True))
        ]

    def _sample(self, number: int, path: Path, names: list[str], start: int) -> Sample:
        things = []
        for k, name in enumerate(names):
            y, x = (self.cell * v for v in divmod(k, self.grid))
            mask = np.zeros((self.grid * self.cell,) * 2, bool)
            mask[y : y + self.cell, x : x + self.cell] = True
            box = (float(x), float(y), float(x + self.cell), float(y + self.cell))
            things.append(Object(name.split("_")[0], box, mask))
        read = partial(_draw, path, tuple(names), self.grid, self.cell)
        return Sample(f"mosaic{number:03d}", read, objects=(*things[start:], *things[:start]))


def _draw(path: Path, names: tuple[str, ...], grid: int, cell: int) -> np.ndarray:
    image = np.zeros((grid * cell, grid * cell, 3), np.uint8)
    with zipfile.ZipFile(path) as archive:
        for k, name in enumerate(names):
            y, x = (cell * v for v in divmod(k, grid))
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            image[y : y + cell, x : x + cell] = np.asarray(
                picture.resize((cell, cell), Image.Resampling.BILINEAR)
            )
    return image
