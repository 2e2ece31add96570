"""What stands where pixels were removed: one blank image a case, by a named rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from heatproof.contract import Case, Model
from heatproof.geometry import Frame


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Each channel smoothed by a Gaussian of ``sigma`` pixels, cut at 4 sigma, edges repeated outwards.

    image float [C, H, W] -> the same shape; sigma > 0.

    >>> gaussian_blur(torch.ones(1, 2, 3), 2.0).allclose(torch.ones(1, 2, 3))
    True
    """
    down, along = (_smoother(size, sigma).to(image) for size in image.shape[1:])
    return down @ image @ along.T


@lru_cache(maxsize=8)
def _smoother(size: int, sigma: float) -> Tensor:
    """float64 [size, size]: what each pixel of a line takes from the others."""
    reach = math.ceil(4 * sigma)
    bell = torch.exp(-torch.arange(-reach, reach + 1).double().square() / (2 * sigma**2))
    places = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)
    weights = (bell / bell.sum()).expand(size, -1)
    return torch.zeros(size, size).double().scatter_add(1, places.clamp(0, size - 1), weights)


def _mean(case: Case, model: Model, sigma: float) -> Tensor:
    return torch.zeros_like(case.pixels)


def _black(case: Case, model: Model, sigma: float) -> Tensor:
    frame = cast("Frame", model.frame)  # type: ignore[attr-defined]  # every implementation has one
    darkest = -torch.tensor(frame.mean) / torch.tensor(frame.std)
    return darkest[:, None, None].expand_as(case.pixels)


def _image_mean(case: Case, model: Model, sigma: float) -> Tensor:
    return case.pixels.mean((1, 2), keepdim=True).expand_as(case.pixels)


def _blur(case: Case, model: Model, sigma: float) -> Tensor:
    return gaussian_blur(case.pixels, sigma)


def _noise(case: Case, model: Model, sigma: float) -> Tensor:
    return torch.randn(case.pixels.shape, generator=case.generator("baseline noise"))


RULES: dict[str, Callable[[Case, Model, float], Tensor]] = {
    "mean": _mean,
    "black": _black,
    "image_mean": _image_mean,
    "blur": _blur,
    "noise": _noise,
}


def blank(rule: str, case: Case, model: Model, sigma: float = 5.0) -> Tensor:
    """The case's image with everything removed, [C, H, W] in the model's normalised input.

    - "mean": zero in normalised space, the colour that the model's normalisation subtracts (the data set's
      mean where the model was trained that way)
    - "black": pixel value 0
    - "image_mean": the mean colour of this image
    - "blur": the image smoothed by a Gaussian of ``sigma`` pixels (RISE inserts on such a one, sigma 5)
    - "noise": independent normal values of mean 0 and deviation 1, the case's own (seeded) draw
    """
    return RULES[rule](case, model, sigma)
