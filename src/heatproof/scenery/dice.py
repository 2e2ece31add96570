"""Numbers drawn for a scene: the raw PCG64 stream only, so that no library version can move a byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from heatproof import seeds

T = TypeVar("T")


class Dice:
    """A stream of draws that belongs to its names.

    numpy keeps the raw stream of a bit generator for ever, but not what ``Generator`` makes of it:
    so the few distributions that scenes need are made here, from exact operations alone.

    >>> Dice("scene", 0).below(6) == Dice("scene", 0).below(6)
    True
    """

    def __init__(self, *names: object) -> None:
        self._bits = np.random.PCG64(seeds.number(*names))

    def unit(self) -> float:
        """Uniform in [0, 1), with 53 bits."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, limit: int) -> int:
        """An integer in 0 .. limit - 1."""
        return int(self.unit() * limit)

    def pick(self, things: Sequence[T]) -> T:
        """One of several, all equally likely."""
        return things[self.below(len(things))]

    def shuffled(self, things: Sequence[T]) -> list[T]:
        """All of them in a random order (Fisher and Yates)."""
        deck = list(things)
        for last in range(len(deck) - 1, 0, -1):
            other = self.below(last + 1)
            deck[last], deck[other] = deck[other], deck[last]
        return deck

    def noise(self, height: int, width: int) -> np.ndarray:
        """White noise, float32 [height, width] in [0, 1), of 8 bits a cell."""
        count = height * width
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8").view(np.uint8)
        return raw[:count].reshape(height, width).astype(np.float32) / 256.0
