"""What was forwarded and who pays for it, and the one memo of a chunk (DESIGN, sections 2 and 3)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Meter:
    """Rows forwarded and backwarded, in whole-forward equivalents, by the case that pays for them.

    A row through either tower of a dual encoder is one forward; a row through some stages of a tower is its share of
    that tower's floating-point operations.
    """

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


Key = tuple[str, str, str]  # model hash, what, case id


@dataclass(frozen=True)
class Bill:
    """What computing one thing took by itself, and what else of the memo it asked for."""

    forward: float
    backward: float
    needs: frozenset[Key] = frozenset()


class Memo:
    """Work that several parts of one chunk share, kept by case and emptied after the chunk.

    Every part pays once for what it asks for, found or computed, and for what that needed in its turn: the meter
    tells what a part costs alone.
    """

    def __init__(self) -> None:
        self.kept: dict[Key, Any] = {}
        self.bills: dict[Key, Bill] = {}  # written also where nothing is kept
        self.paid: set[tuple[Key, str]] = set()  # by the part under way: what, and who paid
        self.asked: set[tuple[Key, str]] | None = None  # by the computation under way, where one is
        self.on = os.environ.get("HEATPROOF_MEMO", "on") != "off"

    def keep(self, key: Key, value: Any, bill: Bill) -> None:
        if self.on:
            self.kept[key] = value
        self.bills[key] = bill

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A part at work: what others have paid for is no matter to it."""
        outer = self.paid, self.asked
        self.paid, self.asked = set(), None
        try:
            yield
        finally:
            self.paid, self.asked = outer

    @contextmanager
    def inside(self) -> Iterator[set[tuple[Key, str]]]:
        """A computation for the memo: what it asks the memo for goes on its bills instead of being paid."""
        outer, self.asked = self.asked, set()
        try:
            yield self.asked
        finally:
            self.asked = outer

    def pay(self, key: Key, payer: str, meter: Meter) -> None:
        """Charge ``payer`` for a thing and for all that it needed, each once a part."""
        if self.asked is not None:
            self.asked.add((key, payer))
            return
        if (key, payer) in self.paid:
            return
        self.paid.add((key, payer))
        bill = self.bills[key]
        meter.forward[payer] += bill.forward
        meter.backward[payer] += bill.backward
        for need in bill.needs:
            self.pay(need, payer, meter)

    def clear(self) -> None:
        self.kept.clear()
        self.bills.clear()
