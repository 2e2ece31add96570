"""The training loop: seeded step by step, so that a run killed at any moment resumes to the same weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from heatproof import seeds
from heatproof.contract import Refused
from heatproof.training.recipe import Recipe, Settings

Loss = Callable[[Tensor, torch.Generator], Tensor]  # rows of the data, this step's dice -> scalar


def fit(
    net: nn.Module,
    loss: Loss,
    count: int,
    recipe: Recipe,
    checkpoint: Path,
    trunk: nn.Module | None = None,
    quiet: bool = False,
) -> None:
    """Train ``net`` in place on ``count`` rows; the last checkpoint holds the result and stays.

    Every step draws from generators of its own (order of rows, augmentation, dropout), so the state
    is the weights, the optimiser's moments and the number of steps done; nothing else.
    """
    settings = recipe.settings
    a_round = count // settings.batch
    total = settings.epochs * a_round
    optimiser = _optimiser(net, settings, trunk)
    done = _resume(checkpoint, recipe.digest(), net, optimiser)
    base = [group["lr"] for group in optimiser.param_groups]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task(recipe.name, total=total, completed=done)
        running = math.nan
        for step in range(done, total):
            for group, rate in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = rate * schedule(step, total, settings)
            net.train()
            torch.manual_seed(seeds.number(recipe.seed, "dropout", step))
            rows = rows_of(step, a_round, count, recipe)
            value = loss(rows, seeds.generator(recipe.seed, "step", step))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
            optimiser.step()
            now = float(value.detach())
            if not math.isfinite(now):
                raise FloatingPointError(f"{recipe.name}: the loss is {now} at step {step}")
            running = now if math.isnan(running) else 0.98 * running + 0.02 * now
            bar.update(task, advance=1, description=f"{recipe.name}, loss {running:.3f}")
            if (step + 1) % settings.checkpoint == 0 or step + 1 == total:
                _keep(checkpoint, recipe.digest(), step + 1, net, optimiser, base)


def _optimiser(net: nn.Module, settings: Settings, trunk: nn.Module | None) -> torch.optim.AdamW:
    """Weight decay on matrices and kernels alone; a trained trunk learns at a rate of its own."""
    old = {id(p) for p in trunk.parameters()} if trunk is not None else set()
    groups = []
    for is_old in (False, True):
        for is_matrix in (False, True):
            some = [p for p in net.parameters() if (id(p) in old) == is_old and (p.ndim > 1) == is_matrix]
            if some:
                rate = settings.rate * (settings.trunk_rate if is_old else 1.0)
                decay = settings.decay if is_matrix else 0.0
                groups.append({"params": some, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def schedule(step: int, total: int, settings: Settings) -> float:
    """Up in a line, down in half a cosine."""
    rise = max(1, int(settings.warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def rows_of(step: int, a_round: int, count: int, recipe: Recipe) -> Tensor:
    """The rows of this step: a fresh order every epoch."""
    epoch, place = divmod(step, a_round)
    order = torch.randperm(count, generator=seeds.generator(recipe.seed, "order", epoch))
    return order[place * recipe.settings.batch : (place + 1) * recipe.settings.batch]


def _keep(
    path: Path,
    digest: str,
    step: int,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    base: list[float],
) -> None:
    """Write the state beside itself and swap it in: a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for group, rate in zip(optimiser.param_groups, base, strict=True):
        group["lr"] = rate
    state = {
        "digest": digest,
        "step": step,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)


def _resume(path: Path, digest: str, net: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load the checkpoint, if there is one, and tell how many steps are done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["digest"] != digest:
        raise Refused(
            f"{path}: this checkpoint belongs to another version of the recipe; "
            f"delete it to start again: rm {path}"
        )
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
