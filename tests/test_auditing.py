"""``heatproof audit-metrics`` end to end: the controls it adds, no map twice, verdicts with the detector's own marks."""

from __future__ import annotations

import csv

import pytest
from click.testing import CliRunner

from heatproof import Refused, auditing, spec
from heatproof.cli import cli
from heatproof.runner import Order, run


class Silent:
    def __init__(self, total): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def done(self, answer): ...


@pytest.fixture
def home(world, monkeypatch):
    """The toy world, its one method counting the maps that it is asked for."""
    path = world / "explainers" / "bright.py"
    source = path.read_text()
    line = next(part for part in source.splitlines() if "def explain" in part)
    count = "\n        with open('asked.txt', 'a') as file:\n            file.write('x' * len(cases))"
    path.write_text(source.replace(line, line + count))
    monkeypatch.chdir(world)
    return world


def test_every_control_is_added_once_and_the_truth_beside_the_metrics(home):
    asked = spec.read("toy", home)
    found = auditing.audited(asked)
    names = [p.name for p in found.explainers]
    assert names == [
        *("bright", "dark", "noise", "random", "centre", "edges", "oracle"),
        *("blurred(bright)", "blurred(dark)", "shuffled(bright)", "shuffled(dark)"),
    ]
    assert [m.name for m in found.metrics] == ["inside", "counterfactual"]
    assert [p.name for p in auditing.audited(found).explainers] == names
    assert [m.name for m in auditing.audited(found).metrics] == ["inside", "counterfactual"]


def test_no_map_is_computed_twice(home):
    order = Order("toy", cwd=home, limit=3)
    run(order, Silent)
    asked = (home / "asked.txt").read_text()
    auditing.run(order, progress=Silent)
    copies = len((home / "asked.txt").read_text()) - len(asked)
    assert copies == 0  # the method's maps come from the store, its copies from those


def test_the_command_prints_a_verdict_a_column_and_the_detectors_marks(home):
    done = CliRunner().invoke(
        cli, ["audit-metrics", "toy", "--limit", "4", "--workers", "1"], catch_exceptions=False
    )
    assert done.exit_code == 0
    with (home / "reports" / "toy" / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["verdict"] for r in rows} <= {"suspect", "no fault found", "cannot tell"}
    assert {r["column"] for r in rows} >= {"inside.mass"}
    for r in rows:
        assert f"{r['model']}  {r['column']}: {r['verdict']}" in done.output
        assert bool(r["reasons"]) == (r["verdict"] != "no fault found")
    assert "In its own exam" in done.output
    assert "planted faults [" in done.output
    assert done.output.splitlines()[-1].endswith("audit.txt")


def test_only_an_exam_may_be_frozen(home):
    with pytest.raises(Refused, match=r"no metric is named sound-... or faulty-...: this is no exam"):
        auditing.run(Order("toy", cwd=home, limit=2), freeze=True, progress=Silent)
