"""Random masks of images, made a batch at a time: smooth shifted cells as RISE draws them, or whole superpixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.contract import Case
from heatproof.games import Pictures

Masks = Callable[[Sequence[tuple[int, int]]], list[Tensor]]  # (case, mask of it), ... -> [H, W] each


def cells(cases: Sequence[Case], count: int, grid: int, keep: float, size: tuple[int, int]) -> Masks:
    """``count`` masks a case of ``grid`` x ``grid`` cells, each kept with chance ``keep``, enlarged and shifted at random."""
    draws = []
    for case in cases:
        chance = case.generator("rise image")
        kept = torch.rand(count, grid, grid, generator=chance) < keep
        moves = [torch.randint(0, c, (count,), generator=chance).tolist() for c in cell_of(size, grid)]
        draws.append((kept.float(), list(zip(*moves, strict=True))))
    return lambda some: shifted(
        torch.stack([draws[k][0][j] for k, j in some]), [draws[k][1][j] for k, j in some], size
    )


def pieces(cut: Pictures, count: int, keep: float) -> Masks:
    """``count`` masks a case of whole segments, each kept with chance ``keep``."""
    kept = [
        (torch.rand(count, players, generator=case.generator("rise image")) < keep).float()
        for case, players in zip(cut.cases, cut.players, strict=True)
    ]
    return lambda some: [kept[k][j][cut.places[k]] for k, j in some]


def shifted(kept: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[Tensor]:
    """RISE's masks (Petsiuk et al. 2018): cells enlarged bilinearly to one cell more than the image, and cut at a corner.

    kept float [N, g, g], corners N places (y, x) below a cell's size (``cell_of``), size (H, W) -> N masks [H, W].

    >>> shifted(torch.ones(1, 2, 2), [(0, 1)], (4, 4))[0].shape
    torch.Size([4, 4])
    """
    (high, wide), cells = size, kept.shape[-1]
    down, along = cell_of(size, cells)
    larger = ((cells + 1) * down, (cells + 1) * along)
    wider = F.interpolate(kept[:, None], larger, mode="bilinear", align_corners=False)[:, 0]
    return [w[y : y + high, x : x + wide] for w, (y, x) in zip(wider, corners, strict=True)]


def cell_of(size: tuple[int, int], cells: int) -> tuple[int, int]:
    """How high and wide a cell is, in whole pixels, so that ``cells`` of them cover the image.

    >>> cell_of((7, 4), 2)
    (4, 2)
    """
    return math.ceil(size[0] / cells), math.ceil(size[1] / cells)
