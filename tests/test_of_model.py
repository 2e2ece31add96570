"""Metrics of the model itself: asked once a case of a question of their own, without an explainer, and compared by model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from heatproof import report, tables, words
from heatproof.progress import Silent
from heatproof.records import Result
from heatproof.runner import Order, run
from heatproof.summary import summarise

LENGTH = '''"""Length: how many words a captioner writes, less the mean length of what people said on the fit split."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from heatproof import Measure, Score, Value

DIARY = Path(__file__).parent / "diary.txt"


@dataclass(frozen=True)
class Length:
    """Words written, and words less than people use."""

    asks: ClassVar = {"captioner": "written"}
    measures: ClassVar = [Measure("words", "higher", "quality"), Measure("short", "lower", "quality", reduce="pooled_ratio")]

    def fit(self, model, feed):
        with DIARY.open("a") as diary:
            diary.write(f"{model.name}\\n")
        said = [len(text.split()) for cases in feed for case in cases for text in case.references]
        return {"mean": torch.tensor(sum(said) / len(said))}

    def measure(self, trials, fitted):
        assert all(t.explainer is None and t.explanation is None for t in trials)
        found = []
        for trial in trials:
            assert " ".join(trial.case.spoken[1:]) == trial.model.write(trial.model.stack([trial.case]), [trial.case])[0]
            words, mean = len(trial.case.spoken) - 1, float(fitted["mean"])
            found.append(Score({"words": Value.of(words), "short": Value.of(mean - words, num=mean - words, den=mean)}))
        return found
'''


@pytest.fixture
def home(world: Path) -> Path:
    (world / "metrics" / "length.py").write_text(LENGTH)
    spec = world / "benchmarks" / "toy.toml"
    text = spec.read_text()
    text = text.replace('["inside"]', '["inside", "length"]')
    text = text.replace('dataset = "squares"', 'dataset = "squares"\nfit = { use = "squares", count = 5 }')
    (captioner,) = (line for line in text.splitlines() if 'as = "captioner"' in line)
    spec.write_text(
        text.replace(captioner, captioner + "\n" + captioner.replace('"captioner" }', '"greedy", beam = 1 }'))
    )
    return world


def go(home: Path, **order) -> Result:
    return run(Order("toy", cwd=home, **order), Silent)


def test_it_is_asked_once_an_image_with_its_own_question(home):
    result = go(home)
    assert not result.run["failures"]
    rows = [r for r in result.records if r.metric == "length"]
    assert {r.role for r in rows} == {"model"}
    assert {r.explainer for r in rows} == {""}
    written = [r for r in rows if r.model in ("captioner", "greedy")]
    assert len(written) == 2 * 6 * 2  # models, images, values: also where no object word is said
    assert {r.status for r in written} == {"value"}
    assert all(r.case.endswith(".written") and r.key for r in written)
    dashes = {(r.model, r.status, r.reason) for r in rows if r.model not in ("captioner", "greedy")}
    assert {(status, reason.split(",")[0]) for _, status, reason in dashes} == {
        ("unsuited", "it is of a captioner")
    }
    assert {r.metric for r in result.records if r.role != "model"} == {"inside"}


def test_nothing_is_asked_again_and_chunks_change_no_byte(home):
    go(home)
    before = (home / ".heatproof" / "toy.csv").read_bytes()
    diary = (home / "metrics" / "diary.txt").read_text()
    assert sorted(diary.split()) == ["captioner", "greedy"]
    go(home)
    assert (home / ".heatproof" / "toy.csv").read_bytes() == before
    assert (home / "metrics" / "diary.txt").read_text() == diary
    shutil.rmtree(home / ".heatproof")
    go(home, workers=2, sets=("chunk=1",))
    assert (home / ".heatproof" / "toy.csv").read_bytes() == before


def test_models_are_lines_of_one_table_everywhere(home, tmp_path):
    result = go(home)
    summary = summarise(result)
    assert [c.name for c in summary.models] == ["length.words", "length.short"]
    (words_,) = (c for c in summary.models if c.name == "length.words")
    rows = [r for r in result.records if r.column == "length.words" and r.model == "greedy"]
    assert words_.cells["greedy"].value == pytest.approx(sum(r.value for r in rows) / 6)
    (grid,) = tables.of_models(summary)
    assert [line.name for line in grid.lines] == ["cnn", "vit", "clip", "captioner", "greedy"]
    assert [line.entries[0].foot for line in grid.lines] == ["a", "a", "b", "", ""]
    assert grid.feet[0][1].startswith("cnn, vit: it is of a captioner")
    assert "The models themselves: length" in tables.terminal(summary)
    assert "## The models themselves: length" in tables.markdown(summary)
    sheet = [row.split(",") for row in tables.sheet(summary).splitlines() if ",model," in row]
    assert {row[0] for row in sheet if row[5] == "length.words"} >= {"captioner", "greedy"}
    assert "length.words" in words.of_models(words_)
    report.write(summary, tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "The models themselves" in page
    assert words.of_models(words_) in page.replace("&#39;", "'")


def test_a_benchmark_may_be_of_models_alone(home):
    spec = home / "benchmarks" / "toy.toml"
    text = (
        spec.read_text()
        .replace('["inside", "length"]', '["length"]')
        .replace('"inside.mass"', '"length.words"')
    )
    start = text.index("explainers = ")
    spec.write_text(text[:start] + "explainers = []\n" + text[text.index("metrics = ") :])
    result = go(home)
    assert {r.metric for r in result.records} == {"length"}
    summary = summarise(result)
    assert words.headline(summary) == words.of_models(summary.models[0])
    assert "The models themselves" in tables.terminal(summary)


def test_a_fit_may_ask_another_question(home):
    """Of what people said nothing has to be written: as many forwards in the chunks, and the same numbers."""
    before = go(home)
    length = home / "metrics" / "length.py"
    asks = '    asks: ClassVar = {"captioner": "written"}\n'
    length.write_text(LENGTH.replace(asks, asks + '    learns: ClassVar = {"captioner": "reference 0"}\n').replace(
        "        said = [", "        feed = [[case for case in cases if case.id.endswith('r0')] for cases in feed]\n        said = ["
    ))  # fmt: skip
    after = go(home)
    told = [
        {(r.model, r.case, r.name): r.value for r in found.records if r.metric == "length"}
        for found in (before, after)
    ]
    assert told[0] == told[1]
    assert told[0]
