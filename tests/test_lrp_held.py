"""Gradients with attention held, against a forward written from the formulas and differentiated by complex steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatproof import shelf
from heatproof.contract import Unsuited
from heatproof.lrp.held import HeldRules, at_features, at_pixels, held
from heatproof.models.captioner import explained

near = shelf.load(Path(__file__).with_name("test_lrp_decoder.py"))
model_of, cases_of, SIDE = near.model_of, near.cases_of, near.SIDE
KINDS = ("adaptive", "multi_head", "single")
BUGS = {
    "adaptive": [HeldRules(lost_recurrence=True), HeldRules(active_only=True)],
    "single": [HeldRules(lost_recurrence=True), HeldRules(active_only=True)],
    "multi_head": [HeldRules(lost_steps=True), HeldRules(head=0), HeldRules(head=1)],
}
RULES = [(kind, rules) for kind in KINDS for rules in (HeldRules(), *BUGS[kind])]
ALL = (HeldRules(guided=True), HeldRules.released(), HeldRules.released(guided=True))


# ---------------------------------------------------------------- the slow twin


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    parts = np.exp(x - x.real.max())
    return parts / parts.sum()


@dataclass
class Slow:
    """One case's forward in complex numbers; what is held is noted the first time and read off after that."""

    kind: str
    weights: dict
    rules: HeldRules
    heads: int = 2
    notes: list = field(default_factory=list)
    noted: bool = False

    def hold(self, value):
        if not self.noted:
            self.notes.append(value)
            return value
        self.turn += 1
        return self.notes[self.turn - 1]

    def relu(self, z):
        return z + self.hold(np.maximum(z.real, 0) - z.real)

    def layer(self, name, x):
        bias = self.weights.get(f"{name}.bias", 0.0)
        return self.weights[f"{name}.weight"].reshape(-1, x.shape[-1]) @ x + bias

    def lstm(self, name, x, h, c):
        w = {k.rpartition(".")[2]: v for k, v in self.weights.items() if k.startswith(f"{name}.")}
        z = w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]
        i, f, g, o = z.reshape(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def logits(self, cells, embeddings):
        """cells [P, C], embeddings [t + 1, E] -> [V]."""
        self.turn = 0
        if self.rules.active_only:
            cells = np.where(cells.real > 0, cells, self.hold(cells))
        V = np.stack([self.relu(self.layer("project", cell)) for cell in cells])
        h1 = c1 = h2 = c2 = np.zeros(V.shape[1], complex)
        if self.kind != "multi_head":
            g = self.relu(self.layer("summarise", cells.mean(0)))
        else:
            g, values = V.mean(0), np.stack([self.layer("value", v) for v in V])
        for step, e in enumerate(embeddings):
            if self.kind != "multi_head":
                x1 = np.concatenate([h2, g, e] if self.kind == "adaptive" else [e, g])
                gate = self.hold(sigmoid(self.layer("gate_x", x1) + self.layer("gate_h", h1)))
                last = self.hold(h1) if self.rules.lost_recurrence else h1
                h1, c1 = self.lstm("visual_lstm", x1, last, c1)
                s, u, w = gate * np.tanh(c1), self.layer("query", h1), self.weights["score.weight"][0]
                z = np.array([w @ np.tanh(self.layer("key", v) + u[p]) for p, v in enumerate(V)])
                own = w @ np.tanh(self.layer("sentinel_key", s) + u)
                alpha, beta = self.hold(softmax(z)), self.hold(softmax(np.append(z, own))[-1])
                context = beta * s + (1 - beta) * (alpha @ V)
                if self.kind == "adaptive":
                    h2, c2 = self.lstm("language_lstm", np.concatenate([context, h1]), h2, c2)
                else:
                    h2 = h1  # it speaks itself
            else:
                whole = self.hold(g) if step and self.rules.lost_steps else g
                h2, c2 = self.lstm("language_lstm", np.concatenate([e, whole]), h2, c2)
                q = self.layer("query", h2).reshape(self.heads, -1)
                keys = np.stack([self.layer("key", v) for v in V]).reshape(len(V), self.heads, -1)
                seen = []
                for m in range(self.heads):
                    alpha = self.hold(softmax(keys[:, m] @ q[m] / np.sqrt(q.shape[1])))
                    part = alpha @ values.reshape(len(V), self.heads, -1)[:, m]
                    seen.append(part if self.rules.head in (None, m) else self.hold(part))
                linear = self.layer("linear", np.concatenate(seen))
                context = sigmoid(self.layer("gate", h2)) * linear
        self.noted = True
        return self.layer("output", context + h2)

    def slope(self, inputs, which, word):
        """The derivative of the word's logit in each number of one of the inputs, by a complex step."""
        found = np.zeros(inputs[which].shape)
        for place in np.ndindex(found.shape):
            moved = [x.astype(complex) for x in inputs]
            moved[which][place] += 1e-30j
            found[place] = self.logits(*moved)[word].imag / 1e-30
        return found


def slow(model, case, rules):
    """-> gradients at the features [C, h, w] and at the embeddings before the word [t + 1, E]."""
    weights = {name: value.numpy() for name, value in model.net.state_dict().items()}
    with torch.no_grad():
        cells = model.net.encoder(case.pixels[None])[0].flatten(1).T.numpy()
    inputs = [cells, weights["embedding.weight"][case.tokens[: case.target + 1].numpy()]]
    twin, word = Slow(model.name, weights, rules), int(explained(case))
    logits = twin.logits(*(x.astype(complex) for x in inputs)).real
    seen, heard = twin.slope(inputs, 0, word), twin.slope(inputs, 1, word)
    return logits, torch.from_numpy(seen.T.reshape(-1, SIDE, SIDE)), torch.from_numpy(heard)


# ---------------------------------------------------------------- tests


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("kind", "rules"), RULES)
def test_agrees_with_the_slow_twin(kind: str, rules: HeldRules) -> None:
    model, cases = model_of(kind), cases_of()
    found = at_features(model, cases, rules)
    with torch.no_grad():
        logits = model.logits(model.stack(cases), cases)
    for n, case in enumerate(cases):
        mine, seen, heard = slow(model, case, rules)
        torch.testing.assert_close(logits[n], torch.from_numpy(mine))
        torch.testing.assert_close(found.at_features[n], seen, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.at_words[n, : case.target + 1], heard, rtol=1e-10, atol=1e-12)
        assert (found.at_words[n, case.target + 1 :] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_bug_is_another_gradient_and_the_other_nets_bug_is_none(kind: str) -> None:
    model, cases = model_of(kind), cases_of()[3:5]
    right = at_features(model, cases)
    for rules in BUGS[kind]:
        assert not torch.allclose(at_features(model, cases, rules).at_features, right.at_features)
    for rules in BUGS["adaptive" if kind == "multi_head" else "multi_head"]:
        if rules.head is None:
            assert torch.equal(at_features(model, cases, rules).at_features, right.at_features)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_features_to_the_pixels_layer_by_layer(kind: str, guided: bool) -> None:
    model, cases = model_of(kind), cases_of()
    above, found = at_features(model, cases), at_pixels(model, cases, HeldRules(guided=guided))
    x, passed = model.stack(cases), []
    for layer in [m for m in model.net.encoder.modules() if not list(m.children())]:
        given = x.clone().requires_grad_()
        x = layer(given)
        passed.append((layer, given, x))
        x = x.detach()
    g = above.at_features
    for layer, given, out in reversed(passed):
        if isinstance(layer, nn.ReLU):
            g = torch.where(given > 0, g.clamp(min=0) if guided else g, 0.0)
        elif isinstance(layer, nn.Conv2d):
            g = F.conv_transpose2d(g, layer.weight, padding=1)
        else:
            (g,) = torch.autograd.grad(out, given, g)
    torch.testing.assert_close(found.at_pixels, g, rtol=1e-10, atol=1e-12)
    for name in ("features", "at_features", "words", "at_words"):
        torch.testing.assert_close(getattr(found, name), getattr(above, name), rtol=1e-12, atol=1e-14)
    assert torch.equal(found.pixels, model.stack(cases))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", [HeldRules(), *ALL])
def test_the_forward_is_the_same_and_the_model_is_left_as_found(kind: str, rules: HeldRules) -> None:
    model, cases = model_of(kind), cases_of()
    before, shape = model.hash, type(model.net)
    twin = model.twin(lambda net: held(net, rules), "held")
    with torch.no_grad():
        assert torch.equal(twin.logits(model.stack(cases), cases), model.logits(model.stack(cases), cases))
    at_pixels(model, cases, rules)
    assert model.hash == before
    assert type(model.net) is shape
    assert not any(m._forward_hooks for m in model.net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", [HeldRules(), *ALL])
def test_neighbours_do_not_matter(kind: str, rules: HeldRules) -> None:
    model, cases = model_of(kind), cases_of()
    whole = at_pixels(model, cases, rules)
    for size in (1, 3):
        parts = [at_pixels(model, cases[i : i + size], rules) for i in range(0, len(cases), size)]
        for name in whole._fields:
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)), name
    back = at_pixels(model, cases[::-1], rules)
    assert all(torch.equal(a.flip(0), b) for a, b in zip(back, whole, strict=True))


def test_costs_one_forward_and_backward_of_what_is_passed() -> None:
    model, cases = model_of("adaptive"), cases_of()[:2]
    model._weights("image")
    share = sum(model._weights("image")[-2:])
    with model.part() as spent:
        model.looked(cases)
    encoder = spent.forward[cases[0].id]
    with model.part() as spent:
        at_features(model, cases)
    assert spent.forward[cases[0].id] == pytest.approx(encoder + share)
    assert spent.backward[cases[0].id] == pytest.approx(share)
    with model.part() as spent:
        at_pixels(model, cases)
    assert spent.forward[cases[0].id] == pytest.approx(1)
    assert spent.backward[cases[0].id] == pytest.approx(1)


def test_rules_have_twins_and_hashes_of_their_own() -> None:
    model, cases = model_of("multi_head"), cases_of()[:3]
    asked = [HeldRules(), HeldRules(guided=True), HeldRules(1, guided=True)]
    once = [at_pixels(model_of("multi_head"), cases, rules) for rules in asked]
    again = [at_pixels(model, cases, rules) for rules in asked]
    assert all(torch.equal(a.at_pixels, b.at_pixels) for a, b in zip(once, again, strict=True))
    assert not torch.equal(again[0].at_pixels, again[1].at_pixels)
    assert not torch.equal(again[1].at_pixels, again[2].at_pixels)
    twins = [model.twin(lambda net, r=rules: held(net, r), str(rules)) for rules in asked]
    assert len({model.hash, *(twin.hash for twin in twins)}) == 4


def test_says_what_it_cannot_do() -> None:
    with pytest.raises(Unsuited, match="2 attention heads, there is no head 2"):
        at_features(model_of("multi_head"), cases_of()[:1], HeldRules(head=2))
    with pytest.raises(Unsuited, match="this is a Linear"):
        held(nn.Linear(1, 1), HeldRules())
    blind = model_of("adaptive")
    blind.net.encoder = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, near.CHANNELS, 1).double())
    with pytest.raises(Unsuited, match="needs ReLU layers"):
        at_pixels(replace(blind), cases_of()[:1], HeldRules(guided=True))
