"""The story of a run, told once: read the spec, cut it into chunks, fill what is missing, write what was found.

    spec -> samples -> cases -> explanations -> scores -> records -> tables, plots, report

Each line's work lives in the module it names; this file only says what comes after what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from heatproof import executors, provenance, results, spec
from heatproof.bench import Answer, Bench
from heatproof.progress import Progress
from heatproof.records import Result, settled
from heatproof.spec import Spec
from heatproof.store import Store


@dataclass(frozen=True)
class Order:
    """What the command line asks for: a benchmark and the changes to it."""

    benchmark: str
    sets: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    stand_in: bool = False
    limit: int | None = None
    workers: int = 1
    device: str = "cpu"
    fresh: bool = False  # compute again what the store knows
    trust: bool = False  # take cells from the frozen result whose keys are the same
    cwd: Path = field(default_factory=Path.cwd)

    def read(self) -> Spec:
        return spec.read(self.benchmark, self.cwd, sets=self.sets, data=self.data, stand_in=self.stand_in)


def bench_of(order: Order, store: Path) -> Bench:
    """A process's own Bench; specs hold classes from files, so each process reads the spec itself."""
    asked = order.read()
    known = results.known(asked.workspace, asked.name) if order.trust else {}
    return Bench(asked, store, order.device, order.limit, known)


def answers(
    make: Callable[[], Bench], path: Path, workers: int, progress: Callable[[int], Progress]
) -> tuple[Bench, list[Answer]]:
    """What every job found, in the order of the samples; each chunk is in the store before the next is looked at."""
    store = Store(path, write=True)
    pool = executors.Workers(workers, make) if workers > 1 else None
    found: list[Answer] = []
    try:
        bench = make()
        with progress(len(bench.jobs())) as bar:
            for jobs in (bench.fits(), bench.jobs()):
                for answer in pool.run(jobs) if pool else executors.serial(bench, jobs):
                    store.add(answer.news)
                    if answer.job.count:
                        found.append(answer)
                        bar.done(answer)
    finally:
        if pool:
            pool.close()
        store.close()
    found.sort(key=lambda a: (a.job.first, a.job.model))
    return bench, found


def run(order: Order, progress: Callable[[int], Progress] = Progress) -> Result:
    """Everything a benchmark asks for; resumes by itself where an earlier run was cut off."""
    began = time.perf_counter()
    asked = order.read()
    place = provenance.working(asked)
    path = place / f"{asked.name}{'.fresh' if order.fresh else ''}.sqlite"
    if order.fresh:
        path.unlink(missing_ok=True)
    bench, found = answers(partial(bench_of, order, path), path, order.workers, progress)
    result = result_of(order, bench, found, time.perf_counter() - began)
    provenance.write(result, found)
    return result


def result_of(order: Order, bench: Bench, found: list[Answer], seconds: float) -> Result:
    """What a bench found, as rows, curves and their story."""
    return Result(
        bench.spec.name,
        settled(r for a in found for r in a.records),
        [curve for a in found for curve in a.curves],
        provenance.story(bench.spec, order, bench, found, seconds),
        provenance.working(bench.spec),
    )
