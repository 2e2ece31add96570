"""CLIP as M2IB's release wraps OpenAI's: its text tower without a causal mask, its text projected twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heatproof.contract import Refused
from heatproof.models.base import Context, Stage
from heatproof.models.dual import Dual
from heatproof.models.hf_clip import HfClip
from heatproof.models.hf_clip import text_stages as true_stages


@dataclass(frozen=True)
class M2ibClip(HfClip):
    """A Hugging Face CLIP with the quirks of M2IB's ``ClipWrapper``, which its chest X-ray maps were made with.

    ``no_causal_mask``: every token of a text sees every other. ``projected_twice``: the text's embedding goes through
    the projection again. ``as_released`` turns both on; without any it is the true CLIP. The wrapper also reads the last
    token whatever it is, which is the end token of a caption that nothing pads, unless it was taken away. Its image tower is CLIP's own.

    The quirks are the model's, so that scores, metrics and every explainer meet them; the model has a hash of its own.
    No reference array of the wrapper is known: tests hold it against a slow twin of what is told of it.
    """

    no_causal_mask: bool = False
    projected_twice: bool = False
    as_released: bool = False

    def load(self, name: str, device: str = "cpu") -> Dual:
        return wrapped(
            super().load(name, device),
            no_causal_mask=self.no_causal_mask or self.as_released,
            projected_twice=self.projected_twice or self.as_released,
        )


def wrapped(model: Dual, *, no_causal_mask: bool = True, projected_twice: bool = True) -> Dual:
    """A CLIP that is at hand already, with the quirks that are asked for; Refused where it cannot project twice."""
    if not (no_causal_mask or projected_twice):
        return model
    net: Any = model.net
    shape = list(net.text_projection.weight.shape)
    if projected_twice and shape[0] != shape[1]:
        raise Refused(
            f"{model.name}: projected_twice: found a projection of {shape}, accepted is a square one"
        )
    # part of the model's hash, where the weights alone would not tell it from the true one
    net.config.m2ib_wrapper = f"no_causal_mask {no_causal_mask}, projected_twice {projected_twice}"
    stages = partial(text_stages, no_causal_mask=no_causal_mask, projected_twice=projected_twice)
    return replace(model, text_stages=stages, unended=lambda ids: len(ids) - 1)


def text_stages(net: Any, *, no_causal_mask: bool, projected_twice: bool) -> list[Stage]:
    """The sites of CLIP's own text tower."""
    stages = true_stages(net)
    if no_causal_mask:
        for k, block in enumerate(net.text_model.encoder.layers, 1):
            stages[k] = Stage(stages[k].site, _seeing_all(block))
    if projected_twice:
        stages.append(Stage(None, lambda x, _: net.text_projection(x)))
    return stages


def _seeing_all(block: Any) -> Callable[[Tensor, Context], Tensor]:
    def run(x: Tensor, context: Context) -> Tensor:
        found: Tensor = block(x, open_to_all(context["seen"], context["eos"]))
        return found

    return run


def open_to_all(seen: Tensor, end: Tensor) -> Tensor:
    """seen [N, T] (1 = others may look at it), end [N] -> additive mask [N, 1, T, T] without a direction.

    What stands behind the end token is padding, which the release has none of: nobody sees it. A token sees itself.

    >>> (open_to_all(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.tensor([2]))[0, 0] == 0).int().tolist()
    [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    length = seen.shape[1]
    places = torch.arange(length, device=seen.device)
    there = (seen >= 0.5) & (places <= end[:, None])
    open_ = there[:, None, :] | torch.eye(length, dtype=torch.bool, device=seen.device)
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(open_.shape, device=seen.device).masked_fill(~open_, lowest)[:, None]
