"""The check against frozen numbers: what fails, what is told, and what is said to have changed."""

from __future__ import annotations

import copy
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from heatproof import regress, tables
from heatproof.records import read_result

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic.py"))))
SRG = {"deletion": synthetic.MEASURES["deletion"][:1]}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return synthetic.make(
        tmp_path_factory.mktemp("results"),
        models={"small_cnn": "classifier"},
        methods={"lrp": 0.4, "gradcam": 0.3, "attention": 0.2},
        controls={"random": 0.0},
        measures=SRG,
        unsuited=(("small_cnn", "attention"),),
    )


def moved(result, by, explainer="lrp", *, key="changed", where=lambda r: True):
    """The result with the values of one explainer moved, under new keys unless told otherwise."""

    def move(r):
        if r.explainer != explainer or r.value is None or not where(r):
            return r
        return replace(r, value=r.value + by, key=r.key + key)

    return replace(result, records=[move(r) for r in result.records])


def changed(result, **parts):
    run = copy.deepcopy(dict(result.run))
    for path, value in parts.items():
        *way, last = path.split("__")
        place = run
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        place[last] = value
    return replace(result, run=run)


def test_the_same_numbers_pass(frozen):
    verdict = regress.compare(frozen, frozen)
    assert verdict.exit_code == 0
    assert verdict.lines == ["4 cells compared: 0 failed, 0 told"]


def test_files_read_back_pass(frozen, tmp_path):
    synthetic.save(replace(frozen, folder=tmp_path))
    assert regress.compare(read_result(tmp_path, "synthetic"), frozen).lines[-1].endswith("0 failed, 0 told")


@pytest.mark.parametrize("by", [-0.014, 0.014])
def test_a_move_beyond_the_tolerance_fails_in_both_directions(frozen, by):
    fresh = changed(moved(frozen, by), explainers__0__source="other")
    verdict = regress.compare(frozen, fresh)
    assert verdict.exit_code == 1
    old = np.mean([r.value for r in frozen.records if r.explainer == "lrp"])
    sign = "-" if by < 0 else r"\+"
    assert re.fullmatch(
        rf"lrp / deletion\.srg: {old:.3f} -> {old + by:.3f} \({sign}0\.014 \[{sign}0\.014, {sign}0\.014\], n=48\) "
        r"on small_cnn; tolerance 0\.005; changed: source of lrp",
        verdict.lines[0],
    )
    assert verdict.lines[1:] == ["4 cells compared: 1 failed, 0 told"]


def test_a_move_inside_the_tolerance_is_told(frozen):
    verdict = regress.compare(frozen, moved(frozen, 0.004))
    assert verdict.exit_code == 0
    assert verdict.lines[0].startswith("told: lrp / deletion.srg: 0.")
    assert verdict.lines[-1] == "4 cells compared: 0 failed, 1 told"


def test_moves_that_cancel_are_told_too(frozen):
    up = moved(frozen, 0.1, where=lambda r: r.case == "im000-0")
    both = moved(up, -0.1, where=lambda r: r.case == "im001-0")
    verdict = regress.compare(frozen, both)
    assert verdict.exit_code == 0
    assert "1 told" in verdict.lines[-1]


def test_the_same_key_with_another_number_fails_whatever_the_tolerance(frozen):
    verdict = regress.compare(frozen, moved(frozen, 1e-9, key="", where=lambda r: r.case == "im003-1"))
    assert verdict.exit_code == 1
    assert verdict.lines[0].endswith(
        "same key, another number: not deterministic (1 of 48 cases, first im003-1)"
    )


def test_on_another_kind_of_processor_the_tolerance_decides_over_the_last_bits(frozen):
    here = changed(moved(frozen, 1e-9, key=""), machine={"device": "cpu", "processor": "another, AVX2"})
    verdict = regress.compare(frozen, here)
    assert verdict.exit_code == 0
    assert "processor" in verdict.lines[0]
    assert regress.compare(frozen, moved(here, 1.0, key="")).exit_code == 1


def test_without_a_tolerance_only_the_last_bits_may_move(frozen):
    strict = changed(frozen, tolerances={})
    assert regress.compare(strict, moved(strict, 0.9e-5)).exit_code == 0
    assert regress.compare(strict, moved(strict, 1.1e-5)).exit_code == 1


def test_the_fresh_spec_states_the_tolerance(frozen):
    assert (
        regress.compare(frozen, changed(moved(frozen, 0.014), tolerances={"deletion.srg": 0.02})).exit_code
        == 0
    )


def test_missing_cells_fail_and_new_ones_are_told(frozen):
    less = replace(frozen, records=[r for r in frozen.records if r.explainer != "gradcam"])
    verdict = regress.compare(frozen, less)
    assert verdict.exit_code == 1
    assert verdict.lines[0] == "gradcam / deletion.srg on small_cnn: frozen, but not in this run"
    verdict = regress.compare(less, frozen)
    assert verdict.exit_code == 0
    assert verdict.lines[0] == "told: gradcam / deletion.srg on small_cnn: new, nothing frozen yet"


def test_other_cases_fail_and_are_named(frozen):
    less = replace(frozen, records=[r for r in frozen.records if (r.explainer, r.case) != ("lrp", "im002-0")])
    verdict = regress.compare(frozen, less)
    assert verdict.exit_code == 1
    assert "lrp / deletion.srg on small_cnn: 1 case missing: im002-0" in verdict.lines[0]
    assert "1 case new: im002-0" in regress.compare(less, frozen).lines[0]


def test_a_value_that_becomes_undefined_fails(frozen):
    gone = [
        replace(r, value=None, status="undefined", reason="constant map")
        if (r.explainer, r.case) == ("lrp", "im002-0")
        else r
        for r in frozen.records
    ]
    verdict = regress.compare(frozen, replace(frozen, records=gone))
    assert verdict.exit_code == 1
    assert "value -> undefined in 1 of 48 cases, first im002-0 (constant map)" in verdict.lines[0]


def test_another_dash_is_a_change_of_status(frozen):
    suited = [
        replace(r, case="im000-0", sample="im000", status="value", value=0.1, reason="")
        if r.status == "unsuited"
        else r
        for r in frozen.records
    ]
    verdict = regress.compare(frozen, replace(frozen, records=suited))
    assert verdict.exit_code == 1
    assert "1 case missing: unsuited; 1 case new: im000-0" in verdict.lines[0]


def test_only_what_can_have_moved_the_cell_is_named(frozen):
    fresh = changed(
        moved(frozen, 0.1),
        models__0__hash="other",
        explainers__1__source="somebody else's",
        metrics__0__settings={"steps": 8, "baseline": "mean"},
        dataset__settings={"split": "val", "sample": 24},
        seed=1,
        machine__torch="2.14.0",
        machine__python="3.12",
    )
    told = regress.compare(frozen, fresh).lines[0].partition("changed: ")[2]
    assert told == (
        "weights of small_cnn, settings of deletion (steps: 7 -> 8), data scenes (split: test -> val), "
        "seed 0 -> 1, torch 2.13.0 -> 2.14.0"
    )
    assert regress.compare(frozen, moved(frozen, 0.1)).lines[0].endswith("nothing named in run.json changed")


def test_a_pooled_column_is_reduced_as_declared(tmp_path):
    pooled = {"localization": [m for m in synthetic.MEASURES["localization"] if m["name"] == "pooled"]}
    made = synthetic.make(
        tmp_path, models={"m": "classifier"}, measures=pooled, headline=["localization.pooled"]
    )

    def heavier(r):
        if r.explainer != "lrp":
            return r
        parts = {"num": r.parts["num"] + 0.02 * r.parts["den"], "den": r.parts["den"]}
        return replace(r, parts=parts, value=parts["num"] / parts["den"], key="new")

    verdict = regress.compare(made, replace(made, records=[heavier(r) for r in made.records]))
    assert "(+0.020 [+0.020, +0.020], n=48)" in verdict.lines[0]


# ---------------------------------------------------------------- freezing


def test_freezing_keeps_the_numbers_that_it_supersedes(frozen):
    first = regress.freeze(frozen, "first")
    assert first.run["history"] == [{"date": frozen.run["made"], "reason": "first"}]
    fresh = changed(moved(frozen, 0.1), made="2026-05-06T00:00:00+00:00")
    second = regress.freeze(fresh, "  the tie rule was wrong ", first)
    entry = second.run["history"][1]
    assert second.run["history"][0] == first.run["history"][0]
    assert (entry["date"], entry["reason"]) == ("2026-05-06T00:00:00+00:00", "the tie rule was wrong")
    old = entry["superseded"]
    assert (old["made"], old["commit"]) == (frozen.run["made"], "0123456789abcdef")
    values = [r.value for r in frozen.records if r.explainer == "lrp"]
    assert old["numbers"]["small_cnn"]["lrp"]["deletion.srg"] == pytest.approx(np.mean(values))
    assert old["numbers"]["small_cnn"]["attention"]["deletion.srg"] is None
    assert second.records is fresh.records
    assert "history" not in fresh.run
    assert tables.markdown(second) == tables.markdown(fresh)


def test_freezing_without_a_reason_is_refused(frozen):
    with pytest.raises(ValueError, match="needs a reason"):
        regress.freeze(frozen, "  ")
