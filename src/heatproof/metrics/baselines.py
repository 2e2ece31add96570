"""What stands where pixels were removed: a blank image of the case's own, or what is inpainted from the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from heatproof.contract import Case, Model, Refused
from heatproof.geometry import Frame
from heatproof.metrics import imputation


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


def _marginal(case: Case, model: Model, sigma: float) -> Tensor:
    if case.other is None:
        raise Refused(f'baseline: found "marginal", and case {case.id} knows no other image of its data set')
    other = case.other().pixels
    if other.shape != case.pixels.shape:  # models that keep an image's own size
        other = torch.nn.functional.interpolate(other[None], case.pixels.shape[1:], mode="bilinear")[0]
    return other


RULES: dict[str, Callable[[Case, Model, float], Tensor]] = {
    "mean": _mean,
    "black": _black,
    "image_mean": _image_mean,
    "blur": _blur,
    "noise": _noise,
    "marginal": _marginal,
    "inpaint": _mean,  # where nothing is left to inpaint from
}


def blank(rule: str, case: Case, model: Model, sigma: float = 5.0) -> Tensor:
    """The case's image with everything removed, [C, H, W] in the model's normalised input.

    - "mean": zero in normalised space, the colour that the model's normalisation subtracts (the data set's
      mean where the model was trained that way)
    - "black": pixel value 0
    - "image_mean": the mean colour of this image
    - "blur": the image smoothed by a Gaussian of ``sigma`` pixels (RISE inserts on such a one, sigma 5)
    - "noise": independent normal values of mean 0 and deviation 1, the case's own (seeded) draw
    - "marginal": another image of the data set, drawn by the seed: one sample of what the data have there whatever
      is in the rest of this image (the "marginal" or "interventional" expectation, over many cases)
    - "inpaint": as "mean", since no pixel is left to go by; see ``replaced`` for the rest of the way
    """
    return RULES[rule](case, model, sigma)


def replaced(rule: str, image: Tensor, blank: Tensor, gone: Tensor) -> Tensor:
    """The image with some pixels removed: image, blank [C, H, W], gone bool [H, W] -> [C, H, W], all channels together.

    The blank stands there; for "inpaint", where any pixel is left, the discrete Laplace equation from those
    (``imputation.fill``, harmonic), which is what a membrane fixed at them would do: smooth, and free of new edges.

    >>> image, gone = torch.tensor([[[1.0, 5.0, 3.0]]]), torch.tensor([[False, True, False]])
    >>> [replaced(rule, image, torch.zeros(1, 1, 3), gone).tolist()[0][0] for rule in ("mean", "inpaint")]
    [[1.0, 0.0, 3.0], [1.0, 2.0, 3.0]]
    """
    if rule != "inpaint" or bool(gone.all()):
        return torch.where(gone, blank, image)
    return imputation.fill(image, gone, "harmonic")


def needs_other(rule: str) -> bool:
    """Whether the rule looks at another image, so that a score's key must name it."""
    return rule == "marginal"
