"""Rows as text: what is written is what is read, byte for byte, whole or not at all, and without torch."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatproof.records import (
    COLUMNS,
    Curve,
    Record,
    read_curves,
    read_records,
    read_result,
    settled,
    write_curves,
    write_records,
    write_whole,
)

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def record(**changes) -> Record:
    plain = Record(
        "toy", "cnn", "classifier", 0, "ig", "method", "s1", "s1.ball", "ball", "deletion", "srg", 0.1
    )
    return dataclasses.replace(plain, **changes)


@given(
    st.lists(st.tuples(TEXT, TEXT, st.none() | FLOATS, st.dictionaries(TEXT, FLOATS, max_size=3)), max_size=6)
)
def test_every_digit_and_every_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "x.csv"
    written = [
        record(case=f"c{i}", about=about, reason=reason, value=value, parts=parts)
        for i, (about, reason, value, parts) in enumerate(rows)
    ]
    write_records(path, written)
    assert sorted(read_records(path), key=lambda r: r.case) == sorted(written, key=lambda r: r.case)


def test_what_gives_a_metric_nothing_to_read_is_unsuited_to_it_once():
    nothing = [
        record(case=f"c{i}", name=name, value=None, status="undefined", reason="no text relevance", key="k")
        for i in range(3)
        for name in ("text_deletion", "text_srg")
    ]
    found = settled(nothing)
    assert sorted(r.name for r in found) == ["text_deletion", "text_srg"]
    assert {(r.case, r.status, r.reason, r.key) for r in found} == {
        ("", "unsuited", "it gives no text relevance", "")
    }


def test_one_answer_is_enough_to_be_suited():
    rows = [
        record(case="c0", value=None, status="undefined", reason="no image map"),
        record(case="c1"),
        record(case="c2", value=None, status="undefined", reason="NaN or infinity in the map"),
    ]
    assert sorted(settled(rows), key=lambda r: r.case) == rows
    assert [r.status for r in settled(rows[::2])] == ["undefined", "undefined"]


def test_an_unsuited_pair_is_told_once():
    rows = [record(case="", sample="", value=None, status="unsuited", reason="why")] * 3
    assert settled(rows) == rows[:1]


def test_the_order_of_the_rows_does_not_matter_to_the_bytes(tmp_path):
    rows = [record(case=f"c{i}", explainer=e, model=m) for i in range(5) for e in "ab" for m in "xy"]
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert shuffled != rows
    write_records(tmp_path / "a.csv", rows)
    write_records(tmp_path / "b.csv", shuffled)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_undefined_is_an_empty_cell_and_not_zero(tmp_path):
    write_records(tmp_path / "x.csv", [record(value=None, status="undefined", reason="empty mask")])
    head, row = (tmp_path / "x.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["value"] == ""
    (back,) = read_records(tmp_path / "x.csv")
    assert back.value is None
    assert back.column == "deletion.srg"


def test_the_columns_of_another_version_are_refused_with_what_to_type(tmp_path):
    (tmp_path / "x.csv").write_text("model,value\ncnn,1\n")
    with pytest.raises(ValueError, match=r"the columns are \['model', 'value'\].*run the benchmark again"):
        read_records(tmp_path / "x.csv")


def test_curves_come_back(tmp_path):
    curve = Curve(
        "toy", "cnn", 0, "ig", "s1", "s1.ball", "deletion", "morf", (0.0, 0.5, 1.0), (3.25, -1e-9, 0.0)
    )
    write_curves(tmp_path / "x.curves.csv", [dataclasses.replace(curve, case="z"), curve])
    assert read_curves(tmp_path / "x.curves.csv") == [curve, dataclasses.replace(curve, case="z")]
    assert read_curves(tmp_path / "absent.csv") == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    write_whole(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*x.csv'"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_a_missing_result_says_what_there_is_and_what_to_type(tmp_path):
    (tmp_path / "demo.run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"there are \['demo'\]. Type: heatproof run toy"):
        read_result(tmp_path, "toy")


def test_columns_are_the_fields():
    assert ",".join(COLUMNS) == (
        "benchmark,model,family,replicate,explainer,role,sample,case,about,metric,name,value,parts,status,reason,"
        "forwards,backwards,key"
    )
    assert not math.isnan(record().forwards)


NO_TORCH = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "captum"}:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Wall())
"""
TORCH_FREE = ["records", "results", "statistics", "tables", "plots", "report", "regress", "summary", "errors"]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_reads_records_imports_no_torch(name):
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{NO_TORCH}\nimport heatproof.{name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-600:]


def test_the_wall_is_a_wall():
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{NO_TORCH}\nimport heatproof.store"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch is not to be imported here" in done.stderr
