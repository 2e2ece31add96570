"""LeGrad: the positive gradient of attention, layer by layer, of each layer's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case


@dataclass(frozen=True)
class LeGrad:
    """Bousselham, Boggust, Chaybouti, Strobelt, Kuehne 2024 (arXiv 2404.03214), of the image alone; >= 0.

    At each layer the mean of the block's output tokens is read as if it were the class token after the last block, by the
    last norm, projection and comparison; the gradient of that score at the layer's own attention, its positive
    part, meaned over heads and over the rows that look, is the layer's map; maps are summed over the last ``layers``.
    The released wrapper's default is 2 (``layer_index=-2``); None takes all, as the paper's definition has it. A tower
    with fewer layers gives all it has. A ViT classifier's logit is read in the same way.

    A tower that ends in attention pooling (SigLIP) has its tokens read by that pooling, at each layer as after the last,
    and the gradient is at the pooling's own attention, its positive part meaned over heads (the paper's section on attentional
    poolers); ``layers`` then counts blocks.

    Its text side is not defined: tokens of a causal text are not meaned. Each layer costs one pass up to it, backward
    through one block alone. Criticism: it explains the answers of middle layers, which the model was not trained to
    give, and of the attention's size it sees nothing, only its slope.
    """

    layers: int | None = 2

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if "image.attention" not in model.sites:
            raise Unsuited(
                f"LeGrad needs attention over the image; {model.name} has {', '.join(model.sites)}"
            )
        if model.family == "captioner":
            raise Unsuited(
                f"LeGrad reads the mean of the image's tokens; {model.name}'s words look at each of them"
            )
        count = model.sites["image.attention"]
        if not model.extra_tokens:
            if model.sites.get("image.block") != count - 1:
                raise Unsuited(
                    f"LeGrad reads a class token or an attention pooling; {model.name} has neither"
                )
            return self._pooled(model, count - 1, cases)
        first = 0 if self.layers is None else max(0, count - self.layers)
        heats = [0 * case.pixels.new_zeros(()) for case in cases]
        for layer in range(first, count):
            for k, row in enumerate(self._layer(model, layer, count, cases)):
                heats[k] = heats[k] + row
        return [Explanation(image=model.grid(heat)) for heat in heats]

    def _layer(self, model: Any, layer: int, count: int, cases: Sequence[Case]) -> list[Tensor]:
        """[T] of each case: how much more the layer would answer if tokens were looked at more."""
        site = "image.last" if layer == count - 1 else model.site("image.block", layer)
        with model.watch(model.site("image.attention", layer)) as seen:
            tokens = model.upto(site, model.stack(cases), cases)
        means = torch.stack([row.mean(0, keepdim=True) for row in tokens])
        score = model.above("image.last", means, cases)
        (grads,) = torch.autograd.grad(score.sum(), seen.value)
        return [grad.clamp(min=0).mean((0, 1)) for grad in grads]

    def _pooled(self, model: Any, blocks: int, cases: Sequence[Case]) -> list[Explanation]:
        """Without a class token: each layer's answer by the attention pooling, and the slope of what that looks at."""
        first = 0 if self.layers is None else max(0, blocks - self.layers)
        heats = [0 * case.pixels.new_zeros(()) for case in cases]
        for layer in range(first, blocks):
            with torch.no_grad():
                tokens = model.upto(model.site("image.block", layer), model.stack(cases), cases)
            with model.watch(model.site("image.attention")) as seen:
                score = model.above("image.last", tokens, cases)
                (grads,) = torch.autograd.grad(score.sum(), seen.value)
            heats = [heat + grad.clamp(min=0).mean((0, 1)) for heat, grad in zip(heats, grads, strict=True)]
        return [Explanation(image=model.grid(heat)) for heat in heats]
