"""A helping loss for patch nets: every patch says what it shows. Its heads are thrown away after training.

From a label alone a small vision transformer needs far more pictures than fit here; the scenes know their
masks, and patches that have learnt to see soon make a class token that knows.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from heatproof.scenery import COLOURS, KINDS, SIDE, Scene
from heatproof.scenery.scene import visible

WEIGHT = 0.3  # background pixels count this much when a patch is named: a third of a thing is enough


class Dense(nn.Module):
    """Kind and colour of the thing on each patch, read from its token [N, P, width]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)

    def forward(self, tokens: Tensor, planes: Tensor) -> Tensor:
        """Cross-entropy of both heads; ``planes`` uint8 [N, 2, H, W] as ``planes_of`` gives them."""
        total = tokens.new_zeros(())
        for head, plane in zip((self.kind, self.colour), planes.unbind(1), strict=True):
            target = named(plane, self.patch, head.out_features)
            total = total + nn.functional.cross_entropy(head(tokens).flatten(0, 1), target.flatten())
        return total


def named(plane: Tensor, patch: int, count: int) -> Tensor:
    """What covers most of each patch: uint8 [N, H, W] -> int64 [N, P]; 0 is background.

    >>> named(torch.tensor([[[0, 0, 0, 0], [0, 2, 0, 0]]], dtype=torch.uint8), 2, 3)
    tensor([[2, 0]])
    """
    cells = plane.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3).flatten(1, 2).long()
    counts = torch.zeros(*cells.shape[:2], count).scatter_add_(2, cells, torch.ones(cells.shape))
    counts[..., 0] *= WEIGHT
    return counts.argmax(-1)


def planes_of(scenes: tuple[Scene, ...], quiet: bool = False) -> Tensor:
    """Which kind and which colour each pixel mostly shows, uint8 [N, 2, 112, 112]; 0 is background."""
    planes = torch.zeros(len(scenes), 2, SIDE, SIDE, dtype=torch.uint8)
    colours = list(COLOURS)
    for row in track(range(len(scenes)), "what every pixel shows", disable=quiet):
        things = scenes[row].things
        for thing, share in zip(things, visible(things), strict=True):
            mostly = torch.from_numpy(np.asarray(share > 0.5))
            planes[row, 0][mostly] = KINDS.index(thing.kind) + 1
            planes[row, 1][mostly] = colours.index(thing.colour) + 1
    return planes
