"""The released procedure of M2IB, told again from what is known of it: slow on purpose, for the speed suite and the tests.

Every step forwards ten copies through both towers of the net, whole, the fixed side too; gradients flow into every
weight and are never cleared; alpha is one tensor that Adam moves, and the map is the capacity of the last forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A block, and behind it sigmoid(alpha) of its output and noise for the rest; the capacity is kept aside."""

    def __init__(self, block: nn.Module, tokens: int, width: int, noise: Callable[[], Tensor]) -> None:
        super().__init__()
        self.block, self.noise = block, noise
        self.alpha = nn.Parameter(torch.full((1, tokens, width), 5.0))
        self.capacity = torch.zeros(())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.block(x, *args, **kwargs)
        share = torch.sigmoid(self.alpha).expand(len(out), -1, -1)
        mean, variance = share * out, (1 - share) ** 2
        self.capacity = -0.5 * (1 + torch.log(variance) - mean**2 - variance)
        return mean + torch.sqrt(variance) * self.noise()


def token_capacity(
    net: Any,
    pixels: Tensor,
    ids: Tensor,
    tower: str,
    layer: int,
    noise: Callable[[], Tensor],
    *,
    beta: float = 0.1,
    steps: int = 10,
    repeats: int = 10,
    lr: float = 1.0,
) -> tuple[Tensor, list[float]]:
    """One pair (pixels [1, C, H, W], ids [1, T]): the tower's capacity a token [T], and the loss before each update."""
    model = net.vision_model if tower == "image" else net.text_model
    block = model.encoder.layers[layer]
    config = model.config
    tokens = ids.shape[1] if tower == "text" else (config.image_size // config.patch_size) ** 2 + 1
    neck = Bottleneck(block, tokens, config.hidden_size, noise)
    model.encoder.layers[layer] = neck
    losses = []
    try:
        adam = torch.optim.Adam([neck.alpha], lr=lr)
        for _ in range(steps):
            adam.zero_grad()
            image = net.get_image_features(pixels.expand(repeats, -1, -1, -1)).pooler_output
            text = net.get_text_features(ids.expand(repeats, -1)).pooler_output
            fit = F.cosine_similarity(image, text, eps=1e-6).mean()
            loss = beta * neck.capacity.mean() - fit
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
    finally:
        model.encoder.layers[layer] = block
    return neck.capacity.detach().mean(0).nansum(-1), losses
