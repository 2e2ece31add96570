"""Randomness that belongs to a case and a part, never to the order of the run (law 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def number(*names: object) -> int:
    """A 63-bit seed from any names; the same on every machine.

    >>> number(0, "case", "rise") == number(0, "case", "rise")
    True
    >>> number(0, "case", "rise") == number(1, "case", "rise")
    False
    """
    text = "\x1f".join(map(str, names)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator for these names; noise is drawn on the CPU so that a GPU run sees the same."""
    return torch.Generator().manual_seed(number(*names))


@contextmanager
def forked(*names: object) -> Iterator[None]:
    """For third-party code that draws from the global generators: seeded inside, restored afterwards."""
    seed = number(*names)
    kept = np.random.get_state()  # the legacy global state is what foreign code reads
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(kept)
