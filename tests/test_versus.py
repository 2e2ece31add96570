"""One model against another: differences over photographs and seeds against a loop, and where they are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heatproof import report, tables, versus
from heatproof.errors import Refused
from heatproof.records import Record, Result
from heatproof.spec import read
from heatproof.summary import summarise

RUN = {
    "models": [{"name": "tuned"}, {"name": "control"}],
    "metrics": [
        {"name": "quality", "measures": [{"name": "score", "better": "higher"}, {"name": "errors", "better": "lower"}]},
        {"name": "map", "measures": [{"name": "inside", "better": "higher"}, {"name": "other", "better": "higher"}]},
    ],
    "headline": ["map.inside"],
    "against": {"tuned": "control"},
}  # fmt: skip


def record(model, replicate, sample, case, metric, name, value, explainer="", role="model"):
    return Record(
        "b",
        model,
        "captioner",
        replicate,
        explainer,
        role,
        sample,
        f"{sample}.{case}",
        "x",
        metric,
        name,
        value,
    )


@pytest.fixture(scope="module")
def result() -> Result:
    """40 photographs, three seeds; the tuned model scores 0.1 more and says other words, of other numbers."""
    chance = np.random.default_rng(0)
    rows = []
    base = chance.normal(size=40)
    for model, gain in (("tuned", 0.1), ("control", 0.0)):
        for seed in range(3):
            for k in range(40):
                s, noise = f"s{k:02d}", 0.05 * chance.normal()
                rows.append(record(model, seed, s, "written", "quality", "score", base[k] + gain + noise))
                rows.append(record(model, seed, s, "written", "quality", "errors", base[k] + 5 * noise))
                for w in range(int(chance.integers(1, 4))):
                    more = (f"{model}{w}", "map")
                    rows.append(record(model, seed, s, *more, "inside", 0.5 + 0.01 * w, "lrp", "method"))
                    rows.append(record(model, seed, s, *more, "other", 0.5, "lrp", "method"))
    return Result("b", rows, [], RUN, Path())


def test_differences_and_what_may_be_said(result):
    found = {(one.column, one.explainer): one for one in versus.pairs(summarise(result))}
    assert list(found) == [("quality.score", ""), ("quality.errors", ""), ("map.inside", "lrp")]
    for (column, explainer), one in found.items():
        means = [
            [
                np.mean([r.value for r in result.records if (r.model, r.replicate, r.column, r.explainer) == (m, k, column, explainer)])
                for k in range(3)
            ]
            for m in ("tuned", "control")
        ]  # fmt: skip
        assert one.gap.difference == pytest.approx(np.mean(means[0]) - np.mean(means[1]), abs=1e-12)
        assert one.gap.interval.low <= one.gap.difference <= one.gap.interval.high
    score, errors = found["quality.score", ""], found["quality.errors", ""]
    # the photographs differ by far more than the models: only a paired interval can tell
    assert score.gap.interval.high - score.gap.interval.low < 0.1
    assert (score.verdict, errors.verdict) == ("better", "cannot be told apart")
    assert errors.sign == -1
    assert found["map.inside", "lrp"].gap.trials > 0  # different words: no case is common


def test_the_other_way_round_is_worse(result):
    turned = Result("b", result.records, [], {**RUN, "against": {"control": "tuned"}}, Path())
    (score, *_) = versus.pairs(summarise(turned))
    assert (score.verdict, score.difference[0]) == ("worse", "-")


def test_it_is_told_in_the_tables_and_only_where_asked(result, tmp_path):
    told = tables.markdown(summarise(result))
    assert "| tuned | control | quality.score | – | +0.1" in told
    assert "One model against another" not in tables.markdown(
        summarise(Result("b", result.records, [], {**RUN, "against": {}}, Path()))
    )


def test_the_page_tells_it_first(result):
    run = {**RUN, "headline": ["quality.score", "map.inside"]}
    page = report.html(summarise(Result("b", result.records, [], run, Path())))
    (line,) = versus.told(
        versus.pairs(summarise(Result("b", result.records, [], run, Path()))), run["headline"]
    )
    assert line.startswith("tuned against control: quality.score +0.1")
    assert line.endswith(", better.")
    assert 0 < page.index("tuned against control: quality.score +0.1") < page.index("Every number")


def test_a_spec_names_models_that_it_has(tmp_path):
    text = """
title = "x"
dataset = { use = "scenes", sample = 2 }
models = ["small_captioner"]
explainers = ["random"]
metrics = ["chair"]
[against]
small_captioner = "small_captioner_mm"
"""
    (tmp_path / "one.toml").write_text(text)
    with pytest.raises(Refused, match="no model 'small_captioner_mm'; did you mean 'small_captioner'"):
        read(str(tmp_path / "one.toml"), tmp_path)
    (tmp_path / "one.toml").write_text(text.replace("small_captioner_mm", "small_captioner"))
    assert read(str(tmp_path / "one.toml"), tmp_path).against == {"small_captioner": "small_captioner"}
