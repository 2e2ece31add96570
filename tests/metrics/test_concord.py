"""Agreement between explainers: Krishna et al.'s four by enumeration of tied orders, the rest held against libraries."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import spec
from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics import concord
from heatproof.metrics.concord import Concord
from heatproof.progress import Silent
from heatproof.runner import Order, run

AGREEMENTS = (
    concord.feature_agreement, concord.rank_agreement, concord.sign_agreement, concord.signed_rank_agreement,
)  # fmt: skip


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score, times ``by``."""

    by: float = 1.0

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [Explanation(image=self.by * g) for g in grad]


@dataclass(frozen=True)
class Given:
    """A map that is what it is, by the case's name."""

    maps: tuple

    def explain(self, model, cases):
        return [Explanation(image=dict(self.maps)[c.id]) for c in cases]


def orders(values):
    """Every order of places from the largest absolute value down."""
    sizes = sorted({abs(v) for v in values}, reverse=True)
    blocks = [[i for i, v in enumerate(values) if abs(v) == size] for size in sizes]
    for chosen in itertools.product(*(itertools.permutations(block) for block in blocks)):
        yield [i for block in chosen for i in block]


def by_hand(a, b, k):
    """Krishna et al. 2022, section 4, averaged over all orders of tied values of either map."""
    sums, count = [0.0] * 4, 0
    sign = lambda v: (v > 0) - (v < 0)
    for x, y in itertools.product(list(orders(a)), list(orders(b))):
        top = set(x[:k]) & set(y[:k])
        ranked = {x[r] for r in range(k) if x[r] == y[r]}
        signed = {i for i in top if sign(a[i]) == sign(b[i])}
        for n, some in enumerate((top, ranked, signed, ranked & signed)):
            sums[n] += len(some) / k
        count += 1
    return [s / count for s in sums]


SMALL = st.integers(2, 5).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-2, 2), min_size=n, max_size=n)] * 2, st.integers(1, n))
)


@settings(max_examples=150, deadline=None)
@given(SMALL)
def test_the_four_agreements_are_the_enumeration_of_tied_orders(drawn):
    a, b, k = drawn
    found = [f(torch.tensor(a).float(), torch.tensor(b).float(), k) for f in AGREEMENTS]
    assert found == pytest.approx(by_hand(a, b, k), abs=1e-12)
    assert found == pytest.approx(
        [f(torch.tensor(b).float(), torch.tensor(a).float(), k) for f in AGREEMENTS]
    )


def test_equal_maps_agree_and_independent_ones_by_the_share():
    chance = torch.Generator().manual_seed(0)
    a = torch.randn(40, 50, generator=chance)
    assert [f(a, a, 200) for f in AGREEMENTS] == [1.0] * 4
    assert [f(a, -a, 200) for f in AGREEMENTS] == [1.0, 1.0, 0.0, 0.0]
    b = torch.randn(40, 50, generator=chance)
    assert concord.feature_agreement(a, b, 200) == pytest.approx(0.1, abs=0.05)
    assert concord.feature_agreement(torch.ones(40, 50), b, 200) == pytest.approx(0.1)  # ties, in expectation


def batch(toys, explainer, count=5, size=(14, 18)):
    model = toys.curved()
    chance = torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(3, *size, generator=chance), i % 3) for i in range(count)]
    heats = [torch.randn(*size, generator=chance) for _ in cases]
    return toys.trials(model, cases, heats, explainer)


def test_the_correlations_and_the_structure_are_the_libraries(toys, capsys):
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    trials, worst = batch(toys, None), 0.0
    of = Gradient().explain(trials[0].model, [t.case for t in trials])
    for trial, other, score in zip(trials, of, Concord(Gradient()).measure(trials), strict=True):
        one = trial.explanation.image.double()
        two = other.image.sum(0).double()
        found = {
            "spearman": scipy.stats.spearmanr(one.flatten(), two.flatten()).statistic,
            "kendall": scipy.stats.kendalltau(one.flatten(), two.flatten()).statistic,
        }
        a, b = (h.numpy() / (h**2).mean().item() ** 0.5 for h in (one, two))
        low = min(a.min(), b.min())  # signed maps are lifted
        how = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 2.0}
        found["ssim"] = theirs(a - low, b - low, **how)
        k = round(0.1 * 14 * 14)
        regions = [F.adaptive_avg_pool2d(h[None], (14, 14))[0] for h in (one, two)]
        found |= {f.__name__: f(*regions, k) for f in AGREEMENTS}
        for name, wanted in found.items():
            worst = max(worst, abs(score.values[name].number - wanted))
    with capsys.disabled():
        print(f" [concord: largest deviation {worst:.1e}]", end="")
    assert worst < 1e-6


def test_a_map_agrees_with_itself_and_a_factor_changes_nothing(toys):
    trials = batch(toys, Gradient())
    trials = toys.trials(
        trials[0].model,
        [t.case for t in trials],
        Gradient().explain(trials[0].model, [t.case for t in trials]),
    )
    for score in Concord(Gradient(3.0)).measure(trials):
        assert [v.number for v in score.values.values()] == pytest.approx([1.0] * 7)
    for score in Concord(Gradient(-1.0)).measure(trials):
        assert score.values["feature_agreement"].number == 1
        assert score.values["sign_agreement"].number == 0
        assert score.values["spearman"].number == pytest.approx(-1)


def test_undefined_on_either_side(toys):
    model, case = toys.curved(), toys.case("s0", torch.randn(3, 14, 18), 1)
    good, nan = torch.randn(3, 5), torch.full((3, 5), math.nan)

    def asked(own, other):
        return Concord(Given((("s0", other),))).measure(toys.trials(model, [case], [own]))[0].values

    for own, other, why in (
        (None, good, "no image map"),
        (nan, good, "NaN or infinity in the map"),
        (good, None, "of the explainer to agree with: no image map"),
        (good, nan, "of the explainer to agree with: NaN or infinity in the map"),
    ):
        assert {(v.number, v.reason) for v in asked(own, other).values()} == {(None, why)}
    flat = asked(good, torch.ones(3, 5))
    silent = {name: v.reason for name, v in flat.items() if not v.defined}
    assert silent == dict.fromkeys(("spearman", "kendall", "ssim"), "a map is constant")
    assert flat["feature_agreement"].number == pytest.approx(20 / 196)

    class Fitted(Gradient):
        def fit(self, model, feed):
            return {}

    with pytest.raises(Unsuited, match="was fitted"):
        Concord(Fitted()).measure(toys.trials(model, [case], [good]))
    for wrong in ({"share": 0.0}, {"cells": -1}, {"upsample": "none"}, {"scale": "l2"}):
        with pytest.raises(Refused):
            Concord(Gradient(), **wrong)


def test_one_explanation_is_its_cost_and_only_looks_at_another_image_where_the_other_does(toys):
    trials = batch(toys, None)
    model = trials[0].model
    model.score(model.stack([trials[0].case]), [trials[0].case])
    with torch.inference_mode(), model.part() as spent:
        Concord(Gradient()).measure(trials)
    assert dict(spent.forward) == dict(spent.backward) == {t.case.id: pytest.approx(1) for t in trials}

    @dataclass(frozen=True)
    class Looks:
        needs_other = True

        def explain(self, model, cases):
            return [Explanation(image=c.other().pixels.mean(0)) for c in cases]

    assert not Concord(Gradient()).needs_other
    assert Concord(Looks()).needs_other
    others = [replace(t.case, other=lambda c=t.case: c) for t in trials]
    scores = Concord(Looks()).measure(toys.trials(model, others, [c.pixels.mean(0) for c in others]))
    assert [s.values["spearman"].number for s in scores] == pytest.approx([1.0] * 5)


def test_a_spec_names_the_other_explainer_and_its_source_and_settings_are_in_the_key(world):
    path = world / "benchmarks" / "toy.toml"
    text = path.read_text().replace('metrics = ["inside"]', 'metrics = [{ use = "concord", of = "dark" }]')
    path.write_text(
        text.replace('["inside.mass"]', '["concord.spearman"]').replace('"inside.mass" = 0.01', "")
    )
    asked = spec.read("toy", world)
    assert asked.metrics[0].made.of == next(p.made for p in asked.explainers if p.name == "dark")
    before = run(Order("toy", cwd=world), Silent)
    assert not before.run["failures"]
    values = {(r.explainer, r.name): r.value for r in before.records if r.model == "cnn" and r.case}
    assert values["dark", "spearman"] == pytest.approx(1)
    assert values["bright", "spearman"] == pytest.approx(-1)
    path.write_text(path.read_text().replace("gain = -1.0", "gain = -2.0"))
    after = run(Order("toy", cwd=world), Silent)
    keys = [{(r.explainer, r.case): r.key for r in result.records} for result in (before, after)]
    assert all(keys[0][place] != keys[1][place] for place in keys[0] if place[1])
    # the same once more, from the store
    again = run(Order("toy", cwd=world), Silent)
    assert sorted(map(str, again.records)) == sorted(map(str, after.records))
