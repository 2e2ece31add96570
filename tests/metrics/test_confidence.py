"""Average Drop, Increase and Gain against the papers' formulas, a pixel-by-pixel twin, and torch-cam's expected value."""

from __future__ import annotations

import json
import math
import os
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import confidence, ranking
from heatproof.metrics.confidence import Confidence
from heatproof.metrics.maps import Undefined
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner import Captioner
from heatproof.models.words import WordList

SHARED = Path(__file__).resolve().parents[3] / "shared"
VECTORS = Path(os.environ.get("HEATPROOF_CONFORMANCE", SHARED / "conformance")) / "vectors.json"
M2IB = SHARED / "examples" / "m2ib_confidence.toml"
TEXTS = ("red ball", "red ball on grass", "ball on ball", "grass red")


def curved(toys, channels=3):
    model = toys.curved(channels)
    model.frame = Frame(8, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.25, 0.3)[:channels])
    return model


def batch(toys, count, channels=3, size=(6, 9)):
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, channels, *size, generator=chance)
    heats = torch.randn(count, *size, generator=chance)
    cases = [toys.case(f"s{i}.{i}", p, i % 3) for i, p in enumerate(pixels)]
    return curved(toys, channels), cases, list(heats)


def worded(toys, count=4):
    chance = torch.Generator().manual_seed(3)
    cases = [toys.worded(f"c{i}", TEXTS[i % 4], torch.randn(3, 4, 6, generator=chance)) for i in range(count)]
    answers = [
        Explanation(
            image=torch.randn(2, 3, generator=chance), text=torch.randn(len(c.words), generator=chance)
        )
        for c in cases
    ]
    for i, answer in enumerate(answers):
        answer.text[1:3] = torch.tensor([1.0, -0.5 if i % 2 else 0.25])  # two words differ: there is a range
    return toys.dual(), cases, answers


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()))
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(embed=5, hidden=7, cells=9, channels=6, vocabulary=8))
    words = WordList({w: i for i, w in enumerate("<pad> red ball on grass <unk> <start> <end>".split())})
    return Captioner("tiny", net, Frame(6), words=words, objects=("ball",), length=6)


def spoken(toys, model, target, caption="red ball on grass"):
    ids = torch.tensor([model.words.bos, *(model.words.ids[w] for w in caption.split())])
    pixels = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(target))
    return toys.case(f"w{target}", pixels, target, tokens=ids, words=tuple(range(-1, len(ids) - 1)))


# ---------------------------------------------------------------- formulas


@given(st.floats(0.001, 1), st.floats(0, 1))
def test_drop_increase_and_gain_are_the_papers_and_in_range(clean, shown):
    lost, gained = confidence.drop(clean, shown), confidence.gain(clean, shown)
    assert 0 <= lost <= 1
    assert 0 <= gained <= 1 + 1e-12
    assert lost == pytest.approx(max(0, clean - shown) / clean)
    assert gained == (pytest.approx(max(0, shown - clean) / (1 - clean)) if clean < 1 else 0)
    assert confidence.increase(clean, shown) == (shown > clean)
    assert lost * gained == 0
    assert (
        confidence.drop(clean, shown, "absolute") - confidence.gain(clean, shown, "absolute") == clean - shown
    )
    assert math.isnan(confidence.drop(-clean, shown))
    assert math.isnan(confidence.drop(0.0, shown))


@given(st.lists(st.floats(-5, 5, width=16), min_size=2, max_size=9), st.integers(-3, 6))
def test_scaled_weights_go_from_0_to_1_and_know_no_unit(values, power):
    heat = torch.tensor(values)
    for how in ("minmax", "max"):
        try:
            weight = confidence.scaled(heat, how)
        except Undefined:
            assert heat.max() <= 0 if how == "max" else ranking.maxima(heat).all()
            continue
        assert weight.min() >= 0
        assert weight.max() == 1
        assert torch.equal(confidence.scaled(heat * 2.0**power, how), weight)
        if how == "minmax":
            assert weight.min() == 0
        else:
            assert bool((weight[heat <= 0] == 0).all() & (weight[heat > 0] > 0).all())


def test_a_weight_of_0_is_the_blank_and_1_the_image():
    image, blank = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(confidence.weighted(image, blank, torch.ones(4, 5).double()), image)
    assert torch.equal(confidence.weighted(image, blank, torch.zeros(4, 5).double()), blank)


def logits(model, image):
    return model.net.last(torch.tanh(model.net.mix(image[None])).square().mean((2, 3)))[0]


@pytest.mark.parametrize("drop", ["relative", "absolute"])
@pytest.mark.parametrize("scale", ["minmax", "max"])
@pytest.mark.parametrize("mask", ["pixel", "normalised"])
def test_it_is_the_slow_twin(toys, mask, scale, drop, record_property):
    """Grad-CAM++ by hand: rectify, scale, multiply pixel by pixel in 0 ... 1, normalise again, softmax."""
    model, cases, heats = batch(toys, 4)
    metric, worst = Confidence(image_mask=mask, scale=scale, drop=drop), 0.0
    mean, std = model.frame.mean, model.frame.std
    for case, heat, score in zip(cases, heats, metric.measure(toys.trials(model, cases, heats)), strict=True):
        positive = [max(0.0, float(v)) for v in heat.reshape(-1)]
        low = min(positive) if scale == "minmax" else 0.0
        weights = torch.tensor([(v - low) / (max(positive) - low) for v in positive]).reshape(heat.shape)
        shown = case.pixels.clone()
        for c in range(3):
            for y in range(heat.shape[0]):
                for x in range(heat.shape[1]):
                    value = float(shown[c, y, x])
                    if mask == "pixel":
                        photograph = (value * std[c] + mean[c]) * float(weights[y, x])
                        shown[c, y, x] = (photograph - mean[c]) / std[c]
                    else:
                        shown[c, y, x] = value * float(weights[y, x])
        y, o = (float(logits(model, image).softmax(0)[case.target]) for image in (case.pixels, shown))
        expected = {
            "image_drop": max(0, y - o) / y if drop == "relative" else 100 * max(0, y - o),
            "image_increase": (100 if drop == "absolute" else 1) * (o > y),
            "image_gain": max(0, o - y) / (1 - y) if drop == "relative" else 100 * max(0, o - y),
        }
        assert list(score.values) == list(expected)
        for name, value in expected.items():
            worst = max(worst, abs(score.values[name].number - value))
    print(f"largest deviation from the slow twin ({mask}, {scale}, {drop}): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < (1e-4 if drop == "absolute" else 1e-6)


def test_it_is_what_torch_cam_expects(toys):
    """torchcam-avgdrop, score = sum of the pixels, the map one pixel; torch-cam adds 1e-7 to the denominator."""
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    (entry,) = (e for e in json.loads(VECTORS.read_text()) if e["id"] == "torchcam-avgdrop")
    case = toys.case(pixels=torch.tensor([entry["input"]]))
    heat = torch.tensor(entry["attribution"]).float()
    for mask in confidence.MASKS:
        metric = Confidence(output="native", image_mask=mask)
        (found,) = toys.numbers(metric, toys.linear(), [case], [heat])
        assert found["image_drop"] == pytest.approx(entry["expect"]["avg_drop"], abs=1e-6)
        assert found["image_increase"] == entry["expect"]["conf_increase"]


def test_closed_forms_on_a_sum(toys):
    """Pixels 4, 3, 2, 1; the weights 1, 1/2, 0, 0 leave 5.5 of 10."""
    case = toys.case(pixels=torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]))
    heat = torch.tensor([[2.0, 1.0], [0.0, -3.0]])
    ask = lambda **more: toys.numbers(Confidence(output="native", **more), toys.linear(), [case], [heat])[0]
    assert ask()["image_drop"] == pytest.approx(0.45)
    assert ask(drop="absolute")["image_drop"] == pytest.approx(450.0)
    assert ask(sign="signed")["image_drop"] == pytest.approx(1 - (4 + 3 * 0.8 + 2 * 0.6) / 10)
    assert ask(sign="signed", scale="max")["image_drop"] == pytest.approx(0.45)
    assert ask(drop="absolute")["image_gain"] == 0


# ---------------------------------------------------------------- text


def test_text_is_the_embeddings_times_their_relevance(toys, record_property):
    """A bag of token vectors: the slow twin weighs and adds them by hand; the ends of the sentence keep weight 1."""
    model, cases, answers = worded(toys)
    metric = Confidence(output="cosine", drop="absolute", image_mask="normalised", text_mask="embedding")
    worst = 0.0
    for case, answer, score in zip(
        cases, answers, metric.measure(toys.trials(model, cases, answers)), strict=True
    ):
        inside = [max(0.0, float(v)) for v in answer.text[1:-1]]
        weights = [1.0, *((v - min(inside)) / (max(inside) - min(inside)) for v in inside), 1.0]
        image = model.net.eye(case.pixels.mean((1, 2)))
        y, o = (
            float(
                torch.cosine_similarity(
                    model.net.ear(sum(w * model.net.table.weight[t] for w, t in zip(row, case.tokens, strict=True))),
                    image, dim=0,
                )
            )
            for row in ([1.0] * len(weights), weights)
        )  # fmt: skip
        expected = {
            "text_drop": 100 * max(0, y - o), "text_increase": 100 * (o > y), "text_gain": 100 * max(0, o - y)
        }  # fmt: skip
        for name, value in expected.items():
            worst = max(worst, abs(score.values[name].number - value))
        assert list(score.values) == [m.name for m in metric.measures]
    print(f"largest deviation from the slow twin (text): {worst:.1e}")
    record_property("deviation", float(worst))
    assert worst < 1e-4


def test_untouched_text_scores_as_the_untouched_image_does(toys, captioner, families):
    """So the clean score of the memo serves both sides (equal to the last bit where this was written)."""
    spoke = [spoken(toys, captioner, t) for t in range(1, 4)]
    for model, cases in (worded(toys)[:2], (captioner, spoke), families["clip"], families["captioner"]):
        keep = torch.ones(len(cases), max(len(c.words) for c in cases))
        assert (model.score_text(keep, cases, "embedding") - model.clean(cases)).abs().max() < 1e-6


def test_a_captioners_word_keeps_itself_and_what_follows(toys, captioner):
    cases = [spoken(toys, captioner, t) for t in range(4)]
    answers = [Explanation(text=torch.tensor([5.0, 1.0, 2.0, 4.0, 3.0])) for _ in cases]
    metric = Confidence(text_mask="embedding")
    found = metric.measure(toys.trials(captioner, cases, answers))
    assert [found[t].values["text_drop"].reason for t in range(2)] == [
        "no token that may be removed",
        "a constant map cannot be scaled",
    ]
    assert found[0].values["image_drop"].reason == "no image map"
    for case, answer, score in list(zip(cases, answers, found, strict=True))[2:]:
        free = answer.text[1 : case.target + 1]
        keep = torch.ones(1, 5)
        keep[0, 1 : case.target + 1] = (free - free.min()) / (free.max() - free.min())
        with torch.no_grad():
            y, o = (
                float(captioner.score_text(k, [case], "embedding").exp()) for k in (torch.ones(1, 5), keep)
            )
        assert score.values["text_drop"].number == pytest.approx(max(0, y - o) / y, abs=1e-6)
        assert score.values["text_gain"].number == pytest.approx(max(0, o - y) / (1 - y), abs=1e-6)
        assert score.values["text_increase"].number == float(o > y)


def test_a_classifier_has_no_text_values_and_says_so(toys):
    model, cases, heats = batch(toys, 2)
    for score in Confidence(text_mask="embedding").measure(toys.trials(model, cases, heats)):
        assert {score.values[f"text_{n}"].reason for n in ("drop", "increase", "gain")} == {
            "the model reads no text"
        }
        assert score.values["image_drop"].defined
    assert [m.name for m in Confidence().measures] == ["image_drop", "image_increase", "image_gain"]


def test_each_side_has_its_own_reasons(toys):
    model, cases, answers = worded(toys)
    nan = torch.full((len(cases[2].words),), float("nan"))
    answers = [
        Explanation(image=answers[0].image),
        Explanation(text=answers[1].text),
        Explanation(image=answers[2].image * float("nan"), text=nan),
        answers[3],
    ]
    metric = Confidence(output="native", drop="absolute", text_mask="embedding")
    found = metric.measure(toys.trials(model, cases, answers))
    reasons = [tuple(s.values[f"{side}_drop"].reason for side in ("image", "text")) for s in found]
    assert reasons == [
        ("", "no text relevance"),
        ("no image map", ""),
        ("NaN or infinity in the map", "NaN or infinity in the text relevance"),
        ("", ""),
    ]
    with pytest.raises(ValueError, match="a value a token"):
        metric.measure(toys.trials(model, cases[:1], [Explanation(text=torch.zeros(3))]))


def test_the_m2ib_spec_can_have_its_settings(toys):
    if not M2IB.is_file():
        pytest.skip(f"no examples at {M2IB}")
    (line,) = tomllib.loads(M2IB.read_text())["metrics"]
    metric = Confidence(**{k: v for k, v in line.items() if k != "use"})
    model, cases, answers = worded(toys)
    (score, *_) = metric.measure(toys.trials(model, cases, answers))
    wanted = tomllib.loads(M2IB.read_text())["published"][0]["columns"]
    assert {f"confidence.{name}" for name in score.values} >= set(wanted)
    assert {m.unit for m in metric.measures} == {"points x 100", "% of cases"}
    with pytest.raises(Unsuited, match="no cosine"):
        metric.measure(toys.trials(*batch(toys, 1)))


# ---------------------------------------------------------------- invariances and laws


def test_positive_rescaling_fp16_and_channels_change_nothing(toys):
    model, cases, heats = batch(toys, 4)
    heats = [h.half().float() for h in heats]
    for metric in (Confidence(), Confidence(scale="max", image_mask="normalised")):
        expected = toys.numbers(metric, model, cases, heats)
        for same in ([h.half() for h in heats], [h * 8 for h in heats], [torch.stack([h, h]) for h in heats]):
            assert toys.numbers(metric, model, cases, same) == expected


def test_flips_of_image_and_map_change_nothing(toys):
    chance = torch.Generator().manual_seed(2)
    image, heat = torch.rand(1, 6, 8, generator=chance), torch.randn(6, 8, generator=chance)
    metric = Confidence(output="native")
    (expected,) = toys.numbers(metric, toys.linear(), [toys.case(pixels=image)], [heat])
    for flip in ([0], [1], [0, 1]):
        turned = toys.case(pixels=image.flip([d + 1 for d in flip]))
        (found,) = toys.numbers(metric, toys.linear(), [turned], [heat.flip(flip)])
        assert found == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from(["pixel", "normalised"]))
def test_relative_values_of_probabilities_are_shares(toys, seed, channels, mask):
    chance = torch.Generator().manual_seed(seed)
    case = toys.case(pixels=torch.randn(channels, 5, 7, generator=chance))
    heat = torch.randn(2, 3, generator=chance)
    heat[0, 0] = 1.0
    (found,) = toys.numbers(Confidence(image_mask=mask), curved(toys, channels), [case], [heat])
    assert all(0 <= v <= 1 for v in found.values())
    assert found["image_increase"] in (0, 1)


def test_a_map_that_hides_nothing_changes_nothing(toys):
    """With "max" a constant map is all ones: no drop, no increase, no gain, to the last bit."""
    model, cases, _ = batch(toys, 3)
    for found in toys.numbers(Confidence(scale="max"), model, cases, [torch.full((2, 2), 0.3)] * 3):
        assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    "metric",
    [
        Confidence(),
        Confidence(drop="absolute", image_mask="normalised", scale="max", output="native"),
        Confidence(output="cosine", text_mask="embedding", drop="absolute", sign="signed"),
    ],
)
def test_chunks_and_order_change_nothing(toys, metric):
    if metric.text_mask:
        model, cases, answers = worded(toys, 9)
        answers[1], answers[4] = Explanation(text=answers[1].text), Explanation(image=answers[4].image)
    else:
        model, cases, answers = batch(toys, 9)
        answers[1], answers[2], answers[3] = None, answers[2] * float("nan"), answers[3].half()
        answers[4] = torch.stack([answers[4], answers[5]])
    trials = toys.trials(model, cases, answers)
    model.memo.clear()
    expected = metric.measure(trials)
    for chunk in (1, 3, len(trials)):
        for way in (1, -1):
            asked, found = trials[::way], []
            for first in range(0, len(asked), chunk):
                model.memo.clear()
                with torch.inference_mode():
                    found += metric.measure(asked[first : first + chunk])
            assert [s.values for s in found[::way]] == [s.values for s in expected]
    numbers = {v.number for s in expected for v in s.values.values()}
    assert len(numbers) > 5
    for score in expected:
        assert list(score.values) == [m.name for m in metric.measures]
    assert metric.measure([]) == []


def test_one_row_a_side_beside_the_untouched_score(toys):
    model, cases, heats = batch(toys, 8)
    trials = toys.trials(model, cases, heats)
    Confidence().measure(trials[:1])  # the stages are weighed once
    model.memo.clear()
    with model.part() as spent:
        Confidence().measure(trials)
    assert dict(spent.forward) == {c.id: pytest.approx(2) for c in cases}
    model.memo.on = True
    Confidence().measure(trials)
    run = model.meter.run
    Confidence(image_mask="normalised").measure(trials)
    assert model.meter.run - run == pytest.approx(8)  # the untouched scores are in the memo

    model, cases, answers = worded(toys, 8)
    answers = [Explanation(image=a.image, text=torch.arange(len(a.text)).float()) for a in answers]
    trials = toys.trials(model, cases, answers)
    metric = Confidence(output="cosine", text_mask="embedding")
    model.memo.on = True
    metric.measure(trials)
    run = model.meter.run
    metric.measure(trials)
    assert model.meter.run - run == pytest.approx(16)


def test_model_and_cases_are_left_as_found(toys):
    model, cases, heats = batch(toys, 2)
    before = [t.clone() for t in model.net.parameters()], [c.pixels.clone() for c in cases]
    Confidence().measure(toys.trials(model, cases, heats))
    assert all(map(torch.equal, before[0], model.net.parameters()))
    assert all(map(torch.equal, before[1], (c.pixels for c in cases)))


# ---------------------------------------------------------------- undefined, unsuited, refused


def test_what_has_no_number_says_why(toys):
    image = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    cases = [toys.case("up", image), toys.case("down", -image), toys.case("inf", image * math.inf)]
    heats = [torch.ones(2, 2), torch.eye(2), torch.eye(2)]
    flat, below, broken = Confidence(output="native").measure(toys.trials(toys.linear(), cases, heats))
    assert {v.reason for v in flat.values.values()} == {"a constant map cannot be scaled"}
    assert below.values["image_drop"].reason == "the untouched score is not above 0: there is no ratio to it"
    assert below.values["image_increase"].number == 1.0
    assert below.values["image_gain"].reason == "a logit has no upper bound of 1 to gain towards"
    assert {v.reason for v in broken.values.values()} == {"not a finite number"}
    (cold,) = Confidence(output="native", scale="max").measure(
        toys.trials(toys.linear(), cases[:1], [-torch.ones(2, 2)])
    )
    assert {v.reason for v in cold.values.values()} == {"no positive relevance"}


def test_a_saturated_probability_has_nothing_to_gain(toys):
    """Softmax says exactly 1: the drop is defined, the gain is 0 and not 0 / 0."""
    model = toys.linear()
    case = toys.case(pixels=torch.full((1, 4, 4), 50.0))
    (found,) = toys.numbers(Confidence(), model, [case], [torch.eye(4)])
    assert found == {"image_drop": 0.0, "image_increase": 0.0, "image_gain": 0.0}


def test_what_it_cannot_serve_is_unsuited(toys):
    model, cases, answers = worded(toys)
    with pytest.raises(Unsuited, match="cosine"):
        Confidence().measure(toys.trials(model, cases, answers))
    with pytest.raises(Unsuited, match="region features"):
        Confidence().measure(
            toys.trials(toys.linear(), [toys.case(pixels=torch.zeros(5, 7))], [torch.eye(2)])
        )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"drop": "relativ"}, "did you mean 'relative'"),
        ({"output": "logit"}, "no output 'logit'"),
        ({"image_mask": "pixels"}, "did you mean 'pixel'"),
        ({"scale": "min"}, "no scale 'min'"),
        ({"text_mask": "ids"}, "no text_mask 'ids'"),
        ({"sign": "plus"}, "no sign 'plus'"),
        ({"upsample": "none"}, "no upsample 'none'"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Confidence(**setting)
