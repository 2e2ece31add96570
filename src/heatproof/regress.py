"""Did a score move, and what changed? A frozen result against a fresh one. Reads records only; no torch.

On the same cases and seeds the metric's tolerance alone decides, in both directions: a score that improves by
itself is a fault too. The same key with another number is a fault whatever the tolerance, unless another kind of
processor gave it: there only the last bits may differ, and the tolerance decides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heatproof import reducers, statistics
from heatproof.errors import listed
from heatproof.records import Record, Result
from heatproof.reducers import Numbering
from heatproof.summary import Key, named, reducer

TOLERANCE = (
    1e-5  # times max(1, |frozen|): float32's last bits through a mean; anything more is named in the spec
)
Place = tuple[str, str, Key]  # model, explainer, column
Trial = tuple[int, str]  # replicate, case


@dataclass(frozen=True)
class Finding:
    """One cell that is not as it was: the line to print, and whether it fails the check."""

    line: str
    fault: bool


@dataclass(frozen=True)
class Verdict:
    """What ``heatproof regress`` says: faults first, then what is only told; exit code 0 or 1."""

    findings: tuple[Finding, ...]
    cells: int

    @property
    def exit_code(self) -> int:
        """1 where any cell is at fault."""
        return int(any(f.fault for f in self.findings))

    @property
    def lines(self) -> list[str]:
        """One line a cell that is not as it was, then the count."""
        faults = [f.line for f in self.findings if f.fault]
        told = [f"told: {f.line}" for f in self.findings if not f.fault]
        return [*faults, *told, f"{self.cells} cells compared: {len(faults)} failed, {len(told)} told"]


def compare(frozen: Result, fresh: Result) -> Verdict:
    """Hold every (model, explainer, metric.name) cell of a fresh run against the frozen one."""
    then, now = _cells(frozen), _cells(fresh)
    gone, new = sorted(set(then) - set(now)), sorted(set(now) - set(then))
    findings = [Finding(f"{_name(place)}: frozen, but not in this run", fault=True) for place in gone]
    findings += [Finding(f"{_name(place)}: new, nothing frozen yet", fault=False) for place in new]
    both = sorted(set(then) & set(now))
    for place in both:
        findings += _cell(place, then[place], now[place], frozen.run, fresh.run)
    return Verdict(tuple(findings), len(both))


def _cells(result: Result) -> dict[Place, dict[Trial, Record]]:
    cells: dict[Place, dict[Trial, Record]] = defaultdict(dict)
    for r in result.records:
        cells[r.model, r.explainer, (r.metric, r.name)][r.replicate, r.case] = r
    return dict(cells)


def _name(place: Place) -> str:
    model, explainer, key = place
    return f"{explainer or 'the model'} / {'.'.join(key)} on {model}"


def _cell(
    place: Place,
    then: Mapping[Trial, Record],
    now: Mapping[Trial, Record],
    frozen: Mapping[str, Any],
    fresh: Mapping[str, Any],
) -> Iterator[Finding]:
    shared = sorted(set(then) & set(now))
    if unpaired := _unpaired(then, now):
        yield Finding(f"{_name(place)}: {unpaired}{_because(place, frozen, fresh)}", fault=True)
    turned = [t for t in shared if then[t].status != now[t].status]
    if turned:
        first = turned[0]
        change = f"{then[first].status} -> {now[first].status}"
        why = f" ({now[first].reason})" if now[first].reason else ""
        many = f"{change} in {len(turned)} of {len(shared)} cases, first {first[1] or 'all'}{why}"
        yield Finding(f"{_name(place)}: {many}{_because(place, frozen, fresh)}", fault=True)
    valued = [t for t in shared if then[t].status == now[t].status == "value"]
    moved = [t for t in valued if (then[t].value, then[t].parts) != (now[t].value, now[t].parts)]
    if not moved:
        return
    old, new, line = _moved(place, [then[t] for t in valued], [now[t] for t in valued], fresh)
    loose = [t for t in moved if then[t].key and then[t].key == now[t].key]
    if loose and _machine(frozen) == _machine(fresh):
        where = f"{len(loose)} of {len(valued)} cases, first {loose[0][1]}"
        text = f"{line} on {place[0]}; same key, another number: not deterministic ({where})"
        yield Finding(text, fault=True)
        return
    limit = tolerance(fresh, place[2], old)
    within = abs(new - old) <= limit or (math.isnan(old) and math.isnan(new))
    bound = f"; tolerance {limit:g}"
    yield Finding(f"{line} on {place[0]}{bound}{_because(place, frozen, fresh)}", fault=not within)


def _machine(run: Mapping[str, Any]) -> tuple[Any, Any]:
    """Where a key promises a number to the last bit: one kind of device and processor."""
    told = run.get("machine", {})
    return told.get("device"), told.get("processor")


def _unpaired(then: Mapping[Trial, Record], now: Mapping[Trial, Record]) -> str:
    parts = []
    for what, names in (("missing", set(then) - set(now)), ("new", set(now) - set(then))):
        if names:
            shown = listed([case or "unsuited" for _, case in sorted(names)])
            parts.append(f"{len(names)} case{'' if len(names) == 1 else 's'} {what}: {shown}")
    return "; ".join(parts)


def _moved(
    place: Place, then: Sequence[Record], now: Sequence[Record], run: Mapping[str, Any]
) -> tuple[float, float, str]:
    """Both numbers on the shared cases, and ``explainer / metric: 0.412 -> 0.398 (-0.014 [..], n=48)``."""
    how = reducer(run, place[2])
    numbering = Numbering.of([*then, *now])
    before, after = (numbering.rows(records, how) for records in (then, now))
    old, new = reducers.reduce(how, before), reducers.reduce(how, after)
    ends = statistics.difference(how, after, before)
    digits = _digits(new - old)
    low, high = (f"{end:+.{digits}f}" for end in (ends.low, ends.high))
    spread = f" [{low}, {high}]" if not math.isnan(ends.low) else ""
    return (
        old,
        new,
        (
            f"{place[1] or 'the model'} / {'.'.join(place[2])}: {old:.{digits}f} -> {new:.{digits}f} "
            f"({new - old:+.{digits}f}{spread}, n={len(then)})"
        ),
    )


def _digits(move: float) -> int:
    """Three decimals, or as many as show two digits of a smaller move."""
    if not move or math.isnan(move):
        return 3
    return min(max(3, 1 - math.floor(math.log10(abs(move)))), 12)


def tolerance(run: Mapping[str, Any], key: Key, frozen: float) -> float:
    """How far a cell may move: the spec's word for this column, else the last bits of float32.

    >>> tolerance({"tolerances": {"deletion.srg": 0.005}}, ("deletion", "srg"), 0.4)
    0.005
    >>> tolerance({}, ("confidence", "drop"), 20.0)
    0.0002
    """
    named_here = run.get("tolerances", {}).get(".".join(key))
    return TOLERANCE * max(1.0, abs(frozen)) if named_here is None else float(named_here)


# ---------------------------------------------------------------- what changed


def _because(place: Place, frozen: Mapping[str, Any], fresh: Mapping[str, Any]) -> str:
    found = changes(place, frozen, fresh)
    return f"; changed: {', '.join(found)}" if found else "; nothing named in run.json changed"


def changes(place: Place, frozen: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """What run.json says is different and can have moved this cell: weights, data, sources, settings, torch."""
    model, explainer, (metric, _) = place
    out = []
    for shelf, name, fields in (
        ("models", model, {"hash": "weights", "policy": "policy", "space": "score space"}),
        ("explainers", explainer, {"source": "source", "settings": "settings", "use": "part"}),
        ("metrics", metric, {"source": "source", "settings": "settings", "use": "part"}),
    ):
        then, now = named(frozen, shelf).get(name, {}), named(fresh, shelf).get(name, {})
        for field, word in fields.items():
            if then.get(field) != now.get(field):
                out.append(f"{word} of {name}{_values(field, then.get(field), now.get(field))}")
    then, now = frozen.get("dataset", {}), fresh.get("dataset", {})
    if (then.get("use"), then.get("settings")) != (now.get("use"), now.get("settings")):
        out.append(f"data {then.get('use')}{_values('settings', then.get('settings'), now.get('settings'))}")
    if then.get("card", {}).get("revision") != now.get("card", {}).get("revision"):
        out.append("revision of the data")
    if frozen.get("seed") != fresh.get("seed"):
        out.append(f"seed {frozen.get('seed')} -> {fresh.get('seed')}")
    for field in ("torch", "device", "processor", "transformers"):
        a, b = (run.get("machine", {}).get(field) for run in (frozen, fresh))
        if a != b:
            out.append(f"{field} {a} -> {b}")
    return out


def _values(field: str, then: Any, now: Any) -> str:
    """Which settings differ and how; hashes are not worth printing."""
    if field != "settings" or not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return ""
    keys = [k for k in sorted({*then, *now}) if then.get(k) != now.get(k)]
    return f" ({', '.join(f'{k}: {then.get(k)} -> {now.get(k)}' for k in keys)})" if keys else ""


# ---------------------------------------------------------------- freezing


def freeze(fresh: Result, reason: str, frozen: Result | None = None) -> Result:
    """The fresh result as the one to be kept: its ``history`` says why, and which numbers it supersedes.

    Numbers are never edited silently: each entry holds the reason, the date of the new run, and the headline
    numbers that stood before with the date and commit they came from. A ValueError where no reason is given.
    """
    if not reason.strip():
        raise ValueError(
            "freezing needs a reason: what changed, and why is the new number right? Type --reason"
        )
    history = list((frozen or fresh).run.get("history", ()))
    entry: dict[str, Any] = {"date": fresh.run.get("made", ""), "reason": reason.strip()}
    if frozen is not None:
        entry["superseded"] = {
            "made": frozen.run.get("made", ""),
            "commit": frozen.run.get("git", {}).get("commit", ""),
            "numbers": _headline(frozen),
        }
    return replace(fresh, run={**fresh.run, "history": [*history, entry]})


def _headline(result: Result) -> dict[str, dict[str, dict[str, float | None]]]:
    """{model: {explainer: {column: value}}} of the headline columns."""
    heads = set(result.run.get("headline", ()))
    cells = {place: rows for place, rows in _cells(result).items() if ".".join(place[2]) in heads}
    out: dict[str, dict[str, dict[str, float | None]]] = defaultdict(lambda: defaultdict(dict))
    for model, explainer, key in sorted(cells):
        how = reducer(result.run, key)
        records = [r for r in cells[model, explainer, key].values() if r.case]
        value = reducers.reduce(how, Numbering.of(records).rows(records, how))
        out[model][explainer][".".join(key)] = None if math.isnan(value) else value
    return {model: dict(rows) for model, rows in out.items()}
