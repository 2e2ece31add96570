"""Photographs as data sets keep them: by name in a zip or a folder, read and decoded only when asked for."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from heatproof.contract import Sample
from heatproof.errors import Refused


class Lazy(Sequence[Sample]):
    """Samples built when they are asked for: what belongs to thousands of photographs does not fit in memory."""

    def __init__(self, rows: Sequence[tuple[Any, ...]], build: Callable[..., Sample]) -> None:
        self._rows, self._build = rows, build

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Lazy(self._rows[index], self._build)
        return self._build(*self._rows[index])


class Files:
    """The images by file name, in a zip or a folder, also where they lie one folder deeper.

    Raises Refused: no such place, a zip that is none; and, when one is read, an image that is truncated.
    """

    def __init__(self, place: Path, who: str) -> None:
        self.place = place
        if place.is_dir():
            found = [p for p in place.rglob("*") if p.is_file()]
            paths = [p.relative_to(place).as_posix() for p in found]
        elif place.is_file():
            paths = [info.filename for info in _open_zip(place).infolist() if not info.is_dir()]
        else:
            raise Refused(f"{who}: images: there is no zip and no folder {place}")
        self.members = {Path(path).name: path for path in paths} | {path: path for path in paths}

    def check(self, names: Sequence[str], listed_in: str) -> None:
        """Every name is there, or Refused counts and names those that are not."""
        missing = [name for name in names if name not in self.members]
        if missing:
            raise Refused(
                f"{self.place}: {len(missing)} of {len(names)} images of {listed_in} are not "
                f"there: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            )

    def read(self, name: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        member = self.members[name]
        try:
            if self.place.is_dir():
                raw = (self.place / member).read_bytes()
            else:
                raw = _open_zip(self.place).read(member)
            return decode(raw)
        except (OSError, zipfile.BadZipFile) as error:
            raise Refused(f"{self.place}: image {member} is truncated or damaged: {error}") from error


def decode(raw: bytes) -> np.ndarray:
    """The bytes of an image file -> uint8 [H, W, 3]; OSError where they hold no whole image, or one far too large."""
    try:
        return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    except Exception as error:  # Pillow has a dozen ways to say damaged
        raise OSError(str(error)) from error


@lru_cache(maxsize=4)
def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise Refused(f"{path}: not a zip file, or a truncated one: {error}") from error
