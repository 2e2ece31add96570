"""What a run would take: measured on a few cases, scaled to all; starts nothing and stores nothing."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from heatproof import checks
from heatproof.bench import Bench, Job
from heatproof.errors import Refused
from heatproof.runner import Order
from heatproof.store import Store


def plan(order: Order) -> str:
    """Cases, forwards, minutes and memory of a run, or what data or weights are missing."""
    try:
        return _measured(order)
    except (Refused, FileNotFoundError) as missing:
        return f"cannot run yet: {missing}"


def _measured(order: Order) -> str:
    asked = order.read()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.sqlite"
        store = Store(path, write=True)
        learning = [
            m.name for m in asked.metrics if hasattr(m.made, "fit")
        ]  # they train models: that is to start
        alone = [m.name for m in asked.metrics if checks.of_model(m.made)]
        plain = tuple(m for m in asked.metrics if m.name not in learning)
        bench = Bench(replace(asked, metrics=plain), path, order.device, order.limit)
        for job in bench.fits():
            store.add(bench.do(job).news)
        lines, seconds, forwards, cases = [], 0.0, 0.0, 0.0
        few = min(2, len(bench.samples))
        for m, part in enumerate(asked.models):
            bench.model(m)  # loading is no part of the measured time
            began = time.perf_counter()
            answer = bench.do(Job(m, 0, few))
            took = time.perf_counter() - began
            scale = len(bench.samples) / few
            each = answer.forwards / max(answer.cases, 1)
            lines.append(
                f"  {part.name:<20} about {answer.cases * scale:6.0f} cases, {each:7.0f} forwards a case, "
                f"{took * scale / 60:6.1f} min on one core"
            )
            seconds += took * scale
            forwards += answer.forwards * scale
            cases += answer.cases * scale
            lines += [f"    would fail: {f['explainer']}: {f['error']}" for f in answer.failures]
        store.close()
        bench.store.close()
    fits = len(asked.models) * len(asked.explainers)
    lines += [
        f"  {name} is fitted to each model first, not measured"
        if name in alone
        else f"  {name} is fitted to each explainer's maps first: {fits} fits, not measured"
        for name in learning
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    head = (
        f"{asked.name}: {asked.title}\n"
        f"{len(bench.samples)} images, {len(asked.models)} models, {len(asked.explainers)} explainers and controls, "
        f"{len(asked.metrics)} metrics"
    )
    tail = (
        f"in all about {cases:.0f} cases, {forwards:,.0f} forwards, "
        f"{seconds / 60 / order.workers:.1f} min with {order.workers} workers, {peak:,.0f} MiB a worker\n"
        f"measured on {few} images; nothing was stored"
    )
    return "\n".join([head, *lines, tail])
