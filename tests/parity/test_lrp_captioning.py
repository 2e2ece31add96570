"""The two captioners and LRP through their decoders against arrays that the authors' code computed (``folder.py``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof import shelf
from heatproof.lrp import decoder
from heatproof.lrp.decoder import DecoderRules, relevance, relevant
from heatproof.models.captioner import EMBEDDING
from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.captioner_search import search

folder = shelf.load(Path(__file__).with_name("folder.py"))
read, every, whole, apart = folder.read, folder.every, folder.whole, folder.apart
net_of, model_of, cases_of, words_apart = folder.net_of, folder.model_of, folder.cases_of, folder.words_apart
NETS, EXACT, SINGLE, SINGLE_LRP = folder.NETS, folder.EXACT, folder.SINGLE, folder.SINGLE_LRP
pytestmark = folder.present


def unrolled(net: CaptionNet) -> tuple[list, Tensor, Tensor]:
    """Every step's state, the logits [T, V] and the attention [T, heads, P] of the caption, teacher-forced."""
    setup = read("setup")
    ids = torch.from_numpy(setup["caption_encode"])[:-1]
    cells = net.look(net.encoder(torch.from_numpy(setup["image"])))
    states, logits, attention = [net.start(cells.whole)], [], []
    for word in ids:
        state, spoken, seen = net.step(states[-1], cells, word[None])
        states.append(state)
        logits.append(spoken[0])
        attention.append(seen[0])
    return states, torch.stack(logits), torch.stack(attention)


class Cells:
    """What each LSTM reads, and what its weights make of it: one list of rows for each name and cell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[tuple[torch.nn.Module, str], list[Tensor]] = {}
        self.step = decoder._lstm
        monkeypatch.setattr(decoder, "_lstm", self.watched)

    def watched(self, cell, x, h, c, rules, *, bias_twice=False):
        second = cell.bias_ih if bias_twice else cell.bias_hh  # Q3 of the released forward
        sums = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + second
        into, forget, candidate, _ = sums.chunk(4, 1)
        found = {"x": x, "i": into.sigmoid(), "f": forget.sigmoid(), "g": candidate}
        for name, row in found.items():
            self.rows.setdefault((cell, name), []).append(row)
        return self.step(cell, x, h, c, rules, bias_twice=bias_twice)

    def of(self, cell: torch.nn.Module, suffix: str, act: str) -> dict[str, Tensor]:
        names = {"x": f"x{suffix}", "i": f"i{suffix}{act}", "f": f"f{suffix}{act}", "g": f"g{suffix}"}
        return {name: torch.cat(self.rows[cell, short]) for short, name in names.items()}


def passed(module: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into a module from now on, and what comes out."""
    given, made = [], []
    module.register_forward_hook(lambda _, args, out: (given.append(args[0]), made.append(out)) and None)
    return given, made


# ---------------------------------------------------------------- the nets


@pytest.mark.parametrize("kind", NETS)
def test_logits_of_the_ordinary_model(kind: str) -> None:
    setup, expected = read("setup"), read(f"{kind}_lrp_forward")["model_logits"]
    net = net_of(kind)
    ids = torch.from_numpy(setup["caption_encode"])[None, :-1]
    with torch.no_grad():
        assert apart(net(torch.from_numpy(setup["image"]), ids)[0], expected) < EXACT
        model = model_of(kind)
        assert apart(model.logits(model.stack(cases_of()), cases_of()), expected) < EXACT
        single, cases = model_of(kind, torch.float32), cases_of(torch.float32)
        assert apart(single.logits(single.stack(cases), cases), expected) < SINGLE


@pytest.mark.parametrize("kind", NETS)
def test_score_is_the_log_probability_of_the_word(kind: str) -> None:
    model, cases = model_of(kind), cases_of()
    logits = read(f"{kind}_lrp_forward")["model_logits"]
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = expected[np.arange(len(cases)), read("setup")["caption_encode"][1:]]
    with torch.no_grad():
        assert apart(model.score(model.stack(cases), cases), expected) < EXACT


@whole("gridtd_lrp_forward")
def test_all_that_the_adaptive_decoder_computes_as_released(name: str, monkeypatch) -> None:
    net = net_of("gridtd")
    relevant(net, DecoderRules.released())  # Q3 is in the forward of the released explainer
    lstms, (averages, _) = Cells(monkeypatch), passed(net.summarise)
    ids, image = read("setup")["caption_encode"], torch.from_numpy(read("setup")["image"])
    states, logits, attention = unrolled(net)
    h1, c1, h2, c2, sentinel, beta, seen, context = (torch.cat(parts) for parts in zip(*states, strict=True))
    found = {
        "model_logits": net_of("gridtd")(image, torch.from_numpy(ids)[None, :-1])[0],
        "predictions": logits,
        "image_features": net.encoder(image),
        "avg_feature": averages[0][0],
        "alphas": attention[:, 0],
        "betas": beta[1:, 0],
        "h1t": h1,
        "c1t": c1,
        "h2t": h2,
        "c2t": c2,
        "st": sentinel[1:],
        "context": seen[1:],
        "context_hat": context[1:],
        "caption_encode": ids,
        **lstms.of(net.visual_lstm, "1t", "_act"),
        **lstms.of(net.language_lstm, "2t", "_act"),
    }
    with every(name) as expected:
        off = {key: apart(found[key], value) for key, value in expected.items()}
    assert max(off.values()) < EXACT, off


@whole("aoa_lrp_forward")
def test_all_that_the_multi_head_decoder_computes_as_released(name: str, monkeypatch) -> None:
    net, image = net_of("aoa"), torch.from_numpy(read("setup")["image"])
    ids = torch.from_numpy(read("setup")["caption_encode"])[None, :-1]
    plain, cells = net(image, ids)[0], net.look(net.encoder(image))
    relevant(net, DecoderRules.released())
    lstms, (_, gates), (_, linears) = Cells(monkeypatch), passed(net.gate), passed(net.linear)
    states, logits, attention = unrolled(net)
    h, c, seen, context = (torch.cat(parts) for parts in zip(*states, strict=True))
    found = {
        "model_logits": plain,
        "predictions": logits,
        "image_features": net.encoder(image),
        "alphas": attention,
        "key": cells.keys,
        "value": cells.values,
        "ht": h,
        "ct": c,
        "context": seen[1:],
        "context_aoa": context[1:],
        "context_aoa_gate": torch.cat(gates),
        "context_aoa_linear": torch.cat(linears),
        **lstms.of(net.language_lstm, "t", "_act"),
        "caption_encode": ids.new_tensor(read("setup")["caption_encode"]),
    }
    with every(name) as expected:
        off = {key: apart(found[key], value) for key, value in expected.items()}
    assert max(off.values()) < EXACT, off


@pytest.mark.parametrize("kind", NETS)
def test_features_and_attention_behind_the_contract(kind: str) -> None:
    expected = read(f"{kind}_lrp_forward")
    model, cases = model_of(kind), cases_of()
    with torch.no_grad(), model.watch("cross.attention 0") as seen:
        assert apart(model.looked(cases)[:1], expected["image_features"]) < EXACT
        model.score(model.stack(cases), cases)
    _, _, attention = unrolled(net_of(kind))
    assert apart(seen.value[-1, : len(cases)], attention.detach().numpy()) < EXACT


ENDINGS = {"gridtd": "with in on of a at to for an this his her that the and".split()}
ENDINGS["aoa"] = ENDINGS["gridtd"][:-1]


def trimmed(words: list[str], kind: str) -> list[str]:
    """The sentence of the release: no function words at its end, unless it has no others."""
    last = max((k for k, word in enumerate(words) if word not in ENDINGS[kind]), default=len(words) - 1)
    return words[: last + 1]


@whole("beam")
def test_beam_search(name: str) -> None:
    words, image = folder.words_of(), torch.from_numpy(read("setup")["image"])
    black = torch.zeros_like(image).repeat(2, 1, 1, 1)
    black[1] = image[0]  # a neighbour that must not matter
    with every(name) as expected:
        for key in [key for key in expected if key.endswith("_ids")]:
            kind, _, rest = key.partition("_beam")
            net, width = net_of(kind), int(rest.partition("_")[0])
            longest = {"gridtd": 20, "aoa": 30}[kind]  # steps, by the released defaults
            with torch.no_grad():
                found = search(net, net.encoder(black), words, longest, width)[0].tolist()
            said = [i for i in found if i not in (words.pad, words.unknown, words.bos, words.eos)]
            assert said == expected[key].tolist(), key
            sentence = str(expected[key.removesuffix("ids") + "sentence"])
            assert " ".join(trimmed(words.text(found), kind)) == sentence, key


# ---------------------------------------------------------------- relevance


def heard(model, cases, rules: DecoderRules) -> Tensor:
    """Relevance of each embedding of the words before, [N, length, E]."""
    twin = model.twin(lambda net: relevant(net, rules), str(rules))
    with twin.watch(EMBEDDING) as read_words:
        logits = twin.speak(model.looked(cases), cases)
        start = sum(row[case.tokens[case.target + 1]] for row, case in zip(logits, cases, strict=True))
        (g,) = torch.autograd.grad(start, read_words.value)
    return read_words.value * g


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE_LRP)])
@whole("gridtd_lrp_decoder", "aoa_lrp_decoder")
def test_relevance_as_released(name: str, dtype: torch.dtype, tolerance: float) -> None:
    kind = name.partition("_")[0]
    model, cases = model_of(kind, dtype), cases_of(dtype)
    heads = [None] if kind == "gridtd" else list(range(model.net.heads))
    rules = {head: DecoderRules.released(head) for head in heads}
    found = {head: relevance(model, cases, rule) for head, rule in rules.items()}
    with every(name) as expected:
        for key, value in expected.items():
            what, t, _ = folder.place(key)
            if what == "r_words":
                off = max(words_apart(one.words[t], value, t) for one in found.values())
            elif what == "r_word_embedding":
                off = apart(heard(model, cases, rules[None])[t, : t + 1], value)
            else:
                head = what.removeprefix("r_img_feature").removeprefix("_h")
                off = apart(found[int(head) if head else None].features[t : t + 1], value)
            assert off < tolerance, key


@pytest.mark.parametrize(
    ("kind", "bug"),
    [
        ("gridtd", "bias_twice"),
        ("gridtd", "lost_recurrence"),
        ("aoa", "bias_twice"),
        ("aoa", "lost_memory"),
    ],
)
def test_each_bug_of_the_release_shows_in_its_arrays(kind: str, bug: str) -> None:
    head = None if kind == "gridtd" else 0
    expected = read(f"{kind}_lrp_decoder")
    name = "r_img_feature" if head is None else f"r_img_feature_h{head}"
    last = len(cases_of()) - 1
    rules = replace(DecoderRules.released(head), **{bug: False})
    found = relevance(model_of(kind), cases_of()[-1:], rules)
    assert apart(found.features, expected[f"{name}_{last}"]) > 1e-4
