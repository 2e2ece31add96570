"""The lie detector: does a column order maps as a measure of explanations must? Reads summaries only; no torch.

A metric is put to the question that it puts to maps. Random, centred and edge maps know nothing of the model, so
none may do as well as the best method; a map must beat its own pieces in random places; blurring adds nothing that a
map knows, so it must not pay; the mask itself must win where the mask is what is asked for. What is found makes a
column *suspect*: on data whose truth nobody knows it is never *wrong*, and what nothing was found in is never *right*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heatproof import statistics
from heatproof.errors import NO_TEXT, listed
from heatproof.statistics import ALPHA, Comparison
from heatproof.summary import Block, Column, Summary, used

SUSPECT, CLEAR, OPEN = "suspect", "no fault found", "cannot tell"
# the values of a counterfactual metric that hold maps, and the relevance of words, against true effects
THINGS, WORDS = "spearman", "words"
SLACK = 1e-9  # of a value of 1 or more: rounding
FEW = 4  # explainers below which a rank correlation says nothing


@dataclass(frozen=True)
class Verdict:
    """What the detector says of one column: suspect, no fault found or cannot tell, and why.

    ``truth`` is Spearman's correlation, over ``explainers`` explainers, of the column with the rank agreement of the
    same maps with the true effects of the things in the image; NaN where that is not known.
    """

    model: str
    column: str
    says: str
    reasons: tuple[str, ...]
    truth: float = math.nan
    explainers: int = 0


def faults(column: Column) -> list[str]:
    """What speaks against the column, in words; nothing where nothing was found, or where nothing could be.

    Each question is asked on the cases that both sides define, at 5 %, Holm over the methods asked.
    """
    if column.leader is None:
        return []
    return [
        *_blind(column),
        *_random(column),
        *_pieces(column),
        *_blur(column),
        *_mask(column),
    ]


def _blind(column: Column) -> list[str]:
    """Controls that never saw the model and do as well as the best method (law 6)."""
    if not column.suspect:
        return []
    best = column.suspect[0]
    ahead = [m for m in column.valued(column.methods) if column.ranked((best, m))[0] == best]
    many = len(column.valued(column.methods))
    more = f"; {best} is ahead of {len(ahead)} of {many} methods" if len(ahead) > many / 2 else ""
    return [f"{listed(column.suspect)} not significantly worse than {column.leader}{more}"]


def _random(column: Column) -> list[str]:
    """Random maps do as well as the typical method: the column tells a few good ones from noise, or the rest from nothing."""
    for name in column.methods:
        gap = _rivals(column, name).get("random")
        if gap is not None and not (gap.p < ALPHA and column.sign * gap.difference > 0):
            return [f"random maps not significantly worse than the typical method, {name}"]
    return []


def _won(column: Column, copy: str) -> dict[str, bool | None]:
    """For each method with such a copy: whether it is significantly better (True), worse (False), neither (None)."""
    gaps = {m: column.cells[m].rivals[copy] for m in column.methods if copy in _rivals(column, m)}
    adjusted = dict(zip(gaps, statistics.holm([gap.p for gap in gaps.values()]), strict=True))
    return {m: None if adjusted[m] >= ALPHA else column.sign * gap.difference > 0 for m, gap in gaps.items()}


def _rivals(column: Column, method: str) -> Mapping[str, Comparison]:
    cell = column.cells.get(method)
    return {} if cell is None else cell.rivals


def _pieces(column: Column) -> list[str]:
    """The best method that has a shuffled copy is not significantly better than its own pieces in random places."""
    won = _won(column, "shuffled")
    if not won:
        return []
    first = column.ranked(won)[0]
    if won[first]:
        return []
    return [
        f"does not tell {first} from its own map shuffled; it does in {sum(map(bool, won.values()))} of {len(won)} methods"
    ]


def _blur(column: Column) -> list[str]:
    """Most methods are significantly worse than their own map blurred."""
    won = _won(column, "blurred")
    paid = [m for m, better in won.items() if better is False]
    if not paid or 2 * len(paid) <= len(won):
        return []
    return [
        f"pays for blur: {listed(paid)} {'is' if len(paid) == 1 else 'are'} better blurred, of {len(won)} tried"
    ]


def _mask(column: Column) -> list[str]:
    """Where the evidence is what is asked for, a map that is not the evidence does better: case by case none can.

    No test of significance: the mask is the best there is by definition, and a mean ahead of it is no chance.
    """
    cell = column.cells.get("oracle")
    if column.measure.get("measures") != "plausibility" or cell is None or cell.value is None:
        return []
    least = column.sign * cell.value + SLACK * max(1.0, abs(cell.value))
    names = column.valued((*column.methods, *column.blind))
    ahead = [e for e in column.ranked(names) if column.sign * (column.cells[e].value or 0.0) > least]
    common = cell.gap.difference if cell.gap else 0.0  # the leader's lead on the cases that both define
    ahead = [e for e in ahead if e != column.leader or column.sign * common > 0]
    return [f"{listed(ahead)} better than the evidence itself"] if ahead else []


def judge(summary: Summary, block: Block, column: Column) -> Verdict:
    """The verdict on one column of a block."""
    truth, explainers = _truth(summary, block, column)
    found = faults(column)
    if column.leader is None:
        why = "no method has a value"
    elif column.powerless:
        why = "so few photographs that no difference could be significant"
    elif found:
        return Verdict(block.model, column.name, SUSPECT, tuple(found), truth, explainers)
    elif not column.valued(column.blind) and not any(_rivals(column, m) for m in column.methods):
        why = "no control was asked"
    else:
        return Verdict(block.model, column.name, CLEAR, (), truth, explainers)
    return Verdict(block.model, column.name, OPEN, (why,), truth, explainers)


def _truth(summary: Summary, block: Block, column: Column) -> tuple[float, int]:
    """Rank correlation with the counterfactual truth over all explainers that have both; the mask takes no part."""
    what = WORDS if reads_words(column) else THINGS
    true = next((c for c in block.columns if is_truth(summary, c, what)), None)
    if true is None or true is column:
        return math.nan, 0
    names = [e for e in true.valued(column.valued(column.cells)) if used(e, summary.run) != "oracle"]
    if len(names) < FEW:
        return math.nan, len(names)
    from scipy.stats import spearmanr  # slow to load, and of use to audits alone

    ours, theirs = ([c.sign * (c.cells[e].value or 0.0) for e in names] for c in (column, true))
    if len(set(ours)) == 1 or len(set(theirs)) == 1:
        return math.nan, len(names)
    return float(spearmanr(ours, theirs).statistic), len(names)


def is_truth(summary: Summary, column: Column, what: str = THINGS) -> bool:
    """Whether the column tells how maps (or the relevance of words) agree with what each thing (word) truly does."""
    part: Any = next((p for p in summary.run.get("metrics", ()) if p["name"] == column.key[0]), {})
    return part.get("use") == "counterfactual" and column.key[1] == what


def reads_words(column: Column) -> bool:
    """Whether the column judges the relevance of words: explainers that give none are not suited to it."""
    return any(NO_TEXT in cell.why for cell in column.cells.values() if cell.value is None)


def verdicts(summary: Summary) -> list[Verdict]:
    """All columns of all models, in the order of the table."""
    return [judge(summary, block, column) for block in summary.blocks for column in block.columns]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), for independent trials.

    >>> [round(end, 2) for end in wilson(9, 10)], [round(end, 2) for end in wilson(0, 10)]
    ([0.6, 0.98], [0.0, 0.28])
    """
    z = statistics.NORMAL.inv_cdf(1 - statistics.TAIL)
    if of == 0:
        return 0.0, 1.0
    centre = (hits + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * math.sqrt(hits * (of - hits) / of + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
