"""A classifier trained again on changed images: fresh weights of its own kind, and a seeded loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import seeds
from heatproof.contract import Model, Unsuited

Logits = Callable[[Tensor], Tensor]  # [N, C, H, W] -> [N, classes]
WARM, CLIP = (
    0.1,
    1.0,
)  # share of the steps over which the rate rises; largest norm of the gradient (as in recipes/)


def fresh(net: nn.Module, *names: object) -> None:
    """Draw all weights anew, in place, from the distribution that the net's own code starts with; seeded by ``names``.

    A ``transformers`` net is made again from its config; any other is reset module by module, buffers too.
    Raises Unsuited where a module keeps its start to itself.

    >>> net = nn.Linear(2, 2)
    >>> fresh(net, 1), (kept := net.weight.clone()) is None, fresh(net, 1), bool((net.weight == kept).all())
    (None, False, None, True)
    """
    with seeds.forked(*names):
        if hasattr(type(net), "from_pretrained"):
            made: Any = type(net)
            net.load_state_dict(made(net.config).state_dict())
            return
        for name, module in net.named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if hasattr(module, "reset_parameters"):
                with torch.no_grad():
                    module.reset_parameters()
            elif own:
                raise Unsuited(
                    f"{name or type(net).__name__} does not tell how its weights begin (reset_parameters)"
                )


def logits_of(model: Model, net: nn.Module) -> Logits:
    """All classes' logits of a copy of a classifier's net, as the model's stages run it; Unsuited for other models."""
    stages = getattr(model, "stages", None)
    if model.family != "classifier" or stages is None:
        raise Unsuited(f"{model.name} is a {model.family}: only classifiers are trained again here")
    told = stages(net)

    def run(x: Tensor) -> Tensor:
        for stage in told:
            x = stage.run(x, {})
        return x

    return run


def retrained(
    model: Model,
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    start: str,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    names: Sequence[object],
) -> dict[str, Tensor]:
    """The weights and buffers of a copy of the model's net, trained on ``images(rows)`` and ``labels`` int64 [N].

    ``start``: "fresh" (see ``fresh``) | "trained" (as the model is). Cross-entropy, no augmentation; else as ``learned``.
    """
    net = copy.deepcopy(model.net)  # type: ignore[attr-defined]  # every implementation has one
    run = logits_of(model, net)
    if start == "fresh":
        fresh(net, *names, "fresh weights")
    device = next(net.parameters()).device

    def loss(rows: Tensor) -> Tensor:
        x = images(rows).to(device).contiguous(memory_format=torch.channels_last)
        return nn.functional.cross_entropy(run(x), labels[rows].to(device))

    return learned(net, loss, len(labels), epochs=epochs, batch=batch, rate=rate, decay=decay, names=names)


def learned(
    net: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    names: Sequence[object],
) -> dict[str, Tensor]:
    """The weights and buffers of ``net`` after training it, in place, on ``loss(rows)``, rows int64 of ``count``.

    AdamW without decay on vectors, the rate in a line up over the first tenth of the steps and down in half a cosine, a
    fresh order each epoch. Every draw is seeded by ``names``.
    """
    net.train().requires_grad_(True)
    size = min(batch, count)
    a_round = count // size
    total = epochs * a_round
    groups = [[p for p in net.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    optimiser = torch.optim.AdamW(
        [{"params": some, "weight_decay": decay * (k == 0)} for k, some in enumerate(groups) if some], lr=rate
    )
    with seeds.forked(*names, "dropout"), torch.enable_grad():
        for step in range(total):
            epoch, place = divmod(step, a_round)
            if place == 0:
                order = torch.randperm(count, generator=seeds.generator(*names, "order", epoch))
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(step, total)
            value = loss(order[place * size : (place + 1) * size])
            if not bool(value.isfinite()):
                raise FloatingPointError(
                    f"training again: the loss is {float(value.detach())} at step {step}; take a lower rate"
                )
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimiser.step()
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def _schedule(step: int, total: int) -> float:
    rise = max(1, int(WARM * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
