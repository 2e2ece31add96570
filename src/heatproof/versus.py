"""One model against another of the same benchmark, as a fine-tuned captioner against its control. Reads records; no torch here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heatproof import statistics
from heatproof.records import Record
from heatproof.reducers import Numbering
from heatproof.statistics import ALPHA, Comparison
from heatproof.summary import Key, Summary, measures, reducer


@dataclass(frozen=True)
class Against:
    """``model`` minus ``other`` in one column: of the models themselves, or of the maps that ``explainer`` gives both.

    Photographs are paired, and so are replicates (training seeds); words are not, since two captioners say different ones. ``p``:
    exchanging both models photograph by photograph, adjusted (Holm) for all columns of the pair.
    """

    model: str
    other: str
    column: str
    explainer: str
    sign: int  # 1 where higher is better
    gap: Comparison
    p: float

    @property
    def difference(self) -> str:
        """``+0.012 [0.003, 0.021]``."""
        low, high = self.gap.interval.low, self.gap.interval.high
        half = (high - low) / 2
        digits = min(max(2, math.ceil(-math.log10(half / 2))), 5) if half > 0 else 3
        value = f"{round(self.gap.difference, digits) + 0.0:+.{digits}f}"
        return value if math.isnan(low) else f"{value} [{low:.{digits}f}, {high:.{digits}f}]"

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.p >= ALPHA:
            return "cannot be told apart"
        return "better" if self.sign * self.gap.difference > 0 else "worse"


def pairs(summary: Summary) -> list[Against]:
    """The comparisons that the benchmark's ``against`` asks for, in its order; headline columns alone where there are maps."""
    found: list[Against] = []
    for model, other in summary.run.get("against", {}).items():
        rows = [r for r in summary.result.records if r.case and r.model in (model, other)]
        found += _pair(model, other, rows, summary.run)
    return found


def _pair(model: str, other: str, records: Sequence[Record], run: Mapping[str, Any]) -> list[Against]:
    numbering, heads = Numbering.of(records), set(run.get("headline", ()))
    table: dict[tuple[Key, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in records:
        if row.role == "model" or (row.role == "method" and row.column in heads):
            table[(row.metric, row.name), "" if row.role == "model" else row.explainer][row.model].append(row)
    declared = list(measures(run))
    gaps = []
    for key, explainer in sorted(table, key=lambda place: (place[1], declared.index(place[0]))):
        how = reducer(run, key)
        both = [numbering.rows(table[key, explainer][name], how) for name in (model, other)]
        gap = statistics.compare(how, *both, same=False)
        if gap is not None and not math.isnan(gap.difference):
            sign = -1 if measures(run)[key].get("better") == "lower" else 1
            gaps.append((".".join(key), explainer, sign, gap))
    ps = statistics.holm([gap.p for *_, gap in gaps])
    return [Against(model, other, *told, p) for told, p in zip(gaps, ps, strict=True)]


def told(found: Sequence[Against], heads: Collection[str]) -> list[str]:
    """A sentence a pair of models on the headline columns that are of the models themselves."""
    lines = []
    for model, other in dict.fromkeys((one.model, one.other) for one in found):
        mine = [one for one in found if (one.model, one.other, one.explainer) == (model, other, "")]
        parts = [f"{one.column} {one.difference}, {one.verdict}" for one in mine if one.column in heads]
        if parts:
            lines.append(f"{model} against {other}: {'; '.join(parts)}.")
    return lines
