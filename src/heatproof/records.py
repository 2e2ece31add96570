"""What was measured, as plain rows: one row is one named value of one case. No torch here.

Three files carry a result, all text, all written whole or not at all:

- ``NAME.csv``         one row a value (the columns of ``Record``)
- ``NAME.curves.csv``  one row a curve: the cell's columns and its points as ``x`` and ``y``
- ``NAME.run.json``    the provenance: what the names in the rows mean and how the run was made

``NAME.strip.npz`` beside them holds the few example maps that the report draws (never committed where
the data card forbids to publish the pictures).
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from heatproof.errors import NO_IMAGE, NO_TEXT

STATUSES = ("value", "undefined", "unsuited", "failed")


@dataclass(frozen=True)
class Record:
    """One named value of one trial, or the reason why there is none.

    ``role`` is "method", "control", or "model" for metrics of the model itself. ``forwards`` and ``backwards``
    are whole-forward equivalents of explainer plus metric for this case, as if the part ran alone.
    An unsuited pair has one row a value with an empty ``case``.
    """

    benchmark: str
    model: str
    family: str
    replicate: int
    explainer: str
    role: str
    sample: str
    case: str
    about: str
    metric: str
    name: str  # the value's name within the metric: the table's column is "metric.name"
    value: float | None
    parts: Mapping[str, Any] = field(default_factory=dict)
    status: str = "value"
    reason: str = ""
    forwards: float = 0.0
    backwards: float = 0.0
    key: str = ""

    @property
    def column(self) -> str:
        return f"{self.metric}.{self.name}"


@dataclass(frozen=True)
class Curve:
    """One curve of one trial: ``y`` over ``x``."""

    benchmark: str
    model: str
    replicate: int
    explainer: str
    sample: str
    case: str
    metric: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


COLUMNS = tuple(f.name for f in fields(Record))
CURVE_COLUMNS = tuple(f.name for f in fields(Curve))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Rows in a fixed order, numbers with every digit, so that equal results are equal bytes."""
    rows = sorted(records, key=_order)
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(COLUMNS)
    for row in rows:
        cells = asdict(row)
        cells["value"] = "" if row.value is None else repr(float(row.value))
        cells["parts"] = json.dumps(row.parts, sort_keys=True) if row.parts else ""
        cells["forwards"], cells["backwards"] = f"{row.forwards:.6g}", f"{row.backwards:.6g}"
        sheet.writerow([cells[name] for name in COLUMNS])
    write_whole(path, out.getvalue())


def settled(records: Iterable[Record]) -> list[Record]:
    """The rows of all chunks as one table.

    An unsuited pair is said by every chunk and kept once. An explainer that gave a metric nothing to read in any case
    (image maps alone, say, where the metric reads words) is unsuited to it too: a dash, not a column of undefined cells.
    """
    cells: dict[tuple[Any, ...], list[Record]] = {}
    for row in records:
        cells.setdefault((row.model, row.replicate, row.explainer, row.metric), []).append(row)
    out: list[Record] = []
    for rows in cells.values():
        if all(r.status == "undefined" and r.reason in (NO_IMAGE, NO_TEXT) for r in rows):
            why = f"it gives {rows[0].reason}"
            rows = [
                replace(
                    r,
                    sample="",
                    case="",
                    about="",
                    status="unsuited",
                    reason=why,
                    forwards=0.0,
                    backwards=0.0,
                    key="",
                )
                for r in rows
            ]
        out += {(r.case, r.name): r for r in reversed(rows)}.values()
    return out


def read_records(path: Path) -> list[Record]:
    """The rows of ``NAME.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        sheet = csv.DictReader(file)
        if tuple(sheet.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{path}: the columns are {sheet.fieldnames}, this version reads {list(COLUMNS)}; "
                "run the benchmark again to renew it"
            )
        return [_record(row) for row in sheet]


def _record(row: dict[str, Any]) -> Record:
    return Record(
        **{
            **row,
            "replicate": int(row["replicate"]),
            "value": float(row["value"]) if row["value"] else None,
            "parts": json.loads(row["parts"]) if row["parts"] else {},
            "forwards": float(row["forwards"]),
            "backwards": float(row["backwards"]),
        }
    )


def _order(row: Record) -> tuple[Any, ...]:
    return (
        row.model,
        row.replicate,
        row.role,
        row.explainer,
        row.metric,
        row.name,
        row.sample,
        row.case,
    )


def write_curves(path: Path, curves: Iterable[Curve]) -> None:
    """One row a curve; the points are space-separated numbers with six digits."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(CURVE_COLUMNS)
    for curve in sorted(curves, key=lambda c: astuple(c)[:8]):
        points = [" ".join(f"{v:.6g}" for v in axis) for axis in (curve.x, curve.y)]
        sheet.writerow([*astuple(curve)[:8], *points])
    write_whole(path, out.getvalue())


def read_curves(path: Path) -> list[Curve]:
    """The rows of ``NAME.curves.csv``; empty where the file is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [_curve(row) for row in csv.DictReader(file)]


def _curve(row: dict[str, Any]) -> Curve:
    points = {axis: tuple(map(float, row[axis].split())) for axis in ("x", "y")}
    return Curve(**{**row, **points, "replicate": int(row["replicate"])})


@dataclass(frozen=True)
class Result:
    """Everything of one run that tables, plots, the report and the regression check read.

    ``run`` is the parsed ``NAME.run.json``: title, kind, seed, headline, tolerances, and under ``models``,
    ``explainers``, ``metrics`` and ``dataset`` what each name in the rows stands for.
    """

    name: str
    records: Sequence[Record]
    curves: Sequence[Curve]
    run: Mapping[str, Any]
    folder: Path

    @property
    def strip(self) -> Path:
        """The example maps, if they were kept: see ``plots.strip``."""
        return self.folder / f"{self.name}.strip.npz"


def read_result(folder: Path, name: str) -> Result:
    """The frozen files of a benchmark, or a FileNotFoundError that says how to make them."""
    table = folder / f"{name}.csv"
    if not table.exists():
        there = sorted(p.name[: -len(".run.json")] for p in folder.glob("*.run.json"))
        raise FileNotFoundError(
            f"{table}: no result of this name; there are {there or 'none'}. Type: heatproof run {name}"
        )
    run = json.loads((folder / f"{name}.run.json").read_text(encoding="utf-8"))
    curves = read_curves(folder / f"{name}.curves.csv")
    return Result(name, read_records(table), curves, run, folder)
