"""Parameter randomisation: what is replaced, that a blind map is caught, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import scipy.stats
import torch

from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics import randomisation
from heatproof.metrics.randomisation import Randomisation


@dataclass(frozen=True)
class Edges:
    """Knows nothing of the model: the image itself."""

    def explain(self, model, cases):
        return [Explanation(image=c.pixels.mean(0)) for c in cases]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score."""

    gain: float = 1.0

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [Explanation(image=self.gain * g) for g in grad]


def batch(toys, explainer, count=4):
    model = toys.curved()
    chance = torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(3, 8, 8, generator=chance), i % 3) for i in range(count)]
    return toys.trials(model, cases, explainer.explain(model, cases), explainer)


def test_a_map_that_ignores_the_model_is_caught(toys):
    for score in Randomisation(levels=2).measure(batch(toys, Edges())):
        assert [v.number for v in score.values.values()] == pytest.approx([1.0, 1.0], abs=1e-12)
        assert score.curves["randomisation"] == ([0.0, 0.5, 1.0], pytest.approx([1.0] * 3))


def test_a_gradient_does_not_survive_and_the_number_is_scipys(toys):
    trials = batch(toys, Gradient(), 12)
    model, explainer = trials[0].model, trials[0].explainer
    scores = Randomisation().measure(trials)
    names = [name for name, _ in model.net.named_parameters()]
    twin = model.twin(lambda net: randomisation.randomise(net, names, trials[0].case.seed), "by hand")
    after = explainer.explain(twin, [t.case for t in trials])
    for trial, again, score in zip(trials, after, scores, strict=True):
        one, other = trial.explanation.image.sum(0), again.image.sum(0)
        for name, (a, b) in {
            "randomisation": (one.abs(), other.abs()),
            "randomisation_signed": (one, other),
        }.items():
            expected = scipy.stats.spearmanr(a.flatten(), b.flatten()).statistic
            assert score.values[name].number == pytest.approx(expected, abs=1e-9)
    mean = sum(s.values["randomisation"].number for s in scores) / len(scores)
    assert abs(mean) < 0.5


def test_layers_go_from_the_output_down_and_all_at_the_end(toys):
    model = toys.curved()
    before = {n: p.clone() for n, p in model.net.named_parameters()}
    assert randomisation.layers(model.net) == [["mix.weight", "mix.bias"], ["last.weight", "last.bias"]]
    changed = []
    for level in (1, 2):
        twin = randomisation.randomised(model, randomisation.runs(2, 2)[level - 1], 0)
        changed.append({n for n, p in twin.net.named_parameters() if not torch.equal(p, before[n])})
        assert twin.hash != model.hash
    assert changed == [{"last.weight", "last.bias"}, set(before)]
    assert all(torch.equal(p, before[n]) for n, p in model.net.named_parameters())


def test_noise_has_the_tensors_own_mean_and_deviation_and_its_own_name():
    net = torch.nn.Sequential(
        torch.nn.Linear(200, 200), torch.nn.Linear(200, 200), torch.nn.LayerNorm(200)
    ).requires_grad_(False)  # fmt: skip
    with torch.no_grad():
        net[0].weight.mul_(3).add_(1)
    before = {n: p.clone() for n, p in net.named_parameters()}
    randomisation.randomise(net, list(before), seed=0)
    for name in ("0.weight", "1.weight"):
        weight = dict(net.named_parameters())[name]
        assert float(weight.std()) == pytest.approx(float(before[name].std()), rel=0.05)
        assert float(weight.mean()) == pytest.approx(float(before[name].mean()), abs=0.01)
    assert torch.equal(net[2].weight, before["2.weight"])  # all ones: no deviation of its own
    a, b = ((p - p.mean()) / p.std() for p in (net[0].weight, net[1].weight))
    assert abs(float((a * b).mean())) < 0.05
    again = torch.nn.Sequential(*(type(m)(200, 200) for m in net[:2]))
    again.load_state_dict({n: p for n, p in before.items() if n[0] in "01"})
    randomisation.randomise(again, ["1.weight"], seed=0)
    assert torch.equal(again[1].weight, net[1].weight)


def test_it_costs_one_explanation_a_level_and_one_twin_for_all(toys):
    trials = batch(toys, Gradient())
    model, made = trials[0].model, []
    model.score(model.stack([trials[0].case]), [trials[0].case])
    twin = model.twin
    model.twin = lambda edit, name: made.append(name) or twin(edit, name)
    with torch.inference_mode(), model.part() as spent:  # as the runner asks
        Randomisation(levels=2).measure(trials)
    assert len(made) == 2
    assert dict(spent.forward) == {t.case.id: pytest.approx(2) for t in trials}
    assert dict(spent.backward) == {t.case.id: pytest.approx(2) for t in trials}


def test_undefined_and_unsuited(toys):
    trials = batch(toys, Gradient(gain=0.0))
    for score in Randomisation().measure(trials):
        assert {(v.number, v.reason) for v in score.values.values()} == {(None, "a map is constant")}
    (nothing,) = Randomisation().measure(toys.trials(trials[0].model, [trials[0].case], [None], Edges()))
    assert {v.reason for v in nothing.values.values()} == {"no image map"}
    with pytest.raises(Unsuited, match="no explainer"):
        Randomisation().measure(toys.trials(trials[0].model, [trials[0].case], [None]))

    class Fitted(Edges):
        def fit(self, model, feed):
            return {}

    with pytest.raises(Unsuited, match="was fitted"):
        Randomisation().measure(toys.trials(trials[0].model, [trials[0].case], [torch.eye(8)], Fitted()))
    with pytest.raises(Refused, match="1 or more"):
        Randomisation(levels=0)


# ---------------------------------------------------------------- modes, orders, likenesses


def by_hand(model, names, seed=0):
    """A twin whose named parameters are noise, made without the metric's own bookkeeping."""
    return model.twin(lambda net: randomisation.randomise(net, names, seed), f"by hand {names}")


@pytest.mark.parametrize("total", [1, 2, 5, 7])
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 9])
def test_runs_are_shares_from_either_end(total, levels):
    done = [math.ceil(total * level / levels) for level in range(levels + 1)]
    up = randomisation.runs(total, levels, order="bottom_up")
    assert up == [(0, n) for n in done[1:]]
    down = randomisation.runs(total, levels)
    assert down == [(total - n, total) for n in done[1:]]
    alone = randomisation.runs(total, levels, "independent", "bottom_up")
    assert sorted(k for first, last in alone for k in range(first, last)) == list(range(total))
    assert len(alone) == min(total, levels)
    mirrored = randomisation.runs(total, levels, "independent", "top_down")
    assert mirrored == [(total - last, total - first) for first, last in alone]


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_modes_and_orders_are_twins_made_by_hand(toys, mode, order):
    trials = batch(toys, Gradient(), 3)
    model, cases = trials[0].model, [t.case for t in trials]
    groups = randomisation.layers(model.net)
    steps = groups if order == "bottom_up" else groups[::-1]
    if mode == "cascading":
        steps = [[n for group in steps[: k + 1] for n in group] for k in range(len(steps))]
    after = [Gradient().explain(by_hand(model, names), cases) for names in steps]
    scores = Randomisation(levels=2, mode=mode, order=order).measure(trials)
    for i, (trial, score) in enumerate(zip(trials, scores, strict=True)):
        one = trial.explanation.image.sum(0)
        rhos = [scipy.stats.spearmanr(one.flatten(), a[i].image.sum(0).flatten()).statistic for a in after]
        x, y = score.curves["randomisation_signed"]
        assert y == pytest.approx([1.0, *rhos] if mode == "cascading" else rhos, abs=1e-9)
        assert x == ([0, 0.5, 1] if mode == "cascading" else [0.5, 1])
        value = score.values["randomisation_signed"].number
        assert value == pytest.approx(rhos[-1] if mode == "cascading" else sum(rhos) / 2, abs=1e-9)


def test_both_orders_end_at_the_same_twin_and_an_average_is_one(toys):
    trials = batch(toys, Gradient())
    plain, up, mean = (
        Randomisation(levels=levels, order=order, average=average).measure(trials)
        for levels, order, average in (
            (1, "top_down", False),
            (2, "bottom_up", False),
            (2, "bottom_up", True),
        )
    )
    for a, b, c in zip(plain, up, mean, strict=True):
        assert a.values == b.values
        assert b.curves == c.curves
        for name, value in c.values.items():
            assert value.number == pytest.approx(sum(c.curves[name][1][1:]) / 2)


def test_ssim_is_scikit_images_on_the_images_grid(toys):
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    model, chance = toys.curved(), torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(3, 14, 18, generator=chance), i % 3) for i in range(3)]
    trials = toys.trials(model, cases, Gradient().explain(model, cases), Gradient())
    twin = by_hand(model, [name for name, _ in model.net.named_parameters()])
    after = Gradient().explain(twin, cases)
    metric = Randomisation(similarity="ssim", upsample="bilinear")
    for trial, again, score in zip(trials, after, metric.measure(trials), strict=True):
        one, other = (e.image.sum(0).double().numpy() for e in (trial.explanation, again))
        one, other = (heat / (heat**2).mean() ** 0.5 for heat in (one, other))
        low = min(one.min(), other.min())  # signed maps are lifted
        wanted = theirs(
            one - low, other - low, gaussian_weights=True, use_sample_covariance=False, data_range=2.0
        )
        assert score.values["randomisation_signed"].number == pytest.approx(wanted, abs=1e-6)
    for score in metric.measure(batch(toys, Edges())):
        assert [v.number for v in score.values.values()] == pytest.approx([1.0, 1.0])


def test_what_cannot_be_is_refused():
    with pytest.raises(Refused, match="no upsample 'none'"):
        Randomisation(similarity="ssim")
    for field, wrong in (("mode", "cascade"), ("order", "up"), ("similarity", "cosine"), ("scale", "l2")):
        with pytest.raises(Refused, match=wrong):
            Randomisation(**{field: wrong})
