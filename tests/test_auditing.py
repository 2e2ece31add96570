"""``heatproof audit-metrics`` end to end: the controls it adds, no map twice, verdicts with the detector's own marks."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from heatproof import Refused, auditing, spec
from heatproof.cli import cli
from heatproof.exam import Exam
from heatproof.runner import Order, run

ROOT = Path(__file__).resolve().parents[1]
LOUD = '''"""Loud: the longest word."""

from dataclasses import dataclass

import torch

from heatproof import Explanation


@dataclass(frozen=True)
class Loud:
    """How long each word is."""

    def explain(self, model, cases):
        return [
            Explanation(
                image=None if case.tokens is not None else torch.ones(2, 2),
                text=None if case.tokens is None else torch.arange(1.0, len(case.words) + 1),
            )
            for case in cases
        ]
'''
HEARD = '''"""Heard: how uneven the relevance of the words is, wherever it lies: a fault for the detector to find."""

from dataclasses import dataclass
from typing import ClassVar

from heatproof import Measure, Score, Value
from heatproof.errors import NO_TEXT


@dataclass(frozen=True)
class Heard:
    """The share of the largest."""

    measures: ClassVar = [Measure("share", "higher", "faithfulness")]

    def measure(self, trials):
        texts = [t.explanation.text for t in trials]
        return [
            Score({"share": Value.undefined(NO_TEXT) if x is None else Value.of(x.max() / x.sum())})
            for x in texts
        ]
'''


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
    assert done.output.splitlines()[-1].endswith("audit.png")


def test_only_an_exam_may_be_frozen(home):
    with pytest.raises(Refused, match=r"no metric is named sound-... or faulty-...: this is no exam"):
        auditing.run(Order("toy", cwd=home, limit=2), freeze=True, progress=Silent)


def test_no_map_is_computed_twice_where_every_metric_has_its_scores_already(home):
    """The audit then has nothing to ask of a method itself, only of its copies."""
    toml = home / "benchmarks" / "toy.toml"
    toml.write_text(
        toml.read_text().replace('metrics = ["inside"]', 'metrics = ["inside", "counterfactual"]')
    )
    order = Order("toy", cwd=home, limit=3)
    run(order, Silent)
    asked = (home / "asked.txt").read_text()
    auditing.run(order, progress=Silent)
    assert (home / "asked.txt").read_text() == asked


def test_models_whose_truth_nobody_knows_are_named_with_the_reason(home):
    lines, _ = auditing.run(Order("toy", cwd=home, limit=3), progress=Silent)
    why = "these images cannot be drawn without their things, so no true effect is known"
    assert f"cnn: no true effects to hold the columns against: {why}" in lines
    assert any(line.startswith("clip: no true effects to hold the columns against: ") for line in lines)


def test_words_are_audited_by_the_same_code(home):
    """A metric that reads words alone, a method that gives them, and its copies: shuffled words lose, a map has a dash."""
    (home / "explainers" / "loud.py").write_text(LOUD)
    (home / "metrics" / "heard.py").write_text(HEARD)
    toml = home / "benchmarks" / "toy.toml"
    text = toml.read_text().replace('explainers = ["bright", ', 'explainers = ["loud", "bright", ')
    toml.write_text(text.replace('metrics = ["inside"]', 'metrics = ["inside", "heard"]'))
    auditing.run(Order("toy", cwd=home), progress=Silent)
    with (home / "reports" / "toy" / "audit.csv").open() as file:
        rows = {(r["model"], r["column"]): r for r in csv.DictReader(file)}
    assert ("cnn", "heard.share") not in rows  # a classifier reads no text
    said = rows["clip", "heard.share"]
    assert said["verdict"] == "suspect"
    assert "does not tell loud from its own map shuffled; it does in 0 of 1 methods" in said["reasons"]


@pytest.mark.slow
def test_the_exam_sat_again_has_the_frozen_verdicts(tmp_path):
    """Whoever changes the detector, or a metric of the exam, has to freeze it anew: heatproof audit-metrics exam --freeze."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("exam.toml", "planted.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    model = (
        'models=[{use = "controlled:Cnn", on = "region", as = "cnn-region"}]'  # one of four: half a minute
    )
    spec_ = str(tmp_path / "benchmarks" / "exam.toml")
    auditing.run(Order(spec_, sets=(model,), cwd=tmp_path), progress=Silent)
    again = Exam.read((tmp_path / "reports" / "exam" / "audit.csv").read_text())
    assert again.marked == tuple(m for m in Exam.frozen(ROOT).marked if m[0] == "cnn-region")


@pytest.mark.slow
def test_blur_bias_and_blindness_to_random_maps_are_found_on_the_demos_model(tmp_path):
    """Song et al. 2023 of ROAD (its curve from the hottest pixels down), arXiv 2412.10942 of max-sensitivity."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "audit.toml", tmp_path / "benchmarks")
    metrics = 'metrics=["road", {use = "robustness:Sensitivity", samples = 2, as = "sensitivity"}]'
    methods = 'explainers=["lrp", {use = "captum_suite:IntegratedGradients", steps = 6, as = "ig-6"}, {use = "captum_suite:Saliency", as = "saliency"}]'
    order = Order(
        str(tmp_path / "benchmarks" / "audit.toml"),
        sets=('models=["small_cnn"]', 'headline=["road.road"]', methods, metrics),
        limit=16,
        cwd=tmp_path,
    )
    auditing.run(order, progress=Silent)
    with (tmp_path / "reports" / "audit" / "audit.csv").open() as file:
        rows = {r["column"]: r for r in csv.DictReader(file)}
    assert "pays for blur" in rows["road.road_morf"]["reasons"]
    assert (
        "random maps not significantly worse than the typical method"
        in rows["sensitivity.max_sensitivity"]["reasons"]
    )
