"""Retrieval against a slow twin of the authors' protocol, pair by pair, and what the column is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof import checks, seeds, shelf
from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics.corruption import above, hit, marked
from heatproof.metrics.retrieval import Retrieval
from heatproof.models.recipe import Recipe
from heatproof.reducers import REDUCERS, Rows
from heatproof.shelf import Place

NAMES = ("i2t_oc", "i2t_co", "t2i_oc", "t2i_co")
SAID = ("red", "ball", "on", "grass")


@dataclass(frozen=True)
class Drawn:
    """A map and relevance of each case's own."""

    def explain(self, model, cases):
        return [
            Explanation(
                image=torch.randn(4, 6, generator=case.generator("map")),
                text=torch.randn(len(case.words), generator=case.generator("words")),
            )
            for case in cases
        ]


def pairs(toys, name, count, seed):
    """Captions of two to five words, images that lean to what they say: some are found and some are not."""
    model, cases = toys.dual(), []
    chance = torch.Generator().manual_seed(seed)
    for k in range(count):
        draw = torch.randint(4, (2 + k % 4,), generator=chance).tolist()
        case = toys.worded(
            f"{name}{k}", " ".join(SAID[w] for w in draw), torch.randn(3, 4, 6, generator=chance)
        )
        wanted = model.embed_text([case])[0]
        lean = torch.linalg.lstsq(model.net.eye.weight, (wanted - model.net.eye.bias)[:, None]).solution[:, 0]
        pixels = case.pixels * 2 + 1.5 * lean[:, None, None]
        cases.append(replace(case, pixels=pixels))
    return cases


@pytest.fixture
def scene(toys):
    return toys.dual(), pairs(toys, "fit", 6, 0), pairs(toys, "s", 16, 1)


def fitted(metric, model, cases, chunk=4, explainer=None):
    feed = (cases[k : k + chunk] for k in range(0, len(cases), chunk))
    return metric.fit(model, feed, explainer or Drawn())


def asked(toys, model, cases, explainer=None):
    explainer = explainer or Drawn()
    return toys.trials(model, cases, explainer.explain(model, cases), explainer)


# ---------------------------------------------------------------- the slow twin


class Twin:
    """Everything by hand: sorted lists, one embedding at a time, and loops over who is there to choose from."""

    def __init__(self, model, metric):
        self.net, self.metric = model.net, metric
        self.pad = model.tokenizer.pad
        self.unknown = model.tokenizer.unknown

    def whole(self, case):
        return self.see(case.pixels), self.say(case.tokens.tolist())

    def corrupted(self, case):
        (answer,) = Drawn().explain(None, [case])
        heat = answer.image.reshape(-1).tolist()
        limit = float(np.percentile(heat, 100 * (1 - self.metric.image_share)))
        image = case.pixels.clone()
        colour = [float(case.pixels[c].mean()) for c in range(3)]
        for place, value in enumerate(heat):
            if value > limit:
                for c in range(3):
                    image[c, place // 6, place % 6] = colour[c] if self.metric.fill == "image_mean" else 0.0
        inner = answer.text[1:-1].tolist()
        limit = float(np.percentile(inner, 100 * (1 - self.metric.text_share)))
        ids = case.tokens.tolist()
        other = {"pad": self.pad, "unknown": self.unknown, "delete": None}[self.metric.removal]
        ids = [ids[0], *(other if v > limit else i for v, i in zip(inner, ids[1:-1], strict=True)), ids[-1]]
        return self.see(image), self.say([i for i in ids if i is not None])

    def see(self, image):
        return self.net.eye(image.mean((1, 2))).double()

    def say(self, ids):
        return self.net.ear(sum(self.net.table.weight[i] for i in ids if i != self.pad)).double()

    def right(self, query, own, others):
        like = [float(torch.cosine_similarity(query, one, dim=0)) for one in (own, *others)]
        best = [v > max(like) - 1e-7 for v in like]
        return best[0] / sum(best)

    def accuracies(self, gallery, cases):
        """Of each case: right before, and in the four settings after."""
        rivals, spoilt = [self.whole(c) for c in gallery], [self.corrupted(c) for c in gallery]
        images, texts = zip(*rivals, strict=True)
        images_c, texts_c = zip(*spoilt, strict=True)
        found = []
        for case in cases:
            (i, t), (ic, tc) = self.whole(case), self.corrupted(case)
            found.append(
                {
                    "i2t": self.right(i, t, texts),
                    "t2i": self.right(t, i, images),
                    "i2t_oc": self.right(i, tc, texts_c),
                    "i2t_co": self.right(ic, t, texts),
                    "t2i_oc": self.right(tc, i, images),
                    "t2i_co": self.right(t, ic, images_c),
                }
            )
        return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_share": 0.6, "text_share": 0.5},
        {"fill": "mean", "removal": "unknown"},
        {"removal": "delete"},
    ],
)
@pytest.mark.parametrize("by_threshold", [False, True])
def test_it_is_the_slow_twin(toys, scene, settings, by_threshold, record_property):
    """Nothing is tied here, so exactly k of them are what a percentile takes."""
    model, gallery, cases = scene
    metric = Retrieval(by_threshold=by_threshold, **settings)
    with torch.no_grad():
        expected = Twin(model, metric).accuracies(gallery, cases)
    found = metric.measure(asked(toys, model, cases), fitted(metric, model, gallery))
    worst = 0.0
    for score, hits in zip(found, expected, strict=True):
        assert list(score.values) == list(NAMES)
        for name, value in score.values.items():
            before, after = hits[name[:3]], hits[name]
            worst = max(worst, abs(value.number - (before - after)))
            assert value.parts == {"num": pytest.approx(before - after), "den": pytest.approx(before)}
    print(f"largest deviation from the slow twin: {worst:.1e}")
    record_property("deviation", worst)
    assert worst < 1e-9
    assert 0 < sum(h["i2t"] for h in expected) < len(expected)  # some are found and some are not
    assert any(h["i2t_oc"] != h["i2t"] for h in expected)

    # the column is (A - B) / A
    for name in NAMES:
        before, after = (sum(h[k] for h in expected) / len(expected) for k in (name[:3], name))
        n = np.arange(len(found))
        values = [s.values[name] for s in found]
        parts = {k: np.array([v.parts[k] for v in values]) for k in ("num", "den")}
        rows = Rows(np.array([v.number for v in values]), n, n, n, 0 * n, len(n), parts=parts)
        (measure,) = (m for m in metric.measures if m.name == name)
        column = REDUCERS[measure.reduce](rows, np.ones((1, len(n))))[0]
        assert column == pytest.approx((before - after) / before)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
)
def test_exactly_k_go_and_a_threshold_takes_no_more(heat, share):
    values, chance = torch.tensor(heat), torch.Generator().manual_seed(0)
    exact, strict = (marked(values, share, chance, by_threshold=rule) for rule in (False, True))
    assert int(exact.sum()) == above(share, len(heat))
    limit = np.percentile(np.array(heat, dtype=np.float64), 100 * (1 - share))
    assert strict.tolist() == [v > limit + 1e-9 for v in heat] or abs(values - limit).min() < 1e-6
    untied = torch.arange(float(len(heat)))
    if len(heat) > 1:
        assert torch.equal(*(marked(untied, share, chance, by_threshold=rule) for rule in (False, True)))
    if 0 < exact.sum() < len(heat):
        assert values[exact].min() >= values[~exact].max()


def test_a_map_that_is_all_tied_loses_exactly_k_or_by_threshold_nothing(toys, scene):
    model, _, (case, *_) = scene
    (trial,) = toys.trials(model, [case], [Explanation(torch.ones(2, 3), torch.ones(len(case.words)))])
    exact, strict = Retrieval(text_share=0.5), Retrieval(text_share=0.5, by_threshold=True)
    changed = lambda image: int((image != case.pixels).any(0).sum())
    inner = len(case.words) - 2
    assert (changed(exact.image(trial)), changed(strict.image(trial))) == (above(0.25, 24), 0) == (6, 0)
    assert int((exact.text(trial).tokens != case.tokens).sum()) == above(0.5, inner) > 0
    assert torch.equal(strict.text(trial).tokens, case.tokens)
    assert exact.text(trial).charge == case.id != exact.text(trial).id


def test_a_tie_is_shared_and_so_are_equal_captions(toys):
    model = toys.dual()
    chance = torch.Generator().manual_seed(0)
    cases = [toys.worded(f"s{k}", "red ball", torch.randn(3, 4, 6, generator=chance)) for k in range(3)]
    metric = Retrieval()
    (score,) = metric.measure(asked(toys, model, cases[:1]), fitted(metric, model, cases[1:]))
    assert score.values["i2t_co"].parts == {"num": 0.0, "den": pytest.approx(1 / 3)}
    one = torch.tensor([1.0, 0.0])
    assert hit(one, one, torch.tensor([[0.0, 1.0]])) == 1.0
    assert hit(one, -one, torch.tensor([[0.0, 1.0]])) == 0.0


def test_a_photograph_is_no_rival_of_its_own(toys, scene):
    model, gallery, _ = scene
    metric = Retrieval()
    whole = fitted(metric, model, gallery)
    less = fitted(metric, model, gallery[1:])
    one, other = (metric.measure(asked(toys, model, gallery[:1]), x)[0].values for x in (whole, less))
    assert one == other
    (alone,) = metric.measure(asked(toys, model, gallery[:1]), fitted(metric, model, gallery[:1]))
    assert {v.reason for v in alone.values.values()} == {
        "the fit split has no other photograph to tell this one from"
    }


# ---------------------------------------------------------------- laws


def test_neither_chunks_nor_order_of_cases_or_gallery_change_a_bit(toys, scene):
    model, gallery, cases = scene
    metric = Retrieval()
    learnt = fitted(metric, model, gallery)
    for chunk in (1, 3, 6):
        model.memo.clear()
        again = fitted(metric, model, gallery, chunk)
        assert again.keys() == learnt.keys()
        assert all(torch.equal(again[name], learnt[name]) for name in learnt)
    assert torch.equal(learnt["photograph"], torch.tensor([seeds.number(c.sample) for c in gallery]))
    trials = asked(toys, model, cases)
    expected = [s.values for s in metric.measure(trials, learnt)]
    model.memo.clear()
    turned = fitted(metric, model, gallery[::-1])
    assert [s.values for s in metric.measure(trials, turned)] == expected
    for chunk in (1, 3, len(trials)):
        for way in (1, -1):
            some, found = trials[::way], []
            for first in range(0, len(some), chunk):
                model.memo.clear()
                with torch.inference_mode():
                    found += metric.measure(some[first : first + chunk], learnt)
            assert [s.values for s in found[::way]] == expected
    assert metric.measure([], learnt) == []


def test_four_rows_a_case_which_the_case_pays(toys, scene):
    model, gallery, cases = scene
    metric, before = Retrieval(), checks.condition(model.net)
    learnt, trials = fitted(metric, model, gallery), asked(toys, model, cases)
    model.memo.clear()
    with model.part() as spent:
        metric.measure(trials, learnt)
    assert dict(spent.forward) == {case.id: pytest.approx(4) for case in cases}
    model.memo.on = True
    metric.measure(trials, learnt)
    run = model.meter.run
    metric.measure(asked(toys, model, cases), learnt)
    assert model.meter.run - run <= 3 * len(cases)  # nothing whole is embedded twice
    assert checks.condition(model.net) == before


# ---------------------------------------------------------------- undefined, unsuited, refused


@dataclass(frozen=True)
class Half(Drawn):
    """No relevance for words, or no map, or neither."""

    image: bool = True
    text: bool = False

    def explain(self, model, cases):
        return [
            Explanation(image=e.image if self.image else None, text=e.text if self.text else None)
            for e in super().explain(model, cases)
        ]


def test_each_side_has_its_own_reasons(toys, scene):
    model, gallery, cases = scene
    metric = Retrieval()
    learnt = fitted(metric, model, gallery, explainer=Half())
    (score,) = metric.measure(asked(toys, model, cases[:1], Half()), learnt)
    assert {n: v.reason for n, v in score.values.items()} == {
        "i2t_oc": "no text relevance", "i2t_co": "", "t2i_oc": "no text relevance", "t2i_co": ""
    }  # fmt: skip
    (score,) = metric.measure(
        asked(toys, model, cases[:1]), learnt
    )  # the case has, a pair of the fit split has not
    assert score.values["i2t_oc"].reason == "a pair of the fit split has no text map to be corrupted by"
    assert score.values["t2i_oc"].defined  # whole images are all that is chosen from
    with pytest.raises(Unsuited, match="the fit split cannot be corrupted: no image map, no text relevance"):
        fitted(metric, model, gallery, explainer=Half(image=False))
    with pytest.raises(Unsuited, match="it is empty"):
        fitted(metric, model, [])
    with pytest.raises(Unsuited, match="only a dual encoder"):
        metric.fit(toys.linear(), iter([]), Drawn())
    with pytest.raises(Unsuited, match="no mask token"):
        fitted(Retrieval(removal="mask"), model, gallery)
    for wrong in ({"image_share": 0.0}, {"text_share": 1.0}):
        with pytest.raises(Refused, match=r"metrics.retrieval: found image_share"):
            Retrieval(**wrong)
    with pytest.raises(Refused, match="no fill 'blur'"):
        Retrieval(fill="blur")


# ---------------------------------------------------------------- on the house's own dual encoder


@pytest.fixture(scope="module")
def small():
    """small_clip, and cases about scenes: 48 to choose from, 32 that are asked about."""
    place = Place(shelf.house(), shelf.house())
    model = Recipe("small_clip", str(place.recipes()["small_clip"])).load("small_clip")
    scenes = shelf.find("datasets", "scenes", place, "test")
    asked = (scenes(split=split, sample=n).samples() for split, n in (("train", 48), ("test", 32)))
    return model, *([c for some in model.ask(samples, "caption 0") for c in some] for samples in asked)


def lost(toys, metric, who, model, gallery, cases):
    model.memo.clear()
    scores = metric.measure(asked(toys, model, cases, who), fitted(metric, model, gallery, 8, who))
    parts = {name: [s.values[name].parts for s in scores if s.values[name].defined] for name in NAMES}
    return {n: sum(p["num"] for p in ps) / sum(p["den"] for p in ps) for n, ps in parts.items() if ps}


@dataclass(frozen=True)
class Thing:
    """The mask of what the caption names, or the mask turned over both ways: as many pixels elsewhere."""

    elsewhere: bool = False

    def explain(self, model, cases):
        masks = [c.mask.float() for c in cases]
        return [Explanation(image=m.flip(0, 1) if self.elsewhere else m) for m in masks]


@dataclass(frozen=True)
class OneLess:
    """What the cosine loses with each token, or its opposite."""

    way: int = 1

    def explain(self, model, cases):
        found = []
        for case in cases:
            n = len(case.words)
            keep = torch.cat([torch.ones(1, n), 1 - torch.eye(n)])
            with torch.no_grad():
                whole, *less = model.score_text(keep, [case] * (n + 1), "pad")
            found.append(Explanation(text=self.way * (whole - torch.stack(less))))
        return found


def test_the_thing_matters_more_than_as_much_elsewhere(toys, small):
    metric = Retrieval(image_share=0.1)
    here, there = (lost(toys, metric, Thing(elsewhere), *small) for elsewhere in (False, True))
    print(here, there)
    for name in ("i2t_co", "t2i_co"):
        assert here[name] > there[name] + 0.1


def test_the_words_that_the_score_hangs_on_matter_more_than_those_that_it_does_not(toys, small):
    most, least = (lost(toys, Retrieval(), OneLess(way), *small) for way in (1, -1))
    print(most, least)
    for name in ("i2t_oc", "t2i_oc"):
        assert most[name] > least[name] + 0.3
