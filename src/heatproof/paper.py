"""What a paper takes from a result: its table, one's own method last, and the cases of its figure by a printed rule.

Reads records only; no torch. A case is never picked by hand: it is drawn by chance, where the methods disagree, or where
one does worst, and the rule stands on the figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from heatproof import detector, stability, tables, words
from heatproof.errors import Refused, listed, unknown
from heatproof.records import Record, Result
from heatproof.summary import Block, Column, Summary, summarise
from heatproof.tables import Grid, Line

RULES = ("random", "disagree", "worst")

# ---------------------------------------------------------------- the table


def latex(result: Result | Summary, ours: str) -> str:
    """The headline columns of each model as LaTeX: ours last and marked, what it may claim in the caption."""
    summary = summarise(result)
    kind, claim = words.badge(summary.run)
    out = [f"% {summary.run.get('title', summary.result.name)}; {words.counts(summary)}; {kind}: {claim}"]
    for block in blocks(summary, ours):
        table = own(summary, block, ours)
        told = [*claims(block, ours), *words.remarks(summary, block, table.columns)]
        out += ["", *tables.latex_grid(table, block, f"{kind}: {claim}", told)]
    return "\n".join(out) + "\n"


def terminal(result: Result | Summary, ours: str) -> str:
    """The same as plain text."""
    summary = summarise(result)
    kind, claim = words.badge(summary.run)
    out = [f"{kind}: {claim}", words.counts(summary)]
    for block in blocks(summary, ours):
        table = own(summary, block, ours)
        told = [*claims(block, ours), *words.remarks(summary, block, table.columns)]
        out += ["", block.model, *tables.terminal_grid(table)]
        out += [f"  ({letter}) {text}" for letter, text in table.feet] + [f"  {line}" for line in told]
    return "\n".join(out) + "\n"


def blocks(summary: Summary, ours: str) -> list[Block]:
    """The models on which a method was asked, or Refused with the methods there are."""
    found = [block for block in summary.blocks if ours in block.methods]
    if not found:
        there = {m for block in summary.blocks for m in block.methods}
        raise unknown(f"{summary.result.name}: --ours", "method", ours, there)
    return found


def own(summary: Summary, block: Block, ours: str) -> Grid:
    """The headline table with one method below all others."""
    table = tables.grid(summary, block, block.columns[: block.headline], "headline")
    rest = [line for line in table.lines if line.name != ours]
    last: list[Line] = [
        dataclasses.replace(line, name=f"{ours} (ours)", group="ours")
        for line in table.lines
        if line.name == ours
    ]
    return dataclasses.replace(table, lines=(*rest, *last))


def claims(block: Block, ours: str) -> list[str]:
    """What may be said of a method, a sentence a headline column, by the tests that the table prints."""
    return [_claim(column, ours) for column in block.columns[: block.headline]]


def _claim(column: Column, ours: str) -> str:
    cell, leader = column.cells.get(ours), column.leader
    if cell is None or cell.value is None or leader is None:
        return f"{column.name}: {ours} has no value: {cell.why if cell else 'not run'}"
    if ours == leader:
        first = f"{ours} has the best value"
        if column.tied:
            text = f"{first}, but cannot be told apart from {listed(column.tied)}"
        else:
            alone = len(column.valued(column.methods)) == 1
            text = (
                f"{first}, no other method has one"
                if alone
                else f"{ours} is significantly better than every other method"
            )
    elif column.behind(ours):
        text = f"{ours} is significantly worse than {leader}"
    else:
        text = f"{ours} is not significantly worse than {leader}, which has the best value"
    if column.suspect:
        text += f"; but nothing is claimed, because {listed(column.suspect)} never saw the model and cannot be told from the best"
    elif detector.faults(column):
        text += "; but nothing is claimed, because the column is suspect"
    return f"{column.name}: {text}"


# ---------------------------------------------------------------- the cases of the figure


@dataclass(frozen=True)
class Pick:
    """One row of a figure: the case, the rule that drew it, and what the methods got there."""

    case: str
    sample: str
    about: str
    rule: str
    values: dict[str, float]


def asked(text: str) -> list[tuple[str, int]]:
    """``--rows`` as typed.

    >>> asked("random:3,worst:1")
    [('random', 3), ('worst', 1)]
    """
    found = []
    for part in text.split(","):
        rule, _, count = part.strip().partition(":")
        if rule not in RULES:
            raise unknown(f"--rows {text}", "rule", rule, RULES, "Write for example random:3,worst:1")
        if not count.isdigit() or int(count) < 1:
            raise Refused(f"--rows {text}: {rule}: found {count!r}, accepted is a whole number from 1 on")
        found.append((rule, int(count)))
    return found


def picks(
    records: Iterable[Record],
    block: Block,
    column: Column,
    rows: Sequence[tuple[str, int]],
    whose: str,
    seed: int,
) -> list[Pick]:
    """The cases of a figure in the order of ``rows``; a case that is drawn already is passed over."""
    cases = _cases(records, block, column)
    places: dict[str, Callable[[Pick], float | None]] = {
        "random": partial(_chance, {n: i for i, n in enumerate(_shuffled(sorted(cases), seed))}),
        "disagree": partial(_agreement, column),
        "worst": lambda pick: column.sign * pick.values[whose] if whose in pick.values else None,
    }
    found: list[Pick] = []
    for rule, count in rows:
        left = [cases[name] for name in sorted(cases) if name not in {p.case for p in found}]
        placed = sorted((v, p.case) for p in left if (v := places[rule](p)) is not None)[:count]
        if len(placed) < count:
            raise Refused(f"--rows {rule}:{count}: {len(placed)} cases are left to draw from; ask for fewer")
        found += [dataclasses.replace(cases[name], rule=rule) for _, name in placed]
    return found


def _cases(records: Iterable[Record], block: Block, column: Column) -> dict[str, Pick]:
    """Every case with a value of some method; of a model with replicates the first, whose maps are drawn."""
    rows = [r for r in records if r.model == block.model and (r.metric, r.name) == column.key and r.case]
    first = min((r.replicate for r in rows), default=0)
    found: dict[str, Pick] = {}
    for row in rows:
        if row.replicate == first and row.value is not None and row.explainer in block.methods:
            pick = found.setdefault(row.case, Pick(row.case, row.sample, row.about, "", {}))
            pick.values[row.explainer] = row.value
    return found


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _chance(places: dict[str, int], pick: Pick) -> float:
    return places[pick.case]


def _agreement(column: Column, pick: Pick) -> float | None:
    """Spearman's correlation of the methods' values here and in the column; None where a rank is in doubt for all."""
    names = [n for n in column.valued(column.methods) if n in pick.values]
    here = stability.ranks(np.array([[pick.values[n] for n in names]]))[0]
    there = stability.ranks(np.array([[column.cells[n].value for n in names]], dtype=np.float64))[0]
    if len(names) < 2 or np.ptp(here) == 0 or np.ptp(there) == 0:
        return None
    return round(float(np.corrcoef(here, there)[0, 1]), 12)


def rule(rows: Sequence[tuple[str, int]], block: Block, column: Column, whose: str, seed: int) -> str:
    """How the cases were drawn, for the figure and its caption."""
    how = {
        "random": f"drawn by chance (seed {seed})",
        "disagree": "where the methods' ranks are least like their ranks in the whole column (Spearman)",
        "worst": f"with the worst value of {whose}",
    }
    arrow = words.ARROWS.get(str(column.measure.get("better")), "")
    drawn = "; ".join(f"{name}: {count} {how[name]}" for name, count in rows)
    where = f"{block.model}, {column.name} {arrow}".strip()
    return f"{where}. Rows by rule, of {block.cases} cases: {drawn}. None twice; below each map its value."
