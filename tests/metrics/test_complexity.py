"""Complexity against closed forms, the formulas in loops, and scipy's entropy."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heatproof.contract import Metric, Refused
from heatproof.metrics import complexity
from heatproof.metrics.complexity import Complexity

SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
VECTORS = Path(os.environ.get("HEATPROOF_CONFORMANCE", SHARED)) / "vectors.json"
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 7))
FINE = st.floats(-100, 100, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-3)
MAPS = arrays(np.float32, SIZES, elements=FINE | st.sampled_from([0.0, 1.0, -1.0])).filter(lambda a: a.any())


def ask(toys, heat, size=(8, 9), channels=1, **setting):
    case = toys.case(pixels=torch.zeros(channels, *size))
    (score,) = Complexity(**setting).measure(toys.trials(None, [case], [heat]))
    return {name: value.number for name, value in score.values.items()}


def differences(values):
    """Gini by its first meaning: the mean difference of all pairs over twice the mean."""
    values = [abs(float(v)) for v in values]
    n, mean = len(values), sum(values) / len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * n * mean)


def looked_at(values, mass):
    """Take the largest until enough is held."""
    values = sorted((abs(float(v)) for v in values), reverse=True)
    held, total = 0.0, math.fsum(values)
    for k, value in enumerate(values, 1):
        held += value
        if held >= mass * total - 1e-9 * total:
            return k / len(values)
    raise AssertionError


@given(MAPS)
def test_gini_is_the_mean_difference_of_pairs(heat):
    found = complexity.gini(torch.from_numpy(heat))
    assert found == pytest.approx(differences(heat.ravel()), abs=1e-9)
    assert 0 <= found <= 1 - 1 / heat.size + 1e-12


@given(MAPS)
def test_entropy_is_scipys(heat):
    found = complexity.entropy(torch.from_numpy(heat))
    assert found == pytest.approx(scipy.stats.entropy(np.abs(heat.astype(np.float64)).ravel()), abs=1e-9)
    assert 0 <= found <= math.log(heat.size) + 1e-9


@given(MAPS, st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_support_takes_the_largest_until_enough_is_held(heat, mass):
    found = complexity.support(torch.from_numpy(heat), mass)
    assert found == pytest.approx(looked_at(heat.ravel(), mass))
    assert 0 < found <= 1


def test_a_mark_reached_but_for_rounding_is_reached():
    assert 0.55 * 100 > 55
    assert complexity.support(torch.ones(100), 0.55) == 0.55


def test_how_far_from_the_twins():
    chance = torch.Generator().manual_seed(0)
    worst = {"gini": 0.0, "entropy": 0.0}
    for _ in range(50):
        heat = torch.randn(9, 11, generator=chance)
        worst["gini"] = max(worst["gini"], abs(complexity.gini(heat) - differences(heat.flatten())))
        told = scipy.stats.entropy(heat.abs().double().flatten())
        worst["entropy"] = max(worst["entropy"], abs(complexity.entropy(heat) - told))
    print("largest deviation", {k: f"{v:.1e}" for k, v in worst.items()})
    assert max(worst.values()) < 1e-12


def test_the_vectors(toys):
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    entries = {e["id"]: e for e in json.loads(VECTORS.read_text())}
    one, same = torch.zeros(4, 4), torch.tensor(entries["gini-uniform16"]["v"]).float().reshape(4, 4)
    one[2, 1] = 3.0
    assert ask(toys, one)["gini"] == pytest.approx(entries["gini-onehot16"]["expect"]["gini"], abs=1e-12)
    found, expected = ask(toys, same), entries["gini-uniform16"]["expect"]
    assert found["gini"] == pytest.approx(expected["gini"], abs=1e-12)
    assert found["entropy"] == pytest.approx(expected["entropy_nats"], abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_the_two_ends(n):
    one, same = torch.eye(n)[:1] * -4, torch.full((1, n), 0.1)
    assert complexity.gini(one) == pytest.approx(1 - 1 / n, abs=1e-12)
    assert complexity.gini(same) == pytest.approx(0, abs=1e-12)
    assert str(complexity.entropy(one)) == "0.0"
    assert complexity.entropy(same) == pytest.approx(math.log(n), abs=1e-12)
    assert complexity.support(one, 0.9) == 1 / n
    assert complexity.support(same, 0.9) == math.ceil(round(0.9 * n, 9)) / n
    for formula in (complexity.gini, complexity.entropy, lambda h: complexity.support(h, 0.9)):
        assert math.isnan(formula(torch.zeros(n)))


@settings(deadline=None)
@given(MAPS, st.sampled_from([0.25, 3.0, 1e-3]))
def test_scale_sign_order_and_flips_change_nothing(toys, heat, factor):
    heat = torch.from_numpy(heat)
    expected = ask(toys, heat)
    for other in (
        heat * factor,
        -heat,
        heat.flip(-1),
        heat.flip(-2),
        heat.T,
        heat.flatten().roll(3).reshape(heat.shape),
    ):
        found = ask(toys, other)
        assert found["gini"] == pytest.approx(expected["gini"], abs=1e-6)
        assert found["entropy"] == pytest.approx(expected["entropy"], abs=1e-5)
    if factor == 0.25:
        assert ask(toys, heat * factor) == expected


def test_grids_channels_fp16_and_signs(toys):
    heat = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2)).half()
    plain = ask(toys, heat.float().sum(0))
    assert ask(toys, heat) == ask(toys, heat, channels=3, size=(5, 8)) == plain
    assert ask(toys, heat, pool="l2") != plain
    fine = ask(toys, heat, upsample="nearest", size=(8, 10))
    assert fine["gini"] == pytest.approx(plain["gini"], abs=1e-9)  # every place four times
    assert fine["entropy"] == pytest.approx(plain["entropy"] + math.log(4), abs=1e-9)
    assert fine["support"] <= plain["support"]
    one = torch.tensor([[2.0, -1.0, -1.0]])
    assert ask(toys, one, sign="positive")["entropy"] == 0
    assert ask(toys, one, sign="negative")["entropy"] == pytest.approx(math.log(2))
    assert ask(toys, one, mass=0.5)["support"] == 1 / 3


@pytest.mark.parametrize(
    ("heat", "setting", "reason"),
    [
        (None, {}, "no image map"),
        (torch.tensor([[0.0, math.nan]]), {}, "NaN or infinity in the map"),
        (torch.zeros(3, 3), {}, "no relevance"),
        (
            torch.tensor([[1.0, -1.0]]).expand(2, 1, 2) * torch.tensor([1.0, -1.0])[:, None, None],
            {},
            "no relevance",
        ),
        (-torch.ones(3, 3), {"sign": "positive"}, "no positive relevance"),
        (torch.ones(3, 3), {"sign": "negative"}, "no negative relevance"),
    ],
)
def test_undefined_is_never_a_number(toys, heat, setting, reason):
    (score,) = Complexity(**setting).measure(toys.trials(None, [toys.case()], [heat]))
    assert list(score.values) == [m.name for m in Complexity.measures]
    assert {(v.number, v.reason) for v in score.values.values()} == {(None, reason)}


@pytest.mark.parametrize("metric", [Complexity(), Complexity(upsample="bilinear", pool="max_abs", mass=0.5)])
def test_no_model_no_neighbours_no_order(toys, metric):
    chance = torch.Generator().manual_seed(3)
    cases = [toys.case(f"c{i}", torch.zeros(3, 6, 10)) for i in range(11)]
    heats = [torch.randn(*((2,) * (i % 2)), 3 + i % 3, 5, generator=chance) for i in range(11)]
    heats[4], heats[7] = None, heats[7].half()
    whole = [s.values for s in metric.measure(toys.trials(None, cases, heats))]
    for chunk in (1, 3):
        found = []
        for i in range(0, 11, chunk):
            found += [
                s.values
                for s in metric.measure(toys.trials(None, cases[i : i + chunk], heats[i : i + chunk]))
            ]
        assert found == whole
    assert [s.values for s in metric.measure(toys.trials(None, cases[::-1], heats[::-1]))][::-1] == whole
    assert isinstance(metric, Metric)
    assert {m.measures for m in metric.measures} == {"complexity"}
    assert metric.measure([]) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sign": "signed"}, "no sign 'signed'"),
        ({"pool": "avg"}, "no pool 'avg'"),
        ({"upsample": "cubic"}, "did you mean 'bicubic'"),
        ({"mass": 0.0}, "found 0.0"),
        ({"mass": 1.5}, "found 1.5"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Complexity(**setting)
