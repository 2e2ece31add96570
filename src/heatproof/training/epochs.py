"""Training epoch by epoch as Sun et al. trained their captioners: judged after each, the best one's weights are kept.

Adam with betas 0.8 and 0.999, every entry of the gradient clamped to +-0.1, and a rate that falls by a fifth whenever
``patience`` epochs brought no gain, not below 2e-5 (the release of Information Fusion 77, 2022,
https://arxiv.org/abs/2001.01037). Where ``patience`` is 0 the rate rises and falls as in ``loop.py``: for trainings too
short for a stand to show.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from heatproof import seeds
from heatproof.contract import Refused
from heatproof.training.loop import rows_of, schedule
from heatproof.training.recipe import Settings

BETAS, CLAMP, FALL, FLOOR = (0.8, 0.999), 0.1, 0.8, 2e-5


def fit(task: Any, checkpoint: Path, quiet: bool = False) -> None:
    """Train ``task.net`` in place; it ends with the weights of the epoch that ``task.progress()`` found best.

    A fine-tuning keeps its last weights: it and its control are compared after the same steps. A trunk that was trained before
    learns at ``trunk_rate`` times the rate.

    ``task.curve`` becomes epoch, last rate, mean loss and figure of each. Killed, it goes on after the last whole epoch,
    to the same weights; the checkpoint stays.
    """
    recipe, net = task.recipe, task.net
    settings, count = recipe.settings, recipe.data.sample
    steps = count // settings.batch
    optimiser = torch.optim.Adam(_groups(task), betas=BETAS)
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["digest"] != recipe.digest():
            raise Refused(
                f"{checkpoint}: this checkpoint belongs to another version of the recipe; "
                f"delete it to start again: rm {checkpoint}"
            )
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        curve, best = state["curve"], state["best"]
    for epoch in range(len(curve), settings.epochs):
        fallen = rate_after([past["figure"] for past in curve], settings)
        net.train()
        total = 0.0
        for step in track(range(epoch * steps, (epoch + 1) * steps), f"epoch {epoch + 1}", disable=quiet):
            torch.manual_seed(seeds.number(recipe.seed, "dropout", step))
            curved = settings.rate * schedule(step, settings.epochs * steps, settings)
            rate = fallen if settings.patience else curved
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            rows = rows_of(step, steps, count, recipe)
            with torch.autocast(net.output.weight.device.type, torch.bfloat16, enabled=settings.bfloat16):
                value = task.loss(rows, seeds.generator(recipe.seed, "step", step))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_value_(net.parameters(), CLAMP)
            optimiser.step()
            total += float(value.detach())
        if not math.isfinite(total):
            raise FloatingPointError(f"{recipe.name}: the loss is {total} in epoch {epoch + 1}")
        figure = task.progress()
        if recipe.task == "tune" or not curve or figure > max(past["figure"] for past in curve):
            best = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        shown = float(f"{rate:.4g}")
        curve.append({"epoch": epoch + 1, "rate": shown, "loss": round(total / steps, 4), "figure": figure})
        if not quiet:
            print(curve[-1], flush=True)
        state = {"digest": recipe.digest(), "net": net.state_dict(), "optimiser": optimiser.state_dict()}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fresh = checkpoint.with_suffix(".new")
        torch.save({**state, "curve": curve, "best": best}, fresh)
        os.replace(fresh, checkpoint)
    net.load_state_dict(best)
    task.curve = curve


def _groups(task: Any) -> list[dict[str, Any]]:
    settings, trunk = task.recipe.settings, task.trunk
    old = list(trunk.parameters()) if trunk is not None else []
    known = {id(p) for p in old}
    new = [p for p in task.net.parameters() if id(p) not in known]
    parts = [(new, 1.0), (old, settings.trunk_rate)]
    return [
        {"params": some, "lr": settings.rate * factor, "factor": factor} for some, factor in parts if some
    ]


def rate_after(figures: Sequence[float], settings: Settings) -> float:
    """The rate of the next epoch: a fifth lower after every ``patience`` epochs without a new best figure.

    >>> rate_after([0.2, 0.4, 0.3, 0.4, 0.5], Settings(rate=1e-3, patience=2))
    0.0008
    """
    rate, best, waited = settings.rate, -math.inf, 0
    for figure in figures:
        waited = 0 if figure > best else waited + 1
        best = max(best, figure)
        if waited == settings.patience:
            rate, waited = max(FLOOR, FALL * rate), 0
    return rate
