"""Truth agreement against scikit-learn, a slow twin, closed forms and the controlled models."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from heatproof import shelf
from heatproof.contract import Explanation, Refused, Trial, Unsuited
from heatproof.metrics import agreement
from heatproof.metrics.agreement import TruthAgreement
from heatproof.models import controlled

NAMES = ["pixels", "weakest", "leak", "words"]


def knowing(toys):
    """A toy whose card says that its evidence is the truth; nothing is asked of its net."""
    model = toys.dual()
    model.card = {"truth": "by construction"}
    return model


def planes(*places, size=(4, 6)):
    found = torch.zeros(len(places), *size, dtype=torch.bool)
    for plane, (rows, columns) in zip(found, places, strict=True):
        plane[rows, columns] = True
    return found


TWO = planes((slice(0, 2), slice(0, 2)), (slice(2, 4), slice(4, 6)))


def numbers(toys, heat, evidence=TWO, channels=3, metric=None, **more):
    case = toys.case(pixels=torch.zeros(channels, *evidence.shape[-2:]), evidence=evidence, **more)
    (found,) = toys.numbers(metric or TruthAgreement(), knowing(toys), [case], [heat])
    return found


# ---------------------------------------------------------------- formulas


def slow(heat, planes_):
    """From the definitions, pair by pair."""
    rest = [float(h) for h, t in zip(heat.flatten(), planes_.any(0).flatten(), strict=True) if not t]

    def auc(inside):
        return sum((a > b) + 0.5 * (a == b) for a in inside for b in rest) / (len(inside) * len(rest))

    parts = [[float(h) for h, t in zip(heat.flatten(), p.flatten(), strict=True) if t] for p in planes_]
    union = [float(h) for h, t in zip(heat.flatten(), planes_.any(0).flatten(), strict=True) if t]
    size = sum(abs(float(h)) for h in heat.flatten())
    return auc(union), min(auc(p) for p in parts), sum(map(abs, rest)) / size if size else None


def test_pixels_weakest_and_leak_are_their_definitions(toys):
    chance, furthest = torch.Generator().manual_seed(0), 0.0
    for _ in range(100):
        heat = torch.randint(-4, 5, (4, 6), generator=chance).float()
        found = numbers(toys, heat)
        expected = slow(heat, TWO)
        deviations = [abs(found[n] - e) for n, e in zip(NAMES, expected, strict=False)]
        truth = TWO.any(0).flatten().numpy()
        deviations.append(abs(found["pixels"] - roc_auc_score(truth, heat.flatten().numpy())))
        furthest = max(furthest, *deviations)
    print(f"truth agreement: furthest from the definitions and scikit-learn {furthest:.1e}")
    assert furthest < 1e-12


def test_words_are_scikit_learns_auc_over_what_may_be_removed(toys):
    chance = torch.Generator().manual_seed(1)
    for _ in range(50):
        case = toys.worded("s", "red ball on grass red", torch.zeros(3, 4, 6))
        truth = torch.rand(7, generator=chance) < 0.4
        case = dataclasses.replace(case, evidence_text=truth)
        relevance = torch.randint(-3, 4, (7,), generator=chance).float()
        (found,) = toys.numbers(TruthAgreement(), knowing(toys), [case], [Explanation(text=relevance)])
        inner = truth[1:-1].numpy()
        if inner.any() and not inner.all():
            assert found["words"] == pytest.approx(roc_auc_score(inner, relevance[1:-1].numpy()), abs=1e-12)
        else:
            assert found["words"] is None


def test_the_truth_the_constant_and_the_half_truth(toys):
    found = numbers(toys, TWO.any(0).float())
    assert (found["pixels"], found["weakest"], found["leak"]) == (1.0, 1.0, 0.0)
    found = numbers(toys, torch.full((2, 3), 7.0))
    assert (found["pixels"], found["weakest"]) == (0.5, 0.5)
    assert found["leak"] == pytest.approx(16 / 24)
    found = numbers(toys, TWO[0].float())  # one partner of the two
    assert (found["pixels"], found["weakest"], found["leak"]) == (0.75, 0.5, 0.0)
    found = numbers(toys, torch.zeros(4, 6))
    assert (found["pixels"], found["weakest"], found["leak"]) == (0.5, 0.5, None)
    found = numbers(toys, -TWO.any(0).float())  # the truth, held against it
    assert (found["pixels"], found["weakest"], found["leak"]) == (0.0, 0.0, 0.0)
    assert numbers(toys, -TWO.any(0).float(), metric=TruthAgreement(sign="abs"))["pixels"] == 1.0


def test_a_coarse_map_on_the_truths_own_grid_is_not_blamed(toys):
    truth = planes((slice(0, 2), slice(2, 4)))
    cells = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert numbers(toys, cells, truth)["leak"] == 0.0
    assert numbers(toys, cells, truth, metric=TruthAgreement(upsample="bilinear"))["leak"] > 0.2


# ---------------------------------------------------------------- properties

HEATS = st.lists(st.integers(-5, 5), min_size=24, max_size=24)


@given(HEATS, st.integers(-3, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_ranges_rescaling_and_flips(toys, values, power, gray):
    heat = torch.tensor(values).float().view(4, 6)
    channels = 1 if gray else 3
    found = numbers(toys, heat, channels=channels)
    for name in ("pixels", "weakest", "leak"):
        assert found[name] is None or 0 <= found[name] <= 1
    assert found["weakest"] <= found["pixels"] + 1e-12
    assert numbers(toys, heat * 2.0**power, channels=channels) == found
    assert numbers(toys, heat.half(), channels=channels) == found
    assert numbers(toys, torch.stack([heat, heat * 0, -heat, heat]), channels=channels) == found
    flipped = numbers(toys, heat.flip(1), TWO.flip(2), channels=channels)
    assert {k: v and round(v, 12) for k, v in flipped.items()} == {
        k: v and round(v, 12) for k, v in found.items()
    }


def test_undefined_cases_have_reasons(toys):
    def reasons(heat, **more):
        case = toys.case(pixels=torch.zeros(3, 4, 6), **more)
        (score,) = TruthAgreement().measure(toys.trials(knowing(toys), [case], [heat]))
        assert list(score.values) == NAMES
        return [score.values[n].reason for n in NAMES]

    heat = torch.ones(4, 6)
    assert reasons(heat, evidence=None) == ["no pixel matters"] * 3 + ["no text relevance"]
    assert reasons(heat, evidence=TWO[:0]) == ["no pixel matters"] * 3 + ["no text relevance"]
    assert reasons(heat, evidence=TWO & False) == ["no pixel matters"] * 3 + ["no text relevance"]
    assert reasons(heat, evidence=TWO | True) == ["every pixel matters"] * 3 + ["no text relevance"]
    assert reasons(None, evidence=TWO) == ["no image map"] * 3 + ["no text relevance"]
    assert reasons(heat * float("nan"), evidence=TWO)[0] == "NaN or infinity in the map"
    case = toys.worded("s", "red ball", torch.zeros(3, 4, 6))
    for truth, text, reason in (
        (None, torch.ones(4), "no word matters"),
        (torch.zeros(4).bool(), torch.ones(4), "no word matters"),
        (torch.ones(4).bool(), torch.ones(4), "every word matters"),
        (
            torch.tensor([True, False, False, True]),
            torch.ones(4),
            "no word matters",
        ),  # special tokens take no part
        (
            torch.tensor([False, True, False, False]),
            torch.full((4,), float("nan")),
            "NaN or infinity in the text relevance",
        ),
    ):
        asked = dataclasses.replace(case, evidence_text=truth)
        (score,) = TruthAgreement().measure(toys.trials(knowing(toys), [asked], [Explanation(text=text)]))
        assert score.values["words"].reason == reason


def test_an_annotation_is_not_the_truth(toys):
    with pytest.raises(Unsuited, match="not built to a known answer"):
        TruthAgreement().measure(toys.trials(toys.dual(), [toys.case(evidence=TWO)], [torch.ones(4, 6)]))
    assert TruthAgreement().measure([]) == []


@pytest.mark.parametrize("field, value", [("pool", "max"), ("sign", "both"), ("upsample", "none")])
def test_wrong_settings_are_refused(field, value):
    with pytest.raises(Refused, match=field):
        TruthAgreement(**{field: value})


def test_empty_planes_are_no_weakest_part(toys):
    with_empty = torch.cat([TWO, torch.zeros(1, 4, 6, dtype=torch.bool)])
    assert numbers(toys, TWO.any(0).float(), with_empty)["weakest"] == 1.0


# ---------------------------------------------------------------- on the models


@cache
def world():
    data = shelf.load(shelf.house() / "datasets" / "controlled.py").Controlled(7)
    found = []
    for kind in (controlled.Cnn, controlled.Vit, controlled.Clip, controlled.Captioner):
        for on in kind.reads:
            model = kind(on).load(f"{kind.__name__} {on}")
            policy = "label" if model.family == "classifier" else "caption 0"
            found.append((model, [case for cases in model.ask(data.samples(), policy) for case in cases]))
    return found


def answers(model, cases):
    """Maps of several kinds, with text where there is any."""
    for k, case in enumerate(cases):
        chance = case.generator("answer")
        heat = torch.randn(3, 7, 7, generator=chance)
        kinds = (heat, heat.sum(0).sign(), heat.half(), torch.ones(2, 3), heat * float("nan"), None, heat[0])
        text = None if case.tokens is None else torch.randn(len(case.tokens), generator=chance)
        yield Explanation(image=kinds[k], text=text)


def test_law_1_and_no_forward(toys):
    metric = TruthAgreement()
    for model, cases in world():
        trials = [Trial(model, c, None, e) for c, e in zip(cases, answers(model, cases), strict=True)]
        before = model.meter.run
        whole = [vars(score) for score in metric.measure(trials)]
        for step in (1, 3):
            for order in (1, -1):
                some = trials[::order]
                parts = [vars(s) for i in range(0, 7, step) for s in metric.measure(some[i : i + step])]
                assert parts[::order] == whole
        assert model.meter.run == before
        defined = [v["values"]["words"].defined for v in whole]
        assert all(defined) if model.on == "word" else not any(defined)
        defined = [v["values"]["pixels"].defined for v in whole]
        assert sum(defined) == (0 if model.on == "word" else 5)


def test_weakest_shows_what_a_union_hides():
    """A map of the lamp alone on an interaction: fair on the whole, nothing on the box."""
    model, cases = next((m, c) for m, c in world() if m.name == "Cnn interaction")
    lamps = [Explanation(image=case.evidence[0].float()) for case in cases]
    for score in TruthAgreement().measure(
        [Trial(model, c, None, e) for c, e in zip(cases, lamps, strict=True)]
    ):
        assert score.values["pixels"].number == 0.75
        assert score.values["weakest"].number == 0.5


def test_the_formulas_take_plain_tensors():
    heat = torch.tensor(np.arange(12.0)).view(3, 4)
    parts = torch.stack([heat > 10, (heat > 8) & (heat <= 10)])
    assert agreement.weakest(heat, parts) == 1.0
    assert agreement.leak(torch.zeros(3, 4), parts[0]) != agreement.leak(torch.zeros(3, 4), parts[0])  # NaN
