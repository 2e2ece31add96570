"""A result as tables, plots, report and regression check read it: blocks of columns of cells. No torch here.

A block is one model, a column one named value of one metric, a cell one explainer in that column (or one model, of a metric
of models). Every number, interval, tie and flag that any of them prints is made here, once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from heatproof import reducers, statistics
from heatproof.records import Record, Result
from heatproof.reducers import Numbering, Rows
from heatproof.statistics import ALPHA, Comparison

ANNOTATING = ("oracle", "blurred", "shuffled")  # controls that know the mask or a map: no blind ones
COPIES = ("blurred", "shuffled")  # of a method's own map
MANY_UNDEFINED = 0.02  # of a column's rows; above it the column is ranked a second time
Key = tuple[str, str]  # metric, name


@dataclass(frozen=True)
class Cell:
    """One explainer in one column: the number, or why there is none.

    ``gap`` is the column's leader minus this cell on the cases that both define, ``p`` its sign-flip p value adjusted (Holm)
    for all comparisons of the column. ``worst`` is the value with undefined cases counted at the column's worst case.
    ``rivals``: a method minus its own map blurred and shuffled, and the typical (median) method minus random maps, p unadjusted.
    """

    value: float | None
    low: float = math.nan
    high: float = math.nan
    cases: int = 0
    images: int = 0
    undefined: int = 0
    failed: int = 0
    unsuited: str = ""
    reasons: tuple[tuple[str, int], ...] = ()
    worst: float | None = None
    gap: Comparison | None = None
    p: float | None = None
    rivals: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """Why the cell is a dash, in the words of the part that refused."""
        return self.unsuited or "; ".join(f"{why} ({n})" for why, n in self.reasons) or "not run"


@dataclass(frozen=True)
class Column:
    """One named value of one metric on one model, with all its cells by explainer."""

    key: Key
    measure: Mapping[str, Any]
    cells: Mapping[str, Cell]
    methods: tuple[str, ...]
    blind: tuple[str, ...]  # controls that never saw the model

    @property
    def name(self) -> str:
        return ".".join(self.key)

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return -1 if self.measure.get("better") == "lower" else 1

    def ranked(self, names: Iterable[str], *, worst: bool = False) -> list[str]:
        """These explainers, best first; those without a value last, equals by name."""

        def place(name: str) -> tuple[float, str]:
            cell = self.cells.get(name)
            value = None if cell is None else cell.worst if worst else cell.value
            return (math.inf if value is None else -self.sign * value, name)

        return sorted(names, key=place)

    def valued(self, names: Iterable[str]) -> list[str]:
        return [n for n in names if n in self.cells and self.cells[n].value is not None]

    @cached_property
    def leader(self) -> str | None:
        """The method with the best value."""
        return next(iter(self.ranked(self.valued(self.methods))), None)

    @cached_property
    def tied(self) -> list[str]:
        """The methods, best first, that cannot be told from the leader."""
        others = [m for m in self.valued(self.methods) if m != self.leader]
        return self.ranked(m for m in others if not self.behind(m))

    @cached_property
    def control(self) -> str | None:
        """The best control that never saw the model."""
        return next(iter(self.ranked(self.valued(self.blind))), None)

    def behind(self, name: str) -> bool:
        """Whether this explainer is significantly worse than the leader."""
        cell = self.cells[name]
        if cell.gap is None or cell.p is None:
            return False
        return cell.p < ALPHA and self.sign * cell.gap.difference > 0

    @cached_property
    def suspect(self) -> list[str]:
        """The blind controls, best first, that are not significantly worse than the best method (law 6)."""
        if self.leader is None:
            return []
        return self.ranked(c for c in self.valued(self.blind) if not self.behind(c))

    @property
    def powerless(self) -> bool:
        """Whether so few photographs are left that no difference could be significant."""
        compared = [c for c in self.cells.values() if c.p is not None and c.gap]
        fewest = min((c.gap.photographs for c in compared if c.gap), default=0)
        return bool(compared) and len(compared) * 2.0 ** (1 - fewest) >= ALPHA

    @cached_property
    def share_undefined(self) -> float:
        cells = [c for c in self.cells.values() if not c.unsuited]
        rows = sum(c.cases + c.undefined + c.failed for c in cells)
        return sum(c.undefined + c.failed for c in cells) / rows if rows else 0.0

    @property
    def twice(self) -> bool:
        """Whether so much is undefined that the column is also ranked with undefined as worst (law 4)."""
        return self.share_undefined > MANY_UNDEFINED

    @cached_property
    def digits(self) -> int:
        """Decimals so that the last one is at most half of a typical interval's half-width."""
        cells = [c for c in self.cells.values() if c.value is not None]
        halves = sorted((c.high - c.low) / 2 for c in cells if c.high > c.low)
        most = max((abs(c.value or 0.0) for c in cells), default=0.0)
        least = 2 if most < 10 else 1 if most < 1000 else 0
        if not halves:
            return max(least, 3)
        return min(max(math.ceil(-math.log10(halves[len(halves) // 2] / 2)), least), 5)

    def text(self, value: float | None) -> str:
        """A value with this column's decimals; never "-0.00"."""
        if value is None or math.isnan(value):
            return "-"
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"

    def spread(self, name: str) -> str:
        """``[low, high]``, or nothing where a single photograph gives no interval."""
        cell = self.cells[name]
        return "" if math.isnan(cell.low) else f"[{self.text(cell.low)}, {self.text(cell.high)}]"

    def full(self, name: str) -> str:
        """``0.41 [0.38, 0.44]``."""
        return f"{self.text(self.cells[name].value)} {self.spread(name)}".strip()


@dataclass(frozen=True)
class Block:
    """One model: its columns, headline ones first, its methods and controls in rank order."""

    model: str
    family: str
    images: int
    cases: int
    replicates: int
    columns: tuple[Column, ...]
    headline: int  # how many of the columns are headline columns
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]  # columns beyond the headline that suit no explainer here, and why
    cost: Mapping[str, tuple[float, float]]  # mean forwards and backwards a case, of the first headline

    def by_metric(self, columns: Iterable[Column] | None = None) -> dict[str, list[Column]]:
        some = list(self.columns if columns is None else columns)
        return {name: [c for c in some if c.key[0] == name] for name in dict.fromkeys(c.key[0] for c in some)}


@dataclass(frozen=True)
class Summary:
    """All blocks of a result, with the result itself."""

    result: Result
    blocks: tuple[Block, ...]
    models: tuple[Column, ...]  # metrics of the models themselves, a cell a model
    images: int
    cases: int
    values: int
    undefined: int
    failed: int

    @property
    def run(self) -> Mapping[str, Any]:
        return self.result.run

    def part(self, shelf: str, name: str) -> Mapping[str, Any]:
        """What run.json says of a part: ``part("explainers", "lrp")``."""
        return named(self.run, shelf).get(name, {})


def named(run: Mapping[str, Any], shelf: str) -> dict[str, Mapping[str, Any]]:
    """The parts of one shelf of a run.json by name."""
    return {part["name"]: part for part in run.get(shelf, ())}


def summarise(result: Result | Summary) -> Summary:
    """Reduce, resample and compare every column of a result; a Summary is given back as it is."""
    if isinstance(result, Summary):
        return result
    by_model: dict[str, list[Record]] = defaultdict(list)
    for row in result.records:
        by_model[row.model].append(row)
    order = [m for m in named(result.run, "models") if m in by_model]
    order += sorted(set(by_model) - set(order))
    asked = [r for r in result.records if r.case]
    return Summary(
        result,
        tuple(_block(model, by_model[model], result.run) for model in order),
        _models(result.records, order, result.run),
        images=len({r.sample for r in asked}),
        cases=len({(r.model, r.case) for r in asked}),
        values=len(asked),
        undefined=sum(r.status == "undefined" for r in asked),
        failed=sum(r.status == "failed" for r in asked),
    )


def measures(run: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    """What run.json declares of every column, in the order of the spec."""
    return {
        (metric["name"], measure["name"]): measure
        for metric in run.get("metrics", ())
        for measure in metric.get("measures", ())
    }


def reducer(run: Mapping[str, Any], key: Key) -> str:
    """The reducer that run.json names for a column, or a ValueError with the ones there are."""
    how = str(measures(run).get(key, {}).get("reduce", "mean"))
    if how not in reducers.REDUCERS:
        raise ValueError(
            f"{'.'.join(key)}: no reducer is named {how!r}; there are {sorted(reducers.REDUCERS)}"
        )
    return how


def _block(model: str, records: Sequence[Record], run: Mapping[str, Any]) -> Block:
    numbering = Numbering.of(records)
    table: dict[Key, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    roles: dict[str, str] = {}
    for row in records:
        key = (row.metric, row.name)
        if row.role != "model":  # those of the model itself are told beside the other models'
            table[key][row.explainer].append(row)
            roles[row.explainer] = row.role
    declared = measures(run)
    heads = [key for name in run.get("headline", ()) if (key := tuple(name.split(".", 1))) in table]
    heads = heads or list(table)[:1]
    keys = [*heads, *(k for k in declared if k in table and k not in heads)]
    keys += sorted(k for k in table if k not in keys)
    methods = tuple(e for e in sorted(roles) if roles[e] == "method")
    controls = tuple(e for e in sorted(roles) if roles[e] != "method")
    blind = tuple(c for c in controls if not annotating(c, run))
    absent = {key: why for key in keys if key not in heads and (why := _absent(table[key]))}
    columns = tuple(
        _column(key, declared.get(key, {}), table[key], methods, blind, numbering, run)
        for key in keys
        if key not in absent
    )
    first = next((c for c in columns if c.leader), columns[0] if columns else None)
    return Block(
        model,
        records[0].family,
        len(numbering.sample),
        len({case for _, case in numbering.trial}),
        max(len(numbering.replicate), 1),
        columns,
        len(heads),
        tuple(first.ranked(methods)) if first else methods,
        tuple(first.ranked(controls)) if first else controls,
        tuple((".".join(key), why) for key, why in absent.items()),
        {e: _cost(rows) for e, rows in table[keys[0]].items() if rows[0].case} if keys else {},
    )


def _models(records: Sequence[Record], order: Sequence[str], run: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of metrics of the models themselves, a cell a model, photograph by photograph."""
    rows = [r for r in records if r.role == "model"]
    table: dict[Key, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        table[row.metric, row.name][row.model].append(row)
    numbering, models = Numbering.of(rows), tuple(m for m in order if any(m in t for t in table.values()))
    told = {key: measures(run).get(key, {}) for key in [*measures(run), *table] if key in table}
    return tuple(_column(key, told[key], table[key], models, (), numbering, run) for key in told)


def annotating(control: str, run: Mapping[str, Any]) -> bool:
    """Whether a control knows the mask or a map, so that it may not flag a metric."""
    return used(control, run) in ANNOTATING


def used(explainer: str, run: Mapping[str, Any]) -> str:
    """What an explainer is, whatever it is called: "random", "blurred"."""
    use = str(named(run, "explainers").get(explainer, {}).get("use", explainer))
    return use.rsplit(":", 1)[-1].lower()


def _absent(cells: Mapping[str, Sequence[Record]]) -> str:
    """Why a column suits no explainer of a model, in the words most of them got; nothing where one is suited."""
    rows = [r for records in cells.values() for r in records]
    suited = any(r.status != "unsuited" for r in rows)
    return "" if suited else Counter(r.reason for r in rows).most_common(1)[0][0]


def _cost(rows: Sequence[Record]) -> tuple[float, float]:
    return sum(r.forwards for r in rows) / len(rows), sum(r.backwards for r in rows) / len(rows)


def _column(
    key: Key,
    measure: Mapping[str, Any],
    table: Mapping[str, Sequence[Record]],
    methods: tuple[str, ...],
    blind: tuple[str, ...],
    numbering: Numbering,
    run: Mapping[str, Any],
) -> Column:
    how = reducer(run, key)
    rows = {e: numbering.rows(records, how) for e, records in table.items()}
    plain = {e: _cell(how, table[e], rows[e]) for e in table}
    draft = Column(key, measure, plain, methods, blind)
    gaps = _gaps(how, draft, rows)
    values = [float(v) for r in rows.values() if len(r) for v in (r.value.min(), r.value.max())]
    if how not in reducers.CASEWISE:
        values = [c.value for c in plain.values() if c.value is not None]
    floor = min(values, key=lambda v: draft.sign * v, default=math.nan)
    rivals = _rivals(how, draft, rows, run)
    cells = {
        e: replace(cell, **gaps.get(e, {}), worst=_worst(cell, floor), rivals=rivals.get(e, {}))
        for e, cell in plain.items()
    }
    return Column(key, measure, cells, methods, blind)


def _cell(how: str, records: Sequence[Record], rows: Rows) -> Cell:
    counts = Counter(r.status for r in records)
    reasons = Counter(r.reason for r in records if r.status in ("undefined", "failed"))
    value, ends = statistics.estimate(how, rows)
    known = not math.isnan(value)
    if len(rows) and not known:
        reasons[f"{how} of {len(rows)} rows has no value"] = len(rows)
    return Cell(
        value if known else None,
        ends.low,
        ends.high,
        len(rows),
        rows.present,
        counts["undefined"],
        counts["failed"],
        next((r.reason for r in records if r.status == "unsuited"), ""),
        tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def _worst(cell: Cell, floor: float) -> float | None:
    gone = cell.undefined + cell.failed
    if cell.cases + gone == 0:
        return None
    return ((cell.value or 0.0) * cell.cases + floor * gone) / (cell.cases + gone)


def _gaps(how: str, column: Column, rows: Mapping[str, Rows]) -> dict[str, dict[str, Any]]:
    """The leader against every other explainer; Holm over the methods and the blind controls."""
    if column.leader is None:
        return {}
    others = [e for e in column.valued(rows) if e != column.leader]
    gaps = {e: statistics.compare(how, rows[column.leader], rows[e]) for e in others}
    family = [e for e in others if e in column.methods or e in column.blind]
    ps = dict(zip(family, statistics.holm([gap.p if (gap := gaps[e]) else 1.0 for e in family]), strict=True))
    return {e: {"gap": gaps[e], "p": ps.get(e)} for e in others}


def _rivals(
    how: str, column: Column, rows: Mapping[str, Rows], run: Mapping[str, Any]
) -> dict[str, dict[str, Comparison]]:
    """Each method against its own map blurred and shuffled, ``shuffled(lrp)``, and the typical one against random maps."""
    pairs = [(copy.partition("(")[2].removesuffix(")"), copy) for copy in rows if used(copy, run) in COPIES]
    ranked = column.ranked(column.valued(column.methods))
    middle = ranked[(len(ranked) - 1) // 2 :][:1]
    pairs += [(method, name) for method in middle for name in column.blind if used(name, run) == "random"]
    found: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for of, rival in pairs:
        if of in column.methods and of in rows and (gap := statistics.compare(how, rows[of], rows[rival])):
            found[of][used(rival, run)] = gap
    return found
