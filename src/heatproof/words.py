"""What a result says in words: badge, counts, sentence, definitions, published numbers beside measured ones.

Generated from the same cells as the tables, the bad news first, never rosier than they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heatproof import detector, variants
from heatproof.errors import listed
from heatproof.summary import Block, Column, Summary

BADGES = {
    "instrument": "generated or planted images and small models: tests the harness, ranks no method",
    "photographs": "real photographs, stated weights: claims hold for these images and these weights",
    "replay": "the paper's own data and weights: numbers may be held against the published ones",
}
STAND_IN = "stand-in data and models: exercises the code of a replay, says nothing about the paper"
MARKS = (
    "bold: best method of the column; ≈: not significantly worse than it; ⚑: the column is suspect, for the reason told "
    "below it, or a control that never saw the model is not significantly worse than the best method. In brackets: 95 % "
    "bootstrap interval (BCa) over photographs. Significance: sign-flip test by photograph on the cases that "
    "both define, Holm over the column, 5 %"
)
ARROWS = {"higher": "↑", "lower": "↓"}


def badge(run: Mapping[str, Any]) -> tuple[str, str]:
    """What kind of table this is, and what it allows to claim (law 11)."""
    kind = str(run.get("kind", "instrument"))
    if run.get("stand_in"):
        return f"{kind}, stand-in", STAND_IN
    return kind, BADGES.get(kind, f"of the unknown kind {kind!r}: claims nothing")


def counts(summary: Summary) -> str:
    """How much was measured, and how much of it has no value."""
    lost = f"{summary.undefined:,} of {summary.values:,} values undefined"
    failed = f", {summary.failed:,} failed" if summary.failed else ""
    return f"{_many(summary.images, 'image')}, {_many(summary.cases, 'case')}, {lost}{failed}"


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def sentence(block: Block, column: Column | None = None) -> str:
    """What the (first headline) column says of this model, the bad news first; never rosier than the table."""
    column = column or next(iter(block.columns), None)
    where = f"On {block.model}, "
    if column is None:
        return f"{where}no explainer was measured."
    leader = column.leader
    if leader is None:
        why = next((c.why for c in column.cells.values()), "not run")
        return f"{where}no method has a value for {column.name}: {why}."
    lead = f"{leader} ({column.full(leader)})"
    after = _when_worst(column)
    if column.suspect:
        return f"{where}{_doubt(column, column.suspect, lead)}{after}."
    if not column.tied:
        alone = len(column.valued(column.methods)) == 1
        verb = "is the only method with a value for" if alone else "leads"
        text = f"{leader} {verb} {column.name} ({column.full(leader)})"
    elif len(column.tied) == 1:
        text = f"{leader} and {column.tied[0]} lead {column.name} ({column.full(leader)}) and cannot be told apart"
    else:
        text = f"{leader} leads {column.name} ({column.full(leader)}) but cannot be told apart from {listed(column.tied)}"
    if column.control is None:
        return f"{where}{text}; no control that never saw the model was run, so nothing says what is easy{after}."
    reach = column.text(column.cells[column.control].value)
    return f"{where}{text}; the best control, {column.control}, reaches {reach}{after}."


def of_models(column: Column) -> str:
    """What a column of the models themselves says: who leads, and from whom it cannot be told."""
    leader = column.leader
    if leader is None:
        why = next((c.why for c in column.cells.values()), "not run")
        return f"No model has a value for {column.name}: {why}."
    if not column.tied:
        others = len(column.valued(column.methods)) > 1
        return f"{leader} {'leads' if others else 'has'} {column.name} ({column.full(leader)})."
    few = " (the photographs are too few for any difference to be significant)" if column.powerless else ""
    return f"In {column.name} {leader} ({column.full(leader)}) cannot be told apart from {listed(column.tied)}{few}."


def _doubt(column: Column, suspect: Sequence[str], lead: str) -> str:
    control, *others = suspect
    reached = column.full(control)
    gap = column.cells[control].gap
    if gap is not None and column.sign * gap.difference < 0:
        ahead = f"{control}, a control that never saw the model, is ahead of every method in {column.name}"
        return f"{ahead} ({reached}); the best method is {lead}"
    nor = f", nor from {listed(others)}" if others else ""
    fewest = min(column.cells[name].images for name in (control, column.leader or control))
    few = (
        f" ({fewest} photographs are too few for any difference to be significant)"
        if column.powerless
        else ""
    )
    return (
        f"{column.name} sets no method apart from {control} ({reached}), a control that never saw the model{nor}"
        f"{few}; the best method is {lead}"
    )


def _when_worst(column: Column) -> str:
    if not column.twice:
        return ""
    first = column.ranked((m for m in column.methods if m in column.cells), worst=True)[0]
    gone = f"; {100 * column.share_undefined:.0f} % of the column is undefined"
    return gone + (f", and counted as worst it puts {first} first" if first != column.leader else "")


def sentences(summary: Summary) -> list[str]:
    """One a model, the ones whose metric is suspect or empty first."""
    blocks = sorted(
        summary.blocks, key=lambda b: bool(b.columns and b.columns[0].leader and not b.columns[0].suspect)
    )
    return [sentence(block) for block in blocks]


def headline(summary: Summary) -> str:
    """One sentence over all models about the first headline column, the models with bad news first.

    The same statements as ``sentence`` makes for each, models that say the same thing taken together.
    """
    if summary.models and not any(b.columns for b in summary.blocks):
        return of_models(summary.models[0])
    if len(summary.blocks) == 1:
        return sentence(summary.blocks[0])
    name = next((b.columns[0].name for b in summary.blocks if b.columns), "")
    columns = [(b.model, c) for b in summary.blocks for c in b.columns if c.name == name]
    empty = [model for model, c in columns if c.leader is None]
    doubt = [(model, c, c.leader) for model, c in columns if c.leader and c.suspect]
    sound = [(model, c, c.leader) for model, c in columns if c.leader and not c.suspect]
    parts = []
    if doubt:
        shown = [
            f"{model} (the control {c.suspect[0]} {c.full(c.suspect[0])}, the best method {leader} {c.full(leader)})"
            for model, c, leader in doubt
        ]
        parts.append(
            f"no method is significantly better than a control that never saw the model on {listed(shown, 9)}"
        )
    if empty:
        parts.append(f"no method has a value on {listed(empty, 9)}")
    groups: dict[tuple[str, ...], list[str]] = {}
    for model, c, leader in sound:
        groups.setdefault((leader, *c.tied), []).append(f"{model} ({c.full(leader)})")
    for (leader, *tied), where in groups.items():
        verb = f" and {tied[0]} lead and cannot be told apart" if len(tied) == 1 else " leads"
        verb += f" but cannot be told apart from {listed(tied)}" if len(tied) > 1 else ""
        parts.append(f"{leader}{verb} on {listed(where, 9)}")
    reached = [c.text(c.cells[c.control].value) for _, c, _ in sound if c.control]
    if reached:
        ends = sorted({min(reached, key=float), max(reached, key=float)}, key=float)
        also = " there" if doubt else ""
        parts.append(f"the best control that never saw the model reaches {' to '.join(ends)}{also}")
    return f"In {name}, {'; '.join(parts)}."


def settings(of: Mapping[str, Any]) -> str:
    """``steps = 7, baseline = mean``."""
    return ", ".join(f"{k} = {v}" for k, v in (of or {}).items())


def definitions(summary: Summary) -> list[tuple[str, str]]:
    """(metric, what its columns mean and under which settings), from run.json."""
    out = []
    for metric in summary.run.get("metrics", ()):
        values = ", ".join(
            " ".join(
                filter(
                    None,
                    (
                        f"{m['name']} {ARROWS.get(str(m.get('better')), '')}".strip(),
                        f"[{m['unit']}]" if m.get("unit") else "",
                        f"({m.get('measures')}"
                        + (f", {m['reduce']})" if m.get("reduce", "mean") != "mean" else ")"),
                    ),
                )
            )
            for m in metric.get("measures", ())
        )
        how = settings(metric.get("settings", {}))
        text = (
            f"{metric.get('summary', '').rstrip('.')}. {f'Settings: {how}. ' if how else ''}Values: {values}."
        )
        out.append((str(metric["name"]), text))
    return out


def remarks(summary: Summary, block: Block, columns: Sequence[Column] | None = None) -> list[str]:
    """What must be read with these columns of the block (all): why some are suspect, whether the ranking holds on
    another baseline, what a known bug moves, undefined cells and the other ranking.
    """
    out = []
    for column in block.columns if columns is None else columns:
        out += [f"⚑ {column.name}: {fault}" for fault in detector.faults(column)]
        if column.twice:
            order = column.ranked((m for m in column.methods if m in column.cells), worst=True)
            share = f"{100 * column.share_undefined:.1f} % undefined"
            out.append(f"{column.name}: {share}; with undefined as worst the order is {', '.join(order)}")
    if columns is not None:
        return out
    out += [*variants.held(block, summary.run), *variants.moved(block, summary.run)]
    grouped: dict[str, list[str]] = {}
    for name, why in block.absent:
        grouped.setdefault(why, []).append(name)
    out += [f"{listed(names, 9)}: – {why}" for why, names in grouped.items()]
    return out


# ---------------------------------------------------------------- published numbers


@dataclass(frozen=True)
class Published:
    """A published number beside the measured one; ``verdict`` is "met", "not met" or "not checked: why"."""

    explainer: str
    column: str
    source: str
    published: str
    measured: str
    verdict: str


def published(summary: Summary, block: Block) -> list[Published]:
    """The spec's published rows held against this block; a verdict only for a replay (law 11)."""
    columns = {c.name: c for c in block.columns}
    out = []
    for table in summary.run.get("published", ()):
        source = f"{table.get('source', '')} ({table.get('whose', 'whose is not said')})"
        for name, numbers in table.get("rows", {}).items():
            errors = table.get("sd", {}).get(name, [0.0] * len(numbers))
            for label, number, sd in zip(table.get("columns", ()), numbers, errors, strict=False):
                column = columns.get(label)
                known = column is not None and name in column.valued((name,))
                shown = f"{number:g}" + (f" ± {sd:g}" if sd else "")
                measured = column.full(name) if column and known else "–"
                verdict = _verdict(summary.run, table, column, name, float(number), float(sd))
                out.append(Published(name, label, source, shown, measured, verdict))
    return out


def _verdict(
    run: Mapping[str, Any],
    table: Mapping[str, Any],
    column: Column | None,
    name: str,
    number: float,
    sd: float,
) -> str:
    if run.get("kind") != "replay" or run.get("stand_in"):
        return "not checked: " + ("a stand-in" if run.get("stand_in") else f"kind is {run.get('kind')}")
    if table.get("compare") and table["compare"] not in run.get("modes", ()):
        return f"not checked: published is {table['compare']}, measured is {listed(run.get('modes', ()))}"
    cell = column.cells.get(name) if column else None
    if cell is None or cell.value is None:
        return "not checked: not measured"
    if table.get("n") and table["n"] != cell.cases:
        return f"not checked: n is {cell.cases}, published {table['n']}"
    slack = 1.96 * sd
    return "met" if cell.low - slack <= number <= cell.high + slack else "not met"
