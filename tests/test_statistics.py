"""Reducers, intervals and tests against slow twins, scipy, scikit-learn and simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from heatproof import reducers, statistics
from heatproof.records import Record
from heatproof.reducers import Numbering, Rows, reduce
from heatproof.statistics import compare, estimate, holm


def rows_of(table, how="mean", replicates=1):
    """Rows from (sample, about, value, parts) tuples, one replicate."""
    records = [
        Record("b", "m", "f", r, "e", "method", s, f"{s}-{i}", a, "metric", "name", v, p)
        for r in range(replicates)
        for i, (s, a, v, p) in enumerate(table)
    ]
    return Numbering.of(records).rows(records, how)


def simple(values, samples, photographs=None, **parts):
    """Rows with every row its own group."""
    n = len(values)
    samples = np.asarray(samples, dtype=np.int64)
    index = np.arange(n)
    return Rows(
        np.asarray(values, float),
        samples,
        index,
        index,
        np.zeros(n, dtype=np.int64),
        photographs or int(samples.max()) + 1,
        parts={k: np.asarray(v, float) for k, v in parts.items()},
    )


# ---------------------------------------------------------------- slow twins: photographs really repeated


def slow(how, table, weights):
    """The reducer on a list in which each photograph stands as often as its weight says."""
    names = sorted({row[0] for row in table})
    copies = [(f"{row[0]}#{k}", *row[1:]) for row in table for k in range(int(weights[names.index(row[0])]))]
    if not copies:
        return math.nan
    if how == "mean":
        return sum(v for _, _, v, _ in copies) / len(copies)
    if how == "pooled_ratio":
        den = sum(p["den"] for *_, p in copies)
        return sum(p["num"] for *_, p in copies) / den if den > 0 else math.nan
    if how == "max_by":
        best = {}
        for s, a, v, _ in copies:
            best[s, a] = max(best.get((s, a), -math.inf), v)
        return sum(best.values()) / len(best)
    if how == "roc_auc":
        labels = [p["label"] for *_, p in copies]
        return roc_auc_score(labels, [p["score"] for *_, p in copies]) if len(set(labels)) == 2 else math.nan
    x, y = ([p[k] for *_, p in copies] for k in "xy")
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return scipy.stats.spearmanr(x, y).statistic


ELSEWHERE = {
    "bleu",
    "class_mean",
    "pooled_precision",
    "ratio_or_zero",
    "ratio_over_fewer",
    "auc_extremes",
    "auc_of_last",
}  # test_reducers.py, with the lists that they read
HOWS = sorted(set(reducers.REDUCERS) - ELSEWHERE)
few = st.integers(0, 5).map(float)
ROW = st.tuples(
    st.sampled_from("abcd"),
    st.sampled_from(["cat", "dog"]),
    few,
    st.fixed_dictionaries(
        {"num": few, "den": few, "label": st.sampled_from([0.0, 1.0]), "score": few, "x": few, "y": few}
    ),
)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=50, deadline=None)
@given(table=st.lists(ROW, min_size=1, max_size=12), data=st.data())
def test_weights_are_repeated_photographs(how, table, data):
    rows = rows_of(table, how)
    weights = np.array([data.draw(st.integers(0, 3)) for _ in range(rows.samples)], float)
    found = reducers.REDUCERS[how](rows, weights[None])[0]
    assert found == pytest.approx(slow(how, table, weights), nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=12, deadline=None)
@given(table=st.lists(ROW, min_size=1, max_size=12))
def test_the_order_of_rows_changes_no_bit(how, table):
    records = [
        Record("b", "m", "f", 0, "e", "method", s, f"{s}-{i}", a, "metric", "name", v, p)
        for i, (s, a, v, p) in enumerate(table)
    ]
    turned = records[::-1]
    first = estimate(how, Numbering.of(records).rows(records, how))
    second = estimate(how, Numbering.of(turned).rows(turned, how))
    assert np.array_equal(
        [first[0], first[1].low, first[1].high], [second[0], second[1].low, second[1].high], equal_nan=True
    )


def test_replicates_are_reduced_apart_and_then_averaged():
    def record(replicate, case, value):
        return Record("b", "m", "f", replicate, "e", "method", "s", case, "cat", "x", "y", value)

    records = [record(0, "c0", 1.0), record(0, "c1", 1.0), record(0, "c2", 1.0), record(1, "c0", 0.0)]
    rows = Numbering.of(records).rows(records)
    assert reduce("mean", rows) == 0.5  # not 0.75: each training seed counts once
    assert reduce("max_by", rows) == 0.5  # the best of one net never speaks for another


def test_slices_of_the_draws_change_nothing(monkeypatch):
    chance = np.random.default_rng(0)
    rows = simple(
        chance.random(30), np.arange(30) % 7, label=chance.integers(0, 2, 30), score=chance.random(30)
    )
    whole = estimate("roc_auc", rows)
    monkeypatch.setattr(reducers, "ROWS_AT_ONCE", 300)
    assert estimate("roc_auc", rows) == whole


def test_a_missing_part_is_named():
    table = [("a", "cat", 0.5, {"num": 1.0})]
    with pytest.raises(
        ValueError, match=r"metric\.name of e on case a-0.*'pooled_ratio'.*'num', 'den'.*'num'"
    ):
        rows_of(table, "pooled_ratio")


def test_only_defined_rows_are_counted():
    good = Record("b", "m", "f", 0, "e", "method", "s", "c0", "cat", "x", "y", 0.3)
    bad = Record("b", "m", "f", 0, "e", "method", "s", "c1", "cat", "x", "y", None, status="undefined")
    unsuited = Record("b", "m", "f", 0, "e", "method", "", "", "", "x", "y", None, status="unsuited")
    records = [good, bad, unsuited]
    assert reduce("mean", Numbering.of(records).rows(records)) == 0.3
    assert math.isnan(reduce("mean", Numbering.of(records).rows([bad, unsuited])))


# ---------------------------------------------------------------- intervals


def test_bca_agrees_with_scipy_on_skewed_data():
    values = np.random.default_rng(3).exponential(size=40)
    value, ours = estimate("mean", simple(values, np.arange(40)))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20000, rng=np.random.default_rng(1), vectorized=True
    ).confidence_interval
    assert value == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert ours.high - values.mean() > values.mean() - ours.low  # the long tail is on the right


def test_bca_formula_on_the_same_draws():
    """The corrected percentiles, written out from Efron (1987) with scipy's normal distribution."""
    chance = np.random.default_rng(8)
    draws, jack, theta = chance.gamma(2.0, size=999), chance.gamma(2.0, size=30), 1.6
    z0 = scipy.stats.norm.ppf(np.mean(draws < theta))
    off = jack.mean() - jack
    a = np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    ends = [
        scipy.stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in scipy.stats.norm.ppf([0.025, 0.975])
    ]
    found = statistics.bca(theta, draws, jack)
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, ends).tolist())


def test_cases_of_one_photograph_count_once():
    chance = np.random.default_rng(0)
    values = chance.normal(size=20)
    alone = estimate("mean", simple(values, np.arange(20)))
    fivefold = estimate("mean", simple(np.repeat(values, 5), np.repeat(np.arange(20), 5)))
    assert fivefold[0] == pytest.approx(alone[0])
    assert (fivefold[1].low, fivefold[1].high) == pytest.approx((alone[1].low, alone[1].high))


def test_one_photograph_has_no_interval_and_equal_values_a_point():
    assert math.isnan(estimate("mean", simple([0.2, 0.4], [0, 0]))[1].low)
    ends = estimate("mean", simple([0.25, 0.25, 0.25], [0, 1, 2]))[1]
    assert (ends.low, ends.high) == (0.25, 0.25)


def test_coverage_of_clustered_means():
    """Close to 95 of 100 intervals hold the truth although the cases of a photograph depend on each other."""
    chance = np.random.default_rng(5)
    held = naive = 0
    sample = np.repeat(np.arange(30), 4)
    for _ in range(200):
        values = np.repeat(chance.normal(size=30), 4) + 0.5 * chance.normal(size=120)
        ends = estimate("mean", simple(values, sample))[1]
        held += ends.low <= 0 <= ends.high
        alone = estimate("mean", simple(values, np.arange(120)))[1]
        naive += alone.low <= 0 <= alone.high
    assert 0.90 <= held / 200 <= 0.98
    assert naive / 200 < 0.80  # resampling cases would promise too much


def test_replicates_widen_the_interval():
    def rows(shift):
        records = [
            Record(
                "b",
                "m",
                "f",
                r,
                "e",
                "method",
                f"s{i:02d}",
                f"s{i:02d}",
                "",
                "x",
                "y",
                0.1 * (i % 5) + shift * r,
            )
            for r in range(4)
            for i in range(20)
        ]
        return Numbering.of(records).rows(records)

    steady, shaky = (estimate("mean", rows(shift))[1] for shift in (0.0, 0.3))
    assert shaky.high - shaky.low > 2 * (steady.high - steady.low)


# ---------------------------------------------------------------- comparisons


@pytest.mark.parametrize("how", ["mean", "max_by", "pooled_ratio"])
def test_sign_flips_of_few_photographs_are_all_tried(how):
    chance = np.random.default_rng(2)
    sample, group = np.repeat(np.arange(6), 3), np.repeat(np.arange(9), 2)
    tables = []
    for shift in (0.0, 0.5):
        value = chance.normal(shift, 1, 18)
        den = chance.integers(1, 5, 18)
        tables.append(
            [
                (f"s{s}", f"g{g}", v, {"num": v * d, "den": d})
                for s, g, v, d in zip(sample, group, value, den, strict=True)
            ]
        )
    first, second = (rows_of(t, how) for t in tables)
    found = compare(how, first, second)

    def difference(swapped):
        a, b = [], []
        for one, two in zip(*tables, strict=True):
            turned = swapped[int(one[0][1:])]
            a.append(two if turned else one)
            b.append(one if turned else two)
        ones = np.ones(6)
        return slow(how, a, ones) - slow(how, b, ones)

    truth = difference([0] * 6)
    every = [abs(difference(s)) >= abs(truth) - 1e-12 for s in itertools.product([0, 1], repeat=6)]
    assert found.difference == pytest.approx(truth)
    assert found.p == pytest.approx(np.mean(every))
    assert (found.trials, found.photographs) == (18, 6)


def test_many_sign_flips_agree_with_scipy():
    chance = np.random.default_rng(4)
    a, b = chance.normal(0.35, 1, 40), chance.normal(0, 1, 40)
    found = compare("mean", simple(a, np.arange(40)), simple(b, np.arange(40)))
    theirs = scipy.stats.permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    assert found.p == pytest.approx(theirs.pvalue, abs=0.02)


def test_equal_explainers_are_rarely_told_apart_and_unequal_ones_often():
    chance = np.random.default_rng(6)
    false = found = 0
    sample = np.repeat(np.arange(25), 2)
    for _ in range(200):
        shared = np.repeat(chance.normal(size=25), 2)
        a, b = (shared + chance.normal(size=50) for _ in range(2))
        false += compare("mean", simple(a, sample), simple(b, sample)).p < 0.05
        found += compare("mean", simple(a + 1, sample), simple(b, sample)).p < 0.05
    assert false / 200 < 0.09
    assert found / 200 > 0.9


def test_cases_undefined_for_one_are_left_out_for_both():
    first = simple([1.0, 1.0, 9.0], [0, 1, 2])
    second = simple([0.0, 0.5], [0, 1], 3)
    found = compare("mean", first, second)
    assert (found.difference, found.trials) == (0.75, 2)
    assert compare("mean", first.take(np.array([2])), second) is None


def test_no_spread_gives_no_significance():
    rows = simple([0.5] * 5, range(5))
    found = compare("mean", rows, rows)
    assert (found.difference, found.p) == (0.0, 1.0)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_step_down_maximum(ps):
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    for place, i in enumerate(order):
        steps = [min(1.0, (len(ps) - k) * ps[order[k]]) for k in range(place + 1)]
        assert holm(ps)[i] == max(steps)
