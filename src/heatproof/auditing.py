"""``heatproof audit-metrics``: a benchmark's own metrics put to the lie detector, on its own models, maps and data.

The spec's methods are asked as ever, with every control that the detector knows: random, centred and edge maps, the
evidence, and each method's own map shuffled and blurred. Maps come from the store and are never computed twice. A metric
that retrains models (ROAR) is one like any other, and costs a training for each copy.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from heatproof import detector, lineup, provenance, runner, shelf
from heatproof.bench import Bench
from heatproof.detector import Verdict
from heatproof.errors import Refused
from heatproof.exam import Exam
from heatproof.progress import Progress
from heatproof.records import write_whole
from heatproof.runner import Order
from heatproof.spec import Part, Spec
from heatproof.summary import COPIES, Summary, summarise

BLIND = ("random", "centre", "edges", "oracle")
HEAD = ("model", "column", "verdict", "reasons", "truth", "explainers")


def audited(spec: Spec) -> Spec:
    """The spec with every control that the detector asks, and the counterfactual truth beside its metrics."""
    have = {p.name for p in spec.explainers}
    methods = [p for p in spec.explainers if p.role == "method"]
    more = [_control(spec, use, use) for use in BLIND if use not in have]
    for kind in COPIES:
        more += [
            _control(spec, kind, f"{kind}({m.name})", of=m.made)
            for m in methods
            if f"{kind}({m.name})" not in have
        ]
    metrics = list(spec.metrics)
    if not any(m.use == "counterfactual" for m in metrics):
        made = shelf.find("metrics", "counterfactual", spec.place, spec.path.name)()
        metrics.append(Part("counterfactual", "metrics", "counterfactual", "metric", made))
    return replace(spec, explainers=(*spec.explainers, *more), metrics=tuple(metrics))


def _control(spec: Spec, use: str, name: str, **settings: Any) -> Part:
    made = shelf.find("explainers", use, spec.place, spec.path.name)(**settings)
    return Part(name, "explainers", use, "control", made)


def _bench(order: Order, store: Path) -> Bench:
    return Bench(audited(order.read()), store, order.device, order.limit)


def run(
    order: Order, freeze: bool = False, progress: Callable[[int], Progress] = Progress
) -> tuple[list[str], list[Path]]:
    """The verdicts in sentences, the detector's own marks below them, and the files written.

    ``freeze`` keeps the verdicts of an exam, whose metrics are named sound-... and faulty-..., as the detector's marks.
    """
    began, asked = time.perf_counter(), order.read()
    store = provenance.working(asked) / f"{asked.name}.sqlite"
    bench, found = runner.answers(partial(_bench, order, store), store, order.workers, progress)
    failed = [f for a in found for f in a.failures]
    result = runner.result_of(order, bench, found, time.perf_counter() - began)
    summary = summarise(result)
    verdicts = detector.verdicts(summary)
    text = sheet(verdicts)
    place = asked.workspace / "reports" / asked.name
    files = [place / f"audit.{end}" for end in ("csv", "txt", "png")]
    exam = Exam.read(text)
    if freeze and not exam.marked:
        raise Refused(
            f"{asked.path.name}: --freeze, but no metric is named sound-... or faulty-...: this is no exam"
        )
    if freeze and failed:
        raise Refused(f"{len(failed)} cells failed: an exam with gaps is not frozen")
    if freeze:
        files.append(asked.workspace / "results" / f"{asked.name}.audit.csv")
        write_whole(files[-1], text)
    lines = [line for v in verdicts for line in told(v)]
    lines += [
        "",
        *_without_truth(summary),
        *(exam.told() if exam.marked else Exam.frozen(asked.workspace).told()),
    ]
    lines += (
        [f"{len(failed)} failed; the first: {failed[0]['explainer']}: {failed[0]['error']}"] if failed else []
    )
    write_whole(files[0], text)
    write_whole(files[1], "\n".join(lines) + "\n")
    lineup.figure(summary, verdicts).savefig(files[2], dpi=150)
    return lines, files


def _without_truth(summary: Summary) -> list[str]:
    """The models on which nobody knows what each thing in the image truly does, and why."""
    found = []
    for block in summary.blocks:
        true = next((c for c in block.columns if detector.is_truth(summary, c)), None)
        if true is None or not true.leader:
            absent = next((why for name, why in block.absent if name.endswith(f".{detector.THINGS}")), "")
            why = absent or next((c.why for c in true.cells.values()) if true else iter(()), "")
            found.append(f"{block.model}: no true effects to hold the columns against{': ' * bool(why)}{why}")
    return found


def told(verdict: Verdict) -> Iterable[str]:
    """A verdict in lines: what, then why."""
    truth = (
        ""
        if math.isnan(verdict.truth)
        else f"; follows the true effects by rho {verdict.truth:.2f} (n {verdict.explainers})"
    )
    yield f"{verdict.model}  {verdict.column}: {verdict.says}{truth}"
    for reason in verdict.reasons:
        yield f"    {reason}"


def sheet(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as CSV."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(HEAD)
    for v in verdicts:
        truth = "" if math.isnan(v.truth) else f"{v.truth:.3f}"
        rows.writerow([v.model, v.column, v.says, "; ".join(v.reasons), truth, v.explainers])
    return out.getvalue()
