"""From a recipe to a folder of weights, with a card that tells what they are worth."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from heatproof.records import write_whole
from heatproof.training import epochs, pictures
from heatproof.training.loop import fit
from heatproof.training.recipe import Photographs, Recipe, read_recipe

VIEWS = "views.pt"  # a trunk's features, until the training is done


class Task(Protocol):
    """A net with a loss to learn by and a judgement of what was learnt."""

    recipe: Recipe
    net: Any
    learner: nn.Module  # the net, and whatever learns with it

    trunk: nn.Module | None  # trained before; learns at a rate of its own

    def learn(self, seen: Any, quiet: bool = False) -> None: ...
    def loss(self, rows: Tensor, dice: Any) -> Tensor: ...
    def judge(self, quiet: bool = False) -> dict[str, Any]: ...
    def save(self, out: Path) -> None: ...


def train(recipe_path: Path, out: Path, quiet: bool = False, **given: Any) -> dict[str, Any]:
    """Train what the recipe asks for; killed, the same call goes on where the last checkpoint was.

    ``given``: the recipe's ``seed`` or ``start`` is another. Writes config.json, model.safetensors, preprocessor_config.json, words.json (where there is text)
    and card.json to ``out``, and returns the card; its ``seconds`` count from the last start.
    """
    recipe, out = read_recipe(Path(recipe_path), **given), Path(out)
    task = open_task(recipe)
    begun = time.monotonic()
    task.learn(see(task, out, quiet), quiet)
    checkpoints = []
    for number, stage in enumerate(stages(recipe)):
        task.recipe = stage
        net = task.net if number else task.learner
        checkpoints.append(out / f"checkpoint{number}.pt")
        if recipe.task in ("describe", "tune"):
            epochs.fit(task, checkpoints[-1], quiet)
        else:
            fit(net, task.loss, recipe.data.sample, stage, checkpoints[-1], trunk=task.trunk, quiet=quiet)
    seconds = time.monotonic() - begun
    out.mkdir(parents=True, exist_ok=True)
    task.save(out)
    card = card_of(recipe, task.judge(quiet), out, seconds)
    write_whole(out / "card.json", json.dumps(card, indent=1) + "\n")
    for passing in (*checkpoints, out / VIEWS):
        passing.unlink(missing_ok=True)
    return card


def see(task: Any, out: Path, quiet: bool) -> Any:
    """What the task learns from: scenes, drawn; or what its frozen trunk sees in photographs, kept for the next start."""
    data = task.recipe.data
    return task.look(out / VIEWS, quiet) if isinstance(data, Photographs) else pictures.paint(data, quiet)


def stages(recipe: Recipe) -> list[Recipe]:
    """The recipe, and its polish: a short second training without the helping loss."""
    settings = recipe.settings
    if not settings.polish:
        return [recipe]
    last = replace(settings, epochs=settings.polish, rate=settings.rate / 3, dense=0.0, polish=0)
    return [recipe, replace(recipe, settings=last)]


def open_task(recipe: Recipe) -> Task:
    """The recipe's task, its net with fresh weights, or with those that the recipe starts from."""
    if recipe.task == "tune":
        from heatproof.training.tune import Tune

        base = read_recipe(recipe.folder / f"{recipe.start}.toml")
        return Tune(recipe, open_task(replace(base, seed=recipe.seed, settings=recipe.settings)))
    if recipe.task == "classify":
        from heatproof.training.classify import Classify

        return Classify(recipe)
    if recipe.task == "contrast":
        from heatproof.training.contrast import Contrast

        return Contrast(recipe)
    if recipe.task == "match":
        from heatproof.training.match import Match

        return Match(recipe)
    if recipe.task == "describe":
        from heatproof.training.describe import Describe

        return Describe(recipe)
    from heatproof.training.caption import Caption

    return Caption(recipe)


def card_of(recipe: Recipe, found: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """What is known of the weights: data, figures, weaknesses, hash, command."""
    weights = (out / "model.safetensors").read_bytes()
    typed = [f"--start {recipe.start} --seed {recipe.seed}"] if recipe.task == "tune" else []
    return {
        "name": recipe.name,
        "source": found.pop("source", "trained by heatproof on generated scenes"),
        "task": recipe.task,
        "licence": found.pop("licence", "Apache-2.0"),
        "data": asdict(recipe.data),
        "settings": asdict(recipe.settings),
        "seed": recipe.seed,
        "bad_at": found.pop("bad_at"),
        "figures": found,
        "sha256": sha256(weights).hexdigest(),
        "bytes": len(weights),
        **({"start": recipe.start, "tune": asdict(recipe.tune)} if recipe.task == "tune" else {}),
        "command": " ".join(["heatproof train", recipe.name, *typed]),
        "seconds": round(seconds),
    }
