"""Controlled models: the contract, and the truth they tell held against brute force, pixel by pixel and word by word."""

from __future__ import annotations

import dataclasses
from functools import cache
from hashlib import blake2b

import numpy as np
import pytest
import torch

from heatproof import Sample, shelf
from heatproof.contract import Refused, Trial
from heatproof.metrics.agreement import TruthAgreement
from heatproof.metrics.localization import Localization
from heatproof.models import controlled
from heatproof.models.controlled_nets import DETECTORS, FLOOR, GAIN
from heatproof.shelf import Place

Controlled = shelf.load(shelf.house() / "datasets" / "controlled.py").Controlled
PLACE = Place(shelf.house(), shelf.house())
POLICY = {"classifier": "label", "dual": "caption 0", "captioner": "caption 0"}
KINDS = (controlled.Cnn, controlled.Vit, controlled.Clip, controlled.Captioner)
ALL = [(kind, on) for kind in KINDS for on in kind.reads]
SEEN = [(kind, on) for kind, on in ALL if on != "word"]
READING = [(kind, on) for kind, on in ALL if kind in (controlled.Clip, controlled.Captioner)]
COUNT = 5
# the bytes of the first four pictures; a change here changes every number of benchmarks/controlled.toml
FROZEN = "1fbdbe6e9b7ed83f53747c8a"


def named(pairs):
    return pytest.mark.parametrize("kind, on", pairs, ids=[f"{k.__name__}-{on}" for k, on in pairs])


@cache
def asked(kind, on, count=COUNT):
    """The model, freshly in mind, and its cases."""
    model = kind(on).load(f"{kind.__name__}-{on}")
    return model, [
        case for cases in model.ask(Controlled(count).samples(), POLICY[model.family]) for case in cases
    ]


def made(use, **settings):
    return shelf.find("explainers", use, PLACE, "tests")(**settings)


def rows(model, case, images):
    return model.score(torch.stack(images), [case] * len(images))


# ---------------------------------------------------------------- the pictures


def test_the_pictures_are_frozen_and_more_only_adds():
    samples = Controlled(4).samples()
    assert [s.digest() for s in samples] == [s.digest() for s in Controlled(6).samples()[:4]]
    assert Controlled(1, seed=1).samples()[0].digest() != samples[0].digest()
    assert {s.id for s in samples} == {f"controlled-0-{k:04d}" for k in range(4)}
    told = blake2b(b"".join(sample.read().tobytes() for sample in samples), digest_size=12).hexdigest()
    assert told == FROZEN


def test_things_stand_apart_and_the_detectors_fire_on_them_alone():
    for sample in Controlled(40).samples():
        masks = {thing.name: thing.mask for thing in sample.objects}
        assert sum(mask.astype(int) for mask in masks.values()).max() == 1
        assert [int(m.sum()) for m in masks.values()] == [256, 256, 256, 64]
        pixels = torch.from_numpy(sample.read()).float() / 127.5 - 1
        fires = GAIN * (pixels @ DETECTORS.T - FLOOR)
        for k, names in enumerate((("lamp", "mark"), ("box",), ("crate",))):
            there = torch.from_numpy(np.logical_or.reduce([masks[n] for n in names]))
            assert torch.equal(fires[..., k] > 0, there)
            assert 0.73 < float(fires[..., k][there].min()) < float(fires[..., k][there].max()) < 0.98
            assert float(fires[..., k][~there].max()) < -0.1


def test_without_a_thing_only_its_pixels_change_and_greys_stay_as_they_are():
    for sample in Controlled(5).samples():
        whole = sample.read().astype(int)
        for thing in sample.objects:
            rest = thing.without().astype(int)
            assert np.array_equal((rest != whole).any(2), thing.mask)
            assert abs(rest.sum(2) - whole.sum(2)).max() <= 3  # rounding: the colour adds nothing to grey


def test_every_grey_is_silent():
    greys = torch.linspace(-1, 1, 256)[:, None].expand(-1, 3)
    assert float((greys @ DETECTORS.T).max()) < FLOOR


def test_sample_counts_and_foreign_pictures_are_refused():
    with pytest.raises(Refused, match="sample is 0"):
        Controlled(0)
    foreign = Sample("s", lambda: np.zeros((56, 56, 3), np.uint8), "lamp")
    with pytest.raises(Refused, match=r"sample s: .*datasets/controlled.py"):
        asked(controlled.Cnn, "region")[0].ask([foreign], "label")


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_setting_is_refused_by_name(kind):
    with pytest.raises(Refused, match=rf"controlled:{kind.__name__}: on: .*'regoin'; did you mean 'region'"):
        kind("regoin")
    if "word" not in kind.reads:
        with pytest.raises(Refused, match="no evidence 'word'"):
            kind("word")


# ---------------------------------------------------------------- the truth, by brute force


@named(ALL)
def test_the_rest_of_the_picture_does_nothing_at_all(kind, on):
    """Everything but the evidence goes: to mean, black, white, grey noise, other greys; the score is the same to the bit."""
    model, cases = asked(kind, on)
    chance = torch.Generator().manual_seed(0)
    for case in cases:
        truth = case.evidence.any(0)
        noise = (torch.rand(5, 1, 56, 56, generator=chance) * 2 - 1).expand(5, 3, 56, 56)
        fillers = [torch.zeros(3, 56, 56), -torch.ones(3, 56, 56), torch.ones(3, 56, 56), *noise]
        images = [torch.where(truth, case.pixels, filler) for filler in fillers]
        clean = rows(model, case, [case.pixels])
        assert torch.equal(rows(model, case, images), clean.expand(len(images)))
        images = [torch.where(truth, filler, case.pixels) for filler in fillers]
        gone = rows(model, case, images)
        assert (gone < clean - 0.05).all() if on != "word" else torch.equal(gone, clean.expand(len(gone)))
        assert len(set(gone.tolist())) == 1, "without the evidence every picture is the same"


@named(ALL)
def test_every_pixel_of_the_truth_matters_and_no_other(kind, on):
    (case, *_), model = asked(kind, on)[1], kind(on, rows=64).load("wide")
    truth = case.evidence.any(0).flatten()
    clean = rows(model, case, [case.pixels])
    places = torch.cat([truth.nonzero()[:, 0], (~truth).nonzero()[::4, 0]])  # and every fourth
    found = []
    with torch.inference_mode():
        for some in places.split(448):
            block = case.pixels.flatten(1).repeat(len(some), 1, 1)
            block[torch.arange(len(some)), :, some] = 0.0
            found.append(model.score(block.view(-1, 3, 56, 56), [case] * len(some)))
    changed = torch.cat(found) - clean
    assert torch.equal(changed < 0, truth[places])
    assert not changed[~truth[places]].any()


@named(SEEN)
def test_the_gradient_lives_on_the_truth(kind, on):
    model, cases = asked(kind, on)
    pixels = model.stack(cases).requires_grad_()
    (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
    truth = torch.stack([case.evidence.any(0) for case in cases])
    if kind in (
        controlled.Cnn,
        controlled.Captioner,
    ):  # pixel by pixel; the token nets' patches are whole cells as well
        assert torch.equal(grad.abs().amax(1) > 0, truth)
    assert not grad.abs().amax(1)[~truth].any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interaction_speaks_only_if_both_are_there(kind):
    model, cases = asked(kind, "interaction")
    for case, sample in zip(cases, Controlled(COUNT).samples(), strict=True):
        lamp, box, crate, mark = (model.frame.image(thing.without()) for thing in sample.objects)
        neither = torch.minimum(lamp, box)  # of two pictures that differ in two places: not both colours
        neither = torch.where(case.evidence.any(0), neither.mean(0), neither)
        both, no_lamp, no_box, no_crate, no_mark, none = rows(
            model, case, [case.pixels, lamp, box, crate, mark, neither]
        ).tolist()
        assert no_lamp == no_box == none < both == no_crate == no_mark
        assert case.evidence.shape[0] == 2


def test_of_an_interaction_one_alone_is_no_evidence():
    (sample,) = Controlled(1).samples()
    lamp, box, *rest = sample.objects
    alone = dataclasses.replace(sample, read=box.without, objects=(lamp, *rest))
    for kind in KINDS:
        model, _ = asked(kind, "interaction")
        ((case,),) = model.ask([alone], POLICY[model.family])
        assert case.evidence.shape == (0, 56, 56)
        empty = rows(model, case, [torch.zeros_like(case.pixels), case.pixels])
        assert empty[0] == empty[1]


@pytest.mark.parametrize("kind", KINDS)
def test_for_a_shortcut_the_object_asked_about_does_not_matter(kind):
    model, cases = asked(kind, "shortcut")
    for case, sample in zip(cases, Controlled(COUNT).samples(), strict=True):
        lamp, _, _, mark = (model.frame.image(thing.without()) for thing in sample.objects)
        both, no_lamp, no_mark = rows(model, case, [case.pixels, lamp, mark]).tolist()
        assert no_mark < both == no_lamp
        assert case.about == ("lamp" if model.family != "dual" else sample.captions[0])
        assert int(case.evidence.sum()) == 64


@named(READING)
def test_one_word_matters_or_none_however_it_is_removed(kind, on):
    model, cases = asked(kind, on, 10)
    longest = max(len(case.tokens) for case in cases)
    removals = ("delete", "pad", "unknown", "embedding") + (("attention",) if model.family == "dual" else ())
    for case in cases:
        stop = case.target + 1 if model.family == "captioner" else len(case.words)
        free = [k for k, word in enumerate(case.words) if word >= 0 and k < stop]
        cue = [k for k in free if on == "word" and case.spoken[k] == "bright"]
        assert case.evidence_text.nonzero().flatten().tolist() == cue
        keep = torch.ones(2 + len(free), longest)
        for row, k in enumerate(free):
            keep[row, k] = 0
        others = [k for k in free if k not in cue]
        keep[len(free), others] = 0
        for removal in removals:
            found = model.score_text(keep, [case] * len(keep), removal).tolist()
            whole = found[-1]
            assert found[-2] == whole, (removal, "all other words gone")
            for k, score in zip(free, found, strict=False):
                assert (score < whole - 0.3) if k in cue else (score == whole), (removal, case.spoken[k])


@pytest.mark.parametrize("on", controlled.Captioner.reads)
def test_words_after_the_one_that_is_scored_are_no_evidence(on):
    model, (case, *_) = asked(controlled.Captioner, on)
    (sample, *_) = Controlled(1).samples()
    late = dataclasses.replace(sample, captions=("one lamp is bright",))
    ((case,),) = model.ask([late], "caption 0")
    assert not case.evidence_text.any()


# ---------------------------------------------------------------- the contract


def verbs(model):
    """Everything a model can be asked, as rows by case."""
    sites = [stage.site for stage in model.towers["image"] if stage.site]
    found = {
        "score": lambda c: model.score(model.stack(c), c),
        "scores": lambda c: model.scores(
            model.stack(c), [dataclasses.replace(x, choices=choices(x)) for x in c]
        ),
        "clean": model.clean,
        "pixel gradient": lambda c: gradient(model, c),
    }
    for site in (sites[0], sites[-1]):
        found[f"above {site}"] = lambda c, s=site: model.above(s, model.upto(s, model.stack(c), c), c)
        found[f"gradient at {site}"] = lambda c, s=site: watched(model, s, c)
    if "image.attention" in model.sites:
        for k in range(3):
            found[f"attention {k}"] = lambda c, k=k: watched(model, f"image.attention {k}", c)
    if model.family == "captioner":
        found["attention"] = lambda c: watched(model, "cross.attention 0", c)
    if model.family != "classifier":
        found["score_text"] = lambda c: model.score_text(
            torch.tensor([[1.0, 1.0, 0.0, 1.0]]).repeat(len(c), 4), c
        )
    if model.family == "dual":
        found["embed"] = lambda c: model.embed(model.stack(c), c)
        found["embed_text"] = model.embed_text
    return found


def choices(case):
    if isinstance(case.target, str):
        return (case.target, "a small lamp")
    return case.choices or (0, 1)


def gradient(model, cases):
    pixels = model.stack(cases).requires_grad_()
    return torch.autograd.grad(model.score(pixels, cases).sum(), pixels, allow_unused=True)[0]


def watched(model, site, cases):
    with model.watch(site) as seen:
        score = model.score(model.stack(cases), cases)
        grad = torch.zeros_like(seen.value)
        if score.requires_grad:
            (found,) = torch.autograd.grad(score.sum(), seen.value, allow_unused=True)
            grad = grad if found is None else found
    return torch.stack([seen.value.detach().flatten(1), grad.flatten(1)], 1)


@named(ALL)
def test_law_1_every_verb_gives_a_row_the_same_alone_among_others_and_reversed(kind, on):
    model, cases = asked(kind, on)
    for verb, ask in verbs(model).items():
        model.memo.clear()
        whole = ask(cases)
        assert len(whole) == len(cases)
        for step, order in ((1, cases), (3, cases[::-1])):
            model.memo.clear()
            parts = torch.cat([ask(order[first : first + step]) for first in range(0, len(order), step)])
            assert torch.equal(parts if order is cases else parts.flip(0), whole), (verb, step)
    model.memo.clear()


@named(ALL)
def test_upto_and_above_make_score_and_watch_sees_plain_gradients(kind, on):
    model, cases = asked(kind, on)
    pixels = model.stack(cases)
    whole = model.score(pixels, cases)
    for site in [stage.site for stage in model.towers["image"] if stage.site]:
        lower = model.upto(site, pixels, cases).detach().requires_grad_()
        above = model.above(site, lower, cases)
        assert torch.equal(above, whole), site
        (expected,) = torch.autograd.grad(above.sum(), lower)
        with model.watch(site) as seen:
            score = model.score(pixels, cases)
            (found,) = torch.autograd.grad(score.sum(), seen.value)
        assert torch.equal(seen.value, lower), site
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8), site
    if model.family == "dual":
        site = model.site("text.block")
        assert torch.equal(
            model.above(site, model.upto(site, pixels, cases), cases),
            model.score_text(torch.ones(len(cases), 3), cases),
        )


@named(ALL)
def test_scores_hold_the_score_and_attention_sums_to_one(kind, on):
    model, cases = asked(kind, on)
    several = [dataclasses.replace(case, choices=choices(case)) for case in cases]
    assert torch.equal(
        model.scores(model.stack(cases), several).view(len(cases), -1)[:, 0], model.clean(cases)
    )
    if "image.attention" in model.sites:
        with model.watch(model.site("image.attention")) as seen:
            model.score(model.stack(cases), cases)
        assert torch.allclose(seen.value.sum(-1), torch.ones(()), atol=1e-6)
        assert model.grid(seen.value[0, 0, 0]).shape == (7, 7)


@named(ALL)
def test_loading_draws_no_random_number_and_gives_the_same_model(kind, on):
    model, cases = asked(kind, on)
    before = torch.get_rng_state()
    again = kind(on, rows=24).load("again")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), again.net.parameters(), strict=True))
    assert torch.allclose(again.clean(cases), model.clean(cases), atol=1e-6)
    assert kind(on).load("third").hash == model.hash != again.hash  # rows are part of what fixes the bits
    assert model.card["truth"] == "by construction"


def test_every_model_has_a_hash_of_its_own():
    assert len({asked(kind, on)[0].hash for kind, on in ALL}) == len(ALL) == 14


@named(ALL)
def test_a_twin_is_another_and_leaves_the_model_as_it_was(kind, on):
    model, cases = asked(kind, on)
    clean, kept = model.clean(cases), model.hash
    twin = model.twin(lambda net: [weight.zero_() for weight in net.parameters()], "silenced")
    assert twin.hash != kept == model.hash
    assert not torch.equal(twin.score(model.stack(cases), cases), clean)
    assert torch.equal(model.score(model.stack(cases), cases), clean)
    assert twin.on == on
    assert not any(weight.requires_grad for weight in model.net.parameters())


@pytest.mark.parametrize("on", controlled.Captioner.reads)
def test_the_captioner_writes_and_is_asked_about_what_it_said(on):
    model, cases = asked(controlled.Captioner, on)
    assert model.write(model.stack(cases), cases) == ["lamp"] * COUNT
    said = model.ask(Controlled(2).samples(), "said objects")
    assert [[case.about for case in cases] for cases in said] == [["lamp"], ["lamp"]]


# ---------------------------------------------------------------- the controls, and what explainers miss


def measured(model, cases, explainer):
    model.memo.clear()
    trials = [
        Trial(model, c, explainer, e) for c, e in zip(cases, explainer.explain(model, cases), strict=True)
    ]
    found: dict[str, list[float]] = {}
    for metric in (TruthAgreement(), Localization()):
        for score in metric.measure(trials):
            for name, value in score.values.items():
                found.setdefault(name, []).extend([value.number] if value.defined else [])
    return {name: sum(v) / len(v) for name, v in found.items() if v}


@named(SEEN)
def test_the_oracle_is_right(kind, on):
    best = measured(*asked(kind, on), made("oracle"))
    assert {best[n] for n in ("pixels", "weakest", "pointing", "mass", "rank", "energy", "iou")} == {1.0}
    assert best["leak"] == 0.0


@pytest.mark.parametrize("on", controlled.Cnn.reads)
def test_controls_that_know_nothing_are_at_chance(on):
    """They ask the model for nothing, so one family speaks for all."""
    model, cases = asked(controlled.Cnn, on, 48)
    share = sum(float(case.mask.float().mean()) for case in cases) / len(cases)
    noise, edges = measured(model, cases, made("random")), measured(model, cases, made("edges"))
    # standard errors of 48 draws: about 0.03 for a thing, 0.045 for the mark's one cell
    assert abs(noise["pixels"] - 0.5) < 0.12
    assert abs(noise["mass"] - share) < 0.012
    assert abs(edges["pixels"] - 0.5) < 0.06  # a little less in corners, where the border has no edge
    assert abs(edges["mass"] - share) < 0.012


@pytest.mark.parametrize("kind", [controlled.Clip, controlled.Captioner])
def test_the_oracle_of_a_word_is_right_and_random_words_are_at_chance(kind):
    model, cases = asked(kind, "word", 48)
    assert measured(model, cases, made("oracle"))["words"] == 1.0
    assert abs(measured(model, cases, made("random"))["words"] - 0.5) < 0.15
    assert "pixels" not in measured(model, cases, made("random"))


def test_known_failures_show_and_sound_methods_pass():
    """Each with the reason why it must be so; a method that starts to pass or to fail has changed."""
    grad, ig = made("captum_suite:InputXGradient"), made("captum_suite:IntegratedGradients", steps=16)
    for kind, on in SEEN:
        model, cases = asked(kind, on)
        for sound in (grad, ig):
            found = measured(model, cases, sound)
            assert (found["weakest"], found["leak"]) == (1.0, 0.0), (kind, on)
    # Grad-CAM weighs a channel as a whole: where position is read above its layer, lamp and mark look alike
    cam = measured(*asked(controlled.Cnn, "shortcut"), made("gradcam"))
    assert cam["leak"] == pytest.approx(0.8, abs=0.03)  # the lamp's four cells against the mark's one
    for kind in (controlled.Vit, controlled.Clip, controlled.Captioner):
        assert measured(*asked(kind, "shortcut"), made("gradcam"))["leak"] == 0.0
    # attention shows what an idle head looks at as well, and never less than something everywhere
    looks = measured(*asked(controlled.Vit, "shortcut"), made("attention"))
    assert looks["leak"] > 0.9
    # relevance propagation follows weights
    for kind in (controlled.Cnn, controlled.Vit, controlled.Clip, controlled.Captioner):
        assert measured(*asked(kind, "shortcut"), made("lrp"))["leak"] == 0.0, kind


def test_a_caption_of_every_kind_is_drawn():
    said = {sample.captions[0] for sample in Controlled(40).samples()}
    assert len(said) == 6
    places = {caption.split().index("bright") for caption in said}
    assert len(places) >= 4  # a map that knows only the place is wrong
    assert all(c.split().index("bright") < c.split().index("lamp") for c in said)
