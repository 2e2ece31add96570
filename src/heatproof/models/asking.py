"""From a sample to the evidence of a case, in a model's own geometry; shared by the three families."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from heatproof.contract import Object, Refused, Sample, Without
from heatproof.geometry import Frame


def case_id(sample: str, *parts: object) -> str:
    """A case's name, fit for a file name on any system.

    >>> case_id("000/12", 3, "hot dog")
    '000-12.3.hot-dog'
    """
    clean = [re.sub(r"[^A-Za-z0-9_-]+", "-", str(part)).strip("-") or "x" for part in parts]
    return ".".join([re.sub(r"[^A-Za-z0-9_-]+", "-", sample), *clean])


def pixels(sample: Sample, frame: Frame) -> tuple[torch.Tensor, tuple[int, int]]:
    """The model's input for a sample, and the size (H, W) of the photograph it came from."""
    try:
        image = sample.read()
    except OSError as error:
        raise Refused(f"sample {sample.id}: its image cannot be read: {error}") from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise Refused(
            f"sample {sample.id}: read() gave {image.dtype} {list(image.shape)}, accepted is uint8 [H, W, 3]"
        )
    height, width = image.shape[:2]
    return frame.image(image), (height, width)


def evidence(sample: Sample, names: Collection[str], frame: Frame, source: tuple[int, int]) -> dict[str, Any]:
    """What is annotated, for a Case: ``evidence``, ``boxes``, ``ignore``, ``cut`` of the instances that go by one of these names.

    Nothing at all where the sample carries no annotation; zero planes where it does but not of these names.
    An object that has a box but no mask counts as its filled box. ``without`` is every object, whatever its name,
    that the data set can draw the image without.
    """
    if not sample.objects:
        return {}
    called = [o for o in sample.objects if _called(o, names)]
    meant, crowds = [o for o in called if not o.ignore], [o for o in called if o.ignore]
    masks = [_mask(o, source) for o in meant]
    planes = [frame.mask(mask) for mask in masks]
    size = planes[0].shape if planes else frame.mask(np.zeros(source, bool)).shape
    found: dict[str, Any] = {
        "evidence": torch.stack(planes) if planes else torch.zeros((0, *size), dtype=torch.bool),
        "boxes": torch.tensor([frame.box(o.box, source) for o in meant]).reshape(-1, 4),
        "cut": frame.cut(np.logical_or.reduce(masks)) if masks else None,
    }
    if crowds:
        found["ignore"] = frame.mask(np.logical_or.reduce([_mask(o, source) for o in crowds]))
    drawn = [
        (o, partial(_without, o, frame)) for o in sample.objects if o.without is not None and not o.ignore
    ]
    if drawn:
        found["without"] = tuple(Without(o.name, frame.mask(_mask(o, source)), draw) for o, draw in drawn)
    return found


def named(sample: Sample, names: Collection[str], spoken: Iterable[str]) -> torch.Tensor:
    """Which plane of ``evidence`` each token names, bool [T, K]."""
    meant = [called for o in sample.objects if (called := _called(o, names)) and not o.ignore]
    rows = [[bool(mentions(word, called)) for called in meant] for word in spoken]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), len(meant))


def _called(thing: Object, names: Collection[str]) -> list[str]:
    """Those of the names that the thing goes by."""
    return [name for name in (thing.name, *thing.also) if name in names]


def _mask(thing: Object, source: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of the source; the filled box of an object that has no mask."""
    if thing.mask is not None:
        return thing.mask
    mask = np.zeros(source, bool)
    x0, y0, x1, y1 = (round(v) for v in thing.box)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def _without(thing: Object, frame: Frame) -> torch.Tensor:
    assert thing.without is not None
    return frame.image(thing.without())


def mentions(word: str, names: Iterable[str]) -> list[str]:
    """The object names that a word of a caption speaks of: the name itself or its plain plural.

    >>> mentions("dogs", ["dog", "cat"])
    ['dog']
    """
    forms = {word, word.removesuffix("s"), word.removesuffix("es")}
    return [name for name in names if forms & set(name.split())]


def unknown_policy(found: str, family: str, accepted: Iterable[str]) -> Refused:
    return Refused(f"targets.{family}: found {found!r}, accepted are {', '.join(repr(a) for a in accepted)}")
