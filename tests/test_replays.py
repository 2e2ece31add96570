"""The replay of M2IB's confidence: whole as it stands, and run on its stand-in, which never gets a verdict."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from heatproof import shelf, spec
from heatproof.progress import Silent
from heatproof.runner import Order, run
from heatproof.summary import summarise
from heatproof.variants import moved
from heatproof.words import published

NAME = "papers/m2ib_confidence"
METHODS = ["m2ib", "m2ib (as released)", "nib", "rise", "gradcam", "chefer", "saliency", "fastig"]
CONTROLS = ["random", "centre", "edges", "swapped(m2ib)", "mismatched(m2ib)", "blurred(m2ib)"]
FEW = ("explainers.rise.masks=48", "explainers.rise.text_masks=16")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """The spec as it is, where its results may be written."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "benchmarks" / "papers").mkdir(parents=True)
    shutil.copy(shelf.house() / "benchmarks" / f"{NAME}.toml", folder / "benchmarks" / "papers")
    return folder


@pytest.fixture(scope="module")
def found(workspace):
    return run(Order(NAME, stand_in=True, limit=3, sets=FEW, cwd=workspace), Silent)


def test_the_real_thing_is_read_in_full(workspace):
    asked = spec.read(NAME, workspace, data={"cc": str(workspace)})
    assert (asked.kind, asked.modes) == ("replay", ("as_released", "corrected"))
    assert sorted(p.name for p in asked.explainers) == sorted([*METHODS, *CONTROLS])
    assert asked.dataset.made.sample == 2000
    assert asked.dataset.made.table == str(workspace / "Validation_GCC-1.1.0-Validation.tsv")
    assert asked.models[0].made.name == "openai/clip-vit-base-patch32"
    columns = {f"{m.name}.{v.name}" for m in asked.metrics for v in m.made.measures}
    for table in asked.published:
        assert {"source", "whose", "n", "compare"} <= set(table)
        assert set(table["columns"]) <= columns
        assert set(table["rows"]) <= set(METHODS)
        for numbers in (*table["rows"].values(), *table.get("sd", {}).values()):
            assert len(numbers) == len(table["columns"])


def test_the_stand_in_runs_end_to_end(found):
    assert {r.explainer for r in found.records} == {*METHODS, *CONTROLS}
    values = [r for r in found.records if r.metric == "confidence" and r.explainer in METHODS]
    defined = [r for r in values if r.status == "value"]
    assert not [r for r in found.records if r.status == "failed"]
    assert {r.name for r in defined} == {
        f"{side}_{name}" for side in ("image", "text") for name in ("drop", "increase", "gain")
    }
    assert all(math.isfinite(r.value) and -1e-9 <= r.value <= 200 for r in defined)
    image = {r.explainer for r in defined if r.name == "image_drop"}
    text = {r.explainer for r in defined if r.name == "text_drop"}
    assert image == set(METHODS)
    # where a tower has one block site alone, a layer norm reads it, and gradient times activation is zero there
    assert text == set(METHODS) - {"gradcam"}
    one, other = (
        {(r.sample, r.name): r.value for r in values if r.explainer == name} for name in METHODS[:2]
    )
    assert one != other  # the released map is one update younger


def test_m2ibs_own_evaluation_stands_beside_it_as_released_and_corrected(workspace, found):
    asked = {m.name: m.made for m in spec.read(NAME, workspace, stand_in=True).metrics}
    assert list(asked) == ["confidence", "m2ib-eval (as released)", "m2ib-eval"]
    assert [m.as_released for m in asked.values()] == [False, True, False]
    numbers = {
        name: {
            (r.explainer, r.sample, r.name): r.value
            for r in found.records
            if r.metric == name and r.status == "value"
        }
        for name in asked
    }
    released, corrected = numbers["m2ib-eval (as released)"], numbers["m2ib-eval"]
    for side in ("image", "text"):  # each quirk moves its side
        both = [key for key in set(released) & set(corrected) if key[2] == f"{side}_drop"]
        assert both
        assert any(released[key] != corrected[key] for key in both)
    # the whole map is the same measure whatever becomes of the text
    images = {key: value for key, value in corrected.items() if key[2].startswith("image")}
    assert images == {key: v for key, v in numbers["confidence"].items() if key[2].startswith("image")}
    told = " ".join(moved(summarise(found).blocks[0], found.run))
    assert "m2ib-eval.image_drop as released and corrected" in told


def test_a_stand_in_gets_no_verdict(found):
    summary = summarise(found)
    rows = published(summary, summary.blocks[0])
    assert len(rows) == 7 * 4 + 5 * 3
    assert {row.verdict for row in rows} == {"not checked: a stand-in"}
    assert all(row.measured != "–" for row in rows if row.explainer == "m2ib (as released)")
