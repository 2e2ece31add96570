"""Imputation: removed pixels filled in from those that are left, so that no edge tells where they were."""

from __future__ import annotations

from itertools import product

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

# what a neighbour weighs, by how many steps away it is (1 = beside it, 2 = across the corner)
RULES: dict[str, dict[int, float]] = {"linear": {1: 2.0, 2: 1.0}, "harmonic": {1: 1.0}}


def fill(image: Tensor, removed: Tensor, rule: str = "linear") -> Tensor:
    """Every removed pixel becomes the weighted mean of its neighbours, those that are removed themselves included.

    image float [C, H, W], removed bool [H, W] -> the image with exactly the removed pixels changed. The means hold
    all at once: one sparse linear system over the removed pixels, solved in float64, factorised once for all
    channels. Neighbours outside the image do not count; the others' weights are scaled up to 1. A filled value lies
    between the least and the greatest known value of its channel. ValueError where no pixel is left to fill from.

    - "linear": 8 neighbours, 1/6 each beside the pixel and 1/12 each across a corner (Rong et al. 2022, ROAD)
    - "harmonic": the 4 neighbours beside it, 1/4 each: the discrete Laplace equation, a plain inpainting

    >>> fill(torch.tensor([[[1.0, 0.0, 0.0, 4.0]]]), torch.tensor([[False, True, True, False]])).tolist()
    [[[1.0, 2.0, 3.0, 4.0]]]
    """
    gone = removed.cpu().numpy()
    if gone.all():
        raise ValueError("every pixel is removed: there is none left to fill from")
    filled = image.clone()
    if not gone.any():
        return filled
    known = np.where(gone, 0.0, image.detach().cpu().double().numpy())
    number = np.cumsum(gone).reshape(gone.shape) - 1  # of each removed pixel among them
    weight, seen = np.zeros(gone.shape), np.zeros_like(known)
    lines, columns, values = [], [], []
    for down, along in product((-1, 0, 1), repeat=2):
        share = RULES[rule].get(abs(down) + abs(along))
        if share is None:
            continue
        here, there = _shifted(gone.shape, down, along)
        weight[here] += share
        seen[(slice(None), *here)] += share * known[(slice(None), *there)]
        both = gone[here] & gone[there]
        lines.append(number[here][both])
        columns.append(number[there][both])
        values.append(np.full(len(lines[-1]), -share))
    own, total = number[gone], weight[gone]
    places = np.concatenate([*lines, own]), np.concatenate([*columns, own])
    system = scipy.sparse.csc_matrix((np.concatenate([*values, total]), places))
    # symmetric and diagonally dominant: no pivoting is needed, and the cheaper symmetric ordering will do
    solver = scipy.sparse.linalg.splu(
        system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    found = torch.from_numpy(solver.solve(seen[:, gone].T)).T
    filled[:, removed] = found.to(filled)
    return filled


def _shifted(size: tuple[int, ...], *steps: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a neighbour so many steps down and along is inside the image: the pixels, and their neighbours."""
    here = tuple(slice(max(-step, 0), side - max(step, 0)) for side, step in zip(size, steps, strict=True))
    there = tuple(slice(max(step, 0), side - max(-step, 0)) for side, step in zip(size, steps, strict=True))
    return here, there


def noisy_fill(
    image: Tensor, removed: Tensor, deviation: Tensor, generator: torch.Generator, rule: str = "linear"
) -> Tensor:
    """``fill``, and independent normal noise on the filled pixels, so that no smooth patch tells where they were.

    image [C, H, W], removed bool [H, W], deviation [C] in the image's own units. Draws C x (number of removed
    pixels) numbers. Rong et al. 2022, ROAD: noisy linear imputation.

    >>> image, removed = torch.ones(1, 1, 4), torch.tensor([[False, True, True, False]])
    >>> noisy = noisy_fill(image, removed, torch.tensor([0.1]), torch.Generator().manual_seed(0))
    >>> (noisy != image).tolist()
    [[[False, True, True, False]]]
    """
    filled = fill(image, removed, rule)
    noise = torch.randn(image.shape[0], int(removed.sum()), generator=generator)
    filled[:, removed] += (deviation[:, None] * noise).to(filled)
    return filled
