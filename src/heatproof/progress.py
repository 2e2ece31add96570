"""A bar whose ETA counts work in forwards, model by model, and corrects itself as chunks come in."""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Rich

from heatproof.bench import Answer


class Progress:
    """Counts chunks, and predicts the rest from the forwards that a model's chunks took so far."""

    def __init__(self, chunks: int) -> None:
        self.chunks, self.began = chunks, time.perf_counter()
        self.forwards: dict[int, list[float]] = defaultdict(list)
        self.finished = 0
        console = Console(stderr=True)
        self.bar = Rich(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of about {task.total:,.0f} forwards, {task.fields[eta]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # a log wants no bar
        )

    def __enter__(self) -> Progress:
        self.bar.start()
        self.task = self.bar.add_task("measuring", total=1, eta="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def done(self, answer: Answer) -> None:
        """One chunk is in: what is left is guessed from its model's chunks so far, or from all of them."""
        self.finished += 1
        self.forwards[answer.job.model].append(answer.forwards)
        spent = sum(map(sum, self.forwards.values()))
        total = spent / self.finished * self.chunks
        seconds = (time.perf_counter() - self.began) * (self.chunks / self.finished - 1)
        if spent:
            seconds = (time.perf_counter() - self.began) * (total - spent) / spent
        self.bar.update(
            self.task,
            completed=spent,
            total=max(total, 1),
            description=f"{self.finished} of {self.chunks} chunks",
            eta=f"{seconds:.0f} s left",
        )


class Silent(Progress):
    """For tests and scripts."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def done(self, answer: Answer) -> None:
        return
