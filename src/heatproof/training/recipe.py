"""A recipe: one TOML that says how a model came to be, read into dataclasses; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from heatproof.errors import Refused, unknown
from heatproof.scenery import Knobs

T = TypeVar("T")
TASKS = ("classify", "contrast", "caption", "match", "describe", "tune")
ON_PHOTOGRAPHS = ("match", "describe")
TUNED_BY = ("cross_entropy", "lrp_inference", "cider", "lrp_cider")


@dataclass(frozen=True)
class Data:
    """Which generated scenes to learn from: so many of a split, drawn with these knobs."""

    sample: int = 12000
    split: str = "train"
    seed: int = 0
    colour_bias: float = 0.0
    partner: float | None = None
    size: float = 1.0
    clutter: int = 3

    @property
    def knobs(self) -> Knobs:
        return Knobs(self.colour_bias, self.partner, self.size, self.clutter)


@dataclass(frozen=True)
class Photographs:
    """Which photographs to learn from: ``sample`` of the split "train" of a data set of the shelf, in its order.

    ``dataset`` is written as in a spec; "{data}" in it is the data folder (``imagenet.data_folder``), "{split}" the split.
    """

    dataset: Mapping[str, str] = field(default_factory=dict)
    sample: int = 6000
    folder: str = ""


@dataclass(frozen=True)
class Settings:
    """How to learn: AdamW, a linear warm-up over the share ``warmup`` of the steps, then a cosine to zero."""

    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0  # largest norm of the gradient
    smooth: float = 0.0  # label smoothing
    shift: int = 6  # augmentation: pixels by which a picture is moved at most
    checkpoint: int = 100  # steps between checkpoints
    dense: float = 0.0  # weight of the patches' own loss, see dense.py
    polish: int = 0  # epochs at the end on the task's loss alone, at a third of the rate
    trunk_rate: float = 1.0  # factor on the rate for an encoder that was trained before
    texts: int = 1  # captions of each photograph in a batch
    hidden: float = 0.0  # share of the cells that a photograph loses
    dropout: float = 0.0  # of features, word embeddings and what the projections read
    unknown: float = 0.0  # share of the words that are made unknown
    patience: int = (
        0  # "describe": epochs without gain after which the rate falls, see epochs.py; 0: the cosine
    )
    bfloat16: bool = False  # "describe": the training's matrix products in bfloat16


@dataclass(frozen=True)
class Tuning:
    """What a captioner is fine-tuned by, see tune.py: "cross_entropy" | "lrp_inference" | "cider" | "lrp_cider".

    ``temperature`` is how far the weights of LRP inference may be from 1; ``released`` brings the released code's quirks back.
    """

    by: str = "cross_entropy"
    temperature: float = 1.0
    released: bool = False

    @property
    def by_relevance(self) -> bool:
        return self.by.startswith("lrp_")

    @property
    def rewards(self) -> bool:
        return self.by.endswith("cider")


@dataclass(frozen=True)
class Recipe:
    """``net`` goes to the task's net as it is; ``start`` names a recipe whose trained trunk is the encoder.

    A recipe of the task "tune" goes on where ``start`` ended: data and net are that recipe's, and so are the settings that
    it does not give.
    """

    name: str
    task: str
    title: str = ""
    seed: int = 0
    start: str = ""
    data: Any = field(default_factory=Data)  # Data, or Photographs for the tasks on photographs
    settings: Settings = field(default_factory=Settings)
    tune: Tuning = field(default_factory=Tuning)
    net: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def digest(self) -> str:
        """What a checkpoint belongs to: everything that moves the weights."""
        told = (
            self.task,
            self.seed,
            self.start,
            self.data,
            self.settings,
            sorted(self.net.items()),
            self.tune,
        )
        return blake2b(repr(told).encode(), digest_size=16).hexdigest()


def read_recipe(path: Path, **given: Any) -> Recipe:
    """``recipes/NAME.toml`` as a Recipe; the table ``[reached]`` is for people and is not read here.

    ``given``: keys of the recipe that are said elsewhere, ``seed`` and ``start``.
    """
    if not path.exists():
        there = sorted(p.stem for p in path.parent.glob("*.toml"))
        raise unknown(str(path.parent), "recipe", path.stem, there)
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: not valid TOML: {error}") from error
    told.pop("reached", None)
    told |= given
    if told.get("task") == "tune":
        return _tuning(path, told)
    kind: Any = Photographs if told.get("task") in ON_PHOTOGRAPHS else Data
    told["data"] = _fill(kind, told.get("data", {}), f"{path}, [data]")
    told["settings"] = _fill(Settings, told.get("settings", {}), f"{path}, [settings]")
    recipe = _fill(Recipe, {**told, "name": path.stem, "folder": path.parent}, str(path))
    if recipe.task not in TASKS:
        raise Refused(f"{path}: task is {recipe.task!r}; accepted are {', '.join(TASKS)}")
    return recipe


def _tuning(path: Path, told: dict[str, Any]) -> Recipe:
    """Its start's recipe with what this one says in its place."""
    for key in ("data", "net"):
        if key in told:
            raise Refused(
                f"{path}: [{key}] is its start's; a recipe of the task tune gives start, [settings] and [tune]"
            )
    base = read_recipe(path.parent / f"{told.get('start', '')}.toml")
    if base.task not in ("caption", "describe"):
        raise Refused(f"{path}: start is {base.name!r}, of the task {base.task}; a captioner is fine-tuned")
    settings = _fill(Settings, {**vars(base.settings), **told.get("settings", {})}, f"{path}, [settings]")
    tune = _fill(Tuning, told.get("tune", {}), f"{path}, [tune]")
    if tune.by not in TUNED_BY:
        raise unknown(f"{path}, [tune] by", "loss", tune.by, TUNED_BY)
    mine = {**told, "settings": settings, "tune": tune, "name": path.stem, "folder": path.parent}
    return _fill(Recipe, {"data": base.data, "net": base.net, **mine}, str(path))


def _fill(kind: type[T], told: Mapping[str, Any], where: str) -> T:
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in told:
        if key not in known:
            raise unknown(where, "key", key, known)
    try:
        return kind(**told)
    except TypeError as error:
        raise Refused(f"{where}: {error}") from error
