"""Photographs as data sets keep them: by name in a zip or a folder, with COCO's instances; decoded only when asked for."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from heatproof.contract import Object, Sample
from heatproof.errors import Refused

Table = Mapping[str, Any]
Size = tuple[int, int]  # height and width


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

    def read(self, name: str, size: Size | None = None) -> np.ndarray:
        """uint8 [H, W, 3]; Refused where that is not the size that an annotation says."""
        picture = self._read(name)
        if size is not None and picture.shape[:2] != size:
            raise Refused(
                f"{self.place}: image {self.members[name]} is {picture.shape[1]} x {picture.shape[0]} pixels, "
                f"its entry says {size[1]} x {size[0]}"
            )
        return picture

    def _read(self, name: str) -> np.ndarray:
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


# ---------------------------------------------------------------- annotation files


def read_json(path: Path, who: str, needed: Iterable[str] = (), accepted: str = "") -> dict[str, Any]:
    """The table that a file holds; raises Refused: no file, no JSON, no table, or without a key that is needed."""
    if not path.is_file():
        raise Refused(f"{who}: there is no file {path}")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{path}: not valid JSON: {error}") from error
    if not isinstance(told, dict):
        raise Refused(f"{path}: found a {type(told).__name__}; accepted is {accepted}")
    lacking = [name for name in needed if name not in told]
    if lacking:
        raise Refused(f"{path}: {', '.join(lacking)} missing; accepted is {accepted}")
    return told


def check_rows(rows: Sequence[Table], table: str, needed: tuple[str, ...], file: str | Path) -> None:
    """Every row of a file's table has every field that is needed, or Refused names the first that has not."""
    for index, row in enumerate(rows):
        for name in needed:
            if name not in row:
                raise Refused(
                    f"{file}: {table}[{index}] has no {name}; found are {', '.join(row)}, "
                    f"needed are {', '.join(needed)}"
                )


def by_image(annotations: Sequence[Table], known: Iterable[Any], file: str | Path) -> dict[Any, list[Table]]:
    """COCO's annotations by image id, in their order; one that points nowhere is named."""
    found: dict[Any, list[Table]] = defaultdict(list)
    known = set(known)
    for index, annotation in enumerate(annotations):
        key = annotation["image_id"]
        if key not in known:
            raise Refused(
                f"{file}: annotations[{index}].image_id is {key!r} (annotation id "
                f"{annotation.get('id')!r}); no image has this id, there are {few(known)}"
            )
        found[key].append(annotation)
    return found


def few(known: Iterable[Any]) -> str:
    """Some of the names there are, for an error."""
    names = [str(name) for name in sorted(known)]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"


class Instances:
    """COCO's object format: ``entries`` are the images by id, ``objects`` draws what is annotated in one.

    Masks may be polygons or run lengths, compressed or not; a crowd becomes an object to be ignored. ``also``: what else things of a
    category are called.

    Raises Refused, naming file and field: no such file, fields that are missing, an annotation of an image or a category
    that does not exist; and, when objects are asked for, a mask that cannot be decoded.
    """

    def __init__(self, path: Path, who: str, also: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.also = also or {}
        told = read_json(path, who, ("images", "annotations", "categories"), "COCO's object format")
        check_rows(told["images"], "images", ("id", "file_name", "height", "width"), path)
        check_rows(told["categories"], "categories", ("id", "name"), path)
        check_rows(told["annotations"], "annotations", ("image_id", "category_id", "bbox"), path)
        self.path = path
        self.entries: dict[Any, Table] = {entry["id"]: entry for entry in told["images"]}
        if len(self.entries) < len(told["images"]):
            raise Refused(f"{path}: images: some ids occur twice")
        self.names = {category["id"]: category["name"] for category in told["categories"]}
        self._things = by_image(told["annotations"], self.entries, path)
        for index, thing in enumerate(told["annotations"]):
            if thing["category_id"] not in self.names:
                raise Refused(
                    f"{path}: annotations[{index}].category_id is {thing['category_id']!r}; "
                    f"no category has this id, there are {few(self.names)}"
                )

    def size(self, key: Any) -> Size:
        """What the entry says of an image."""
        return int(self.entries[key]["height"]), int(self.entries[key]["width"])

    def objects(self, key: Any) -> tuple[Object, ...]:
        """In the file's order."""
        return tuple(self._object(thing, self.size(key)) for thing in self._things.get(key, ()))

    def _object(self, thing: Table, size: Size) -> Object:
        x, y, wide, high = map(float, thing["bbox"])
        return Object(
            name=self.names[thing["category_id"]],
            box=(x, y, x + wide, y + high),
            mask=self._mask(thing, size),
            ignore=bool(thing.get("iscrowd", 0)),
            also=self.also.get(self.names[thing["category_id"]], ()),
        )

    def _mask(self, thing: Table, size: Size) -> np.ndarray | None:
        """bool [H, W]; None where there is no segmentation."""
        from pycocotools import mask as coco  # reading boxes and captions alone does not need it

        told = thing.get("segmentation")
        if not told:
            return None
        try:
            with warnings.catch_warnings():  # pycocotools' arrays do not know numpy 2's copy keyword
                warnings.simplefilter("ignore", DeprecationWarning)
                if isinstance(told, list):
                    runs = coco.merge(coco.frPyObjects(told, *size))
                elif isinstance(told["counts"], list):
                    runs = coco.frPyObjects(told, *size)
                else:
                    runs = told
                mask = coco.decode(runs).astype(bool)
        except Exception as error:  # pycocotools raises bare Exceptions
            raise Refused(
                f"{self.path}: annotation id {thing.get('id')!r}: segmentation cannot be decoded: {error}"
            ) from error
        if mask.shape != size:
            raise Refused(
                f"{self.path}: annotation id {thing.get('id')!r}: segmentation is {mask.shape[1]} x "
                f"{mask.shape[0]} pixels, its image {size[1]} x {size[0]}"
            )
        return np.ascontiguousarray(mask)
