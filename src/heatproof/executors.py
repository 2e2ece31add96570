"""Who does the jobs: this process, or a few beside it. The numbers are the same (law 1)."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from heatproof.bench import Answer, Bench, Job
from heatproof.errors import Refused


def serial(bench: Bench, jobs: Sequence[Job]) -> Iterator[Answer]:
    """One after the other, in this process."""
    torch.set_num_threads(1)
    for job in jobs:
        yield bench.do(job)


class Workers:
    """A few processes, each with its own Bench; only the caller writes to the store."""

    def __init__(self, count: int, make: Callable[[], Bench]) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["heatproof.bench"])  # torch is imported once for all
        self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(make,))

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Answers as they come; a process that dies says so instead of hanging."""
        waiting: set[Future[Answer]] = {self.pool.submit(_do, job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise Refused(
                "a worker process died (out of memory, or killed); what was finished is kept. "
                "Run the same command again, with fewer --workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


_BENCH: list[Bench] = []


def _begin(make: Callable[[], Bench]) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _BENCH.append(make())


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody is left to hand an answer to


def _do(job: Job) -> Answer:
    torch.set_num_threads(1)
    return _BENCH[0].do(job)
