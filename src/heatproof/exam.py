"""How good is the lie detector itself? Its marks in an exam of metrics with planted faults and sound ones. No torch.

The exam is a benchmark like any other (``benchmarks/exam.toml``) on models whose truth is known. Its metrics are named
for what they are, ``sound-...`` or ``faulty-...``; its frozen verdicts stand in ``results/exam.audit.csv``.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from heatproof import detector, shelf

FAULTY, SOUND = "faulty-", "sound-"


@dataclass(frozen=True)
class Exam:
    """The marked columns of an audit: (model, metric, says). Each metric's first column on each model is one question."""

    marked: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, text: str) -> Exam:
        """The exam in an audit's CSV; empty where none of its metrics is named as sound or faulty."""
        found: dict[tuple[str, str], str] = {}
        for row in csv.DictReader(io.StringIO(text)):
            metric = row["column"].partition(".")[0]
            if metric.startswith((FAULTY, SOUND)):
                found.setdefault((row["model"], metric), row["verdict"])
        return cls(tuple((*place, says) for place, says in found.items()))

    @classmethod
    def frozen(cls, workspace: Path) -> Exam:
        """The frozen exam, of the workspace or the house; empty where there is none."""
        for place in (workspace, shelf.house()):
            path = place / "results" / "exam.audit.csv"
            if path.is_file():
                return cls.read(path.read_text(encoding="utf-8"))
        return cls(())

    def rate(self, kind: str) -> tuple[int, int]:
        """How many of the metrics of this kind were called suspect, and of how many that it could tell of."""
        asked = [says for _, metric, says in self.marked if metric.startswith(kind) and says != detector.OPEN]
        return sum(says == detector.SUSPECT for says in asked), len(asked)

    def told(self) -> list[str]:
        """The detector's hit and false-alarm rates in a sentence, with 95 % intervals (Wilson)."""
        if not self.marked:
            return ["The detector has sat no exam here: heatproof audit-metrics exam --freeze"]
        parts = []
        for what, kind in (("calls suspect", FAULTY), ("raises a false alarm on", SOUND)):
            hits, of = self.rate(kind)
            low, high = detector.wilson(hits, of)
            noun = "planted faults" if kind == FAULTY else "sound metrics"
            parts.append(f"{what} {hits} of {of} {noun} [{low:.2f}, {high:.2f}]")
        metrics, models = {m for _, m, _ in self.marked}, {m for m, _, _ in self.marked}
        asked = f"{len(metrics)} metrics on {len(models)} models whose truth is known"
        return [
            f"In its own exam ({asked}) the detector {' and '.join(parts)}. A verdict is a reason to look, no proof."
        ]

    def table(self) -> list[str]:
        """Each metric's verdict on each model as Markdown, the planted faults first."""
        models = list(dict.fromkeys(m for m, _, _ in self.marked))
        says = {(metric, model): verdict for model, metric, verdict in self.marked}
        metrics = sorted(dict.fromkeys(m for _, m, _ in self.marked), key=lambda m: not m.startswith(FAULTY))
        rows = [f"| {m} | {' | '.join(says.get((m, model), '–') for model in models)} |" for m in metrics]
        return [f"| metric | {' | '.join(models)} |", "|" + "---|" * (len(models) + 1), *rows]
