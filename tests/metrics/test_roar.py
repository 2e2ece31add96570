"""Remove and retrain: what is removed, that what was needed is missed, and that nothing else moves a bit of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from heatproof import checks
from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics import retraining, roar
from heatproof.metrics.roar import Kar, Roar
from heatproof.progress import Silent
from heatproof.runner import Order, run

SIZE = (6, 8)


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score."""

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [Explanation(image=g) for g in grad]


@dataclass(frozen=True)
class Plane:
    """One map for all: rows from ``top`` to ``bottom`` are hot."""

    top: int
    bottom: int

    def explain(self, model, cases):
        heat = torch.zeros(SIZE)
        heat[self.top : self.bottom] = 1
        return [Explanation(image=heat) for _ in cases]


def planted(toys, count, seed=0, first="s"):
    """The class is the channel that is loud in the upper two rows; elsewhere there is faint noise."""
    chance, cases = torch.Generator().manual_seed(seed), []
    for i in range(count):
        pixels = 0.1 * torch.randn(3, *SIZE, generator=chance)
        pixels[i % 3, :2] += 2 * torch.randn(2, SIZE[1], generator=chance).sign()
        cases.append(toys.case(f"{first}{i}", pixels, i % 3))
    return cases


QUICK = {"epochs": 40, "batch": 8, "rate": 0.03}


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_what_was_needed_is_missed_and_what_was_not_is_not(toys, start):
    model, learn, asked = toys.curved(), planted(toys, 48), planted(toys, 30, seed=1, first="t")
    found = {}
    for kind, share in ((Roar, 1 / 3), (Kar, 1 / 3)):
        for name, explainer in (("evidence", Plane(0, 2)), ("beside", Plane(4, 6))):
            metric = kind(shares=(share,), start=start, **QUICK)
            fitted = metric.fit(model, iter([learn]), explainer)
            scores = metric.measure(
                toys.trials(model, asked, [e.image for e in explainer.explain(model, asked)]), fitted
            )
            found[kind.__name__, name] = sum(s.values["accuracy"].number for s in scores) / len(scores)
    assert found["Roar", "evidence"] < 0.6
    assert found["Roar", "beside"] == 1
    assert found["Kar", "evidence"] == 1
    assert found["Kar", "beside"] < 0.6


# ---------------------------------------------------------------- what is removed


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=48, max_size=48),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_exactly_k_pixels_go_in_training_and_in_the_test_whatever_the_ties(toys, heat, share):
    model, cases = toys.curved(), planted(toys, 6)
    heat = torch.tensor(heat).reshape(SIZE)

    @dataclass(frozen=True)
    class Tied:
        def explain(self, model, cases):
            return [Explanation(image=heat) for _ in cases]

    for metric in (Roar(shares=(share,), epochs=1), Kar(shares=(share,), epochs=1)):
        seen = []

        def spy(model, images, labels, seen=seen, **more):
            seen.append(images(torch.arange(len(labels))))
            return dict(model.net.state_dict())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(roar, "retrained", spy)
            fitted = metric.fit(model, iter([cases[:4], cases[4:]]), Tied())
        judged = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Roar,
                "_judged",
                lambda self, m, f, o, images, cases, to=judged: to.extend(images) or ([1.0] * 6, [1.0] * 6),
            )
            metric.measure(toys.trials(model, cases, [heat] * 6), fitted)
        stacked = np.stack([c.pixels.double().numpy() for c in cases])
        fill = stacked.mean((0, 2, 3))
        assert fitted["fill"].tolist() == pytest.approx(fill.tolist(), abs=1e-7)
        k = roar.how_many(share, 48)
        for case, image, again in zip(cases, seen[0], judged, strict=True):
            gone = (image != case.pixels).any(0)
            assert int(gone.sum()) == (48 - k if metric.keeps else k)
            assert image.equal(again)  # the training image of a case and its test image are one
            assert image[:, gone].equal(fitted["fill"][:, None].expand(3, int(gone.sum())))
            marked = ~gone if metric.keeps else gone
            if 0 < k < 48:
                assert float(heat[marked].min()) >= float(heat[~marked].max())


def test_zero_is_the_other_fill(toys):
    metric = Roar(shares=(0.5,), fill="zero", epochs=1)
    assert not metric.fit(toys.curved(), iter([planted(toys, 4)]), Plane(0, 2))["fill"].any()


# ---------------------------------------------------------------- the numbers


def test_the_values_are_those_of_a_plain_forward(toys, capsys):
    """The slow way: masks from sorted maps, the retrained net called as torch calls it, trapezoids by numpy."""
    model, cases = toys.curved(), planted(toys, 9)
    metric = Roar(shares=(0.2, 0.5, 0.9), repeats=2, epochs=3, batch=4)
    fitted = metric.fit(model, iter([cases]), Gradient())
    answers, worst = Gradient().explain(model, cases), 0.0
    scores = metric.measure(toys.trials(model, cases, answers), fitted)
    for case, answer, score in zip(cases, answers, scores, strict=True):
        order = np.argsort(-answer.image.sum(0).flatten().numpy(), kind="stable")
        heights = {"accuracy": [], "probability": []}
        for share in metric.shares:
            image = case.pixels.clone().reshape(3, -1)
            image[:, order[: round(share * 48)].tolist()] = fitted["fill"][:, None]
            found = []
            for k in range(2):
                net = toys.curved().net
                start = f"{share}/{k}/"
                net.load_state_dict(
                    {n.removeprefix(start): v for n, v in fitted.items() if n.startswith(start)}
                )
                logits = net.last(torch.tanh(net.mix(image.reshape(1, 3, *SIZE))).square().mean((2, 3)))[0]
                found.append(
                    (float(logits.argmax() == case.target), float(logits.double().softmax(0)[case.target]))
                )
            for name, number in zip(heights, np.mean(found, 0), strict=True):
                heights[name].append(number)
        for name, height in heights.items():
            assert score.curves[name][0] == metric.shares
            worst = max(worst, np.abs(np.array(score.curves[name][1]) - height).max())
            wanted = np.trapezoid(height, metric.shares) / 0.7
            worst = max(worst, abs(score.values[name].number - wanted))
    with capsys.disabled():
        print(f" [roar: largest deviation {worst:.1e}]", end="")
    assert worst < 1e-6


def test_tied_logits_share_the_accuracy(toys):
    model, (case,) = toys.curved(), planted(toys, 1)
    flat = {f"0.5/0/{n}": torch.zeros_like(v) for n, v in model.net.state_dict().items()}
    (score,) = Roar(shares=(0.5,)).measure(
        toys.trials(model, [case], [torch.eye(4)]), {"fill": torch.zeros(3), **flat}
    )
    assert score.values["accuracy"].number == pytest.approx(1 / 3)
    assert score.values["probability"].number == pytest.approx(1 / 3)


def test_a_row_a_share_and_repeat_is_its_cost(toys):
    model, cases = toys.curved(), planted(toys, 5)
    metric = Roar(shares=(0.2, 0.8), repeats=2, epochs=1)
    fitted = metric.fit(model, iter([cases]), Plane(0, 2))
    model.clean(cases)
    with torch.inference_mode(), model.part() as spent:
        metric.measure(toys.trials(model, cases, [torch.eye(4)] * 5), fitted)
    assert dict(spent.forward) == {c.id: pytest.approx(4) for c in cases}


# ---------------------------------------------------------------- the training


def test_the_draw_is_the_same_for_all_explainers_and_chunks_and_leaves_the_world_as_it_was(toys):
    model, cases = toys.curved(), planted(toys, 10)
    before, state = checks.condition(model.net), torch.get_rng_state()
    metric = Roar(shares=(0.0, 0.5), epochs=2, batch=4)
    one = metric.fit(model, iter([cases]), Plane(0, 2))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    two = metric.fit(model, iter([[c] for c in cases]), Plane(0, 2))
    other = metric.fit(model, iter([cases]), Gradient())
    assert one.keys() == two.keys() == other.keys()
    assert all(one[name].equal(two[name]) for name in one)
    untouched = [name for name in one if name.startswith("0.0/")]
    assert all(one[name].equal(other[name]) for name in untouched)  # nothing was removed: nothing differs
    assert any(not one[name].equal(other[name]) for name in one if name.startswith("0.5/"))
    assert torch.get_rng_state().equal(state)
    assert checks.condition(model.net) == before
    assert not model._twins


def test_repeats_shares_and_seeds_draw_other_weights(toys):
    model, cases = toys.curved(), planted(toys, 6)
    found = Roar(shares=(0.0, 0.1), repeats=2, epochs=1, rate=1e-9).fit(model, iter([cases]), Plane(0, 2))
    again = [type(c)(**{**vars(c), "seed": 5}) for c in cases]
    found |= {
        "x" + n: v
        for n, v in Roar(shares=(0.0,), epochs=1, rate=1e-9).fit(model, iter([again]), Plane(0, 2)).items()
    }
    drawn = {tuple(v.flatten().tolist()) for n, v in found.items() if n.endswith("mix.weight")}
    assert len(drawn) == 5


def test_trained_starts_where_the_model_is(toys):
    model, cases = toys.curved(), planted(toys, 6)
    for start, near in (("trained", True), ("fresh", False)):
        metric = Roar(shares=(0.5,), start=start, epochs=1, rate=1e-9)
        found = metric.fit(model, iter([cases]), Plane(0, 2))
        for name, weight in model.net.named_parameters():
            assert found[f"0.5/0/{name}"].allclose(weight, atol=1e-6) == near


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_fresh_weights_are_those_that_the_architecture_begins_with(families, name):
    import copy

    net = families[name][0].net
    one, two, three = (copy.deepcopy(net) for _ in range(3))
    retraining.fresh(one, "a")
    retraining.fresh(two, "a")
    retraining.fresh(three, "b")
    for (key, value), was, same, other in zip(
        one.named_parameters(), net.parameters(), two.parameters(), three.parameters(), strict=True
    ):
        assert value.equal(same)
        if value.ndim > 1 and value.numel() > 50:
            assert not value.equal(was)
            assert not value.equal(other)
            if name == "vit" and "projection" not in key:
                assert float(value.std()) == pytest.approx(net.config.initializer_range, rel=0.4)
    stale = [n for n, b in one.named_buffers() if n.endswith("running_mean") and b.any()]
    assert not stale


def test_a_net_that_keeps_its_start_to_itself_is_unsuited(toys):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(Unsuited, match="Own does not tell how its weights begin"):
        retraining.fresh(Own(), 0)


def test_a_loss_that_is_no_number_is_said(toys):
    cases = planted(toys, 6)
    cases[0].pixels.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="take a lower rate"):
        Roar(shares=(0.0,), epochs=1).fit(toys.curved(), iter([cases]), Plane(0, 2))


# ---------------------------------------------------------------- undefined, unsuited, refused


def test_undefined_and_unsuited(toys, families):
    model, cases = toys.curved(), planted(toys, 4)
    metric = Roar(shares=(0.5,), epochs=1)
    fitted = metric.fit(model, iter([cases]), Plane(0, 2))
    heats = [None, torch.full(SIZE, math.nan), torch.ones(2, 3), torch.eye(4)]
    reasons = [
        {v.reason for v in s.values.values()}
        for s in metric.measure(toys.trials(model, cases, heats), fitted)
    ]
    assert reasons == [{"no image map"}, {"NaN or infinity in the map"}, {""}, {""}]
    assert metric.measure([], fitted) == []

    @dataclass(frozen=True)
    class Holes:
        def explain(self, model, cases):
            return [Explanation(image=None if c.id == "s1" else torch.eye(4)) for c in cases]

    with pytest.raises(Unsuited, match="1 of 4 images of the fit split have no map"):
        metric.fit(model, iter([cases]), Holes())
    with pytest.raises(Unsuited, match="0 of 0 images"):
        metric.fit(model, iter([]), Holes())
    for name in ("clip", "captioner"):
        with pytest.raises(Unsuited, match="only classifiers are trained again"):
            metric.fit(families[name][0], iter([families[name][1]]), Gradient())
    other = toys.case("s9", torch.zeros(3, 5, 5), 0)
    with pytest.raises(Unsuited, match="images of any size"):
        metric.fit(model, iter([cases, [other]]), Gradient())


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": ()}, {"shares": (0.5, 0.1)}, {"shares": (-0.1,)}, {"shares": (0.5, 1.1)}, {"start": "cold"},
        {"fill": "grey"}, {"epochs": 0}, {"rate": 0.0}, {"repeats": 0}, {"sign": "both"}, {"upsample": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    for kind in (Roar, Kar):
        with pytest.raises(Refused):
            kind(**wrong)


# ---------------------------------------------------------------- a whole run


def test_a_run_with_one_worker_and_with_two_and_cut_off_is_the_same_to_the_last_bit(world):
    path = world / "benchmarks" / "toy.toml"
    lines = [x for x in path.read_text().splitlines() if "own_captioner" not in x and 'as = "vit"' not in x]
    text = "\n".join(lines).replace(
        '["inside"]', '["inside", { use = "roar", shares = [0.5], epochs = 3, batch = 3 }]'
    )
    path.write_text(
        text.replace('dataset = "squares"', 'dataset = "squares"\nfit = { use = "squares", count = 7 }')
    )

    def go(**more):
        result = run(Order("toy", cwd=world, **more), Silent)
        assert not result.run["failures"]
        return result, (world / ".heatproof" / "toy.csv").read_bytes()

    result, whole = go()
    rows = [r for r in result.records if r.metric == "roar"]
    assert {r.status for r in rows if r.model == "cnn"} == {"value"}
    assert {r.reason for r in rows if r.model == "clip"} == {
        "clip is a dual: only classifiers are trained again here"
    }
    assert {r.forwards for r in rows if r.case} == {1.0}
    shutil.rmtree(world / ".heatproof")
    go(limit=2)
    assert go(workers=2, sets=("chunk=1",))[1] == whole
