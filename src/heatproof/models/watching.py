"""Sites seen from outside: what a watcher is handed while rows pass, and the way back for its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

PARTS = ("query", "key", "value", "mixed")  # of an attention site, each [N, heads, T, d]


class Watch:
    """The values of one site during the latest run, all rows in one tensor.

    The rows pass in blocks, yet the gradient of a score must be had for all of them at once: ``value`` is a
    leaf that each block's activation is tied to, so its gradient is the activation's.
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        if self._value is None:
            raise RuntimeError(f"nothing has passed site {self.site!r} yet: call model.score first")
        return self._value

    def begin(self) -> None:
        self._value = None

    def tap(self, x: Tensor, start: int, kept: int, total: int) -> Tensor:
        if self._value is None:
            value = torch.empty((total, *x.shape[1:]), dtype=x.dtype, device=x.device)
            self._value = value.requires_grad_(torch.is_grad_enabled())
        with torch.no_grad():
            self._value[start : start + kept] = x[:kept]
        if not torch.is_grad_enabled():
            return x
        tied: Tensor = _Tie.apply(x, self._value, start, kept)  # type: ignore[no-untyped-call]
        return tied


class _Tie(torch.autograd.Function):
    """x as it is; its gradient is handed to the watcher's rows as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, start: int, kept: int) -> Tensor:
        ctx.place = value.shape, start, kept
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        shape, start, kept = ctx.place
        seen = grad.new_zeros(shape)
        seen[start : start + kept] = grad[:kept]
        return grad, seen, None, None


# The block under way, for sites inside a stage (attention probabilities): site -> its tap.
PASSING: ContextVar[Mapping[str, Callable[[Tensor], Tensor]]] = ContextVar(
    "passing", default=MappingProxyType({})
)


def passing(site: str, x: Tensor) -> Tensor:
    """Called from inside a stage where a site lies: lets a watcher see x and carry its gradient."""
    tap = PASSING.get().get(site)
    return x if tap is None else tap(x)
