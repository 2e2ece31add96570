"""The lie detector's questions, on columns whose answers are written out by hand; its exam's marks; the marks in tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from heatproof import detector, tables
from heatproof.exam import Exam
from heatproof.records import Record, Result
from heatproof.statistics import Comparison, Interval
from heatproof.summary import Block, Cell, Column, summarise

METHODS = ("a", "b", "c")


def gap(difference, p):
    return Comparison(difference, Interval(), p, 30, 30)


def column(values, *, better="higher", measures="faithfulness", gaps=(), copies=()):
    """A column of methods a, b, c and controls; ``gaps``: name -> (leader minus it, p); ``copies``: likewise by kind."""
    gaps, copies = dict(gaps), dict(copies)
    cells = {}
    for name, value in values.items():
        told = gaps.get(name)
        own = {kind: gap(*found) for kind, found in copies.get(name, {}).items()}
        cells[name] = Cell(
            value,
            value - 0.1,
            value + 0.1,
            30,
            30,
            gap=gap(*told) if told else None,
            p=told and told[1],
            rivals=own,
        )
    blind = tuple(n for n in values if n in ("random", "centre", "edges"))
    return Column(("m", "v"), {"better": better, "measures": measures}, cells, METHODS, blind)


CLEAR = {"a": 3.0, "b": 2.5, "c": 2.0, "random": 0.0}
FAR = {"b": (0.5, 0.3), "c": (1.0, 0.2), "random": (3.0, 1e-6)}
TELLS = {m: {"shuffled": (1.0, 1e-4), "blurred": (0.1, 0.4)} for m in METHODS}


def test_a_column_in_which_all_is_as_it_should_be_has_no_fault():
    assert detector.faults(column(CLEAR, gaps=FAR, copies=TELLS)) == []


def test_a_blind_control_as_good_as_the_best_method_is_a_fault():
    found = detector.faults(column(CLEAR | {"random": 2.4}, gaps=FAR | {"random": (0.6, 0.2)}, copies=TELLS))
    assert found == ["random not significantly worse than a"]
    ahead = detector.faults(column(CLEAR | {"random": 2.9}, gaps=FAR | {"random": (0.1, 0.9)}, copies=TELLS))
    assert ahead == ["random not significantly worse than a; random is ahead of 2 of 3 methods"]


def test_random_maps_must_lose_to_the_typical_method_too():
    """A column may tell its best method from noise and no other."""
    for gap_, why in (((0.4, 0.2), True), ((-0.4, 1e-4), True), ((0.4, 1e-4), False)):
        found = detector.faults(column(CLEAR, gaps=FAR, copies=TELLS | {"b": TELLS["b"] | {"random": gap_}}))
        assert found == ["random maps not significantly worse than the typical method, b"] * why


def test_the_typical_method_is_the_median_one(tmp_path):
    rows = {"a": 5.0, "b": 1.0, "c": 0.5, "random": 0.6}
    records = [
        Record(benchmark="x", model="net", family="classifier", replicate=0, explainer=e,
               role="control" if e == "random" else "method", sample=f"s{i}", case=f"s{i}", about="t", metric="m", name="v",
               value=value + 0.01 * i)
        for i in range(12)
        for e, value in rows.items()
    ]  # fmt: skip
    (block,) = summarise(Result("x", records, [], {}, tmp_path)).blocks
    (found,) = block.columns
    assert {e: set(c.rivals) for e, c in found.cells.items() if c.rivals} == {"b": {"random"}}
    assert detector.faults(found) == []
    worse = [replace(r, value=0.1) if r.explainer == "b" else r for r in records]
    (column_,) = summarise(Result("x", worse, [], {}, tmp_path)).blocks[0].columns
    assert detector.faults(column_) == ["random maps not significantly worse than the typical method, c"]


def test_a_column_of_words_is_held_against_the_true_effects_of_words():
    values = {"a": 3.0, "b": 2.5, "c": 2.0, "random": 0.0}
    told = column(values, gaps=FAR, copies=TELLS)
    said = replace(told, cells={**told.cells, "centre": Cell(None, unsuited="it gives no text relevance")})
    true = [
        Column(("cf", name), {"better": "higher"}, {
            n: Cell(v, v, v, 30, 30) for n, v in zip("abc", numbers, strict=True)} | {"random": Cell(0.0, 0.0, 0.0, 30, 30)},
            METHODS, ("random",))
        for name, numbers in (("spearman", (1.0, 2.0, 3.0)), ("words", (3.0, 2.0, 1.0)))
    ]  # fmt: skip
    run = [{"name": "cf", "use": "counterfactual"}]
    assert judged(said, *true, run=run)[0].truth == pytest.approx(1.0)
    assert judged(told, *true, run=run)[0].truth == pytest.approx(0.2)  # 1 - 6 * 8 / (4 * 15)


def test_a_metric_that_cannot_tell_a_map_from_its_pieces_is_suspect():
    copies = TELLS | {"a": {"shuffled": (0.1, 0.6)}}
    (found,) = detector.faults(column(CLEAR, gaps=FAR, copies=copies))
    assert found == "does not tell a from its own map shuffled; it does in 2 of 3 methods"
    worse = TELLS | {"a": {"shuffled": (-1.0, 1e-4)}}  # the pieces significantly better than the map
    assert "does not tell a" in detector.faults(column(CLEAR, gaps=FAR, copies=worse))[0]


def test_blur_must_pay_most_methods_significantly():
    paid = {m: {"shuffled": (1.0, 1e-4), "blurred": (-0.3, 1e-4)} for m in METHODS}
    assert detector.faults(column(CLEAR, gaps=FAR, copies=paid)) == [
        "pays for blur: a, b and c are better blurred, of 3 tried"
    ]
    one = TELLS | {"a": paid["a"]}
    assert detector.faults(column(CLEAR, gaps=FAR, copies=one)) == []
    doubtful = {m: {"blurred": (-0.3, 0.03)} for m in METHODS}  # each alone, not after Holm over three
    assert detector.faults(column(CLEAR, gaps=FAR, copies=doubtful)) == []


def test_lower_is_better_turns_every_question():
    values = {"a": 1.0, "b": 1.5, "c": 2.0, "random": 3.0}
    gaps = {"b": (-0.5, 0.3), "c": (-1.0, 0.2), "random": (-2.0, 1e-6)}
    tells = {m: {"shuffled": (-1.0, 1e-4), "blurred": (-0.1, 1e-4)} for m in METHODS}
    assert detector.faults(column(values, better="lower", gaps=gaps, copies=tells)) == []
    paid = {m: {"shuffled": (-1.0, 1e-4), "blurred": (0.1, 1e-4)} for m in METHODS}
    assert "pays for blur" in detector.faults(column(values, better="lower", gaps=gaps, copies=paid))[0]


def test_the_evidence_must_win_where_it_is_what_is_asked_for():
    values, gaps = CLEAR | {"oracle": 1.0}, FAR | {"oracle": (2.0, 1e-5)}
    found = detector.faults(column(values, measures="plausibility", gaps=gaps, copies=TELLS))
    assert found == ["a, b and c better than the evidence itself"]
    even = values | {"oracle": 3.0}
    assert (
        detector.faults(
            column(even, measures="plausibility", gaps=FAR | {"oracle": (0.0, 1.0)}, copies=TELLS)
        )
        == []
    )
    # ahead on cases that the mask has no value for is not ahead
    easier = column(
        values | {"oracle": 2.9}, measures="plausibility", gaps=FAR | {"oracle": (-0.1, 0.5)}, copies=TELLS
    )
    assert detector.faults(easier) == []
    assert (
        detector.faults(column(values, gaps=gaps, copies=TELLS)) == []
    )  # of faithfulness it is a strong guess


def judged(*columns, run=None):
    block = Block("net", "classifier", 30, 30, 1, columns, 1, METHODS, ("random",), (), {})
    summary = summarise(Result("x", [], [], {"metrics": run or []}, None))
    return [detector.judge(replace(summary, blocks=(block,)), block, c) for c in columns]


def test_verdicts_are_never_sound_and_never_wrong():
    clear = column(CLEAR, gaps=FAR, copies=TELLS)
    suspect = column(CLEAR | {"random": 2.9}, gaps=FAR | {"random": (0.1, 0.9)}, copies=TELLS)
    alone = column({m: CLEAR[m] for m in METHODS}, gaps={k: FAR[k] for k in ("b", "c")})
    said = [v.says for v in judged(clear, suspect, alone)]
    assert said == ["no fault found", "suspect", "cannot tell"]
    few = replace(
        clear,
        cells={m: replace(c, gap=c.gap and replace(c.gap, photographs=4)) for m, c in clear.cells.items()},
    )
    (verdict,) = judged(few)
    assert (verdict.says, verdict.reasons) == (
        "cannot tell",
        ("so few photographs that no difference could be significant",),
    )


def test_the_truth_beside_a_verdict_is_spearmans_over_all_but_the_mask():
    values = {"a": 3.0, "b": 2.5, "c": 2.0, "random": 0.0, "oracle": 9.0}
    ours = column(values, gaps=FAR, copies=TELLS)
    true = Column(("cf", "spearman"), {"better": "higher"}, {
        n: Cell(v, v, v, 30, 30) for n, v in {"a": 0.5, "b": 0.9, "c": 0.2, "random": 0.0, "oracle": 0.1}.items()
    }, METHODS, ("random",))  # fmt: skip
    first, second = judged(ours, true, run=[{"name": "cf", "use": "counterfactual"}])
    assert (first.truth, first.explainers) == (pytest.approx(0.8), 4)  # 1 - 6 * 2 / (4 * 15)
    assert math.isnan(second.truth)  # not with itself
    assert math.isnan(judged(ours)[0].truth)


# ---------------------------------------------------------------- the exam

SHEET = """model,column,verdict,reasons,truth,explainers
n,sound-mass.mass,no fault found,,,5
n,sound-mass.energy,suspect,x,,5
n,sound-srg.srg,suspect,x,,5
n,sound-few.v,cannot tell,x,,5
n,faulty-deaf.score,suspect,x,,5
m,faulty-deaf.score,no fault found,,,5
n,counterfactual.spearman,suspect,x,,5
"""


def test_an_exam_counts_each_metrics_first_column_on_each_model():
    exam = Exam.read(SHEET)
    assert exam.rate("sound-") == (1, 2)  # the one that could not tell is no answer
    assert exam.rate("faulty-") == (1, 2)
    (line,) = exam.told()
    assert "4 metrics on 2 models" in line
    assert "calls suspect 1 of 2 planted faults [0.09, 0.91]" in line
    assert Exam.read("model,column,verdict\nn,deletion.srg,suspect\n").told() == [
        "The detector has sat no exam here: heatproof audit-metrics exam --freeze"
    ]


def test_the_frozen_exam_has_eight_of_each_and_its_marks_are_told(tmp_path):
    exam = Exam.frozen(tmp_path)  # the house's own
    metrics = {m for _, m, _ in exam.marked}
    assert sum(m.startswith("sound-") for m in metrics) >= 8
    assert sum(m.startswith("faulty-") for m in metrics) >= 8
    (hits, of), (alarms, sound) = exam.rate("faulty-"), exam.rate("sound-")
    assert hits / of > 0.6
    assert alarms / sound < 0.1
    assert f"{hits} of {of} planted faults" in exam.told()[0]


# ---------------------------------------------------------------- the mark in every table


def test_a_suspect_column_is_marked_with_its_reason_in_every_table(tmp_path):
    records = [
        Record(benchmark="x", model="net", family="classifier", replicate=0, explainer=e, role=role, sample=f"s{i}",
               case=f"s{i}", about="t", metric="m", name="v", value=value + 0.01 * i)
        for i in range(12)
        for e, role, value in (
            ("a", "method", 1.0), ("b", "method", 0.8), ("random", "control", 0.0), ("blurred(a)", "control", 2.0),
            ("blurred(b)", "control", 2.0),
        )
    ]  # fmt: skip
    run = {
        "title": "t", "metrics": [{"name": "m", "use": "m", "measures": [{"name": "v", "better": "higher"}]}],
        "explainers": [{"name": n, "use": u} for n, u in (
            ("a", "a"), ("b", "b"), ("random", "random"), ("blurred(a)", "blurred"), ("blurred(b)", "blurred"))],
    }  # fmt: skip
    summary = summarise(Result("x", records, [], run, tmp_path))
    why = "pays for blur: a and b are better blurred, of 2 tried"
    assert f"⚑ m.v: {why}" in tables.markdown(summary)
    assert "m.v ↑ ⚑" in tables.markdown(summary)
    assert f"⚑ m.v: {why}" in tables.terminal(summary)
    assert why in tables.latex(summary)
    assert f",{why!r}".replace("'", '"') in tables.sheet(summary)


def test_the_page_on_the_audit_has_the_frozen_exam(tmp_path):
    """To renew: what stands between the markers is ``Exam.frozen(...).told()`` and ``.table()``."""
    exam = Exam.frozen(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    held = page.split("<!-- exam -->\n")[1].split("<!-- end -->")[0]
    assert held == "\n".join([*exam.told(), "", *exam.table(), ""])
