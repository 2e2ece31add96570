"""Every data set has a card, every recipe its weights, every benchmark reads: walked, not listed."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from heatproof import Card, Refused, Sample, shelf, spec
from heatproof.models.recipe import Recipe
from heatproof.shelf import Place

PLACE = Place(Path.cwd(), Path.cwd())
DATASETS = sorted(use for path in PLACE.files("datasets").values() for use in shelf.uses("datasets", path))
RECIPES, BENCHMARKS = sorted(PLACE.trained()), sorted(PLACE.benchmarks())
SIZE_OF_ALL_WEIGHTS = 28e6  # of which 12.7e6 are two captioners with the 2,539 words of Flickr8k, in float16


@pytest.mark.parametrize("use", DATASETS)
def test_every_data_set_has_a_card(use):
    cls = shelf.find("datasets", use, PLACE, "tests/house")
    assert isinstance(cls.card, Card)
    for field in ("source", "revision", "licence", "leaks"):
        assert getattr(cls.card, field).strip(), field
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert (cls.__doc__ or "").strip()


def made_without_files(use: str) -> typing.Any:
    """The data set with its defaults, or a skip where it needs a folder to be named."""
    cls = shelf.find("datasets", use, PLACE, "tests/house")
    needed = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if needed:
        pytest.skip(f"{use} needs {', '.join(needed)}")
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**({"sample": 5} if "sample" in names else {}))


@pytest.mark.parametrize("use", DATASETS)
def test_samples_come_in_the_same_order_and_are_not_changed_by_reading(use):
    once, again = (made_without_files(use).samples() for _ in range(2))
    assert isinstance(once, Sequence)
    assert len(once) > 0
    first = [once[i] for i in range(min(5, len(once)))]
    assert len({s.id for s in first}) == len(first)
    for i, sample in enumerate(first):
        assert isinstance(sample, Sample)
        assert sample.digest() == again[i].digest() == sample.digest()
        image = sample.read()
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)
        for thing in sample.objects:
            assert thing.mask is None or (thing.mask.shape == image.shape[:2] and thing.mask.dtype == bool)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_weights_and_a_card_that_fits_them(name):
    path = PLACE.recipes()[name]
    told = shelf.read_toml(path)
    assert told["title"]
    folder = path.parent / "weights" / name
    files = {p.name for p in folder.glob("*")}
    assert {"model.safetensors", "config.json", "card.json"} <= files, f"type: heatproof train {name}"
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))], "weights are safetensors"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    weights = (folder / "model.safetensors").read_bytes()
    assert card["sha256"] == sha256(weights).hexdigest(), "the card is of other weights"
    assert card["bytes"] == len(weights)
    assert card["command"] == f"heatproof train {name}"
    assert card["bad_at"]
    try:
        model = Recipe(name, str(path)).load(name)
    except Refused as missing:
        if "name the data folder" not in str(missing):
            raise
        pytest.skip(f"{name} stands on weights that are not shipped: {missing}")
    assert dict(model.card) == card


def test_all_weights_together_are_small():
    shipped = [
        p for path in PLACE.recipes().values() for p in (path.parent / "weights").rglob("*.safetensors")
    ]
    assert sum(p.stat().st_size for p in set(shipped)) <= SIZE_OF_ALL_WEIGHTS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_reads_in_full(name):
    """Its parts, settings, headline and tolerances; its photographs need not be there."""
    try:
        read = spec.read(name, Path.cwd())
    except Refused as missing:
        wanted = shelf.read_toml(PLACE.benchmarks()[name]).get("data", {})
        absent = [
            k for k, v in wanted.items() if not _folder(k, PLACE.benchmarks()[name].parent / v).is_dir()
        ]
        if absent:
            pytest.skip(f"{name}: no folder for {', '.join(absent)}: {missing}")
        raise
    assert read.title
    assert read.headline
    methods = [p for p in read.explainers if p.role == "method"]
    controls = [p for p in read.explainers if p.role == "control"]
    assert methods
    assert controls, "controls stand in every table (law 6)"
    for part in (*read.models, *read.explainers, *read.metrics):
        assert json.dumps(part.settings) is not None
        assert len(part.source) == 32
    text = PLACE.benchmarks()[name].read_text(encoding="utf-8")
    assert text.startswith("#"), "the first line says what is asked"


def _folder(name: str, default: Path) -> Path:
    return Path(os.environ.get(f"HEATPROOF_DATA_{name.upper()}", default))


def test_the_shelves_are_found():
    assert {"scenes", "coco"} <= set(DATASETS)
    assert RECIPES
    assert "demo" in BENCHMARKS
