"""What is learned from the fit split: once a model and explainer, under a key of its own, the same whoever computes it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from heatproof import planning
from heatproof.bench import Bench
from heatproof.contract import Refused
from heatproof.progress import Silent
from heatproof.records import Result
from heatproof.runner import Order, run
from heatproof.store import Store

TASTE = '''"""Taste: how near a map is to the mean map of the fit split, which is learned of each explainer anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from heatproof import Measure, Score, Unsuited, Value
from heatproof.geometry import read

DIARY = Path(__file__).parent / "diary.txt"


@dataclass(frozen=True)
class Taste:
    """Mean absolute difference to the mean map, less its noise."""

    size: int = 8
    fails: bool = False
    measures: ClassVar = [Measure("near", "lower", "plausibility")]

    def fit(self, model, feed, explainer):
        with DIARY.open("a") as diary:
            diary.write(f"{model.name} {type(explainer).__name__}\\n")
        if model.family == "captioner":
            raise Unsuited("has no taste in captioners")
        if self.fails:
            raise ArithmeticError("no taste at all")
        clean, maps = [], []
        for cases in feed:
            clean += model.clean(cases).tolist()
            maps += [read(e.image, (self.size, self.size)) for e in explainer.explain(model, cases)]
        return {"mean": torch.stack(maps).mean(0), "clean": torch.tensor(clean), "count": torch.tensor(len(maps))}

    def measure(self, trials, fitted):
        assert int(fitted["count"]) == len(fitted["clean"])
        heats = [read(t.explanation.image, (self.size, self.size)) for t in trials]
        return [Score({"near": Value.of((h - fitted["mean"]).abs().mean() + fitted["clean"][0])}) for h in heats]
'''

LEARNER = '''"""Learner: the mean image of the fit split."""

from dataclasses import dataclass

import torch

from heatproof import Explanation


@dataclass(frozen=True)
class Learner:
    """The mean image of the fit split, times a gain."""

    gain: float = 1.0

    def fit(self, model, feed):
        return {"mean": torch.stack([c.pixels.mean(0) for cases in feed for c in cases]).mean(0)}

    def explain(self, model, cases, fitted):
        return [Explanation(image=self.gain * fitted["mean"] + c.pixels.mean(0)) for c in cases]
'''

FITS = 3 + 2 * 4  # learner on three models; taste on two of them, of four explainers


@pytest.fixture
def home(world: Path) -> Path:
    """The world, less its second classifier, with a metric that learns, an explainer that learns, and images to learn from."""
    (world / "metrics" / "taste.py").write_text(TASTE)
    (world / "explainers" / "learner.py").write_text(LEARNER)
    spec = world / "benchmarks" / "toy.toml"
    lines = [line for line in spec.read_text().splitlines(keepends=True) if 'as = "vit"' not in line]
    spec.write_text("".join(lines))
    edit(world, '["bright",', '["bright", "learner",')
    edit(world, '["inside"]', '["inside", "taste"]')
    edit(world, 'dataset = "squares"', 'dataset = "squares"\nfit = { use = "squares", count = 5 }')
    return world


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "benchmarks" / "toy.toml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def go(folder: Path, **order) -> Result:
    return run(Order("toy", cwd=folder, **order), Silent)


def diary(folder: Path) -> list[str]:
    path = folder / "metrics" / "diary.txt"
    return path.read_text().splitlines() if path.exists() else []


def stored(folder: Path) -> dict[str, bytes]:
    with closing(sqlite3.connect(folder / ".heatproof" / "toy.sqlite")) as db:
        return dict(db.execute("SELECT key, fit FROM fits"))


def table(folder: Path) -> bytes:
    return (folder / ".heatproof" / "toy.csv").read_bytes()


def near(result: Result) -> dict[tuple[str, str, str], tuple[float | None, str]]:
    return {(r.model, r.explainer, r.case): (r.value, r.key) for r in result.records if r.metric == "taste"}


def test_a_metric_learns_once_of_each_model_and_explainer_and_is_handed_what_it_learned(home):
    result = go(home)
    assert not result.run["failures"]
    told = [line for line in diary(home) if "captioner" not in line]
    each = ["Bright", "Bright", "Fitted", "Noise"]  # bright and dark; the learner comes with what it learned
    assert sorted(told) == [f"{model} {name}" for model in ("clip", "cnn") for name in each]
    assert len(stored(home)) == FITS
    values = near(result)
    assert all(value is not None for (model, *_), (value, _) in values.items() if model != "captioner")
    assert len(values) == 2 * 6 * 4 + 4  # and a dash for each explainer of the captioner
    reasons = {r.reason for r in result.records if r.metric == "taste" and r.model == "captioner"}
    assert reasons == {"has no taste in captioners"}


def test_the_same_command_again_learns_nothing(home):
    go(home)
    before, learned = table(home), [line for line in diary(home) if "captioner" not in line]
    go(home)
    assert table(home) == before
    assert [line for line in diary(home) if "captioner" not in line] == learned


@pytest.mark.parametrize(("chunk", "workers"), [(1, 1), (6, 2)])
def test_chunks_and_workers_change_no_byte(home, chunk, workers):
    go(home)
    alone, fits = table(home), stored(home)
    shutil.rmtree(home / ".heatproof")
    go(home, workers=workers, sets=(f"chunk={chunk}",))
    assert table(home) == alone
    assert stored(home) == fits


def test_a_run_stopped_after_some_fits_takes_them_up(home):
    go(home)
    whole, kept = table(home), stored(home)
    with closing(sqlite3.connect(home / ".heatproof" / "toy.sqlite")) as db:
        db.execute("DELETE FROM scores")
        db.execute("DELETE FROM fits WHERE key > '8'")
        db.commit()
    left = len(stored(home))
    assert 0 < left < FITS
    (home / "metrics" / "diary.txt").unlink()
    go(home)
    assert (table(home), stored(home)) == (whole, kept)
    assert 0 < len([line for line in diary(home) if "captioner" not in line]) <= FITS - left


def test_what_is_learned_is_apart_from_cases_of_the_same_name(home):
    """The fit split here has the test images' names and other pixels: no memo may mix them, whoever fits when."""
    edit(home, "count = 5", "count = 5, shift = 7")
    file = home / "datasets" / "squares.py"
    text = file.read_text()
    text = text.replace("count: int = 6", "count: int = 6\n    shift: int = 0")
    text = text.replace("partial(_draw, i, mask)", "partial(_draw, i + self.shift, mask)")
    file.write_text(text)
    go(home)
    fresh = table(home)
    # fitted within the chunks, after their cases were scored
    store = home / ".heatproof" / "late.sqlite"
    Store(store, write=True).close()
    bench = Bench(Order("toy", cwd=home).read(), store)
    for job in bench.jobs():
        model, _ = bench.model(job.model)
        model.clean([c for cases in bench.ask(model, bench.samples) for c in cases])
        for record in bench.do(job).records:
            if record.value is not None:
                assert f"{record.value!r}".encode() in fresh or record.metric != "taste", record


MOVES = {
    "the metric's settings": (
        ('"taste"]', '{ use = "taste", size = 9 }]'),
        {"bright", "dark", "learner", "noise"},
    ),
    "the explainer's settings": (("gain = -1.0", "gain = -2.0"), {"dark"}),
    "what the explainer learned, by its settings": (
        ('"learner"', '{ use = "learner", gain = 2.0 }'),
        {"learner"},
    ),
    "the images to learn from": (("count = 5", "count = 4"), {"bright", "dark", "learner", "noise"}),
    "nothing that it reads": (('title = "Toy"', 'title = "Other"'), set()),
}


@pytest.mark.parametrize("what", MOVES)
def test_the_key_of_a_fit_moves_with_what_it_reads(home, what):
    change, moved = MOVES[what]
    before, fits = near(go(home)), stored(home)
    edit(home, *change)
    after = near(go(home))
    assert after.keys() == before.keys()
    changed = {place[1] for place in before if place[2] and before[place][1] != after[place][1]}
    assert changed == moved
    # of each explainer that moved, two fits of the metric; and the learner's own three, where they changed
    own = 3 * (what in ("what the explainer learned, by its settings", "the images to learn from"))
    assert len(stored(home)) - len(fits) == 2 * len(moved) + own


def test_the_key_of_a_fit_moves_with_the_policy_and_the_source(home, tmp_path_factory):
    go(home)
    before = set(stored(home))
    edit(home, 'captioner = "caption 0"', 'captioner = "caption 0"\nclassifier = "objects"')
    go(home)
    assert len(set(stored(home)) - before) == 1 + 4  # of the classifier: the learner's, and taste's of four
    other = tmp_path_factory.mktemp("changed") / "home"
    shutil.copytree(home, other)
    (other / "metrics" / "taste.py").write_text(TASTE.replace("less its noise", "more or less"))
    before = set(stored(other))
    go(other)
    assert len(set(stored(other)) - before) == 2 * 4


def test_a_fit_that_fails_is_a_recorded_failure_and_the_run_goes_on(home):
    edit(home, '"taste"]', '{ use = "taste", fails = true }]')
    result = go(home)
    failed = [r for r in result.records if r.metric == "taste" and r.status == "failed"]
    assert {r.model for r in failed} == {"cnn", "clip"}
    assert len(failed) == 2 * 6 * 4
    assert {r.reason for r in failed} == {"ArithmeticError: no taste at all"}
    assert all(r.status == "value" for r in result.records if r.name == "blank")
    told = [line for line in diary(home) if line == "cnn Fitted"]
    assert len(told) == 1  # no chunk tries again in this process


def test_a_metric_that_learns_needs_something_to_learn_from(home):
    edit(home, 'fit = { use = "squares", count = 5 }\n', "")
    edit(home, '"learner",', "")
    with pytest.raises(Refused, match="metric 'taste' learns from data, but there is no `fit`"):
        go(home)


def test_a_plan_fits_no_metric_to_maps_and_says_so(home):
    told = planning.plan(Order("toy", cwd=home))
    assert diary(home) == []
    assert "taste is fitted to each explainer's maps first: 12 fits, not measured" in told


def test_a_control_of_a_stored_map_asks_nobody(home):
    """The scores of a method are all there, so its map is not fetched for them; its copy still is made of it."""
    edit(home, '["inside", "taste"]', '["inside"]')
    path = home / "explainers" / "bright.py"
    source = path.read_text()
    line = next(part for part in source.splitlines() if "def explain" in part)
    count = "\n        with open(__file__ + '.asked', 'a') as file:\n            file.write('x' * len(cases))"
    path.write_text(source.replace(line, line + count))
    go(home)
    asked = (home / "explainers" / "bright.py.asked").read_text()
    edit(home, 'controls = ["noise"]', 'controls = ["noise", { use = "blurred", of = ["bright", "dark"] }]')
    result = go(home)
    assert any(r.explainer == "blurred(bright)" and r.status == "value" for r in result.records)
    assert (home / "explainers" / "bright.py.asked").read_text() == asked
