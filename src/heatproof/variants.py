"""Columns that differ in one choice of their metric, side by side: does the ranking hold? what did the bug move? No torch.

Metrics that remove pixels are run on several baselines where a spec names none; metrics with known bugs are run as
released and corrected where a spec asks for both modes. The sentences under a table say what that did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from heatproof import stability
from heatproof.errors import listed
from heatproof.summary import Block, Column, named


def groups(block: Block, run: Mapping[str, Any], choice: str) -> list[dict[str, Column]]:
    """The block's columns of one value that differ in this setting of their metric: its value -> the column.

    Metrics that are alike but for the choice (and for ``steps``, which moves an area by what the trapezoids miss)
    belong together; only groups of two and more are given.
    """
    found: dict[tuple[str, str, str], dict[str, Column]] = defaultdict(dict)
    parts = named(run, "metrics")
    for column in block.columns:
        part = parts.get(column.key[0], {})
        settings = dict(part.get("settings", {}))
        if choice in settings:
            own = str(settings.pop(choice))
            rest = repr(sorted((k, v) for k, v in settings.items() if k not in ("steps", "sigma")))
            found[str(part.get("use")), column.key[1], rest].setdefault(own, column)
    return [group for group in found.values() if len(group) > 1]


def held(block: Block, run: Mapping[str, Any]) -> list[str]:
    """Whether the ranking of the methods held on every baseline, a sentence a value."""
    out = []
    for group in groups(block, run, "baseline"):
        columns = list(group.values())
        methods = [m for m in block.methods if all(m in c.valued(c.methods) for c in columns)]
        if len(methods) < 2:
            continue
        values = np.array([[c.sign * (c.cells[m].value or 0.0) for m in methods] for c in columns])
        places = stability.ranks(values)
        same = "the ranking held" if bool((places == places[0]).all()) else "the ranking did not hold"
        leaders: dict[str, list[str]] = defaultdict(list)
        for baseline, column in group.items():
            leaders[column.ranked(methods)[0]].append(baseline)
        best = "; ".join(f"{who} first on {listed(where)}" for who, where in leaders.items())
        w = f"Kendall's W {stability.kendall_w(places):.2f}"
        out.append(f"{columns[0].name} on {listed(list(group))}: {same} ({w}; {best})")
    return out


def moved(block: Block, run: Mapping[str, Any]) -> list[str]:
    """What the known bugs of released code move: as released, corrected, and the gap, method by method."""
    out = []
    for group in groups(block, run, "as_released"):
        fixed, released = group["False"], group["True"]
        both = [m for m in block.methods if all(m in c.valued(c.methods) for c in (fixed, released))]
        gaps = [
            f"{m} {released.text(r)} and {fixed.text(f)} ({released.text(r - f)})"
            for m in both
            for r, f in [(released.cells[m].value or 0.0, fixed.cells[m].value or 0.0)]
        ]
        if gaps:
            order = "the same order" if fixed.ranked(both) == released.ranked(both) else "another order"
            out.append(f"{fixed.name} as released and corrected (gap): {', '.join(gaps)}; {order}")
    return out
