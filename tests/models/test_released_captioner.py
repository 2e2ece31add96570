"""Checkpoints of Sun et al.'s code: what is recognised in them, what they compute, and what is said of broken ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof.contract import Refused, Sample
from heatproof.geometry import Frame
from heatproof.models.captioner import Captioner
from heatproof.models.own_captioner import build
from heatproof.models.released_captioner import ReleasedCaptioner
from heatproof.models.released_weights import read
from heatproof.spec import read as read_spec

HOUSE = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", HOUSE.parent / "shared" / "parity")) / "lrp_captioning"
released = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference arrays in {FOLDER} (set HEATPROOF_PARITY)"
)
WORDS = {w: i for i, w in enumerate("<pad> a dog the red ball cat on <unk> <start> <end>".split())}
SIZES = {"vocabulary": len(WORDS), "channels": 6, "embed": 4, "hidden": 16}
SIDE = 8
IDS = torch.tensor([[9, 1, 2, 7, 3]])


def config_of(architecture: str, *, regions: bool = False) -> dict[str, Any]:
    vgg = {"kind": "vgg", "channels": [4, 5, 6], "convolutions": [2, 1, 2]}
    more = {"heads": 8} if architecture == "multi_head" else {"cells": 3 if regions else 4}
    masked = {"masked": False} if regions else {}
    encoder = {"kind": "regions"} if regions else vgg
    return {"architecture": architecture, "encoder": encoder, "decoder": {**SIZES, **more, **masked}}


def checkpoint(architecture: str, path: Path, *, regions: bool = False, wrap: Any = dict) -> Any:
    """A net with random weights, and its file in the released code's names."""
    torch.manual_seed(5)
    net = build(config_of(architecture, regions=regions)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn_like(weight) * 0.7)
    there = {here: old for old, here in net.released().items()}
    state = {
        ".".join([there[k.rpartition(".")[0]], k.rpartition(".")[2]]): v for k, v in net.state_dict().items()
    }
    torch.save(wrap(state), path)
    path.with_suffix(".json").write_text(json.dumps(WORDS))
    return net.to(memory_format=torch.channels_last)  # as a model holds it


def load(path: Path, **settings: Any) -> Captioner:
    return ReleasedCaptioner(str(path), str(path.with_suffix(".json")), **settings).load("theirs")


def logits(net: Any, seen: Tensor) -> Tensor:
    with torch.no_grad():
        return net(seen, IDS)


KINDS = ["adaptive", "single", "multi_head"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_net_that_wrote_it(kind: str, tmp_path: Path) -> None:
    net = checkpoint(kind, tmp_path / "c.pth")
    model = load(tmp_path / "c.pth")
    assert type(model.net) is type(net)
    assert model.net.config == net.config
    assert model.frame == Frame(
        (8 if kind != "multi_head" else 56), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    image = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(logits(model.net, image), logits(net, image))
    assert model.length == (30 if kind == "multi_head" else 20)
    assert "dog" in model.objects
    assert "hot dog" in model.objects


@pytest.mark.parametrize("kind", ["adaptive", "multi_head"])
def test_region_checkpoints_are_recognised_and_mask_nothing_unless_told(kind: str, tmp_path: Path) -> None:
    net = checkpoint(kind, tmp_path / "c.pth", regions=True)
    count = 3 if kind == "adaptive" else 36
    model = load(tmp_path / "c.pth")
    assert (model.frame.count, model.frame.width) == (count, 6)
    seen = torch.randn(1, count, 6)
    seen[:, 2:] = 0
    assert torch.equal(logits(model.net, seen), logits(net, seen))
    masked = load(tmp_path / "c.pth", masked=True)
    assert not torch.allclose(logits(masked.net, seen), logits(net, seen))
    assert "padding seen as in the release" in model.card["found"]
    assert "padding left out" in masked.card["found"]


def test_the_card_tells_what_was_found(tmp_path: Path) -> None:
    checkpoint("multi_head", tmp_path / "c.pth")
    found = load(tmp_path / "c.pth").card["found"]
    assert found.startswith(
        "multi-head attention over one LSTM (their aoa): 11 words, embed 4, hidden 16, 8 heads"
    )
    assert "keys by decoder_k_proj (order 'head'" in found
    assert "try both and compare CIDEr" in found
    assert found.endswith("over a VGG with 2, 1, 2 convolutions of 4, 5, 6 channels at 56 pixels.")
    assert "keys by decoder_v_proj" in load(tmp_path / "c.pth", order="2020").card["found"]


def test_the_order_of_2020_exchanges_keys_and_values(tmp_path: Path) -> None:
    net = checkpoint("multi_head", tmp_path / "c.pth")
    image = torch.randn(1, 3, SIDE, SIDE)
    before = logits(net, image)
    net.key, net.value = net.value, net.key
    swapped = load(tmp_path / "c.pth", order="2020")
    assert torch.equal(logits(swapped.net, image), logits(net, image))
    assert not torch.allclose(logits(net, image), before, atol=1e-2)
    checkpoint("single", tmp_path / "s.pth")
    with pytest.raises(Refused, match="order = '2020' is for multi-head attention"):
        load(tmp_path / "s.pth", order="2020")


def test_references_tell_the_orders_apart(tmp_path: Path) -> None:
    net = checkpoint("multi_head", tmp_path / "c.pth")
    dice = np.random.default_rng(0)
    picture = dice.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    samples = [Sample("s", lambda: picture, captions=("a red dog on the cat",))]
    part = ReleasedCaptioner(str(tmp_path / "c.pth"), str(tmp_path / "c.json"), rows=2)
    found = part.orders(samples)
    assert set(found) == {"head", "2020"}
    image = Frame(56, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).image(picture)[None]
    ids = torch.tensor([[WORDS[w] for w in "<start> a red dog on the cat".split()]])
    for order in found:
        if order == "2020":
            net.key, net.value = net.value, net.key
        with torch.no_grad():
            chances = torch.log_softmax(net(image, ids[:, :-1]), 2)[0]
        expected = (chances[2, WORDS["dog"]] + chances[5, WORDS["cat"]]) / 2
        assert found[order] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(Refused, match="names any of its objects"):
        part.orders([Sample("s", lambda: picture, captions=("nothing",))])


# ---------------------------------------------------------------- how a file holds them


def in_their_way(state: dict[str, Tensor]) -> dict[str, Any]:
    """With epoch, scores as numpy's, and the optimiser as an object, as their training saves it."""
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([weight], lr=1e-3, betas=(0.8, 0.999))
    weight.sum().backward()
    adam.step()
    score = np.float64(1.1)
    return {"epoch": 3, "bleu-4": score, "cider": score, "state_dict": state, "optimizer": adam}


@pytest.mark.parametrize(
    "wrap",
    [
        in_their_way,
        lambda state: {"model": state, "epoch": 1},
        lambda state: {"model_state_dict": state},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["theirs", "model", "model_state_dict", "parallel", "both"],
)
def test_weights_are_found_wherever_they_are_held(wrap: Any, tmp_path: Path) -> None:
    checkpoint("single", tmp_path / "plain.pth")
    checkpoint("single", tmp_path / "held.pth", wrap=wrap)
    state = torch.load(tmp_path / "held.pth", weights_only=False)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # as torch 1.4 wrote them
    plain = read(tmp_path / "plain.pth", "")
    for name in ("held", "old"):
        held = read(tmp_path / f"{name}.pth", "")
        assert list(plain) == list(held)
        assert all(torch.equal(plain[k], held[k]) for k in plain)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": Evil()}, tmp_path / "c.pth")
    with pytest.raises(Refused, match=r"c\.pth cannot be read"):
        load(tmp_path / "c.pth")
    assert not (tmp_path / "evil").exists()


# ---------------------------------------------------------------- what is wrong


def changed(path: Path, change: Any) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def renamed(old: str, new: str) -> Any:
    return lambda state: state.update({new: state.pop(old)})


def put(key: str, value: Tensor) -> Any:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed("fc.bias", "fc.bais"), r"c\.pth has no fc\.bias and has fc\.bais besides; nearest to fc\.bais: fc\.bias"),
        (renamed("embedding.weight", "embed.weight"), r"has no embedding\.weight; nearest to .*: embed\.weight"),
        (renamed("AdaLSTM.x_gate.bias", "LanguageLSTM.bias_ih"), "has no AdaLSTM.x_gate.bias, LanguageLSTM.bias_hh, "),
        (put("img_encoder.encoder.conv1.weight", torch.ones(1)), "its encoder has img_encoder.encoder.conv1; accepted is a VGG"),
        (put("img_encoder.encoder.99.weight", torch.ones(1, 1, 1, 1)), r"its encoder numbers its layers \[0, 2, .*99\]"),
        (put("AdaAttention.W_v_proj.weight", torch.ones(5, 16)), "has 5 cells, which is no square"),
        (put("AdaLSTM.h_gate.bias", torch.ones(3)), "size mismatch for gate_h.bias"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_refused_by_name(change: Any, says: str, tmp_path: Path) -> None:
    checkpoint("single", tmp_path / "c.pth")
    changed(tmp_path / "c.pth", change)
    with pytest.raises(Refused, match=says):
        load(tmp_path / "c.pth")


def test_what_else_can_be_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with pytest.raises(Refused, match="there is no file"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(
        Refused, match="holds no weights; accepted are a dict of tensors, or one under state_dict, "
    ):
        load(path)
    path.write_bytes(b"PK torn")
    with pytest.raises(Refused, match="cannot be read"):
        load(path)
    checkpoint("multi_head", path)
    with pytest.raises(Refused, match="order: found '2021', accepted are 'head', '2020'"):
        load(path, order="2021")
    with pytest.raises(Refused, match="hidden: found 16, no multiple of the 3 heads"):
        load(path, heads=3)
    with pytest.raises(Refused, match="search: found 'best', accepted are 'beam', 'diverse'"):
        load(path, search="best")
    for page, says in (
        ({w: i for w, i in WORDS.items() if w != "ball"}, "has 10 words, .* has 11; take the wordmap"),
        ({w: i for w, i in WORDS.items() if w != "<start>"}, "the vocabulary has none of"),
        ([1], "wordmap"),
    ):
        path.with_suffix(".json").write_text(json.dumps(page))
        with pytest.raises(Refused, match=says):
            load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(Refused, match=r"wordmap .*c\.json"):
        load(path)


# ---------------------------------------------------------------- the released arrays


def fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@released
@pytest.mark.parametrize(("theirs", "kind"), [("gridtd", "adaptive"), ("aoa", "multi_head")])
def test_logits_of_the_released_weights(theirs: str, kind: str, tmp_path: Path) -> None:
    setup, path = fixture("setup"), tmp_path / f"{theirs}.pth"
    state = {name: torch.from_numpy(value) for name, value in fixture(f"{theirs}_state").items()}
    torch.save(in_their_way(state), path)
    path.with_suffix(".json").write_text(json.dumps({str(w): i for i, w in enumerate(setup["vocab"])}))
    model = load(path, heads=int(setup["num_heads"]))
    assert TYPES[kind] == type(model.net).__name__
    assert model.frame.size == setup["image"].shape[-1] == 224
    assert (model.net.config.vocabulary, model.net.config.channels) == (19, 12)
    expected = torch.from_numpy(fixture(f"{theirs}_lrp_forward")["model_logits"])
    ids, image = torch.from_numpy(setup["caption_encode"])[None, :-1], torch.from_numpy(setup["image"])
    with torch.no_grad():
        single = model.net(image.float(), ids)[0]
        double = model.net.double()
        double.load_released(state)  # as they are, unrounded
        assert ((double(image, ids)[0] - expected).abs().max() / expected.abs().max()) < 1e-12
    assert ((single - expected).abs().max() / expected.abs().max()) < 1e-5
    if theirs == "aoa":
        other = load(path, heads=int(setup["num_heads"]), order="2020")
        assert torch.equal(other.net.key.weight, state["decoder_v_proj.weight"].float())
        with torch.no_grad():
            assert (other.net(image.float(), ids)[0] - expected).abs().max() > 1e-3


TYPES = {"adaptive": "AdaptiveCaptioner", "multi_head": "MultiHeadCaptioner"}


def test_a_spec_finds_it(tmp_path: Path) -> None:
    checkpoint("single", tmp_path / "c.pth")
    page = tmp_path / "benchmarks" / "mine.toml"
    page.parent.mkdir()
    page.write_text(
        f"""
title = "Mine"
kind = "photographs"
dataset = "scenes"
explainers = ["centre"]
metrics = ["pointing"]
models = [{{ use = "released_captioner", name = "{tmp_path}/c.pth", wordmap = "{tmp_path}/c.json", objects = ["dog"] }}]
"""
    )
    (part,) = read_spec(page).models
    model = part.made.load("theirs")
    assert model.objects == ("dog",)
    assert type(model.net).__name__ == "SingleCaptioner"
