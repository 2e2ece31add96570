"""The numbers that are printed, in all their forms: right, the same everywhere, and never rosier than they are."""

from __future__ import annotations

import csv
import io
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from heatproof import tables, words
from heatproof.records import read_result
from heatproof.summary import summarise

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic.py"))))
ONE = {"small_cnn": "classifier"}
SRG = {"deletion": [synthetic.MEASURES["deletion"][0]]}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return synthetic.make(folder, undefined=0.01, unsuited=(("small_cnn", "attention"),))


def sheet(result):
    return list(csv.DictReader(io.StringIO(tables.sheet(result))))


def column(result, name="deletion.srg", model=0):
    return next(c for c in summarise(result).blocks[model].columns if c.name == name)


# ---------------------------------------------------------------- the numbers


def test_a_cell_is_the_mean_of_its_defined_rows(result):
    for row in sheet(result):
        records = [
            r
            for r in result.records
            if (r.model, r.explainer, r.column) == (row["model"], row["explainer"], row["column"])
        ]
        values = [r.value for r in records if r.value is not None]
        if row["reduce"] == "mean" and values:
            assert float(row["value"]) == pytest.approx(np.mean(values), rel=1e-5)
            assert float(row["low"]) < float(row["value"]) < float(row["high"])
            assert int(row["cases"]) == len(values)
            assert int(row["undefined"]) == sum(r.status == "undefined" for r in records)
            assert int(row["images"]) == len({r.sample for r in records if r.value is not None})


def test_headline_columns_stand_first_and_rows_in_rank_order(result):
    block = summarise(result).blocks[0]
    assert [c.name for c in block.columns[:2]] == ["deletion.srg", "localization.mass"]
    assert block.methods[-1] == "attention"  # has no value
    values = [block.columns[0].cells[m].value for m in block.methods[:-1]]
    assert values == sorted(values, reverse=True)


def test_lower_is_better_ranks_the_other_way(tmp_path):
    lower = synthetic.make(
        tmp_path,
        models=ONE,
        measures={"deletion": [synthetic.MEASURES["deletion"][1]]},
        headline=["deletion.deletion"],
    )
    found = column(lower, "deletion.deletion")
    assert found.leader == "attention"
    assert found.suspect  # the controls' values are lower still


def test_ties_and_the_best_are_marked_in_every_format(tmp_path):
    twin = synthetic.make(
        tmp_path, models=ONE, methods={"a": 0.5, "b": 0.5, "c": 0.1}, controls={"random": 0.0}, measures=SRG
    )
    found = column(twin)
    assert {found.leader, *found.tied} == {"a", "b"}
    marks = {row["explainer"]: row["mark"] for row in sheet(twin)}
    other = found.tied[0]
    assert marks == {found.leader: "best", other: "tied", "c": "", "random": ""}
    assert f"| 1 | {found.leader} | **{found.text(found.cells[found.leader].value)}**" in tables.markdown(
        twin
    )
    assert re.search(rf"\| {other} \| {found.text(found.cells[other].value)} ≈", tables.markdown(twin))
    assert rf"{found.leader} & \textbf{{" in tables.latex(twin)
    assert re.search(rf"{other} +[\d.]+≈", tables.terminal(twin))


def test_dashes_carry_their_reason(result):
    page = tables.markdown(result)
    assert "| 5 | attention | – (a) | – (a) |" in page
    assert "(a) attention: small_cnn has no attention" in page
    assert "(a) attention: small_cnn has no attention" in tables.terminal(result)
    row = next(r for r in sheet(result) if (r["model"], r["explainer"]) == ("small_cnn", "attention"))
    assert (row["value"], row["why"]) == ("", "small_cnn has no attention")


def test_counts_name_what_is_undefined_and_failed(tmp_path):
    made = synthetic.make(tmp_path, models=ONE, measures=SRG, images=10, asked=2)
    rows = list(made.records)
    rows[0] = replace(rows[0], value=None, status="undefined", reason="empty mask")
    rows[1] = replace(rows[1], value=None, status="failed", reason="RuntimeError: x")
    made = replace(made, records=rows)
    text = words.counts(summarise(made))
    assert text == "10 images, 20 cases, 1 of 240 values undefined, 1 failed"
    assert "1 undefined, 1 failed" in tables.markdown(made)


def test_much_undefined_is_ranked_a_second_time(tmp_path):
    made = synthetic.make(
        tmp_path, models=ONE, methods={"shy": 0.6, "bold": 0.5}, controls={"random": 0.0}, measures=SRG
    )
    few = [
        replace(r, value=None, status="undefined", reason="constant map")
        if r.explainer == "shy" and r.sample > "im008"
        else r
        for r in made.records
    ]
    made = replace(made, records=few)
    found = column(made)
    assert found.twice
    assert found.leader == "shy"
    assert found.ranked(found.methods, worst=True) == ["bold", "shy"]
    low = min(r.value for r in few if r.value is not None)
    cell = found.cells["shy"]
    assert cell.worst == pytest.approx((cell.value * 18 + low * 30) / 48)
    assert "counted as worst it puts bold first" in words.sentence(summarise(made).blocks[0])
    assert "with undefined as worst the order is bold, shy" in tables.markdown(made)


def test_little_undefined_is_not(result):
    assert not column(result).twice


# ---------------------------------------------------------------- controls (law 6)


def test_a_metric_that_a_blind_control_wins_is_suspect_and_said_first(tmp_path):
    made = synthetic.make(
        tmp_path,
        models={"good": "classifier", "bad": "dual"},
        methods={"lrp": 0.4, "gradcam": 0.2},
        controls={"random": 0.0, "centre": 0.1},
        measures=SRG,
    )
    rows = [
        replace(r, value=r.value + 0.4) if (r.model, r.explainer) == ("bad", "centre") else r
        for r in made.records
    ]
    made = replace(made, records=rows)
    assert column(made, model=0).suspect == []
    assert column(made, model=1).suspect == ["centre"]
    first, second = words.sentences(summarise(made))
    ahead = r"On bad, centre, a control that never saw the model, is ahead of every method in deletion\.srg \(0\.\d+ \["
    assert re.match(ahead, first)
    assert re.match(
        r"On good, lrp leads deletion\.srg \(0\.\d+ \[.*\]\); the best control, centre, reaches", second
    )
    overall = words.headline(summarise(made))
    assert overall.index("no method is significantly better") < overall.index("lrp leads on good")
    assert "⚑ deletion.srg: centre not significantly worse than lrp" in tables.markdown(made)


def test_oracle_and_blurred_only_annotate(tmp_path):
    made = synthetic.make(
        tmp_path,
        models=ONE,
        methods={"lrp": 0.2},
        controls={"random": 0.0, "oracle": 0.9, "blurred-lrp": 0.9},
        measures=SRG,
    )
    found = column(made)
    assert found.blind == ("random",)
    assert (found.suspect, found.leader) == ([], "lrp")
    lines = tables.grids(summarise(made), summarise(made).blocks[0])[0].lines
    assert [(line.name, line.group) for line in lines[1:]] == [
        ("random", "blind"),
        ("blurred-lrp", "knowing"),
        ("oracle", "knowing"),
    ]


def test_few_photographs_cannot_clear_a_metric(tmp_path):
    made = synthetic.make(tmp_path, models=ONE, images=3, measures=SRG, noise=0.001)
    assert set(column(made).suspect) == set(synthetic.CONTROLS)  # p is at least 2/8


@pytest.mark.parametrize("seed", range(12))
def test_the_sentence_is_never_rosier_than_the_table(tmp_path, seed):
    chance = np.random.default_rng(seed)
    made = synthetic.make(
        tmp_path,
        models=ONE,
        methods={m: float(chance.uniform(0, 0.3)) for m in ("lrp", "gradcam", "ig")},
        controls={c: float(chance.uniform(0, 0.3)) for c in ("random", "centre")},
        measures=SRG,
        images=14,
        seed=seed,
        curves=False,
    )
    rows = {r["explainer"]: r for r in sheet(made)}
    best = max(("lrp", "gradcam", "ig"), key=lambda m: float(rows[m]["value"]))

    def behind(name):
        return float(rows[name]["p_holm"]) < 0.05 and float(rows[name]["difference_to_best"]) > 0

    text = words.sentence(summarise(made).blocks[0])
    clear = all(behind(c) for c in ("random", "centre"))
    others = [m for m in ("lrp", "gradcam", "ig") if m != best and not behind(m)]
    assert ("a control that never saw the model" in text) is not clear
    assert (" lead" in text) is clear
    if clear:
        assert f"{best} " in text
        assert ("cannot be told apart" in text) is bool(others)
        assert all(m in text for m in others)


def test_too_few_photographs_are_said(tmp_path):
    made = synthetic.make(tmp_path, models=ONE, images=7, measures=SRG, noise=0.01)
    assert column(made).powerless
    assert "7 photographs are too few for any difference to be significant" in words.sentence(
        summarise(made).blocks[0]
    )
    assert not column(synthetic.make(tmp_path, models=ONE, images=24, measures=SRG)).powerless


def test_a_column_that_suits_no_explainer_is_a_line_not_a_column_of_dashes(tmp_path):
    made = synthetic.make(tmp_path, models=ONE)
    gone = ("localization", "best")

    def unsuit(r):
        if (r.metric, r.name) != gone:
            return r
        return replace(r, sample="", case="", value=None, status="unsuited", reason="reads no text")

    made = replace(made, records=[unsuit(r) for r in made.records])
    block = summarise(made).blocks[0]
    assert block.absent == (("localization.best", "reads no text"),)
    assert "localization.best" not in [c.name for c in block.columns]
    assert "- localization.best: – reads no text" in tables.markdown(made)


# ---------------------------------------------------------------- forms


def test_equal_results_are_equal_bytes_whatever_the_order_and_the_clock(result, tmp_path):
    shuffled = list(result.records)
    np.random.default_rng(0).shuffle(shuffled)
    later = {
        **result.run,
        "made": "2031-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "git": {"commit": "f", "dirty": True},
    }
    other = replace(result, records=shuffled, run=later)
    first, second = tables.write(result, tmp_path / "a"), tables.write(other, tmp_path / "b")
    assert [p.name for p in first] == ["table.md", "table.csv", "table.tex"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_result_read_back_gives_the_same_tables(result, tmp_path):
    moved = replace(result, folder=tmp_path)
    synthetic.save(moved)
    assert tables.markdown(read_result(tmp_path, "synthetic")) == tables.markdown(result)


def test_every_latex_row_has_as_many_cells_as_its_table(result):
    page = tables.latex(result)
    assert page.count(r"\begin{table}") == page.count(r"\end{table}") == 6
    for spec, body in re.findall(r"\\begin{tabular}{(l+)}(.*?)\\end{tabular}", page, re.S):
        for line in body.strip().splitlines():
            if line != r"\hline":
                assert line.count(" & ") + 1 == len(spec), line
    assert not re.search(r"(?<!\\)[_%#]", re.sub(r"\\label{.*}|^%.*", "", page, flags=re.M))


def test_markdown_rows_are_as_wide_as_their_heads(result):
    for block in re.findall(r"(?:^\|.*\|$\n)+", tables.markdown(result), re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_badge_says_what_may_be_claimed(result):
    assert words.badge({"kind": "instrument"})[1].endswith("ranks no method")
    assert words.badge({"kind": "replay", "stand_in": True}) == ("replay, stand-in", words.STAND_IN)
    assert "**instrument**: generated or planted images" in tables.markdown(result)


def test_metrics_of_the_model_itself_stand_beside_the_table(tmp_path):
    made = synthetic.make(tmp_path, models=ONE, measures=SRG)
    quality = [
        replace(r, role="model", explainer="", metric="quality", name="accuracy", value=1.0)
        for r in made.records
        if r.explainer == "lrp"
    ]
    made = replace(made, records=[*made.records, *quality])
    page = tables.markdown(made)
    assert "## The models themselves: quality" in page
    assert f"| 1 | {made.records[0].model} | **1.000** [1.000, 1.000] |" in page
    assert (
        summarise(made).blocks[0].methods == summarise(replace(made, records=made.records)).blocks[0].methods
    )


def test_an_unknown_reducer_is_named(tmp_path):
    odd = {"deletion": [{**synthetic.MEASURES["deletion"][0], "reduce": "median"}]}
    with pytest.raises(
        ValueError,
        match=r"deletion\.srg: no reducer is named 'median'; there are \['auc_extremes', 'auc_of_last', 'bleu', 'class_mean', 'max_by', 'mean'",
    ):
        summarise(synthetic.make(tmp_path, models=ONE, measures=odd))


# ---------------------------------------------------------------- published numbers (law 11)

PUBLISHED = [
    {
        "source": "somebody's table 1",
        "whose": "follow-up",
        "compare": "corrected",
        "n": 48,
        "columns": ["deletion.srg", "localization.mass"],
        "rows": {"lrp": [0.4, 0.9], "absent": [0.1, 0.2]},
        "sd": {"lrp": [0.01, 0.0]},
    }
]


def verdicts(tmp_path, **more):
    made = synthetic.make(tmp_path, models=ONE, published=PUBLISHED, **more)
    summary = summarise(made)
    assert "published" in tables.markdown(made)
    return {(p.explainer, p.column): p.verdict for p in words.published(summary, summary.blocks[0])}


def test_a_replay_gets_a_verdict(tmp_path):
    found = verdicts(tmp_path, kind="replay")
    assert found["lrp", "deletion.srg"] == "met"
    assert found["lrp", "localization.mass"] == "not met"
    assert found["absent", "deletion.srg"] == "not checked: not measured"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kind": "photographs"}, "kind is photographs"),
        ({"kind": "replay", "stand_in": True}, "a stand-in"),
        ({"kind": "replay", "modes": ["as_released"]}, "published is corrected, measured is as_released"),
        ({"kind": "replay", "images": 5}, "n is 10, published 48"),
    ],
)
def test_nothing_else_does(tmp_path, more, why):
    assert verdicts(tmp_path, **more)["lrp", "deletion.srg"] == f"not checked: {why}"


def test_nothing_here_needs_torch():
    code = "import sys; sys.modules['torch'] = None; import heatproof.report, heatproof.regress"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
