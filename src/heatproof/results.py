"""Which files a benchmark's numbers are in: the working ones of the latest run, and the frozen ones. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heatproof import regress
from heatproof.errors import Refused, unknown
from heatproof.records import Result, read_result, write_whole
from heatproof.shelf import Place, house, locate

PARTS = (".csv", ".curves.csv", ".strip.npz", ".run.json")


def frozen(workspace: Path, name: str) -> Result | None:
    """The frozen result: of the workspace, else the one that came with the house."""
    for root in dict.fromkeys([workspace, house()]):
        if (root / "results" / f"{name}.csv").exists():
            return read_result(root / "results", name)
    return None


def latest(name: str, cwd: Path) -> tuple[Result, Path]:
    """The newer of a benchmark's working and frozen results, and the workspace to write the report in."""
    try:
        name, _, workspace = locate(name, cwd)
    except Refused:
        workspace = cwd  # results may outlive their spec
    found = [r for r in (_working(workspace, name), frozen(workspace, name)) if r is not None]
    if not found:
        known = Place(cwd, cwd).benchmarks()
        if name not in known:
            raise unknown("heatproof report", "benchmark", name, known)
        raise Refused(f"there is no result of {name} yet. Type: heatproof run {name}")
    if len(found) == 2 and found[0].records == found[1].records:
        # the same numbers; only the working folder keeps example maps of photographs
        return found[0], workspace
    return max(found, key=lambda r: str(r.run["made"])), workspace


def _working(workspace: Path, name: str) -> Result | None:
    folder = workspace / ".heatproof"
    return read_result(folder, name) if (folder / f"{name}.csv").exists() else None


def known(workspace: Path, name: str) -> dict[str, dict[str, Any]]:
    """The frozen cells by key, as the working store holds them: same key, same number (law 8)."""
    result = frozen(workspace, name)
    cells: dict[str, dict[str, Any]] = {}
    at: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in result.records if result else ():
        if row.key and row.status != "failed":
            fresh = {"values": {}, "curves": {}, "forwards": row.forwards, "backwards": row.backwards}
            cell = cells.setdefault(row.key, fresh)
            at[row.model, row.replicate, row.explainer, row.case, row.metric] = cell
            told = {"value": row.value, "status": row.status, "reason": row.reason, "parts": dict(row.parts)}
            cell["values"][row.name] = told
    for curve in result.curves if result else ():
        place = curve.model, curve.replicate, curve.explainer, curve.case, curve.metric
        if place in at:
            at[place]["curves"][curve.name] = [list(curve.x), list(curve.y)]
    return cells


def freeze(result: Result, workspace: Path, before: Result | None, reason: str) -> list[Path]:
    """Copy a working result to ``results/``; what it replaces goes into its history, never away unseen."""
    if result.run["failures"]:
        raise Refused(f"{len(result.run['failures'])} cells failed: an incomplete result is not frozen")
    folder = workspace / "results"
    written = []
    # example maps show the pictures themselves: photographs stay in the working folder, out of repository and wheel
    for part in PARTS[: 3 if result.run["kind"] == "instrument" else 2]:
        source = result.folder / f"{result.name}{part}"
        if source.exists():
            write_whole(folder / f"{result.name}{part}", source.read_bytes())
            written.append(folder / f"{result.name}{part}")
    run = regress.freeze(result, reason, before).run
    write_whole(folder / f"{result.name}.run.json", json.dumps(run, indent=1) + "\n")
    return [*written, folder / f"{result.name}.run.json"]
