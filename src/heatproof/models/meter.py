"""What was forwarded and who pays for it, and the one memo of a chunk (DESIGN, sections 2 and 3)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Rows forwarded and backwarded, in whole-forward equivalents, by the case that pays for them."""

    def __init__(self) -> None:
        self.forward: defaultdict[str, float] = defaultdict(float)
        self.backward: defaultdict[str, float] = defaultdict(float)
        self.run = 0.0  # what was really run, whoever pays for it

    @contextmanager
    def aside(self) -> Iterator[Meter]:
        """What is spent inside goes to a meter of its own, and not to this one."""
        kept = self.forward, self.backward
        spent = Meter()
        self.forward, self.backward = spent.forward, spent.backward
        try:
            yield spent
        finally:
            self.forward, self.backward = kept


class Memo:
    """Work that several parts of one chunk share, kept by case and emptied after the chunk.

    Every part pays once for what it asks for, found or computed: the meter tells what a part costs alone.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], tuple[Any, float, float]] = {}
        self.paid: set[tuple[str, str, str]] = set()  # by the part under way
        self.on = os.environ.get("HEATPROOF_MEMO", "on") != "off"

    def clear(self) -> None:
        self.kept.clear()
