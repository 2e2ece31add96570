"""LRP through the captioners' decoders, against loops written from the formulas of Sun et al. 2022 (section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, sqrt, tanh

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Case, Unsuited
from heatproof.geometry import Frame
from heatproof.lrp.decoder import DecoderRules, relevance, relevant
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig, SingleCaptioner
from heatproof.models.captioner import Captioner
from heatproof.models.encoders import vgg
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig
from heatproof.models.words import WordList

WORDS = {w: i for i, w in enumerate(["<pad>", "<unk>", "<start>", "<end>", "a", "dog", "red", "ball"])}
CHANNELS, EMBED, HIDDEN, SIDE = (
    5,
    4,
    8,
    2,
)  # rows of whole vectors: torch.sigmoid rounds otherwise at a ragged end
KINDS = ("adaptive", "multi_head", "single")


def model_of(kind: str, seed: int = 0, *, biased: bool = True) -> Captioner:
    torch.manual_seed(seed)
    encoder = vgg([4, CHANNELS], [1, 1])
    if kind != "multi_head":
        config = AdaptiveConfig(len(WORDS), CHANNELS, SIDE * SIDE, EMBED, HIDDEN)
        net = {"adaptive": AdaptiveCaptioner, "single": SingleCaptioner}[kind](encoder, config)
    else:
        net = MultiHeadCaptioner(encoder, MultiHeadConfig(len(WORDS), CHANNELS, EMBED, HIDDEN, heads=2))
    with torch.no_grad():
        for name, weight in net.double().named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.7 if biased or "bias" not in name else 0))
    return Captioner(kind, net, Frame(2 * SIDE), words=WordList(WORDS), objects=(), length=6)


def cases_of(seed: int = 0) -> list[Case]:
    """Two captions, every word of either."""
    dice = torch.Generator().manual_seed(seed)
    cases = []
    for k, tokens in enumerate(([2, 4, 6, 7, 4, 5], [2, 5, 5, 4])):
        image = torch.randn(3, 2 * SIDE, 2 * SIDE, generator=dice, dtype=torch.float64)
        cases += [
            Case(f"{k}.{t}", str(k), "", image, t, tokens=torch.tensor(tokens))
            for t in range(len(tokens) - 1)
        ]
    return cases


# ---------------------------------------------------------------- the slow twin: lists of floats and loops


def sigmoid(x):
    return 1 / (1 + exp(-x))


def plus(*vectors):
    return [sum(parts) for parts in zip(*vectors, strict=True)]


def times(a, b):
    return [x * y for x, y in zip(a, b, strict=True)]


def affine(layer, x):
    bias = layer.get("bias", [0.0] * len(layer["weight"]))
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(layer["weight"], bias, strict=True)
    ]


def softmax(x):
    top = max(x)
    parts = [exp(v - top) for v in x]
    return [p / sum(parts) for p in parts]


@dataclass
class Slow:
    """One case's forward, kept step by step, and its relevance, one formula after the other."""

    kind: str
    weights: dict
    cells: list  # P lists of C features
    eps: float = 0.01
    head: int | None = None
    heads: int = 2
    steps: list = field(default_factory=list)

    def layer(self, name):
        found = {k.rpartition(".")[2]: v for k, v in self.weights.items() if k.rpartition(".")[0] == name}
        if name == "project":  # a 1 x 1 convolution
            found["weight"] = [[w[0][0] for w in row] for row in found["weight"]]
        return found

    # forward

    def lstm(self, name, x, h, c):
        cell, n = self.layer(name), len(h)
        into = affine({"weight": cell["weight_ih"], "bias": cell["bias_ih"]}, x)
        z = plus(into, affine({"weight": cell["weight_hh"], "bias": cell["bias_hh"]}, h))
        i, f = [sigmoid(v) for v in z[:n]], [sigmoid(v) for v in z[n : 2 * n]]
        g, o = z[2 * n : 3 * n], [sigmoid(v) for v in z[3 * n :]]
        kept, signal = times(f, c), times(i, [tanh(v) for v in g])
        new = plus(kept, signal)
        return {
            "x": x,
            "h_": h,
            "kept": kept,
            "signal": signal,
            "g": g,
            "c": new,
            "h": times(o, map(tanh, new)),
        }

    def forward(self, ids):
        self.sums = [affine(self.layer("project"), cell) for cell in self.cells]
        self.V = [[max(v, 0.0) for v in row] for row in self.sums]
        zero, count = [0.0] * len(self.V[0]), len(self.cells)
        mean = [sum(column) / count for column in zip(*self.cells, strict=True)]
        if self.kind != "multi_head":
            self.mean, self.whole_sums = mean, affine(self.layer("summarise"), mean)
            self.whole = [max(v, 0.0) for v in self.whole_sums]
        else:
            self.whole = [sum(column) / count for column in zip(*self.V, strict=True)]
            self.values = [affine(self.layer("value"), row) for row in self.V]
        one = two = {"h": zero, "c": zero}
        for word in ids:
            e = self.weights["embedding.weight"][word]
            if self.kind != "multi_head":
                x1 = two["h"] + self.whole + e if self.kind == "adaptive" else e + self.whole
                last, one = one, self.lstm("visual_lstm", x1, one["h"], one["c"])
                gate = plus(affine(self.layer("gate_x"), x1), affine(self.layer("gate_h"), last["h"]))
                s = times([sigmoid(v) for v in gate], [tanh(v) for v in one["c"]])
                u, w = affine(self.layer("query"), one["h"]), self.layer("score")["weight"][0]
                keys = [affine(self.layer("key"), row) for row in self.V]
                z = [sum(a * tanh(k + u[p]) for a, k in zip(w, keys[p], strict=True)) for p in range(count)]
                own = sum(
                    a * tanh(k)
                    for a, k in zip(w, plus(affine(self.layer("sentinel_key"), s), u), strict=True)
                )
                alpha, beta = softmax(z), softmax([*z, own])[-1]
                seen = [
                    sum(a * v for a, v in zip(alpha, column, strict=True))
                    for column in zip(*self.V, strict=True)
                ]
                context = plus([beta * v for v in s], [(1 - beta) * v for v in seen])
                if self.kind == "adaptive":
                    two = self.lstm("language_lstm", context + one["h"], two["h"], two["c"])
                else:
                    two = one  # it speaks itself
                step = {"one": one, "s": s, "beta": beta, "alpha": alpha, "seen": seen}
            else:
                two = self.lstm("language_lstm", e + self.whole, two["h"], two["c"])
                q, wide = affine(self.layer("query"), two["h"]), len(zero) // self.heads
                keys = [affine(self.layer("key"), row) for row in self.V]
                alpha, seen = [], []
                for m in range(self.heads):
                    part = range(m * wide, (m + 1) * wide)
                    alpha.append(softmax([sum(q[d] * k[d] for d in part) / sqrt(wide) for k in keys]))
                    seen += [sum(alpha[m][p] * self.values[p][d] for p in range(count)) for d in part]
                linear = affine(self.layer("linear"), seen)
                context = times([sigmoid(v) for v in affine(self.layer("gate"), two["h"])], linear)
                step = {"alpha": alpha, "seen": seen, "linear": linear}
            y = affine(self.layer("output"), plus(context, two["h"]))
            self.steps.append({**step, "two": two, "context": context, "y": y})

    # backward

    def stab(self, z):
        return z + self.eps if z >= 0 else z - self.eps

    def share(self, part, whole, r):
        """The sum rule: what of r belongs to ``part`` of ``whole``."""
        return [ri * p / self.stab(z) for ri, p, z in zip(r, part, whole, strict=True)]

    def through(self, weight, x, z, r):
        """The epsilon rule of a linear layer: R_i = sum_j x_i w_ji R_j / stab(z_j)."""
        return [
            sum(x[i] * weight[j][i] * r[j] / self.stab(z[j]) for j in range(len(z))) for i in range(len(x))
        ]

    def lstm_back(self, name, step, r_c):
        """R of c -> R of x, of the last h and of the last c."""
        cell, n = self.layer(name), len(step["c"])
        r_g, r_last = self.share(step["signal"], step["c"], r_c), self.share(step["kept"], step["c"], r_c)
        rows = [a + b for a, b in zip(cell["weight_ih"], cell["weight_hh"], strict=True)][2 * n : 3 * n]
        found = self.through(rows, step["x"] + step["h_"], step["g"], r_g)
        return found[: len(step["x"])], found[len(step["x"]) :], r_last

    def explain(self, t, word):
        """-> the logit, R of the cells' features [P][C], R of the words [t + 1]."""
        n, E, P = len(self.V[0]), EMBED, len(self.cells)
        zero = [0.0] * n
        last, words = self.steps[t], [0.0] * (t + 1)
        start = [last["y"][word] if j == word else 0.0 for j in range(len(last["y"]))]
        u = plus(last["context"], last["two"]["h"])
        r_u = self.through(self.layer("output")["weight"], u, last["y"], start)
        r_context, r_h2 = self.share(last["context"], u, r_u), self.share(last["two"]["h"], u, r_u)
        r_V, r_whole = [zero] * P, [0.0] * len(self.whole)
        r_c2 = r_h1 = r_c1 = zero
        if self.kind == "multi_head":
            r_seen = self.through(self.layer("linear")["weight"], last["seen"], last["linear"], r_context)
            wide = n // self.heads
            for p in range(P):
                r_v = [
                    r_seen[d] * last["alpha"][d // wide][p] * self.values[p][d] / self.stab(last["seen"][d])
                    if self.head in (None, d // wide)
                    else 0.0
                    for d in range(n)
                ]
                r_V[p] = self.through(self.layer("value")["weight"], self.V[p], self.values[p], r_v)
        if self.kind == "single":
            r_h1 = r_h2
        for i in range(t, -1, -1):
            step = self.steps[i]
            if self.kind != "single":
                r_x, r_h2, r_c2 = self.lstm_back("language_lstm", step["two"], plus(r_c2, r_h2))
            if self.kind == "multi_head":
                words[i], r_whole = sum(r_x[:E]), plus(r_whole, r_x[E:])
                continue
            if self.kind == "adaptive":
                r_context, r_h1 = plus(r_context, r_x[:n]), plus(r_h1, r_x[n:])
            r_s = self.share([step["beta"] * v for v in step["s"]], step["context"], r_context)
            r_seen = self.share([(1 - step["beta"]) * v for v in step["seen"]], step["context"], r_context)
            for p in range(P):
                part = [step["alpha"][p] * v for v in self.V[p]]
                r_V[p] = plus(r_V[p], self.share(part, step["seen"], r_seen))
            r_x, r_h1, r_c1 = self.lstm_back("visual_lstm", step["one"], plus(r_c1, r_s, r_h1))
            if self.kind == "single":
                words[i], r_whole, r_context = sum(r_x[:E]), plus(r_whole, r_x[E:]), zero
                continue
            r_h2 = plus(r_h2, r_x[:n])
            r_whole = plus(r_whole, r_x[n : n + E])
            words[i], r_context = sum(r_x[n + E :]), zero
        features = []
        if self.kind != "multi_head":
            r_mean = self.through(self.layer("summarise")["weight"], self.mean, self.whole_sums, r_whole)
        for p, cell in enumerate(self.cells):
            r = r_V[p]
            if self.kind == "multi_head":
                r = plus(r, self.share([v / P for v in self.V[p]], self.whole, r_whole))
            found = self.through(self.layer("project")["weight"], cell, self.sums[p], r)
            if self.kind != "multi_head":
                found = plus(found, self.share([v / P for v in cell], self.mean, r_mean))
            features.append(found)
        return last["y"][word], features, words


def slow(model: Captioner, case: Case, word: int, **settings):
    with torch.no_grad():
        cells = model.net.encoder(case.pixels[None])[0].flatten(1).T.tolist()
    weights = {name: value.tolist() for name, value in model.net.state_dict().items()}
    twin = Slow(model.name, weights, cells, **settings)
    twin.forward(case.tokens[: case.target + 1].tolist())
    logit, features, words = twin.explain(case.target, word)
    return logit, torch.tensor(features).T.unflatten(1, (SIDE, SIDE)), torch.tensor(words)


# ---------------------------------------------------------------- tests


@pytest.fixture(autouse=True)
def _double():
    """The twins work in float64, and so does torch.tensor here."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_slow_twin(kind: str) -> None:
    model, cases = model_of(kind), cases_of()
    found = relevance(model, cases)
    with torch.no_grad():
        logits = model.logits(model.stack(cases), cases)
    for n, case in enumerate(cases):
        word = int(case.tokens[case.target + 1])
        logit, features, words = slow(model, case, word)
        assert torch.allclose(logits[n, word], torch.tensor(logit))
        scale = features.abs().max()
        assert torch.allclose(found.features[n], features, rtol=1e-9, atol=1e-10 * scale)
        assert torch.allclose(found.words[n, : case.target + 1], words, rtol=1e-9, atol=1e-10 * scale)
        assert (found.words[n, case.target + 1 :] == 0).all()


@pytest.mark.parametrize("head", [0, 1])
def test_one_head_agrees_with_the_slow_twin(head: int) -> None:
    model, case = model_of("multi_head"), cases_of()[3]
    found = relevance(model, [case], DecoderRules(head=head))
    _, features, words = slow(model, case, int(case.tokens[case.target + 1]), head=head)
    assert torch.allclose(found.features[0], features, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.words[0, : len(words)], words, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_another_word_and_epsilon_agree_with_the_slow_twin(kind: str) -> None:
    model, cases = model_of(kind, seed=1), cases_of(1)[1:3]
    found = relevance(model, cases, DecoderRules(epsilon=0.2), words=torch.tensor([7, 4]))
    for n, (case, word) in enumerate(zip(cases, (7, 4), strict=True)):
        _, features, words = slow(model, case, word, eps=0.2)
        assert torch.allclose(found.features[n], features, rtol=1e-9, atol=1e-12)
        assert torch.allclose(found.words[n, : len(words)], words, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_conserves_the_logit_without_biases_and_epsilon(kind: str, seed: int) -> None:
    model, cases = model_of(kind, seed, biased=False), cases_of(seed)
    found = relevance(model, cases, DecoderRules(epsilon=1e-13))
    with torch.no_grad():
        logits = model.logits(model.stack(cases), cases)
    expected = torch.stack(
        [row[case.tokens[case.target + 1]] for row, case in zip(logits, cases, strict=True)]
    )
    total = found.features.sum((1, 2, 3)) + found.words.sum(1)
    size = found.features.abs().sum((1, 2, 3)) + found.words.abs().sum(1)
    blind = model.looked(cases).amax((1, 2, 3)) == 0  # a black map has nothing to give its share to
    assert ((total - expected).abs() <= 1e-6 * size + 1e-6 * expected.abs())[~blind].all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_released_bug_breaks_what_it_is_said_to_break(kind: str) -> None:
    model, cases = model_of(kind, biased=False), cases_of()[4:5]
    right = relevance(model, cases)
    bugs = "lost_recurrence", "lost_memory"
    bug, other = bugs[::-1] if kind == "multi_head" else bugs
    wrong = relevance(model, cases, DecoderRules(**{bug: True}))
    assert not torch.allclose(right.features, wrong.features)
    assert all(map(torch.equal, right, relevance(model, cases, DecoderRules(**{other: True}))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_is_the_same_and_the_model_is_left_as_found(kind: str) -> None:
    model, cases = model_of(kind), cases_of()
    before, shape = model.hash, type(model.net)
    twin = model.twin(lambda net: relevant(net, DecoderRules()), "lrp")
    with torch.no_grad():
        same = twin.logits(model.stack(cases), cases), model.logits(model.stack(cases), cases)
    assert torch.allclose(*same, rtol=1e-12)
    assert model.hash == before
    assert type(model.net) is shape
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_do_not_matter(kind: str) -> None:
    model, cases = model_of(kind), cases_of()
    whole = relevance(model, cases)
    for size in (1, 3):
        parts = [relevance(model, cases[i : i + size]) for i in range(0, len(cases), size)]
        assert torch.equal(torch.cat([p.features for p in parts]), whole.features)
        assert torch.equal(torch.cat([p.words for p in parts]), whole.words)
    back = relevance(model, cases[::-1])
    assert torch.equal(back.features.flip(0), whole.features)
    assert torch.equal(back.words.flip(0), whole.words)


def test_costs_one_decoder_forward_and_backward() -> None:
    model, cases = model_of("adaptive"), cases_of()[:2]
    model.looked(cases)
    share = sum(model._weights("image")[-2:])
    with model.part() as spent:
        model.looked(cases)
    encoder = spent.forward[cases[0].id]
    with model.part() as spent:
        relevance(model, cases)
    assert spent.forward[cases[0].id] == pytest.approx(encoder + share)
    assert spent.backward[cases[0].id] == pytest.approx(share)


def test_rules_have_twins_and_hashes_of_their_own() -> None:
    model, cases = model_of("multi_head"), cases_of()[:3]
    asked = [DecoderRules(), DecoderRules(head=1), DecoderRules(bias_twice=True)]
    once = [relevance(model_of("multi_head"), cases, rules) for rules in asked]
    again = [relevance(model, cases, rules) for rules in asked]  # one after the other on one model
    assert all(torch.equal(a.features, b.features) for a, b in zip(once, again, strict=True))
    twins = [model.twin(lambda net, r=rules: relevant(net, r), str(rules)) for rules in asked]
    assert len({model.hash, *(twin.hash for twin in twins)}) == 4


def test_says_what_it_cannot_do() -> None:
    with pytest.raises(Unsuited, match="2 attention heads, there is no head 2"):
        relevance(model_of("multi_head"), cases_of()[:1], DecoderRules(head=2))
    with pytest.raises(Unsuited, match="this is a Linear"):
        relevant(torch.nn.Linear(1, 1), DecoderRules())
