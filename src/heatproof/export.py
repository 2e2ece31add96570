"""Samples written as COCO: PNGs, instances and captions, opened by pycocotools and by ``datasets/coco.py``."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from heatproof import shelf
from heatproof.contract import Object, Refused, Sample
from heatproof.errors import unknown
from heatproof.records import write_whole


def export_scenes(folder: Path, **knobs: Any) -> list[Path]:
    """Generated scenes as COCO; the knobs are the settings of ``datasets/scenes.py``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     [path.name for path in export_scenes(Path(place), sample=1)]
    ['test-0-00000.png', 'captions.json', 'instances.json']
    """
    scenes = shelf.load(shelf.house() / "datasets" / "scenes.py").Scenes
    known = [f.name for f in fields(scenes)]
    for name in knobs:
        if name not in known:
            raise unknown("export scenes", "knob", name, known)
    made = scenes(**knobs)
    return export_coco(Path(folder), made.samples(), scenes.card.licence)


def export_coco(folder: Path, samples: Sequence[Sample], licence: str = "") -> list[Path]:
    """Write ``images/*.png``, ``captions.json`` and, last, ``instances.json``; returns what was written.

    Categories are the object names in alphabetical order. Masks are compressed run lengths and come back
    equal. An object without a mask has no ``segmentation``; ignored ones are crowds.
    """
    if folder.exists() and not folder.is_dir():
        raise Refused(f"export: {folder} is a file; a folder is needed")
    names = sorted({thing.name for sample in samples for thing in sample.objects})
    category = {name: index + 1 for index, name in enumerate(names)}
    written: list[Path] = []
    images: list[dict[str, Any]] = []
    things: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        pixels = sample.read()
        path = folder / "images" / f"{sample.id}.png"
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        write_whole(path, buffer.getvalue())
        written.append(path)
        images.append(_image(number, sample, pixels.shape, path.name))
        for thing in sample.objects:
            things.append(
                {"id": len(things) + 1, "image_id": number, "category_id": category[thing.name]}
                | _shape(thing)
            )
        for caption in sample.captions:
            said.append({"id": len(said) + 1, "image_id": number, "caption": caption})
    head: dict[str, Any] = {
        "info": {"description": "written by heatproof export", "version": "1.0"},
        "licenses": [{"id": 1, "name": licence, "url": ""}],
        "images": images,
    }
    categories = [{"id": key, "name": name, "supercategory": "thing"} for name, key in category.items()]
    parts: dict[str, dict[str, Any]] = {
        "captions.json": {"annotations": said},
        "instances.json": {"annotations": things, "categories": categories},
    }
    for name, part in parts.items():
        write_whole(folder / name, json.dumps(head | part) + "\n")
        written.append(folder / name)
    return written


def _image(number: int, sample: Sample, shape: tuple[int, ...], name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": number, "file_name": name, "height": shape[0], "width": shape[1]}
    entry["license"] = 1
    if sample.label is not None:
        entry["label"] = sample.label
    if sample.rationales:
        entry["rationales"] = list(sample.rationales)
    return entry


def _shape(thing: Object) -> dict[str, Any]:
    """Box, area, crowd flag, and the mask as run lengths."""
    from pycocotools import mask as coco  # an extra of the package: only exporting and COCO need it

    x0, y0, x1, y1 = thing.box
    told: dict[str, Any] = {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(thing.ignore)}
    if thing.mask is None:
        return told | {"area": (x1 - x0) * (y1 - y0)}
    runs = coco.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    runs["counts"] = runs["counts"].decode("ascii")
    return told | {"area": int(thing.mask.sum()), "segmentation": runs}
