"""A model of the shelf as a judge of captions: made from its entry in a spec, loaded once a process, never under test."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from heatproof import shelf
from heatproof.captions.files import digest
from heatproof.contract import Model
from heatproof.errors import Refused, unknown
from heatproof.fields import fits, readable
from heatproof.models.recipe import Recipe
from heatproof.shelf import Place

EXAMPLE = '"small_clip", or { use = "hf_clip", name = "FOLDER" }'


def make(entry: str | Mapping[str, Any], where: str) -> Any:
    """What loads the model of an entry, as under `models`: a recipe's name, or a table with `use`, its settings checked.

    Recipes are those of the current folder and of the house, and paths count from the current folder: who judges knows no spec.
    """
    given = {"use": entry} if isinstance(entry, str) else dict(entry)
    use, here = given.pop("use", None), Path.cwd()
    if not isinstance(use, str):
        raise Refused(f"{where}: found {entry!r}, accepted is {EXAMPLE}")
    place = Place(here, here)
    recipe = place.trained().get(use)
    first = () if recipe is None else (use, str(recipe))
    cls = shelf.find("models", use, place, where) if recipe is None else Recipe
    hints = typing.get_type_hints(cls)
    accepted = [f.name for f in dataclasses.fields(cls)[len(first) :] if f.init]
    for key, value in given.items():
        if key not in accepted:
            raise unknown(where, "setting", key, accepted)
        if not fits(value, hints[key]):
            raise Refused(f"{where}.{key}: found {value!r}, accepted is {readable(hints[key])}")
        if isinstance(value, str) and "{" in value:
            raise Refused(
                f"{where}.{key}: found {value!r}: folders of [data] have no names here; type the path"
            )
    try:
        return cls(*first, **given)
    except (TypeError, ValueError) as error:
        raise Refused(f"{where}: {error}") from error


def seal(loader: Any) -> str:
    """A hash of the source that reads the judge, and of the files of each folder that its settings name."""
    folders = [Path(v) for v in vars(loader).values() if isinstance(v, str) and v and Path(v).is_dir()]
    if isinstance(loader, Recipe):
        folders += [f for f in [Path(loader.file).parent / "weights" / loader.name] if f.is_dir()]
    return shelf.source(shelf.file_of(type(loader))) + digest(folders)


@lru_cache(maxsize=2)
def load(loader: Any, sealed: str, where: str) -> Model:
    """The judge, on the CPU; ``sealed`` is its ``seal``, so that other files are another judge."""
    try:
        # what is loaded in inference mode can never be asked outside of it
        with torch.inference_mode(False):
            model: Model = loader.load("judge")
    except Refused as error:
        raise Refused(
            f"{where}: {error}. For a folder of it type: hf download NAME --local-dir FOLDER, and here {EXAMPLE}"
        ) from error
    return model
