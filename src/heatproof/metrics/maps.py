"""What every metric does before it judges: fetch the map, say why there is none, refuse a wrong setting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Measure, Score, Trial, Unsuited, Value
from heatproof.errors import NO_IMAGE, NO_TEXT, unknown

T = TypeVar("T")


class Undefined(Exception):
    """There is no number for this trial (law 4); the text says why."""


def undefined(measures: Iterable[Measure], why: Undefined) -> Score:
    """A score whose every value is undefined for one reason."""
    return Score({m.name: Value.undefined(str(why)) for m in measures})


def planned(
    trials: Sequence[Trial], measures: Iterable[Measure], plan: Callable[[Trial], T]
) -> tuple[dict[int, T], dict[int, Score]]:
    """What to do for each trial, by its place, and the scores of those for which there is nothing to do (law 4)."""
    plans, found = {}, {}
    for i, trial in enumerate(trials):
        try:
            plans[i] = plan(trial)
        except Undefined as why:
            found[i] = undefined(measures, why)
    return plans, found


def needs_pixels(trials: Sequence[Trial], what: str = "remove") -> None:
    """Unsuited where the model reads region features in place of an image."""
    if any(trial.case.pixels.ndim != 3 for trial in trials):
        raise Unsuited(f"{trials[0].model.name} reads region features: there are no pixels to {what}")


def accept(metric: object, field: str, accepted: Sequence[str]) -> None:
    """Refuse a setting that is none of the accepted words, naming the nearest one."""
    found = getattr(metric, field)
    if found not in accepted:
        raise unknown(f"metrics: {type(metric).__name__.lower()}", field, str(found), accepted)


def image_heat(trial: Trial) -> Tensor:
    """The trial's own image map, [h, w] or [C, h, w], on the CPU; Undefined where there is none to judge."""
    heat = trial.explanation.image if trial.explanation is not None else None
    if heat is None:
        raise Undefined(NO_IMAGE)
    if heat.ndim not in (2, 3) or heat.numel() == 0:
        raise ValueError(
            f"{trial.explainer!r} gave case {trial.case.id} an image map of shape {list(heat.shape)}, "
            "accepted are [h, w] and [C, h, w]"
        )
    heat = heat.detach().cpu()
    if not heat.isfinite().all():
        raise Undefined("NaN or infinity in the map")
    return heat


def text_heat(trial: Trial) -> Tensor:
    """The trial's own text relevance, float [T] on the CPU; Undefined where there is none to judge."""
    heat = trial.explanation.text if trial.explanation is not None else None
    if heat is None:
        raise Undefined(NO_TEXT)
    if tuple(heat.shape) != (len(trial.case.words),):
        raise ValueError(
            f"{trial.explainer!r} gave case {trial.case.id} text relevance of shape {list(heat.shape)}, "
            f"accepted is [{len(trial.case.words)}], a value a token"
        )
    if not heat.isfinite().all():
        raise Undefined("NaN or infinity in the text relevance")
    return heat.detach().cpu().float()


def image_size(case: Case) -> tuple[int, int]:
    """The height and width of the case's input."""
    return int(case.pixels.shape[-2]), int(case.pixels.shape[-1])


def on_grid(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool planes [..., H, W] on another grid: a cell is in where at least half of its area is.

    >>> on_grid(torch.tensor([[True, True, False, False]] * 2), (1, 2)).tolist()
    [[True, False]]
    """
    if tuple(planes.shape[-2:]) == tuple(size):
        return planes
    flat = planes.reshape(-1, 1, *planes.shape[-2:]).float()
    found = F.adaptive_avg_pool2d(flat, size) >= 0.5
    return found.reshape(*planes.shape[:-2], *size)


def box_planes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [K, 4] (x0, y0, x1, y1 in pixels) as bool planes [K, H, W].

    Corners are cut to whole pixels towards zero and half-open, as in a slice ``[y0:y1, x0:x1]`` (Sun et al.
    2022); what lies outside the image is left out.

    >>> box_planes(torch.tensor([[1.0, 0.0, 3.7, 1.0]]), (2, 4)).int().tolist()
    [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    x0, y0, x1, y1 = boxes.trunc().long().clamp(min=0)[:, :, None].unbind(1)
    ys, xs = torch.arange(size[0]), torch.arange(size[1])
    down, along = (ys >= y0) & (ys < y1), (xs >= x0) & (xs < x1)
    return down[:, :, None] & along[:, None, :]


def read(trial: Trial, *, pool: str, sign: str, upsample: str, sign_first: bool = False) -> Tensor:
    """The trial's map as one plane: on the image's grid, or on its own for ``upsample="none"``.

    ``sign_first`` takes the sign channel by channel, before pooling (a mean over positive parts).
    """
    heat, size = image_heat(trial), image_size(trial.case)
    if sign_first:
        channels = heat.reshape(-1, *heat.shape[-2:])
        heat = torch.stack([geometry.read(channel, sign=sign) for channel in channels])
        sign = "positive"  # all that is left, but for the overshoot of a bicubic enlargement
    return geometry.read(heat, size, pool=pool, sign=sign, upsample=upsample)
