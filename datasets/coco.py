"""COCO instances and captions: photographs with masks, boxes, crowds and five captions each."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from heatproof.contract import Card, Object, Refused, Sample
from heatproof.photographs import Files, Lazy

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Coco:
    """Images in a zip or a folder, and the instances (and captions) files of COCO's object format.

    Masks may be polygons or run lengths, compressed or not; a crowd becomes an object to be ignored.
    An image entry may carry ``label`` and ``rationales``, as ``heatproof export scenes`` writes them.
    Samples come in the order of their ids; masks are decoded and pixels read only when asked for.

    Raises Refused, naming file and field: a file that is missing or no JSON, an image that is listed
    but not there, an annotation of an image or a category that does not exist, a mask that cannot be decoded;
    and, when pixels are read, an image that is truncated or of another size than the file says.
    """

    images: str
    instances: str
    captions: str = ""

    card: ClassVar[Card] = Card(
        source="https://cocodataset.org, object instances and captions",
        revision="the files given",
        licence="annotations CC-BY-4.0; every photograph has its own licence, see images[].license",
        cite="Lin et al. Microsoft COCO: Common Objects in Context. ECCV 2014. arXiv 1405.0312",
        leaks="web-trained models may have seen the photographs and their captions",
    )

    def samples(self) -> Sequence[Sample]:
        """Every listed image, by ascending id."""
        told = _read_json(Path(self.instances), ("images", "annotations", "categories"))
        _check(told["images"], "images", ("id", "file_name", "height", "width"), self.instances)
        _check(told["categories"], "categories", ("id", "name"), self.instances)
        needed = ("image_id", "category_id", "bbox")
        _check(told["annotations"], "annotations", needed, self.instances)
        entries = {entry["id"]: entry for entry in told["images"]}
        if len(entries) < len(told["images"]):
            raise Refused(f"{self.instances}: images: some ids occur twice")
        files = Files(Path(self.images), "coco")
        files.check([entry["file_name"] for entry in told["images"]], self.instances)
        names = {category["id"]: category["name"] for category in told["categories"]}
        things = _by_image(told["annotations"], entries, self.instances)
        for index, thing in enumerate(told["annotations"]):
            if thing["category_id"] not in names:
                raise Refused(
                    f"{self.instances}: annotations[{index}].category_id is {thing['category_id']!r}; "
                    f"no category has this id, there are {_few(names)}"
                )
        spoken = self._captions(entries)
        build = partial(_sample, files, names, self.instances)
        rows = [(entries[key], things[key], tuple(spoken[key])) for key in sorted(entries)]
        return Lazy(rows, build)

    def _captions(self, entries: Mapping[Any, Table]) -> dict[Any, list[str]]:
        said: dict[Any, list[str]] = defaultdict(list)
        if not self.captions:
            return said
        told = _read_json(Path(self.captions), ("annotations",))
        _check(told["annotations"], "annotations", ("image_id", "caption"), self.captions)
        own = {entry["id"] for entry in told.get("images", ())} or entries
        for key, sentences in _by_image(told["annotations"], own, self.captions).items():
            said[key] = [str(sentence["caption"]).strip() for sentence in sentences]
        return said


def _read_json(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise Refused(f"coco: there is no file {path}")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{path}: not valid JSON: {error}") from error
    lacking = [name for name in needed if not isinstance(told, dict) or name not in told]
    if lacking:
        raise Refused(f"{path}: {', '.join(lacking)} missing; accepted is COCO's object format")
    return dict(told)


def _check(rows: Sequence[Table], table: str, needed: tuple[str, ...], file: str) -> None:
    for index, row in enumerate(rows):
        for name in needed:
            if name not in row:
                raise Refused(
                    f"{file}: {table}[{index}] has no {name}; found are {', '.join(row)}, "
                    f"needed are {', '.join(needed)}"
                )


def _by_image(annotations: Sequence[Table], known: Any, file: str) -> dict[Any, list[Table]]:
    """Annotations by image id; one that points nowhere is named."""
    found: dict[Any, list[Table]] = defaultdict(list)
    for index, annotation in enumerate(annotations):
        key = annotation["image_id"]
        if key not in known:
            raise Refused(
                f"{file}: annotations[{index}].image_id is {key!r} (annotation id "
                f"{annotation.get('id')!r}); no image has this id, there are {_few(known)}"
            )
        found[key].append(annotation)
    return found


def _few(known: Any) -> str:
    names = [str(name) for name in sorted(known)]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"


def _sample(
    files: Files, names: Table, file: str, entry: Table, things: Sequence[Table], said: tuple[str, ...]
) -> Sample:
    height, width = int(entry["height"]), int(entry["width"])
    return Sample(
        id=Path(entry["file_name"]).stem,
        read=partial(_read, files, entry["file_name"], height, width),
        label=entry.get("label"),
        captions=said,
        objects=tuple(_object(thing, names, height, width, file) for thing in things),
        rationales=tuple(entry.get("rationales", ())),
    )


def _read(files: Files, name: str, height: int, width: int) -> np.ndarray:
    picture = files.read(name)
    if picture.shape[:2] != (height, width):
        raise Refused(
            f"{files.place}: image {files.members[name]} is {picture.shape[1]} x {picture.shape[0]} pixels, "
            f"its entry says {width} x {height}"
        )
    return picture


def _object(thing: Table, names: Table, height: int, width: int, file: str) -> Object:
    x, y, wide, high = map(float, thing["bbox"])
    return Object(
        name=names[thing["category_id"]],
        box=(x, y, x + wide, y + high),
        mask=_mask(thing, height, width, file),
        ignore=bool(thing.get("iscrowd", 0)),
    )


def _mask(thing: Table, height: int, width: int, file: str) -> np.ndarray | None:
    """A plane, bool [height, width], from polygons or run lengths; None where there is no segmentation."""
    from pycocotools import mask as coco  # reading boxes and captions alone does not need it

    told = thing.get("segmentation")
    if not told:
        return None
    try:
        with warnings.catch_warnings():  # pycocotools' arrays do not know numpy 2's copy keyword
            warnings.simplefilter("ignore", DeprecationWarning)
            if isinstance(told, list):
                runs = coco.merge(coco.frPyObjects(told, height, width))
            elif isinstance(told["counts"], list):
                runs = coco.frPyObjects(told, height, width)
            else:
                runs = told
            mask = coco.decode(runs).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise Refused(
            f"{file}: annotation id {thing.get('id')!r}: segmentation cannot be decoded: {error}"
        ) from error
    if mask.shape != (height, width):
        raise Refused(
            f"{file}: annotation id {thing.get('id')!r}: segmentation is {mask.shape[1]} x "
            f"{mask.shape[0]} pixels, its image {width} x {height}"
        )
    return np.ascontiguousarray(mask)
