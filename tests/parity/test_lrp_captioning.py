"""The two captioners and LRP through their decoders against arrays that the authors' code computed.

Everything comes from the folder itself (``lrp_captioning/FIXTURES.md`` describes it): another folder of the same
layout passes as it is. Tolerances are relative to the largest value of the reference.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.lrp.decoder import DecoderRules, relevance, relevant
from heatproof.models.captioner import Captioner
from heatproof.models.captioner_nets import (
    AdaptiveCaptioner,
    AdaptiveConfig,
    CaptionNet,
    MultiHeadCaptioner,
    MultiHeadConfig,
    vgg,
)
from heatproof.models.captioner_search import search
from heatproof.models.words import WordList

HOUSE = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", HOUSE.parent / "shared" / "parity")) / "lrp_captioning"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference arrays in {FOLDER} (set HEATPROOF_PARITY)"
)
EXACT, SINGLE, SINGLE_LRP = 1e-12, 1e-5, 1e-4
NETS = ("gridtd", "aoa")


def read(name: str) -> MappingProxyType[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return MappingProxyType(dict(file))


@pytest.fixture(scope="module")
def setup():
    return read("setup")


def words_of(setup) -> WordList:
    return WordList({str(word): i for i, word in enumerate(setup["vocab"])})


def net_of(kind: str, setup) -> CaptionNet:
    encoder = vgg(setup["conv_channels"].tolist(), setup["convs_per_stage"].tolist())
    vocabulary, channels = len(setup["vocab"]), int(setup["conv_channels"][-1])
    embed, hidden = int(setup["embed_dim"]), int(setup["hidden_dim"])
    if kind == "gridtd":
        side = setup["image"].shape[-1] // 2 ** (len(setup["conv_channels"]) - 1)
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(vocabulary, channels, side * side, embed, hidden))
    else:
        heads = int(setup["num_heads"])
        net = MultiHeadCaptioner(encoder, MultiHeadConfig(vocabulary, channels, embed, hidden, heads))
    net.double().load_released(
        {name: torch.from_numpy(value) for name, value in read(f"{kind}_state").items()}
    )
    return net.eval()


def model_of(kind: str, setup, dtype: torch.dtype = torch.float64) -> Captioner:
    """The fixture's net behind the contract; float64 unless told."""
    net = net_of(kind, setup).to(dtype)
    frame = Frame(setup["image"].shape[-1], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    length = len(setup["caption_encode"])
    return Captioner(kind, net, frame, words=words_of(setup), objects=(), length=length, rows=3)


def cases_of(setup, dtype: torch.dtype = torch.float64) -> list[Case]:
    """One case a word of the caption."""
    tokens, image = torch.from_numpy(setup["caption_encode"]), torch.from_numpy(setup["image"])[0]
    return [
        Case(f"w{t}", "image", str(word), image.to(dtype), t, tokens=tokens)
        for t, word in enumerate(setup["caption_words"])
    ]


def apart(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def unrolled(net: CaptionNet, setup) -> tuple[list, Tensor, Tensor]:
    """Every step's state, the logits [T, V] and the attention [T, heads, P] of the caption, teacher-forced."""
    ids = torch.from_numpy(setup["caption_encode"])[:-1]
    cells = net.look(net.encoder(torch.from_numpy(setup["image"])))
    states, logits, attention = [net.start(cells.whole)], [], []
    for word in ids:
        state, spoken, seen = net.step(states[-1], cells, word[None])
        states.append(state)
        logits.append(spoken[0])
        attention.append(seen[0])
    return states, torch.stack(logits), torch.stack(attention)


# ---------------------------------------------------------------- the nets


def test_frame_gives_the_image(setup) -> None:
    image = model_of("aoa", setup).frame.image(setup["image_uint8"])
    assert apart(image[None], setup["image"]) < SINGLE


@pytest.mark.parametrize("kind", NETS)
def test_logits_of_the_ordinary_model(kind: str, setup) -> None:
    expected = read(f"{kind}_lrp_forward")["model_logits"]
    net = net_of(kind, setup)
    ids = torch.from_numpy(setup["caption_encode"])[None, :-1]
    with torch.no_grad():
        assert apart(net(torch.from_numpy(setup["image"]), ids)[0], expected) < EXACT
        model = model_of(kind, setup)
        assert apart(model.logits(model.stack(cases_of(setup)), cases_of(setup)), expected) < EXACT
        single = model_of(kind, setup, torch.float32)
        cases = cases_of(setup, torch.float32)
        assert apart(single.logits(single.stack(cases), cases), expected) < SINGLE


@pytest.mark.parametrize("kind", NETS)
def test_score_is_the_log_probability_of_the_word(kind: str, setup) -> None:
    model, cases = model_of(kind, setup), cases_of(setup)
    logits = read(f"{kind}_lrp_forward")["model_logits"]
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = expected[np.arange(len(cases)), setup["caption_encode"][1:]]
    with torch.no_grad():
        assert apart(model.score(model.stack(cases), cases), expected) < EXACT


def test_states_of_the_adaptive_decoder_as_released(setup) -> None:
    expected = read("gridtd_lrp_forward")
    net = net_of("gridtd", setup)
    relevant(net, DecoderRules.released())  # Q3 is in the forward of the released explainer
    states, logits, attention = unrolled(net, setup)
    assert apart(logits, expected["predictions"]) < EXACT
    assert apart(attention[:, 0], expected["alphas"]) < EXACT
    stacked = [torch.cat(parts) for parts in zip(*states, strict=True)]
    h1, c1, h2, c2, sentinel, beta, seen, context = stacked
    for name, found in {"h1t": h1, "c1t": c1, "h2t": h2, "c2t": c2}.items():
        assert apart(found, expected[name]) < EXACT, name
    for name, found in {"st": sentinel, "context": seen, "context_hat": context}.items():
        assert apart(found[1:], expected[name]) < EXACT, name
    assert apart(beta[1:, 0], expected["betas"]) < EXACT


def test_states_of_the_multi_head_decoder_as_released(setup) -> None:
    expected = read("aoa_lrp_forward")
    net = net_of("aoa", setup)
    cells = net.look(net.encoder(torch.from_numpy(setup["image"])))
    assert apart(cells.keys, expected["key"]) < EXACT
    assert apart(cells.values, expected["value"]) < EXACT
    relevant(net, DecoderRules.released())
    states, logits, attention = unrolled(net, setup)
    assert apart(logits, expected["predictions"]) < EXACT
    assert apart(attention, expected["alphas"]) < EXACT
    h, c, seen, context = (torch.cat(parts) for parts in zip(*states, strict=True))
    assert apart(h, expected["ht"]) < EXACT
    assert apart(c, expected["ct"]) < EXACT
    assert apart(seen[1:], expected["context"]) < EXACT
    assert apart(context[1:], expected["context_aoa"]) < EXACT


@pytest.mark.parametrize("kind", NETS)
def test_features_and_attention_behind_the_contract(kind: str, setup) -> None:
    expected = read(f"{kind}_lrp_forward")
    model, cases = model_of(kind, setup), cases_of(setup)
    with torch.no_grad(), model.watch("cross.attention 0") as seen:
        assert apart(model.looked(cases)[:1], expected["image_features"]) < EXACT
        model.score(model.stack(cases), cases)
    net = net_of(kind, setup)
    _, _, attention = unrolled(net, setup)
    assert apart(seen.value[-1, : len(cases)], attention.detach().numpy()) < EXACT


@pytest.mark.parametrize(
    "name", sorted(n for n in (read("beam") if FOLDER.is_dir() else ()) if n.endswith("_ids"))
)
def test_beam_search(name: str, setup) -> None:
    kind, _, rest = name.partition("_beam")
    width = int(rest.partition("_")[0])
    net, words = net_of(kind, setup), words_of(setup)
    longest = {"gridtd": 20, "aoa": 30}[kind]  # steps, by the released defaults
    with torch.no_grad():
        black = torch.zeros((2, *setup["image"].shape[1:]), dtype=torch.float64)
        black[1] = torch.from_numpy(setup["image"])[0]  # a neighbour that must not matter
        found = search(net, net.encoder(black), words, longest, width)[0].tolist()
    said = [i for i in found if i not in (words.pad, words.unknown, words.bos, words.eos)]
    assert said == read("beam")[name].tolist()
    sentence = str(read("beam")[name.removesuffix("ids") + "sentence"])
    assert " ".join(words.text(found)).startswith(sentence)


# ---------------------------------------------------------------- relevance


def check_words(found: Tensor, expected: np.ndarray, t: int, tolerance: float) -> None:
    assert (found[t + 1 :] == 0).all()
    assert apart(found[: t + 1] / found.abs().max(), expected) < tolerance, t


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE_LRP)])
def test_adaptive_relevance_as_released(dtype: torch.dtype, tolerance: float, setup) -> None:
    expected = read("gridtd_lrp_decoder")
    model, cases = model_of("gridtd", setup, dtype), cases_of(setup, dtype)
    found = relevance(model, cases, DecoderRules.released())
    for t in range(len(cases)):
        assert apart(found.features[t : t + 1], expected[f"r_img_feature_{t}"]) < tolerance, t
        check_words(found.words[t], expected[f"r_words_{t}"], t, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE_LRP)])
def test_multi_head_relevance_as_released(dtype: torch.dtype, tolerance: float, setup) -> None:
    expected = read("aoa_lrp_decoder")
    model, cases = model_of("aoa", setup, dtype), cases_of(setup, dtype)
    for head in range(model.net.heads):
        found = relevance(model, cases, DecoderRules.released(head))
        for t in range(len(cases)):
            name = f"r_img_feature_h{head}_{t}"
            assert apart(found.features[t : t + 1], expected[name]) < tolerance, name
            check_words(found.words[t], expected[f"r_words_{t}"], t, tolerance)


@pytest.mark.parametrize(
    ("kind", "bug"),
    [
        ("gridtd", "bias_twice"),
        ("gridtd", "lost_recurrence"),
        ("aoa", "bias_twice"),
        ("aoa", "lost_memory"),
    ],
)
def test_each_bug_of_the_release_shows_in_its_arrays(kind: str, bug: str, setup) -> None:
    head = None if kind == "gridtd" else 0
    expected = read(f"{kind}_lrp_decoder")
    name = "r_img_feature" if head is None else f"r_img_feature_h{head}"
    last = len(setup["caption_words"]) - 1
    rules = replace(DecoderRules.released(head), **{bug: False})
    found = relevance(model_of(kind, setup), cases_of(setup)[-1:], rules)
    assert apart(found.features, expected[f"{name}_{last}"]) > 1e-4
