"""heatproof: explanation methods, put to the proof.

The nouns are at hand as ``heatproof.Explanation`` and so on; torch is imported with the first of them, so that
tables can be redrawn without it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Otherwise the last bits of a row of a matrix product may depend on where in the matrix it stands (law 1): seen with
# gradients of token nets on a processor with AVX-512. Read once, at a process's first matrix product; costs no time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from heatproof.errors import Refused, Unsuited

if TYPE_CHECKING:
    from heatproof.contract import (
        Card,
        Case,
        Explanation,
        Measure,
        Object,
        Sample,
        Score,
        Trial,
        Value,
    )

__version__ = "0.1.0"
__all__ = [
    "Card",
    "Case",
    "Explanation",
    "Measure",
    "Object",
    "Refused",
    "Sample",
    "Score",
    "Trial",
    "Unsuited",
    "Value",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from heatproof import contract

        return getattr(contract, name)
    raise AttributeError(f"module 'heatproof' has no attribute {name!r}")
