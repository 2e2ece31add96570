"""Control: a Gaussian in the middle, the photographer's habit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heatproof import Explanation
from heatproof.contract import Case


@dataclass(frozen=True)
class Centre:
    """exp(-d^2 / 2 sigma^2), [cells, cells] in (0, 1]; d and ``sigma`` in shares of the side; no text."""

    sigma: float = 0.25
    cells: int = 28

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        away = (torch.arange(self.cells) + 0.5) / self.cells - 0.5
        bell = torch.exp(-(away[:, None] ** 2 + away**2) / (2 * self.sigma**2))
        return [Explanation(image=bell.clone()) for _ in cases]
