"""The multiverse: rankings under every admissible setting, from maps that are computed once."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from heatproof import Refused, multiverse, stability
from heatproof.progress import Silent
from heatproof.runner import Order, run

TABLES = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=2, max_size=6)
)


@given(TABLES)
def test_ranks_and_concordance_are_the_textbooks(rows):
    values = np.array(rows, float)
    table = stability.ranks(values)
    assert np.array_equal(table, np.stack([stats.rankdata(-row) for row in values]))
    m, n = table.shape
    found = stability.kendall_w(table)
    if all(len(set(row)) == 1 for row in rows):
        assert np.isnan(found)
        return
    # W and Friedman's chi-square, ties and all, are one number: chi2 = m (n - 1) W
    chi = stats.friedmanchisquare(*table.T).statistic if n > 2 else None
    if chi is not None:
        assert found == pytest.approx(chi / (m * (n - 1)), abs=1e-9)
    assert -1e-12 <= found <= 1 + 1e-12


@given(TABLES)
def test_before_is_a_share_of_settings(rows):
    values = np.array(rows, float)
    found = stability.before(values)
    for i, j in itertools.product(range(values.shape[1]), repeat=2):
        slow = np.mean([1.0 if r[i] > r[j] else 0.5 if r[i] == r[j] else 0.0 for r in values])
        assert found[i, j] == pytest.approx(slow)


def cells(table, names=("a", "b", "c")):
    return [
        stability.Cell("net", (("sign", s), ("steps", k)), name, value)
        for (s, k), row in table.items()
        for name, value in zip(names, row, strict=True)
    ]


def test_the_choice_that_turns_the_ranking_is_named_first():
    table = {
        ("abs", 5): (1.0, 2.0, 3.0),
        ("abs", 10): (1.1, 2.1, 3.1),
        ("signed", 5): (3.0, 2.0, 1.0),
        ("signed", 10): (3.1, 2.1, float("nan")),
    }
    (whole,) = stability.gather(cells({k: v for k, v in table.items() if k != ("signed", 10)}), "higher")
    assert whole.sway() == {"sign": 0.0, "steps": 1.0}
    (universe,) = stability.gather(cells(table), "lower")
    assert universe.left_out == ("c",)
    assert universe.explainers == ("a", "b")
    text = "\n".join(stability.told(universe, "deletion.srg"))
    assert "a before b in 50% of 4 settings" in text
    assert "without a value under some setting: c" in text
    assert "what sways it most: sign (W 0.00" in text


@pytest.fixture
def home(world, monkeypatch):
    toml = world / "benchmarks" / "toy.toml"
    lines = toml.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("metrics"))
    stop = next(i for i in range(start, len(lines)) if lines[i].rstrip().endswith("]"))
    kept = [line for line in [*lines[:start], *lines[stop + 1 :]] if not line.startswith(("headline", '"'))]
    toml.write_text("\n".join([*kept, ""]).replace("[tolerances]", ""), encoding="utf-8")
    text = toml.read_text()
    place = text.index("models")
    toml.write_text(
        text[:place]
        + 'metrics = [{ use = "deletion", steps = 3 }]\nheadline = ["deletion.srg"]\n'
        + text[place:]
    )
    path = world / "explainers" / "bright.py"
    count = "\n        with open('asked.txt', 'a') as file:\n            file.write('x' * len(cases))"
    source = path.read_text()
    line = next(part for part in source.splitlines() if "def explain" in part)
    path.write_text(source.replace(line, line + count))
    monkeypatch.chdir(world)
    return world


def test_no_map_is_computed_twice(home):
    order = Order("toy", cwd=home, limit=2)
    result = run(order, Silent)
    assert not result.run["failures"]
    asked = (home / "asked.txt").read_text()
    lines, files = multiverse.run(order, progress=Silent)
    assert (home / "asked.txt").read_text() == asked  # the maps of the run, and no other
    assert any("settings, Kendall's W" in line for line in lines)
    assert all(path.stat().st_size for path in files)
    rows = files[0].read_text().splitlines()
    assert rows[0] == "model,baseline,sign,pool,upsample,output,explainer,deletion.srg"
    models = len(json.loads((home / ".heatproof" / "toy.run.json").read_text())["models"])
    assert 0 < len(rows) - 1 <= models * 144 * len(result.run["explainers"])


def test_the_specs_own_setting_has_the_runs_own_number(home):
    order = Order("toy", cwd=home, limit=2)
    result = run(order, Silent)
    _, files = multiverse.run(order, "deletion.srg", {"steps": (3, 6), "ties": (0, 1)}, Silent)
    rows = [
        dict(zip(("model", "steps", "ties", "explainer", "v"), r.split(","), strict=True))
        for r in files[0].read_text().splitlines()[1:]
    ]
    for row in rows:
        if (row["steps"], row["ties"]) == ("3", "0"):
            own = [
                r.value
                for r in result.records
                if (r.model, r.explainer, r.column) == (row["model"], row["explainer"], "deletion.srg")
            ]
            assert float(row["v"]) == pytest.approx(np.mean(own), abs=1e-12)
    assert {r["steps"] for r in rows} == {"3", "6"}


@pytest.mark.parametrize(
    ("column", "vary", "told"),
    [
        ("deletion.srk", {}, "did you mean 'deletion.srg'"),
        ("deletion.srg", {"sing": ("abs",)}, "did you mean 'sign'"),
        ("deletion.srg", {"steps": ("many",)}, "found 'many', accepted is int"),
        ("deletion.srg", {"baseline": ("mean",)}, "1 admissible settings"),
        ("deletion.srg", {"steps": tuple(range(1, 1200))}, "accepted are up to 1000"),
    ],
)
def test_what_cannot_be_varied_is_named(home, column, vary, told):
    with pytest.raises(Refused, match=told):
        multiverse.run(Order("toy", cwd=home, limit=2), column, vary, Silent)
