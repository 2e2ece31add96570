"""Remove and retrain on pairs: the loss and one training by hand, and what the laws ask of a metric that trains."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch

from heatproof import checks, seeds
from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics.roar_pairs import WEIGHTS, RoarPlus, contrastive

COLOURS = {
    "red": (1.0, -1.0, 0.0),
    "ball": (-1.0, 1.0, 0.5),
    "on": (0.0, -1.0, 1.0),
    "grass": (-0.5, 0.5, -1.0),
}


@dataclass(frozen=True)
class Half:
    """The left half of the image, and the first word."""

    image: bool = True
    text: bool = True

    def explain(self, model, cases):
        heat = torch.zeros(4, 6)
        heat[:, :3] = 1.0
        return [
            Explanation(
                image=heat if self.image else None,
                text=-torch.arange(float(len(c.words))) if self.text else None,
            )
            for c in cases
        ]


def pairs(toys, name, count, seed):
    """Images whose left half has the colour of what is said; the right half is noise."""
    chance, cases = torch.Generator().manual_seed(seed), []
    for k in range(count):
        word = list(COLOURS)[k % 4]
        pixels = 0.3 * torch.randn(3, 4, 6, generator=chance)
        pixels[:, :, :3] += 2 * torch.tensor(COLOURS[word])[:, None, None]
        cases.append(toys.worded(f"{name}{k}", f"{word} ball"[: len(word) + 5 * (k % 2)], pixels))
    return cases


def fitted(metric, model, cases, explainer=None, chunk=4):
    feed = (cases[k : k + chunk] for k in range(0, len(cases), chunk))
    return metric.fit(model, feed, explainer or Half())


def asked(toys, model, cases, explainer=None):
    explainer = explainer or Half()
    return toys.trials(model, cases, explainer.explain(model, cases), explainer)


@pytest.fixture
def scene(toys):
    return toys.dual(), pairs(toys, "fit", 8, 0), pairs(toys, "s", 9, 1)


def test_the_loss_is_the_mean_of_two_cross_entropies():
    chance = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 5, 3, generator=chance)
    total = 0.0
    for one, other in ((image, text), (text, image)):
        for k in range(5):
            like = [7.0 * float(torch.cosine_similarity(one[k], o, dim=0)) for o in other]
            total += math.log(sum(math.exp(v) for v in like)) - like[k]
    assert float(contrastive(image, text, 7.0)) == pytest.approx(total / 10, abs=1e-5)
    assert float(contrastive(torch.ones(5, 3), text, 7.0)) >= math.log(5) - 1e-5


@pytest.mark.parametrize("side", ["image", "text"])
def test_it_is_a_training_by_hand(toys, scene, side, record_property):
    """One step a round on all pairs: AdamW by torch on a copy, the corruption told in words; then hits by hand."""
    model, gallery, cases = scene
    metric = RoarPlus(side=side, image_share=0.5, text_share=0.5, epochs=3, batch=8, rate=0.02)
    learnt = fitted(metric, model, gallery)

    def pair(case):
        pixels, ids = case.pixels.clone(), case.tokens.clone()
        if side == "image":
            # 12 of 24 pixels lie above the 50th percentile where nothing is tied, and all on the left are tied: 12 go
            pixels[:, :, :3] = case.pixels.mean((1, 2))[:, None, None]
        else:
            ids[1] = model.tokenizer.pad
        return pixels, ids

    net = copy.deepcopy(model.net).requires_grad_(True)

    def see(pixels):
        return net.eye(pixels.mean((1, 2)))

    def say(ids):
        return net.ear(net.table.weight[ids[ids != model.tokenizer.pad]].sum(0))

    seen, read = zip(*(pair(case) for case in gallery), strict=True)
    groups = [[p for p in net.parameters() if (p.ndim > 1) == m] for m in (True, False)]
    optimiser = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.05}, {"params": groups[1], "weight_decay": 0.0}], lr=0.02
    )
    losses = []
    for step in range(3):
        order = torch.randperm(8, generator=seeds.generator(0, "roar_pairs", "order", step)).tolist()
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1.0 if step < 1 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 2)))
        image, text = torch.stack([see(seen[k]) for k in order]), torch.stack([say(read[k]) for k in order])
        like = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T / 0.07
        goal = torch.arange(8)
        loss = (
            torch.nn.functional.cross_entropy(like, goal) + torch.nn.functional.cross_entropy(like.T, goal)
        ) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    off = max(float((learnt[WEIGHTS + n] - v.detach()).abs().max()) for n, v in net.state_dict().items())
    print(f"weights ({side}): off by {off:.1e} at most")
    record_property("deviation", off)
    assert off < 1e-5

    others = torch.stack([see(x) for x in seen]).detach(), torch.stack([say(x) for x in read]).detach()
    for case, score in zip(cases, metric.measure(asked(toys, model, cases), learnt), strict=True):
        pixels, ids = pair(case)
        image, text = see(pixels).detach(), say(ids).detach()
        for name, query, own, rivals in (("i2t", image, text, others[1]), ("t2i", text, image, others[0])):
            like = [float(torch.cosine_similarity(query.double(), o.double(), dim=0)) for o in (own, *rivals)]
            best = [v > max(like) - 1e-6 for v in like]
            assert score.values[name].number == pytest.approx(best[0] / sum(best))


def test_what_can_still_be_learned_was_not_removed(toys, scene):
    """Hiding the half that has the colour costs accuracy; hiding as much noise does not."""
    model, gallery, cases = scene

    @dataclass(frozen=True)
    class Right(Half):
        def explain(self, model, cases):
            return [Explanation(image=e.image.flip(1)) for e in super().explain(model, cases)]

    # the image's own mean colour would still tell; captions come thrice, so that 1 / 3 is all that can be had
    metric = RoarPlus(image_share=0.5, fill="mean", epochs=40, batch=8, rate=0.02)
    found = []
    for who in (Half(), Right()):
        scores = metric.measure(asked(toys, model, cases, who), fitted(metric, model, gallery, who))
        found.append(sum(s.values["i2t"].number for s in scores) / len(scores))
    print(found)
    assert found[0] < 0.5 * found[1]


def test_it_is_seeded_and_knows_no_neighbours(toys, scene):
    model, gallery, cases = scene
    metric, before = RoarPlus(image_share=0.5, epochs=2, batch=3), checks.condition(model.net)
    learnt = fitted(metric, model, gallery)
    for chunk in (1, 3, 8):
        model.memo.clear()
        torch.manual_seed(chunk)
        again = fitted(metric, model, gallery, chunk=chunk)
        assert all(torch.equal(again[name], learnt[name]) for name in learnt)
    trials = asked(toys, model, cases)
    expected = [s.values for s in metric.measure(trials, learnt)]
    for chunk in (1, 3, len(trials)):
        for way in (1, -1):
            some, found = trials[::way], []
            for first in range(0, len(some), chunk):
                model.memo.clear()
                with torch.inference_mode():
                    found += metric.measure(some[first : first + chunk], learnt)
            assert [s.values for s in found[::way]] == expected
    model.memo.clear()
    with model.part() as spent:
        metric.measure(trials, learnt)
    assert dict(spent.forward) == {case.id: pytest.approx(2) for case in cases}
    assert checks.condition(model.net) == before
    assert metric.measure([], learnt) == []
    assert any(not torch.equal(learnt[WEIGHTS + n], v) for n, v in model.net.state_dict().items())


def test_a_net_with_a_temperature_of_its_own_learns_it(families):
    model, cases = families["clip"]
    learnt = RoarPlus(epochs=1, batch=4).fit(model, iter([cases]), Half())
    name = f"{WEIGHTS}logit_scale"
    assert name in learnt
    assert not torch.equal(learnt[name], model.net.logit_scale.detach().cpu())


def test_what_cannot_be_tuned_says_so(toys, scene):
    model, gallery, cases = scene
    with pytest.raises(Unsuited, match="8 of 8 pairs of the fit split have no text map"):
        fitted(RoarPlus(side="text"), model, gallery, Half(text=False))
    with pytest.raises(Unsuited, match="two at least"):
        fitted(RoarPlus(), model, gallery[:1])
    with pytest.raises(Unsuited, match="only a dual encoder"):
        RoarPlus().fit(toys.linear(), iter([]), Half())
    learnt = fitted(RoarPlus(epochs=1), model, gallery)
    (score,) = RoarPlus().measure(asked(toys, model, cases[:1], Half(image=False)), learnt)
    assert {v.reason for v in score.values.values()} == {"no image map"}
    with pytest.raises(Refused, match="no side 'both'"):
        RoarPlus(side="both")
    with pytest.raises(Refused, match="batches of 2 or more"):
        RoarPlus(batch=1)
    with pytest.raises(FloatingPointError, match="take a lower rate"):
        fitted(RoarPlus(rate=1e30, epochs=20), model, gallery)
