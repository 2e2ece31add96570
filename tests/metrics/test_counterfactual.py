"""Counterfactual against scipy, a slow twin, closed forms, and models whose true effects are known by construction."""

from __future__ import annotations

import dataclasses
import math
from functools import cache, partial

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import Sample, shelf
from heatproof.contract import Explanation, Object, Refused, Trial, Unsuited, Without
from heatproof.geometry import Frame
from heatproof.metrics import counterfactual
from heatproof.metrics.counterfactual import Counterfactual, kendall, object_mass, true_effects
from heatproof.models import asking, controlled
from heatproof.scenery import Knobs
from heatproof.scenery import sample as scene_sample

NAMES = ["spearman", "kendall", "words", "words_kendall"]
KINDS = (controlled.Cnn, controlled.Vit, controlled.Clip, controlled.Captioner)
THINGS = ("lamp", "box", "crate", "mark")


@cache
def scenes(count=6):
    return shelf.load(shelf.house() / "datasets" / "scenes.py").Scenes(sample=count).samples()


@cache
def asked(kind, on, count=6):
    data = shelf.load(shelf.house() / "datasets" / "controlled.py").Controlled(count)
    model = kind(on).load(f"{kind.__name__}-{on}")
    policy = "label" if model.family == "classifier" else "caption 0"
    return model, [case for cases in model.ask(data.samples(), policy) for case in cases]


def tiles(toys, count=4, size=(6, 10), seed=0, channels=3):
    """A case of random pixels whose ``count`` things are blocks that turn into 0 where they are left out."""
    chance = torch.Generator().manual_seed(seed)
    pixels = torch.randn(channels, *size, generator=chance)
    things = []
    for k in range(count):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[k % 2 * 3 : k % 2 * 3 + 1 + k % 3, 2 * k : 2 * k + 2] = True
        things.append(Without(f"thing {k}", mask, partial(torch.masked_fill, pixels, mask, 0.0)))
    return toys.case(f"s{seed}", pixels, without=tuple(things))


# ---------------------------------------------------------------- formulas


def test_kendall_and_spearman_are_scipys():
    chance, furthest, undefined = np.random.default_rng(0), 0.0, 0
    for _ in range(300):
        n = int(chance.integers(2, 9))
        a, b = chance.integers(-3, 4, (2, n)).astype(float)
        found = (
            kendall(torch.tensor(a), torch.tensor(b)),
            counterfactual.ranking.spearman(torch.tensor(a), torch.tensor(b)),
        )
        if len(set(a)) == 1 or len(set(b)) == 1:
            assert all(map(math.isnan, found))
            undefined += 1
            continue
        expected = scipy.stats.kendalltau(a, b).statistic, scipy.stats.spearmanr(a, b).statistic
        furthest = max(furthest, *(abs(x - y) for x, y in zip(found, expected, strict=True)))
    print(f"kendall and spearman: furthest from scipy {furthest:.1e}")
    assert furthest < 1e-12
    assert 0 < undefined < 150


@pytest.mark.parametrize("mass", counterfactual.MASSES)
def test_masses_are_sums_and_means_over_the_mask(mass):
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        heat = torch.randn(5, 7, generator=chance)
        planes = torch.rand(3, 5, 7, generator=chance) < 0.5
        planes[:, 0, 0] = True
        found = object_mass(heat, planes, mass)
        for plane, value in zip(planes, found.tolist(), strict=True):
            inside = [float(heat[y, x]) for y in range(5) for x in range(7) if plane[y, x]]
            if mass == "positive":
                inside = [max(v, 0.0) for v in inside]
            expected = sum(inside) / (len(inside) if mass == "mean" else 1)
            assert value == pytest.approx(expected, abs=1e-12)
    assert found.dtype == torch.float64


def test_effects_that_float32_cannot_resolve_are_none():
    clean = 7.25
    near = float(np.nextafter(np.float32(clean), np.float32(8)))
    assert true_effects(clean, [near, clean, 7.0, 8.0]).tolist() == [0.0, 0.0, 0.25, -0.75]
    assert true_effects(1e-9, [0.0]).tolist() == [1e-9]  # small scores have small effects
    assert true_effects(clean, [math.nan]).isnan().all()


# ---------------------------------------------------------------- where cases get their things from


def test_a_scene_can_be_drawn_without_each_of_its_things():
    for sample in scenes():
        scene = sample.extras["scene"]
        whole = sample.read()
        for k, thing in enumerate(sample.objects):
            assert np.array_equal(thing.without(), scene.render(without=k))
            changed = (thing.without() != whole).any(2)
            assert changed.any()
            assert not (changed & ~thing.mask).any()


def test_cases_hold_every_thing_in_the_models_geometry():
    sample = scenes()[0]
    crowd = dataclasses.replace(sample.objects[-1], ignore=True)
    sample = dataclasses.replace(sample, objects=(*sample.objects, crowd))
    frame = Frame(64, "crop", resize=80)
    found = asking.evidence(sample, ["nothing of the kind"], frame, (112, 112))
    assert [thing.name for thing in found["without"]] == [o.name for o in sample.objects[:-1]]
    for thing, annotated in zip(found["without"], sample.objects, strict=False):
        assert torch.equal(thing.mask, frame.mask(annotated.mask))
        assert torch.equal(thing.pixels(), frame.image(annotated.without()))
    boxed = scene_sample(Knobs(), 0.0, "test", 0, 0)
    (first, *_) = asking.evidence(boxed, [], frame, (112, 112))["without"]
    assert int(first.mask.sum()) >= int(frame.mask(scenes()[0].objects[0].mask).sum())  # the filled box
    plain = [dataclasses.replace(o, without=None) for o in sample.objects]
    assert "without" not in asking.evidence(
        dataclasses.replace(sample, objects=tuple(plain)), [], frame, (112, 112)
    )


def test_the_digest_covers_what_is_drawn_without_a_thing():
    image = np.zeros((4, 4, 3), np.uint8)
    other = image.copy()
    other[2, 3, 1] = 1
    told = [
        Sample("s", lambda: image, objects=(Object("a", (0.0, 0.0, 1.0, 1.0), without=w),)).digest()
        for w in (None, lambda: image, lambda: other, image.copy)
    ]
    assert len(set(told)) == 3
    assert told[1] == told[3]


# ---------------------------------------------------------------- true effects by construction

EFFECTS = {  # which things have one
    "region": {"lamp"},
    "interaction": {"lamp", "box"},
    "shortcut": {"mark"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", EFFECTS)
def test_the_truth_agrees_and_its_opposite_disagrees(kind, on):
    model, cases = asked(kind, on)
    effects = Counterfactual(mass="sum")._without_things(model, cases)
    for case, effect in zip(cases, effects, strict=True):
        assert [w.name for w in case.without] == list(THINGS)
        assert {n for n, e in zip(THINGS, effect.tolist(), strict=True) if e} == EFFECTS[on]
        assert (effect >= 0).all()
    if on == "interaction":
        assert all(effect[0] == effect[1] for effect in effects)  # each alone is the whole
    truth = [case.mask.float() for case in cases]
    for sign, expected in ((1, 1.0), (-1, -1.0)):
        trials = [
            Trial(model, c, None, Explanation(image=sign * h)) for c, h in zip(cases, truth, strict=True)
        ]
        for score in Counterfactual().measure(trials):
            assert score.values["spearman"].number == pytest.approx(expected, abs=1e-12)
            assert score.values["kendall"].number == pytest.approx(expected, abs=1e-12)
            assert sorted(score.curves["things"][0]) == score.curves["things"][0]
            assert len(score.curves["things"][1]) == 4


def test_every_removal_the_same_is_undefined():
    model, cases = asked(controlled.Clip, "word")
    found = Counterfactual().measure([Trial(model, c, None, Explanation(image=torch.eye(7))) for c in cases])
    assert {s.values["spearman"].reason for s in found} == {"every removal has the same effect"}


@pytest.mark.parametrize("kind", [controlled.Clip, controlled.Captioner])
@pytest.mark.parametrize("vocabulary", ["content", "all"])
def test_the_word_that_matters(kind, vocabulary):
    model, cases = asked(kind, "word", 18)
    texts = [case.evidence_text.float() for case in cases]
    trials = [Trial(model, c, None, Explanation(text=t)) for c, t in zip(cases, texts, strict=True)]
    metric = Counterfactual(vocabulary=vocabulary)
    found = [s.values["words"] for s in metric.measure(trials)]
    assert all(v.number == pytest.approx(1.0, abs=1e-12) for v in found if v.defined)
    sizes = [len(metric._groups(c, model.family)) for c in cases]
    assert [v.defined for v in found] == [size > 1 for size in sizes]
    if vocabulary == "content":
        everything = {case.spoken[g[0]] for case in cases for g in metric._groups(case, model.family)}
        assert everything <= {
            "bright",
            "small",
            "room",
            "window",
            "door",
            "light",
            "lamp",
            "one",
            "shows",
            "stands",
            "comes",
        }
        assert {"bright", "small"} <= everything
    region, others = asked(kind, "region", 18)
    trials = [Trial(region, c, None, Explanation(text=t)) for c, t in zip(others, texts, strict=True)]
    reasons = {s.values["words"].reason for s in metric.measure(trials)}
    assert "every removal has the same effect" in reasons  # no word matters there


# ---------------------------------------------------------------- a slow twin, on a net that bends


def slow(model, case, heat, mass):
    """One thing after the other: score without it, heat inside it; then scipy."""
    clean = float(model.score(case.pixels[None], [case]))
    masses, effects = [], []
    for thing in case.without:
        effect = clean - float(model.score(thing.pixels()[None], [case]))
        inside = [float(v) for v in heat[thing.mask]]
        total = sum(max(v, 0.0) if mass == "positive" else v for v in inside)
        masses.append(total / len(inside) if mass == "mean" else total)
        effects.append(effect / len(inside) if mass == "mean" else effect)
    return scipy.stats.spearmanr(masses, effects).statistic, scipy.stats.kendalltau(masses, effects).statistic


@pytest.mark.parametrize("mass", counterfactual.MASSES)
def test_the_slow_twin(toys, mass):
    model, furthest = toys.curved(), 0.0
    for seed in range(12):
        case = tiles(toys, seed=seed)
        heat = torch.randn(6, 10, generator=torch.Generator().manual_seed(seed + 50))
        (found,) = toys.numbers(Counterfactual(mass=mass), model, [case], [heat])
        expected = slow(model, case, heat, mass)
        furthest = max(furthest, *(abs(found[n] - e) for n, e in zip(NAMES, expected, strict=False)))
    print(f"counterfactual {mass}: furthest from the slow twin {furthest:.1e}")
    assert furthest < 1e-12


def test_words_against_a_slow_twin(toys):
    model, furthest = toys.dual(), 0.0
    for seed in range(10):
        case = toys.worded(f"s{seed}", "red ball on grass", torch.randn(3, 4, 4))
        text = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        metric = Counterfactual(vocabulary="all", removal="unknown")
        (found,) = toys.numbers(metric, model, [case], [Explanation(text=text)])
        effects = []
        for k in range(1, 5):
            keep = torch.ones(2, 6)
            keep[1, k] = 0
            whole, without = model.score_text(keep, [case, case], "unknown").tolist()
            effects.append(whole - without)
        expected = scipy.stats.spearmanr(text[1:-1], effects).statistic
        furthest = max(furthest, abs(found["words"] - expected))
    print(f"counterfactual words: furthest from the slow twin {furthest:.1e}")
    assert furthest < 1e-12


def test_words_that_do_the_same_are_tied_whatever_rounding_says(toys):
    """Twice the same word in a bag: its two effects are one number and differ in the last bits."""
    case = toys.worded("s", "red ball grass red", torch.ones(3, 4, 4))
    for text in ([0, 1, 0, 0, 2, 0], [0, 2, 0, 0, 1, 0]):
        answer = Explanation(text=torch.tensor(text).float())
        (score,) = Counterfactual().measure(toys.trials(toys.dual(), [case], [answer]))
        mass, effects = score.curves["words"]
        assert mass == [0.0, 0.0, 1.0, 2.0]
        assert effects[2] == pytest.approx(effects[3], abs=1e-6)
        tied = scipy.stats.spearmanr(mass, np.round(effects, 5)).statistic
        assert score.values["words"].number == pytest.approx(tied, abs=1e-12)


def test_tokens_of_one_word_go_together_and_function_words_stay(toys):
    case = toys.worded("s", "red ball on grass", torch.zeros(3, 4, 4))
    case = dataclasses.replace(case, words=(-1, 0, 0, 1, 2, -1))
    assert Counterfactual()._groups(case, "dual") == [[1, 2], [3], [4]]
    assert Counterfactual(vocabulary="content")._groups(case, "dual") == [[1, 2], [4]]


# ---------------------------------------------------------------- properties

HEATS = st.lists(st.integers(-5, 5), min_size=60, max_size=60)


@given(HEATS, st.integers(-3, 3), st.sampled_from(counterfactual.MASSES), st.booleans())
@settings(max_examples=50, deadline=None)
def test_ranges_rescaling_halves_and_flips(toys, values, power, mass, gray):
    channels = 1 if gray else 3
    case, model, metric = tiles(toys, channels=channels), toys.linear(channels), Counterfactual(mass=mass)
    heat = torch.tensor(values).float().view(6, 10)
    (found,) = toys.numbers(metric, model, [case], [heat])
    for name in NAMES[:2]:
        assert found[name] is None or -1 - 1e-12 <= found[name] <= 1 + 1e-12
    for same in (heat * 2.0**power, heat.half(), torch.stack([heat, -heat, heat])):
        model.memo.clear()
        assert toys.numbers(metric, model, [case], [same]) == [found]
    flipped = dataclasses.replace(
        case, pixels=case.pixels.flip(2),
        without=tuple(Without(w.name, w.mask.flip(1), lambda w=w: w.pixels().flip(2)) for w in case.without),
    )  # fmt: skip
    model.memo.clear()
    (mirrored,) = toys.numbers(metric, model, [flipped], [heat.flip(1)])
    assert {k: v and round(v, 9) for k, v in mirrored.items()} == {
        k: v and round(v, 9) for k, v in found.items()
    }


def test_undefined_cases_have_reasons(toys):
    def reasons(case, heat, model=None):
        (score,) = Counterfactual(vocabulary="content").measure(
            toys.trials(model or toys.dual(), [case], [heat])
        )
        assert list(score.values) == NAMES
        assert score.curves == {}
        return [score.values[n].reason for n in NAMES]

    case, chance = tiles(toys), torch.randn(6, 10)
    case = dataclasses.replace(
        case,
        **{k: getattr(toys.worded("s", "red ball", case.pixels), k) for k in ("tokens", "words", "spoken")},
    )
    none = ["no text relevance"] * 2
    assert reasons(case, None) == ["no image map"] * 2 + none
    assert reasons(case, chance * float("inf")) == ["NaN or infinity in the map"] * 2 + none
    assert reasons(case, torch.ones(2, 2)) == ["equal relevance everywhere"] * 2 + none
    lonely = dataclasses.replace(case, without=case.without[:1])
    assert reasons(lonely, chance) == ["fewer than two things in the image"] * 2 + none
    unseen = Without("outside", torch.zeros(6, 10, dtype=torch.bool), case.without[0].pixels)
    assert reasons(dataclasses.replace(lonely, without=(*lonely.without, unseen)), chance)[0].startswith(
        "fewer"
    )
    fixed = dataclasses.replace(case, without=None)
    assert reasons(fixed, chance) == ["the image cannot be drawn without its things"] * 2 + none
    same = tuple(Without(w.name, w.mask, lambda: case.pixels) for w in case.without)
    assert reasons(dataclasses.replace(case, without=same), chance)[0] == "every removal has the same effect"
    broken = tuple(Without(w.name, w.mask, lambda: case.pixels * float("nan")) for w in case.without)
    assert reasons(dataclasses.replace(case, without=broken), chance)[0] == "a score is not a finite number"
    for text, reason in (
        (torch.full((4,), float("nan")), "NaN or infinity in the text relevance"),
        (torch.ones(4), "equal relevance everywhere"),
    ):
        assert reasons(case, Explanation(text=text))[2:] == [reason] * 2
    short = toys.worded("t", "on red", case.pixels)
    assert reasons(short, Explanation(text=torch.randn(4)))[2] == "fewer than two words that may be removed"
    assert (
        reasons(tiles(toys), Explanation(text=torch.ones(3)), toys.curved())[2]
        == "a classifier reads no text"
    )


def test_a_classifier_on_photographs_is_unsuited(toys):
    fixed = dataclasses.replace(tiles(toys), without=None)
    with pytest.raises(Unsuited, match="cannot be drawn without"):
        Counterfactual().measure(toys.trials(toys.curved(), [fixed], [torch.randn(6, 10)]))
    assert Counterfactual().measure([]) == []


@pytest.mark.parametrize(
    "field, value",
    [("mass", "max"), ("pool", "all"), ("sign", "up"), ("upsample", "none"), ("vocabulary", "nouns")],
)
def test_wrong_settings_are_refused(field, value):
    with pytest.raises(Refused, match=field):
        Counterfactual(**{field: value})


# ---------------------------------------------------------------- laws 1 and 10


def world(toys, family):
    """Eleven cases that differ in every way that this metric can see, and maps of many kinds."""
    model = toys.dual() if family == "dual" else toys.curved()
    texts = ("red", "red ball", "red ball on grass", "ball on grass", "grass ball red on red")
    cases, answers = [], []
    for i in range(11):
        case = tiles(toys, count=i % 5, seed=i)
        worded = toys.worded(case.id, texts[i % 5], case.pixels, i % 3)
        case = dataclasses.replace(worded, without=None if i == 3 else case.without)
        chance = case.generator("answer")
        heat = torch.randn(3, 6, 10, generator=chance)
        kinds = (heat, heat[0], heat.half(), heat[0].sign(), torch.ones(2, 3), None, heat * float("nan"))
        text = torch.randn(len(case.words), generator=chance)
        cases.append(case)
        answers.append(Explanation(image=kinds[i % 7], text=None if i == 8 else text))
    return model, cases, answers


@pytest.mark.parametrize("family", ["dual", "classifier"])
@pytest.mark.parametrize(
    "metric",
    [
        Counterfactual(),
        Counterfactual("sum", removal="pad", vocabulary="content"),
        Counterfactual("positive"),
    ],
    ids=repr,
)
def test_chunks_and_order_change_nothing(toys, family, metric):
    model, cases, answers = world(toys, family)
    whole = [vars(s) for s in metric.measure(toys.trials(model, cases, answers))]
    for step in (1, 3, 11):
        for order in (1, -1):
            found = []
            some, told = cases[::order], answers[::order]
            for first in range(0, 11, step):
                part = slice(first, first + step)
                if family == "classifier" and all(c.without is None for c in some[part]):
                    found.append(whole[3])  # alone, photographs are unsuited
                    continue
                model.memo.clear()
                with torch.inference_mode():
                    found += [vars(s) for s in metric.measure(toys.trials(model, some[part], told[part]))]
            assert found[::order] == whole
    defined = [v.number for s in whole for v in s["values"].values() if v.defined]
    assert len(set(defined)) > 3


def test_forwards_are_a_row_a_thing_a_word_and_the_clean_ones(toys):
    model, cases, answers = world(toys, "dual")
    metric = Counterfactual()
    with model.part() as spent:
        scores = metric.measure(toys.trials(model, cases, answers))
    for case, score in zip(cases, scores, strict=True):
        asked_things = score.values["spearman"].defined or score.values["spearman"].reason.startswith("every")
        asked_words = score.values["words"].defined or score.values["words"].reason.startswith("every")
        expected = 0
        if asked_things:
            expected += (
                len(case.without) + 1 + 1
            )  # the things, the clean image; the text's embedding, from the memo
        if asked_words:
            expected += (
                len(metric._groups(case, "dual")) + 1 + 1
            )  # the words, the whole text; the image's embedding
        assert spent.forward[case.id] == pytest.approx(expected), case.id
    assert sum(s.values["spearman"].defined for s in scores) > 3
    assert sum(s.values["words"].defined for s in scores) > 3
    before = model.meter.run  # another reading of the maps asks for nothing new
    Counterfactual(pool="mean", upsample="nearest").measure(toys.trials(model, cases, answers))
    assert model.meter.run == before


def test_scenes_ask_all_three_families_of_real_nets(families):
    """The tiny untrained nets on real scenes: every declared value is there or says why; effects are of the drawings."""
    samples = scenes()
    policies = {"resnet": "predicted", "vit": "predicted", "clip": "caption 0"}
    for name, policy in policies.items():
        model, _ = families[name]
        cases = [case for some in model.ask(samples, policy) for case in some]
        told = [Explanation(image=torch.randn(7, 7, generator=c.generator("h"))) for c in cases]
        model.memo.clear()
        found = Counterfactual().measure([Trial(model, c, None, e) for c, e in zip(cases, told, strict=True)])
        assert any(s.values["spearman"].defined for s in found)
        for case, score in zip(cases, found, strict=True):
            if not score.values["spearman"].defined:
                continue
            clean = float(model.score(case.pixels[None], [case]))
            sample = next(s for s in samples if s.id == case.sample)
            for k, thing in enumerate(case.without):
                drawn = model.frame.image(sample.extras["scene"].render(without=k))
                assert torch.equal(drawn, thing.pixels())
            effects = [
                (clean - float(model.score(w.pixels()[None], [case]))) / int(w.mask.sum())
                for w in case.without
            ]
            assert sorted(score.curves["things"][1]) == pytest.approx(sorted(effects), abs=1e-9)
        model.memo.clear()
