"""Class means, pooled mIoU and pooled precision against loops over repeated rows, and under the bootstrap."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from heatproof import reducers, statistics
from heatproof.records import Record, read_records, write_records
from heatproof.reducers import Numbering, reduce
from heatproof.statistics import compare, estimate

THRESHOLDS = 3


def records(table, explainer="e", replicates=1):
    """Records of (sample, about, value, parts) tuples; the place in the table is the case."""
    return [
        Record("b", "m", "f", r, explainer, "method", s, f"{s}-{i}", a, "metric", "name", v, parts)
        for r in range(replicates)
        for i, (s, a, v, parts) in enumerate(table)
    ]


def rows_of(table, how, **more):
    made = records(table, **more)
    return Numbering.of(made).rows(made, how)


def slow(how, table, weights):
    """The reducer on a list in which each photograph stands as often as its weight says."""
    names = sorted({row[0] for row in table})
    copies = [row for row in table for _ in range(int(weights[names.index(row[0])]))]
    if not copies:
        return math.nan
    if how.startswith("auc_"):
        return slow_area(how, copies)
    if how == "class_mean":
        scores = {}
        for _, about, value, _ in copies:
            scores.setdefault(about, []).append(value)
        return sum(sum(some) / len(some) for some in scores.values()) / len(scores)
    num, den = (
        [sum(column) for column in zip(*(r[3][p] for r in copies), strict=True)] for p in ("num", "den")
    )
    if how == "pooled_ratio":
        there = [n / d for n, d in zip(num, den, strict=True) if d]
        return sum(there) / len(there) if there else math.nan
    if how == "ratio_or_zero":
        return sum(n / d if d else 0.0 for n, d in zip(num, den, strict=True)) / len(num)
    if how == "ratio_over_fewer":
        return sum(n / d if d else 0.0 for n, d in zip(num, den, strict=True)) / (len(num) - 1)
    if how == "bleu":
        product = math.prod(n / d if d else 0.0 for n, d in zip(num, den, strict=True))
        words, wanted = (sum(r[3][p] for r in copies) for p in ("words", "wanted"))
        return product ** (1 / len(num)) * min(1.0, math.exp(1 - wanted / words))
    area, before = 0.0, 0
    for hits, hot in zip(num, den, strict=True):
        if hot:
            area += (hits - before) / num[-1] * hits / hot if num[-1] else 0.0
        before = hits
    return area if num[-1] else math.nan


def slow_area(how, copies):
    """Sun et al.'s area of a list of rows: of each photograph and word the extreme one, once for each copy of the photograph."""
    photographs = {}
    for row in copies:
        photographs.setdefault(row[0], []).append(row)
    true, false = [], []
    for some in photographs.values():
        every = {id(row): row for row in some}
        times = len(some) // len(every)
        last = max(every.values(), key=lambda row: row[3]["place"])[3]["score"]
        words = {}
        for _, about, _, parts in every.values():
            score = last if how == "auc_of_last" else parts["score"]
            words.setdefault((about, parts["label"]), []).append(score)
        for (_, label), scores in words.items():
            (true if label else false).extend([max(scores) if label else min(scores)] * times)
    if not (true and false):
        return math.nan
    return sum((t > f) + (t == f) / 2 for t in true for f in false) / len(true) / len(false)


@st.composite
def tables(draw, how, most=12):
    """Rows of four photographs and three things asked about, with parts as the metrics give them."""
    table = []
    for _ in range(draw(st.integers(1, most))):
        parts = {}
        if how in ("pooled_ratio", "ratio_or_zero", "ratio_over_fewer", "bleu"):
            den = draw(st.lists(st.integers(0, 9), min_size=2, max_size=2))
            parts = {"num": [draw(st.integers(0, d)) for d in den], "den": den}
            if how == "bleu":
                parts |= {"words": draw(st.integers(1, 9)), "wanted": draw(st.integers(1, 9))}
        if how.startswith("auc_"):
            parts = {"label": draw(st.integers(0, 1)), "score": draw(st.integers(0, 5)), "place": len(table)}
        if how == "pooled_precision":
            rise = [draw(st.integers(0, 5)) for _ in range(2 * THRESHOLDS)]
            hits = list(itertools.accumulate(rise[:THRESHOLDS]))
            others = list(itertools.accumulate(rise[THRESHOLDS:]))
            parts = {"num": hits, "den": [a + b for a, b in zip(hits, others, strict=True)]}
        about = draw(st.sampled_from(["cat", "dog", "emu"]))
        table.append((draw(st.sampled_from("abcd")), about, draw(st.integers(0, 5)) / 4, parts))
    return table


HOWS = (
    *("bleu", "class_mean", "pooled_ratio", "pooled_precision", "ratio_or_zero", "ratio_over_fewer"),
    *("auc_extremes", "auc_of_last"),
)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_weights_are_repeated_rows(how, data):
    table = data.draw(tables(how))
    rows = rows_of(table, how)
    draws = [[data.draw(st.integers(0, 3)) for _ in range(rows.samples)] for _ in range(3)]
    weights = np.array([np.ones(rows.samples), *draws], float)
    expected = [slow(how, table, row) for row in weights]
    found = reducers.REDUCERS[how](rows, weights)
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert reduce(how, rows) == pytest.approx(expected[0], nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_order_of_rows_changes_no_bit(how, data):
    made = records(data.draw(tables(how)))
    turned = made[::-1]
    first = estimate(how, Numbering.of(made).rows(made, how))
    second = estimate(how, Numbering.of(turned).rows(turned, how))
    ends = [[value, interval.low, interval.high] for value, interval in (first, second)]
    assert np.array_equal(*ends, equal_nan=True)


@pytest.mark.parametrize("how", HOWS)
def test_the_bootstrap_is_the_reducer_under_its_weights(how):
    table = sample_table(how)
    rows = rows_of(table, how)
    weights, seeds = statistics.resampled(rows.samples, 1)
    found = reducers.over(how, rows, weights, seeds)
    for i in (0, 1, rows.samples, *range(1 + rows.samples, len(weights), 397)):
        assert found[i] == pytest.approx(slow(how, table, weights[i]), abs=1e-12)
    value, ends = estimate(how, rows)
    assert ends.low < value < ends.high


def sample_table(how, shift=0.0):
    chance = np.random.default_rng(7)
    table = []
    for i in range(24):
        parts = {}
        if how in ("pooled_ratio", "ratio_or_zero", "ratio_over_fewer", "bleu"):
            parts = {"num": [int(k) for k in chance.integers(1, 9, 2)], "den": [9, 12]}
            parts |= {"words": int(chance.integers(5, 9)), "wanted": 8} if how == "bleu" else {}
        if how == "pooled_precision":
            hits = np.cumsum(chance.integers(1, 4, THRESHOLDS))
            parts = {
                "num": hits.tolist(),
                "den": (hits + np.cumsum(chance.integers(1, 9, THRESHOLDS))).tolist(),
            }
        if how.startswith("auc_"):
            parts = {"label": int(i % 3 > 0), "score": float(chance.random()) + 0.1 * (i % 3), "place": i}
        about = ("cat", "cat", "cat", "dog", "emu")[i % 5]
        table.append((f"s{i // 2:02d}", about, float(chance.random()) + shift * (about == "dog"), parts))
    return table


def test_blocks_of_draws_change_nothing(monkeypatch):
    rows = rows_of(sample_table("class_mean"), "class_mean")
    whole = reducers.over("class_mean", rows, *statistics.resampled(rows.samples, 1))
    monkeypatch.setattr(reducers, "ROWS_AT_ONCE", 300)
    parts = reducers.over("class_mean", rows, *statistics.resampled(rows.samples, 1))
    assert parts == pytest.approx(whole, abs=1e-12)


def test_a_rare_class_counts_as_much_as_a_common_one():
    table = [("a", "cat", 1.0, {}), ("b", "cat", 1.0, {}), ("c", "cat", 1.0, {}), ("d", "dog", 0.0, {})]
    rows = rows_of(table, "class_mean")
    assert (reduce("class_mean", rows), reduce("mean", rows)) == (0.5, 0.75)
    nobody_drew_the_dog = reducers.class_mean(rows, np.array([[2.0, 1.0, 1.0, 0.0]]))
    assert nobody_drew_the_dog.tolist() == [1.0]


def test_comparisons_know_the_classes_of_both_sides_by_name():
    """A class that one explainer leaves undefined must not mix up the others, when sign flips mix both sides."""
    first = records(sample_table("class_mean", shift=0.4), "one")
    second = records(sample_table("class_mean"), "two")
    both = Numbering.of([*first, *second])
    whole = compare("class_mean", both.rows(first, "class_mean"), both.rows(second, "class_mean"))
    assert whole.difference == pytest.approx(0.4 / 3)
    catless = [[r for r in some if r.about != "cat"] for some in (first, second)]
    cut = compare("class_mean", both.rows(first, "class_mean"), both.rows(catless[1], "class_mean"))
    assert cut.difference == pytest.approx(0.4 / 2)  # dogs and emus are left on either side
    assert cut == compare("class_mean", *(both.rows(some, "class_mean") for some in catless))


def test_sign_flips_of_few_photographs_are_all_tried():
    tables = [sample_table("class_mean", shift)[:10] for shift in (0.3, 0.0)]
    found = compare("class_mean", *(rows_of(t, "class_mean") for t in tables))
    names = sorted({row[0] for row in tables[0]})

    def difference(swapped):
        pairs = list(zip(*tables, strict=True))
        turned = [swapped[names.index(a[0])] for a, _ in pairs]
        one = [b if t else a for (a, b), t in zip(pairs, turned, strict=True)]
        two = [a if t else b for (a, b), t in zip(pairs, turned, strict=True)]
        ones = np.ones(len(names))
        return slow("class_mean", one, ones) - slow("class_mean", two, ones)

    truth = difference([0] * len(names))
    every = [abs(difference(s)) >= abs(truth) - 1e-12 for s in itertools.product([0, 1], repeat=len(names))]
    assert found.difference == pytest.approx(truth)
    assert found.p == pytest.approx(np.mean(every))


@pytest.mark.parametrize("how", HOWS)
def test_replicates_are_reduced_apart_and_then_averaged(how):
    table = sample_table(how)
    alone = reduce(how, rows_of(table, how))
    assert reduce(how, rows_of(table, how, replicates=3)) == pytest.approx(alone, abs=1e-12)


def test_pooled_precision_is_the_average_precision_of_all_pixels_at_once():
    chance = np.random.default_rng(1)
    table, scores, labels = [], [], []
    for i in range(20):
        heat, mask = chance.integers(0, 4, 50), chance.random(50) < chance.random()
        num = [int((mask & (heat >= t)).sum()) for t in (3, 2, 1, 0)]
        den = [int((heat >= t).sum()) for t in (3, 2, 1, 0)]
        table.append((f"s{i:02d}", "cat", 0.5, {"num": num, "den": den}))
        scores.append(heat)
        labels.append(mask)
    expected = average_precision_score(np.concatenate(labels), np.concatenate(scores))
    found = reduce("pooled_precision", rows_of(table, "pooled_precision"))
    print("pooled_precision: largest deviation from scikit-learn", abs(found - expected))
    assert found == pytest.approx(expected, abs=1e-12)


def test_lists_of_sums_survive_the_table_on_disk(tmp_path):
    made = records(sample_table("pooled_precision"))
    write_records(tmp_path / "x.csv", made)
    back = read_records(tmp_path / "x.csv")
    assert [r.parts for r in back] == [r.parts for r in sorted(made, key=lambda r: (r.sample, r.case))]
    rows = [Numbering.of(some).rows(some, "pooled_precision") for some in (made, back)]
    assert reduce("pooled_precision", rows[0]) == reduce("pooled_precision", rows[1])


@pytest.mark.parametrize("how", HOWS)
def test_their_rows_are_on_the_scale_of_the_result(how):
    assert (how in reducers.CASEWISE) == (not how.startswith("auc_"))
    assert math.isnan(reduce(how, Numbering.of(made := records([("a", "cat", 1.0, {})])).rows(made[:0], how)))
