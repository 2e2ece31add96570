"""A whole run in a small world: law 1 over chunks, order, workers and resume; what is stored, counted and written."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from heatproof import runner
from heatproof.bench import Bench, Job
from heatproof.progress import Progress, Silent
from heatproof.records import Result, read_result
from heatproof.runner import Order, run
from heatproof.store import Store

FILES = ("toy.csv", "toy.curves.csv")

GRADIENT = '''"""Gradient: the score's gradient at the pixels, from a watched site and a clean score in the memo."""

from dataclasses import dataclass

import torch

from heatproof import Explanation


@dataclass(frozen=True)
class Gradient:
    """The score's gradient at the pixels."""

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        clean = model.clean(cases)
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [Explanation(image=g * c) for g, c in zip(grad, clean)]
'''

DROP = '''"""Drop: how far the score falls when the hottest half is blanked, and the curve of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from heatproof import Measure, Score, Value
from heatproof.geometry import read


@dataclass(frozen=True)
class Drop:
    """How far the score falls when the hottest half is blanked."""

    measures: ClassVar = [Measure("drop", "higher", "faithfulness")]

    def measure(self, trials):
        model, cases = trials[0].model, [t.case for t in trials]
        clean = model.clean(cases)
        masked = []
        for t in trials:
            heat = read(t.explanation.image, (32, 32))
            masked.append(t.case.pixels * (heat < heat.median()))
        score = model.score(torch.stack(masked), cases)
        return [
            Score({"drop": Value.of(c - s)}, {"two points": ([0, 1], [float(c), float(s)])})
            for c, s in zip(clean, score)
        ]
'''


@pytest.fixture
def home(world: Path) -> Path:
    """The world with a part that differentiates and a metric that forwards, both asking for the clean score."""
    (world / "explainers" / "gradient.py").write_text(GRADIENT)
    (world / "metrics" / "drop.py").write_text(DROP)
    edit(world, '["bright",', '["gradient", "bright",')
    edit(world, '["inside"]', '["inside", "drop"]')
    return world


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "benchmarks" / "toy.toml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def go(folder: Path, **order) -> Result:
    result = run(Order("toy", cwd=folder, **order), Silent)
    assert result.run["failures"] == []
    return result


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / ".heatproof" / name).read_bytes() for name in FILES]


def rows_stored(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / ".heatproof" / "toy.sqlite")) as db:
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("maps", "scores")}


@pytest.fixture
def undisturbed(home: Path) -> list[bytes]:
    go(home)
    found = bytes_of(home)
    assert found[0].count(b"\n") == 1 + 4 * 6 * 4 * 3  # models, samples, explainers, values
    shutil.rmtree(home / ".heatproof")
    return found


# ---------------------------------------------------------------- law 1


@pytest.mark.parametrize("chunk", [1, 3, 6, 50])
def test_the_size_of_the_chunks_changes_no_byte(home, undisturbed, chunk):
    go(home, sets=(f"chunk={chunk}",))
    assert bytes_of(home) == undisturbed


def test_workers_change_no_byte(home, undisturbed):
    result = go(home, workers=2)
    assert bytes_of(home) == undisturbed
    assert result.run["forwards"] > 0


def test_the_order_of_the_samples_changes_no_byte(home, undisturbed):
    file = home / "datasets" / "squares.py"
    text = file.read_text()
    file.write_text(text.replace("for i in range(self.count)]", "for i in reversed(range(self.count))]"))
    assert file.read_text() != text
    go(home)
    assert bytes_of(home) == undisturbed


def test_a_run_that_began_with_fewer_samples_parts_and_models_changes_no_byte(home, undisturbed):
    """Chunks that are stored in part, by sample and by explainer, are filled up."""
    whole = (home / "benchmarks" / "toy.toml").read_text()
    edit(home, '["gradient", "bright",', "[")
    edit(home, '["inside", "drop"]', '["inside"]')
    go(home, limit=3)
    (home / "benchmarks" / "toy.toml").write_text(whole)
    go(home, sets=("chunk=3",), limit=5)
    assert bytes_of(home) != undisturbed
    go(home)
    assert bytes_of(home) == undisturbed


def test_a_run_stopped_in_the_middle_is_taken_up(home, undisturbed):
    class Enough(Exception):
        pass

    class Stops(Silent):
        def done(self, answer):
            self.finished += 1
            if self.finished == 3:
                raise Enough

    with pytest.raises(Enough):
        run(Order("toy", cwd=home), Stops)
    stored = rows_stored(home)
    assert 0 < stored["scores"] < 4 * 6 * 4 * 2
    assert not (home / ".heatproof" / "toy.csv").exists()
    go(home)
    assert bytes_of(home) == undisturbed


def test_without_the_memo_the_same_bytes_costs_included(home, undisturbed, monkeypatch):
    monkeypatch.setenv("HEATPROOF_MEMO", "off")
    bare = go(home)
    assert bytes_of(home) == undisturbed
    shutil.rmtree(home / ".heatproof")
    monkeypatch.delenv("HEATPROOF_MEMO")
    assert go(home).run["forwards"] < bare.run["forwards"]  # the memo saves work and changes no bill


def test_another_seed_changes_the_noise_alone(home, undisturbed):
    again = go(home, sets=("seed=4",))

    def values(result, role):
        return {(r.model, r.explainer, r.case, r.column): r.value for r in result.records if r.role == role}

    shutil.rmtree(home / ".heatproof")
    first = go(home)
    assert values(first, "method") == values(again, "method")
    assert values(first, "control") != values(again, "control")


# ---------------------------------------------------------------- nothing is computed twice


def test_the_same_command_again_computes_nothing(home):
    assert go(home).run["forwards"] > 0
    before = rows_stored(home), bytes_of(home)
    (home / "explainers" / "gradient.py").touch()
    again = go(home, sets=("title=Other",))
    assert (rows_stored(home), bytes_of(home)) == before
    shown = {row["model"] for row in json.loads(str(np.load(again.strip)["index"]))}
    assert shown == {"cnn", "vit", "clip", "captioner"}  # the example maps too come from the store
    assert again.run["forwards"] == 0


def test_a_dropped_in_explainer_alone_is_computed(home):
    before = go(home)
    stored = rows_stored(home)
    (home / "explainers" / "grey.py").write_text(
        GRADIENT.replace("Gradient", "Grey").replace("g * c", "g * 0 + 1")
    )
    edit(home, '["gradient", "bright",', '["gradient", "grey", "bright",')
    after = go(home)
    added = rows_stored(home)
    assert added["maps"] - stored["maps"] == 4 * 6
    assert added["scores"] - stored["scores"] == 4 * 6 * 2
    old = {r for r in map(str, before.records)}
    assert old < {r for r in map(str, after.records)}
    fresh = [r for r in after.records if str(r) not in old]
    assert {r.explainer for r in fresh} == {"grey"}
    assert after.run["forwards"] < before.run["forwards"] / 2


def test_a_metric_added_later_uses_the_stored_maps(home):
    edit(home, '["inside", "drop"]', '["inside"]')
    go(home)
    stored = rows_stored(home)
    edit(home, '["inside"]', '["inside", "drop"]')
    result = go(home)
    assert rows_stored(home)["maps"] == stored["maps"]
    assert rows_stored(home)["scores"] == 2 * stored["scores"]
    plain = [r for r in result.records if r.explainer == "bright" and r.metric == "drop" and r.model == "cnn"]
    assert {r.forwards for r in plain} == {2.0}  # clean and masked; "bright" itself asks nothing


def test_fresh_computes_all_of_it_again_beside_the_store(home):
    first = go(home)
    stored = rows_stored(home)
    again = go(home, fresh=True)
    assert again.run["forwards"] == first.run["forwards"]
    assert again.records == first.records
    assert rows_stored(home) == stored


# ---------------------------------------------------------------- what it cost


def test_costs_are_what_a_hook_counts(home):
    """Rows that passed the net's first layer, less the padding, are the forwards of the run and of its parts."""
    bench = Bench(Order("toy", cwd=home).read(), _empty(home))
    model, _ = bench.model(0)
    rows: list[int] = []
    entrance = model.net.resnet.embedder.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    bench.ask(model, bench.samples)  # the stages are weighed once, before
    model.clean(bench.ask(model, bench.samples)[0])
    model.memo.clear()
    rows.clear()
    answer = bench.do(Job(0, 0, 6))
    entrance.remove()
    assert set(rows) == {8}
    # six cases fill one block a call: clean once (memo), gradient, then a blank and a masked row a metric
    assert len(rows) == 1 + 1 + 4 + 4
    backwards = 6
    assert answer.forwards == pytest.approx(6 * len(rows) + backwards)
    costs = {
        (r.explainer, r.metric): (r.forwards, r.backwards) for r in answer.records if r.case == "s0.ball"
    }
    assert costs == {
        ("gradient", "inside"): (3, 1),  # clean, gradient; blank
        ("gradient", "drop"): (4, 1),  # ... and clean again, as if the metric were alone; masked
        ("bright", "inside"): (1, 0),
        ("bright", "drop"): (2, 0),
        ("dark", "inside"): (1, 0),
        ("dark", "drop"): (2, 0),
        ("noise", "inside"): (1, 0),
        ("noise", "drop"): (2, 0),
    }


def _empty(folder: Path) -> Path:
    path = folder / ".heatproof" / "empty.sqlite"
    Store(path, write=True).close()
    return path


# ---------------------------------------------------------------- unsuited, undefined


def test_an_unsuited_explainer_is_one_row_a_value_with_its_reason(home):
    (home / "explainers" / "tokens.py").write_text(
        GRADIENT.replace("Gradient", "Tokens").replace(
            "        pixels =", '        model.site("image.block")\n        pixels ='
        )
    )
    edit(home, '["gradient", "bright",', '["tokens",')
    result = go(home)
    dashes = [r for r in result.records if r.status == "unsuited"]
    assert {(r.model, r.explainer, r.case, r.column) for r in dashes} == {
        (m, "tokens", "", c)
        for m in ("cnn", "captioner")
        for c in ("inside.mass", "inside.blank", "drop.drop")
    }
    assert len(dashes) == 6
    assert all("no site 'image.block'" in r.reason and r.value is None for r in dashes)


def test_a_nan_map_is_undefined_with_a_reason_and_not_zero(home):
    source = (home / "explainers" / "bright.py").read_text()
    (home / "explainers" / "bright.py").write_text(
        source.replace(
            ".mean(0) * self.gain", ".mean(0) * (float('nan') if case.sample == 's1' else self.gain)"
        )
    )
    rows = [r for r in go(home).records if r.explainer == "bright" and r.name == "mass"]
    assert {r.sample for r in rows if r.status == "undefined"} == {"s1"}
    assert {(r.value, r.reason) for r in rows if r.status == "undefined"} == {(None, "no positive heat")}
    assert all(r.value is not None for r in rows if r.sample != "s1")


# ---------------------------------------------------------------- what is written


def test_the_files_tell_all_of_it(home):
    result = go(home)
    folder = home / ".heatproof"
    back = read_result(folder, "toy")
    assert sorted(map(str, back.records)) == sorted(map(str, result.records))
    told = json.loads((folder / "toy.run.json").read_text())
    assert told["models"][0]["cases"] == told["models"][0]["samples"] == told["dataset"]["samples"] == 6
    assert [m["family"] for m in told["models"]] == ["classifier", "classifier", "dual", "captioner"]
    assert [e["role"] for e in told["explainers"]] == ["method", "method", "method", "control"]
    assert told["metrics"][0]["measures"][0] == {
        "name": "mass",
        "better": "higher",
        "measures": "plausibility",
        "unit": "",
        "reduce": "mean",
    }
    assert told["dataset"]["card"]["licence"] == "CC0-1.0"
    assert told["spec"] == (home / "benchmarks" / "toy.toml").read_text()
    assert told["machine"]["device"] == "cpu"
    with (folder / "toy.csv").open() as file:
        assert {row["benchmark"] for row in csv.DictReader(file)} == {"toy"}


def test_the_strip_keeps_an_example_of_each_family(home):
    strip = np.load(go(home).strip)
    index = json.loads(str(strip["index"]))
    assert [row["model"] for row in index] == ["cnn", "vit", "clip", "captioner"]
    row = index[0]
    assert row["explainers"] == ["gradient", "bright", "dark", "noise"]
    assert strip["0/image"].shape == (32, 32, 3)
    assert strip["0/image"].dtype == np.uint8
    assert strip["0/evidence"].sum() == 100
    assert strip["0/map/noise"].shape == (32, 32)
    assert strip["0/map/noise"].dtype == np.float16
    assert abs(strip["0/map/noise"]).max() == 1


def test_progress_predicts_from_forwards_and_ends_where_it_was_going():
    from heatproof.bench import Answer

    with Progress(4) as bar:
        for model, forwards in ((0, 10.0), (0, 30.0), (1, 20.0)):
            bar.done(Answer(Job(model, 0, 1), forwards=forwards))
        task = bar.bar.tasks[0]
        assert task.completed == 60
        assert task.total == pytest.approx(80)
        bar.done(Answer(Job(1, 0, 1), forwards=60.0))
        assert bar.bar.tasks[0].total == bar.bar.tasks[0].completed == 120
        assert bar.bar.tasks[0].fields["eta"] == "0 s left"


def test_the_story_is_short():
    lines = Path(runner.__file__).read_text().splitlines()
    assert len(lines) < 100
