"""A result as tables: markdown, CSV, LaTeX and terminal text. Reads records only; no torch, no clock.

Every format is drawn from the same ``Grid``, so what one says the others say. Equal results are equal bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heatproof import detector, versus, words
from heatproof.records import Result, write_whole
from heatproof.summary import Block, Column, Summary, annotating, summarise
from heatproof.words import ARROWS, Published

GROUPS = {
    "method": "methods",
    "blind": "controls that never saw the model",
    "knowing": "controls that know the mask or a map",
}


@dataclass(frozen=True)
class Entry:
    """One printed cell: ``mark`` is "best", "tied", "flag" or nothing, ``foot`` a letter of a footnote."""

    value: str
    spread: str = ""
    mark: str = ""
    note: str = ""
    foot: str = ""


@dataclass(frozen=True)
class Line:
    """One printed row: its rank among the methods (0 for controls) and an entry a column."""

    name: str
    group: str  # a key of GROUPS
    rank: int
    entries: tuple[Entry, ...]
    cost: str = ""


@dataclass(frozen=True)
class Grid:
    """One printed table: some columns of a block, its lines in rank order, its footnotes."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    feet: tuple[tuple[str, str], ...]

    @property
    def heads(self) -> list[str]:
        marks = {c.name: " ⚑" if detector.faults(c) else "" for c in self.columns}
        arrows = {c.name: ARROWS.get(str(c.measure.get("better")), "") for c in self.columns}
        return [f"{c.name} {arrows[c.name]}".strip() + marks[c.name] for c in self.columns]


def grids(summary: Summary, block: Block) -> list[Grid]:
    """The headline columns, then every other column metric by metric; one explainer order for all."""
    first = block.columns[: block.headline]
    rest = block.by_metric(block.columns[block.headline :])
    out = [grid(summary, block, first, "headline")] if first else []
    return out + [grid(summary, block, columns, metric) for metric, columns in rest.items()]


def of_models(summary: Summary) -> list[Grid]:
    """What the models do themselves, metric by metric: a line a model, in the order of the spec."""
    groups: dict[str, list[Column]] = {}
    for column in summary.models:
        groups.setdefault(column.key[0], []).append(column)
    out = []
    for metric, columns in groups.items():
        foot = Feet()
        lines = [
            Line(name, "method", place, tuple(_entry(c, name, foot) for c in columns))
            for place, name in enumerate(columns[0].methods, 1)
        ]
        out.append(Grid(metric, tuple(columns), tuple(lines), foot.told))
    return out


def grid(summary: Summary, block: Block, columns: Sequence[Column], title: str) -> Grid:
    """These columns of a block as one table."""
    foot = Feet()
    lines = []
    for place, name in enumerate((*block.methods, *block.controls), 1):
        control = name in block.controls
        group = "method" if not control else "knowing" if annotating(name, summary.run) else "blind"
        spent = " + ".join(f"{n:.4g}" for n in block.cost.get(name, ()))
        entries = tuple(_entry(column, name, foot) for column in columns)
        lines.append(Line(name, group, 0 if control else place, entries, spent))
    lines.sort(key=lambda line: list(GROUPS).index(line.group))
    return Grid(title, tuple(columns), tuple(lines), foot.told)


class Feet:
    """Footnotes by letter; cells with one reason share a note, which names who they are of."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def __call__(self, name: str, why: str) -> str:
        names = self.names.setdefault(why, [])
        if name not in names:
            names.append(name)
        return _letters(list(self.names).index(why))

    @property
    def told(self) -> tuple[tuple[str, str], ...]:
        said = enumerate(self.names.items())
        return tuple((_letters(k), f"{', '.join(names)}: {why}") for k, (why, names) in said)


def _entry(column: Column, name: str, foot: Feet) -> Entry:
    cell = column.cells.get(name)
    if cell is None or cell.value is None:
        return Entry("–", foot=foot(name, cell.why if cell else "not run"))
    lost = [f"{n} {what}" for n, what in ((cell.undefined, "undefined"), (cell.failed, "failed")) if n]
    return Entry(column.text(cell.value), column.spread(name), _mark(column, name), ", ".join(lost))


def _letters(n: int) -> str:
    return (_letters(n // 26 - 1) if n >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[n % 26]


def _mark(column: Column, name: str) -> str:
    if name == column.leader:
        return "best"
    return "tied" if name in column.tied else "flag" if name in column.suspect else ""


# ---------------------------------------------------------------- markdown


def markdown(result: Result | Summary) -> str:
    """The whole result as one markdown page."""
    summary = summarise(result)
    kind, claim = words.badge(summary.run)
    out = [f"# {summary.run.get('title', summary.result.name)}", "", f"**{kind}**: {claim}.", ""]
    out += [words.counts(summary) + ".", ""]
    for table in of_models(summary):
        out += [f"## The models themselves: {table.title}", "", *markdown_grid(table, "model"), ""]
    out += _markdown_pairs(versus.pairs(summary))
    for block in (b for b in summary.blocks if b.columns):
        out += [f"## {block.model} ({block.family})", "", words.sentence(block), ""]
        for table in grids(summary, block):
            out += [f"### {table.title}", "", *markdown_grid(table), ""]
        out += [f"- {remark}" for remark in words.remarks(summary, block)]
        rows = words.published(summary, block)
        if rows:
            out += ["", "### published", "", *_markdown_published(rows)]
        out += [""]
    out += ["## How to read this", "", f"{words.MARKS}.", ""]
    out += [f"- **{name}**: {text}" for name, text in words.definitions(summary)]
    return "\n".join(out).rstrip() + "\n"


def _markdown_pairs(pairs: Sequence[versus.Against]) -> list[str]:
    if not pairs:
        return []
    heads = ["model", "against", "column", "explainer", "difference", "p (Holm)", "photographs", ""]
    out = ["## One model against another", "", _markdown_row(heads), "|" + "---|" * len(heads)]
    for one in pairs:
        told = (one.model, one.other, one.column, one.explainer or "–", one.difference)
        out.append(_markdown_row((*told, f"{one.p:.3f}", str(one.gap.photographs), one.verdict)))
    return [*out, ""]


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown_grid(table: Grid, what: str = "explainer") -> list[str]:
    """One table as lines of Markdown, its footnotes below."""
    rows = [_markdown_row(["#", what, *table.heads, "forwards + backwards"])]
    rows += ["|" + "---|" * (len(table.heads) + 3)]
    group = "method"
    for line in table.lines:
        if line.group != group:
            group = line.group
            rows.append(_markdown_row(["", f"*{GROUPS[group]}*", *[""] * len(table.heads), ""]))
        entries = [_markdown_entry(e) for e in line.entries]
        rows.append(_markdown_row([str(line.rank or ""), line.name, *entries, line.cost]))
    return rows + [""] + [f"({letter}) {text}  " for letter, text in table.feet]


def _markdown_entry(entry: Entry) -> str:
    value = {"best": f"**{entry.value}**", "tied": f"{entry.value} ≈", "flag": f"{entry.value} ⚑"}
    parts = [value.get(entry.mark, entry.value), entry.spread, f"({entry.note})" if entry.note else ""]
    return " ".join(filter(None, [*parts, f"({entry.foot})" if entry.foot else ""]))


def _markdown_published(rows: Sequence[Published]) -> list[str]:
    heads = ["explainer", "column", "published", "measured", "verdict", "source"]
    out = [_markdown_row(heads), "|" + "---|" * len(heads)]
    fields = ((p.explainer, p.column, p.published, p.measured, p.verdict, p.source) for p in rows)
    return out + [_markdown_row(f) for f in fields]


# ---------------------------------------------------------------- CSV, LaTeX, terminal

SHEET = (
    *("model", "family", "explainer", "role", "rank", "column", "better", "measures", "unit", "reduce"),
    *("value", "low", "high", "cases", "images", "undefined", "failed", "with_undefined_worst"),
    *("difference_to_best", "difference_low", "difference_high", "p_holm", "mark", "why", "column_suspect"),
)


def sheet(result: Result | Summary) -> str:
    """One row a cell, every number with six digits: what a notebook wants."""
    summary = summarise(result)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(SHEET)
    for block in summary.blocks:
        order = [*block.methods, *block.controls]
        for column in block.columns:
            for name in (e for e in order if e in column.cells):
                role = "control" if name in block.controls else "method"
                rank = block.methods.index(name) + 1 if role == "method" else ""
                rows.writerow(_sheet_row(block.model, block.family, column, name, role, rank))
    family = {b.model: b.family for b in summary.blocks}
    for column in summary.models:
        for place, model in enumerate(column.ranked(column.cells), 1):
            rows.writerow(_sheet_row(model, family.get(model, ""), column, model, "model", place))
    return out.getvalue()


def _sheet_row(
    model: str, family: str, column: Column, name: str, role: str, rank: int | str
) -> list[object]:
    cell, m = column.cells[name], column.measure
    gap = (cell.gap.difference, cell.gap.interval.low, cell.gap.interval.high) if cell.gap else [None] * 3
    return [
        *(model, family, "" if role == "model" else name, role, rank, column.name),
        *(m.get(field, "") for field in ("better", "measures", "unit", "reduce")),
        *map(_six, (cell.value, cell.low, cell.high)),
        *(cell.cases, cell.images, cell.undefined, cell.failed, _six(cell.worst)),
        *map(_six, (*gap, cell.p)),
        *(_mark(column, name), cell.why if cell.value is None else "", "; ".join(detector.faults(column))),
    ]


def _six(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else f"{number:.6g}"


TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    "\\": r"\textbackslash{}", "≈": r"$\approx$", "⚑": r"$\dagger$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "–": "--", "±": r"$\pm$", "<": "$<$", ">": "$>$",
})  # fmt: skip


def latex(result: Result | Summary) -> str:
    """One ``table`` a model and group of columns; needs no package."""
    summary = summarise(result)
    kind, claim = words.badge(summary.run)
    out = [f"% {summary.run.get('title', summary.result.name)}; {kind}: {claim}"]
    for table in of_models(summary):
        out += ["", *latex_grid(table, None, f"{kind}: {claim}", ())]
    for block in summary.blocks:
        for table in grids(summary, block):
            told = words.remarks(summary, block, table.columns)
            out += ["", *latex_grid(table, block, f"{kind}: {claim}", told)]
    return "\n".join(out) + "\n"


def latex_grid(table: Grid, block: Block | None, claim: str, told: Sequence[str]) -> list[str]:
    """One table as lines of LaTeX, what must be read with it in the caption."""
    out = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'l' * len(table.columns)}}}", r"\hline"]
    out += [" & ".join(h.translate(TEX) for h in ("", *table.heads)) + r" \\", r"\hline"]
    group = "method"
    for line in table.lines:
        if line.group != group:
            out.append(r"\hline")
            group = line.group
        out.append(" & ".join([line.name.translate(TEX), *map(_latex_entry, line.entries)]) + r" \\")
    feet = " ".join(
        [*(f"({letter}) {text}." for letter, text in table.feet), *(f"{remark}." for remark in told)]
    )
    of = f"{block.model}, {table.title}: {block.images} images, {block.cases} cases" if block else table.title
    caption = f"{of}; {claim}. {words.MARKS}. {feet}"
    label = f"tab:{block.model if block else 'models'}-{table.title}"
    return [
        *out, r"\hline", r"\end{tabular}", rf"\caption{{{caption.strip().translate(TEX)}}}",
        rf"\label{{{label}}}", r"\end{table}",
    ]  # fmt: skip


def _latex_entry(entry: Entry) -> str:
    value = entry.value.translate(TEX)
    value = {
        "best": rf"\textbf{{{value}}}",
        "tied": rf"{value}$^\approx$",
        "flag": rf"{value}$^\dagger$",
    }.get(entry.mark, value)
    spread = rf"{{\scriptsize {entry.spread}}}" if entry.spread else ""
    foot = rf"$^{{{entry.foot}}}$" if entry.foot else ""
    note = rf"{{\scriptsize ({entry.note})}}" if entry.note else ""
    return " ".join(filter(None, [value + foot, spread, note]))


def terminal(result: Result | Summary) -> str:
    """The headline columns as plain text, with the sentence above each model's table."""
    summary = summarise(result)
    kind, claim = words.badge(summary.run)
    out = [str(summary.run.get("title", summary.result.name)), f"{kind}: {claim}", words.counts(summary)]
    for table in of_models(summary):
        out += ["", f"The models themselves: {table.title}", "", *terminal_grid(table, "model")]
        out += [f"  ({letter}) {text}" for letter, text in table.feet]
    for block in (b for b in summary.blocks if b.columns):
        table = grid(summary, block, block.columns[: block.headline], "headline")
        out += ["", words.sentence(block), "", *terminal_grid(table)]
        out += [f"  ({letter}) {text}" for letter, text in table.feet]
        out += [f"  {remark}" for remark in words.remarks(summary, block, table.columns)]
    return "\n".join(out) + "\n"


def terminal_grid(table: Grid, what: str = "explainer") -> list[str]:
    """One table as lines of plain text."""
    signs = {"best": "*", "tied": "≈", "flag": "⚑"}
    body = [["", what, *table.heads]]
    for line in table.lines:
        cells = [
            " ".join(
                filter(
                    None, [e.value + signs.get(e.mark, " "), e.spread, e.note, f"({e.foot})" * bool(e.foot)]
                )
            )
            for e in line.entries
        ]
        body.append([str(line.rank or ""), line.name, *cells])
    wide = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in body]
    rule = "─" * (sum(wide) + 2 * len(wide) - 2)
    starts = [i for i in range(1, len(table.lines)) if table.lines[i].group != table.lines[i - 1].group]
    for place in reversed([0, *starts]):
        rows.insert(place + 1, rule)
    return rows


def write(result: Result | Summary, folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv`` and ``table.tex`` into the folder; the paths written."""
    summary = summarise(result)
    pages = {"table.md": markdown(summary), "table.csv": sheet(summary), "table.tex": latex(summary)}
    for name, text in pages.items():
        write_whole(folder / name, text)
    return [folder / name for name in pages]
