"""Captioners over region features: the two nets against loops, padding, where features come from, and who cannot explain them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from dataclasses import replace
from math import exp, sqrt, tanh
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof import shelf
from heatproof.contract import Object, Refused, Sample, Unsuited
from heatproof.lrp.decoder import DecoderRules, relevant
from heatproof.lrp.inference import readings
from heatproof.models.captioner import Captioner
from heatproof.models.own_captioner import OwnCaptioner, build, save
from heatproof.models.regions import Regions

NETS = shelf.load(Path(__file__).with_name("captioners.py"))
WORDS, COUNT, WIDTH, CAPTIONS = NETS.WORDS, NETS.COUNT, NETS.SIZES["channels"], NETS.CAPTIONS
KINDS = ("adaptive", "multi_head")


def features(k: int, found: int = COUNT) -> np.ndarray:
    return np.random.default_rng(k).standard_normal((found, WIDTH)).astype(np.float32)


def sample_of(k: int) -> Sample:
    """Image k: some have fewer regions, one has none."""
    found = (COUNT, 2, 3, 0)[k % 4]
    things = (Object("dog", (0, 0, 4, 4)), Object("cat", (0, 0, 2, 2), ignore=True))
    extras = {"regions": features(k, found)}
    return Sample(f"s{k}", lambda: None, captions=(CAPTIONS[k % 4],), objects=things, extras=extras)


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Captioner:
    return NETS.reader_of(request.param)


# ---------------------------------------------------------------- the nets, by loops


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def softmax(x: list[float]) -> list[float]:
    parts = [exp(v - max(x)) for v in x]
    return [p / sum(parts) for p in parts]


def affine(layer: Any, x: list[float]) -> list[float]:
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def slow_look(
    net: Any, rows: list[list[float]], masked: bool
) -> tuple[list[list[float]], list[int], list[float]]:
    """V, the regions that count, and the image as a whole."""
    values = [[max(v, 0.0) for v in affine(net.project, row)] for row in rows]
    there = [p for p, row in enumerate(rows) if any(row) or not masked] or list(range(len(rows)))
    mean = [sum(values[p][d] for p in there) / len(there) for d in range(len(values[0]))]
    whole = [max(v, 0.0) for v in affine(net.summarise, mean)] if hasattr(net, "summarise") else mean
    return values, there, whole


def slow_attention(
    net: Any, values: list[list[float]], there: list[int], h: list[float], s: list[float]
) -> Any:
    """Attention [heads][P], zero where there is no region, and the sentinel's share."""
    found = []
    if hasattr(net, "summarise"):
        u, w = affine(net.query, h), net.score.weight[0].tolist()
        z = {
            p: sum(a * tanh(k + u[p]) for a, k in zip(w, affine(net.key, values[p]), strict=True))
            for p in there
        }
        own = sum(a * tanh(k + q) for a, k, q in zip(w, affine(net.sentinel_key, s), u, strict=True))
        heads = [z]
        beta = softmax([*z.values(), own])[-1]
    else:
        q, wide, beta = affine(net.query, h), len(h) // net.heads, None
        keys = {p: affine(net.key, values[p]) for p in there}
        parts = [range(m * wide, (m + 1) * wide) for m in range(net.heads)]
        heads = [{p: sum(q[d] * keys[p][d] for d in part) / sqrt(wide) for p in there} for part in parts]
    for z in heads:
        share = dict(zip(z, softmax(list(z.values())), strict=True))
        found.append([share.get(p, 0.0) for p in range(len(values))])
    return found, beta


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_looking_and_attending_agree_with_loops(kind: str, masked: bool) -> None:
    config = NETS.config_of(kind, regions=True)
    config["decoder"]["masked"] = masked
    torch.manual_seed(1)
    net = build(config).double().eval()
    rows = [Regions(count=COUNT, width=WIDTH).read(sample_of(k)).double() for k in range(4)]
    dice = torch.Generator().manual_seed(0)
    h, s = (torch.randn(4, 16, generator=dice, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        cells = net.look(torch.stack(rows))
        attended = net.attend(h, s, cells.keys) if kind == "adaptive" else (net.attend(h, cells.keys), None)
    for k in range(4):
        values, there, whole = slow_look(net, rows[k].tolist(), masked)
        assert torch.allclose(cells.whole[k], torch.tensor(whole, dtype=torch.float64), rtol=1e-12)
        attention, beta = slow_attention(net, values, there, h[k].tolist(), s[k].tolist())
        assert torch.allclose(attended[0][k], torch.tensor(attention, dtype=torch.float64), rtol=1e-12)
        if kind == "adaptive":
            assert float(attended[1][k]) == pytest.approx(beta, rel=1e-12)
            assert torch.allclose(cells.values[k], torch.tensor(values, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_moves_nothing_where_it_is_masked(kind: str) -> None:
    """The same regions with other garbage in the padded rows' values: nothing attends to them."""
    net = NETS.net_of(kind, regions=True).double()
    rows = torch.from_numpy(features(1, 2)).double()[None]
    padded = torch.cat([rows, torch.zeros(1, COUNT - 2, WIDTH)], 1)
    with torch.no_grad():
        cells = net.look(padded)
        values = cells.values.clone()
        values[:, 2:] = 1e6
        word = net.embedding(torch.tensor([WORDS["dog"]]))
        state = net.start(cells.whole)
        after, attention = net.advance(state, cells, word)
        other, _ = net.advance(state, cells._replace(values=values), word)
    assert (attention[..., 2:] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(after, other, strict=True))


def test_gradients_are_finite_where_regions_are_masked(model) -> None:
    cases = [case for each in model.ask([sample_of(k) for k in range(4)], "caption 0") for case in each]
    pixels = model.stack(cases).requires_grad_()
    (slope,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
    assert torch.isfinite(slope).all()
    assert (slope != 0).any()


# ---------------------------------------------------------------- behind the contract


def everything(model: Captioner, cases: list) -> list[Tensor]:
    pixels = model.stack(cases)
    with torch.no_grad(), model.watch("cross.attention 0") as seen:
        score = model.score(pixels, cases)
        attention = seen.value
    keep = torch.tensor([[1.0, 0, 1, 0, 0, 1, 1]]).repeat(len(cases), 1)
    said = [list(text.encode().ljust(99)) for text in model.write(pixels, cases)]
    return [score, attention, model.score_text(keep, cases), model.logits(pixels, cases), torch.tensor(said)]


def test_neighbours_do_not_matter(model) -> None:
    cases = [case for each in model.ask([sample_of(k) for k in range(4)], "caption 0") for case in each]
    whole = everything(model, cases)
    for size in (1, 3):
        model.memo.clear()
        parts = [everything(model, cases[i : i + size]) for i in range(0, len(cases), size)]
        for k, value in enumerate(whole):
            assert torch.equal(torch.cat([part[k] for part in parts]), value), (size, k)
    model.memo.clear()
    assert all(torch.equal(b.flip(0), w) for b, w in zip(everything(model, cases[::-1]), whole, strict=True))


def test_questions_carry_regions_and_no_evidence(model) -> None:
    samples = [sample_of(k) for k in range(3)]
    for policy in ("written", "said objects", "caption 0", "said words 'a, the, red, with, dog'"):
        asked = model.ask(samples, policy)
        cases = [case for each in asked for case in each]
        assert cases or policy == "said objects", policy
        for case in cases:
            assert case.pixels.shape == (COUNT, WIDTH)
            assert (case.evidence, case.boxes, case.without) == (None, None, None)
            assert case.things == ("dog",)
    written = [each[0] for each in model.ask(samples, "written")]
    assert [" ".join(case.spoken[1:]) for case in written] == model.write(model.stack(written), written)
    assert model.sites == {"text.embed": 1, "cross.attention": 1}
    with pytest.raises(Unsuited, match="reads region features: they have no grid"):
        model.grid(torch.ones(COUNT))
    for call in (model.frame.image, model.frame.picture, model.frame.mask):
        with pytest.raises(Unsuited, match="reads region features: there are no pixels"):
            call(np.zeros((2, 2, 3)))
    with pytest.raises(Unsuited, match="no pixels"):
        model.frame.box((0, 0, 1, 1), (2, 2))


KNOW_NOTHING = {"centre", "oracle", "random", "prior"}  # controls: of the model, or of its pixels
EXPLAINERS = {
    f"{file.stem}:{name}": cls
    for file in sorted((shelf.house() / "explainers").glob("*.py"))
    if file.stem not in KNOW_NOTHING
    for name, cls in vars(shelf.load(file)).items()
    if inspect.isclass(cls) and name[0] != "_" and cls.__module__ == shelf.load(file).__name__
    if callable(getattr(cls, "explain", None)) and dataclasses.is_dataclass(cls)
    if all(f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING for f in dataclasses.fields(cls))
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINERS)
def test_who_needs_pixels_is_unsuited(name: str, model) -> None:
    cases = model.ask([sample_of(0)], "caption 0")[0]
    with pytest.raises(Unsuited):
        EXPLAINERS[name]().explain(model, [replace(case, other=lambda: cases[0]) for case in cases])


def test_relevance_is_refused_and_fine_tuning_is_not(model) -> None:
    net = build(NETS.config_of(model.name, regions=True))
    with pytest.raises(Unsuited, match=r"LRP knows AdaptiveCaptioner, .*this is a Region"):
        relevant(net, DecoderRules())
    rows = torch.stack([model.frame.read(sample_of(k)) for k in range(2)])
    ids = torch.tensor([[WORDS[w] for w in "<start> a red dog".split()]] * 2)
    found = readings(net, rows, ids[:, :-1], torch.tensor([0]))
    assert found.weighted.shape == (2, 3, len(WORDS))
    found.weighted.sum().backward()
    assert net.project.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- where features come from


def test_features_are_read_from_the_sample_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = features(7, 3)
    padded = torch.cat([torch.from_numpy(rows), torch.zeros(COUNT - 3, WIDTH)])
    np.save(tmp_path / "a.npy", rows[None])  # the release's files have a leading axis of one
    np.save(tmp_path / "b.jpg.npy", rows.astype(np.float64))
    np.savez(tmp_path / "all.npz", **{"c": rows, "d.jpg": rows})
    (tmp_path / "e.jpg.hdf5").write_bytes(b"")
    frame = Regions(count=COUNT, width=WIDTH, folder=str(tmp_path))

    def read(name: str, frame: Regions = frame, **extras: Any) -> Tensor:
        return frame.read(Sample(name, lambda: None, extras=extras))

    for name in ("a", "b", "b.jpg"):
        assert torch.equal(read(name), padded)
    packed = replace(frame, folder=str(tmp_path / "all.npz"))
    assert torch.equal(read("c", packed), padded)
    assert torch.equal(read("d", packed), padded)
    own = features(8)
    assert torch.equal(read("a", regions=own), torch.from_numpy(own))
    assert repr(frame) == repr(packed)  # where they lie is not what they are

    class File(dict):
        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None

    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda path: File(image_features=rows)))
    assert torch.equal(read("e"), padded)
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda path: File(other=rows)))
    with pytest.raises(Refused, match=r"e\.jpg\.hdf5 cannot be read: 'image_features'"):
        read("e")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        Refused, match=r"reading HDF5 needs h5py; type: pip install h5py, or save \.npy files"
    ):
        read("e")
    with pytest.raises(
        Refused, match=r"sample z has no regions in .*; name what has them: .* with z\.jpg\.npy"
    ):
        read("z")
    with pytest.raises(Refused, match="sample z has no regions; name what has them"):
        read("z", Regions(count=COUNT, width=WIDTH))
    for wrong in (features(0, COUNT + 1), features(0)[:, 1:], features(0)[0], np.ones((2, WIDTH), int)):
        with pytest.raises(
            Refused,
            match=rf"sample z: extras\['regions'\] is .* accepted are numbers \[{COUNT} at most, {WIDTH}\]",
        ):
            read("z", regions=wrong)
    (tmp_path / "torn.npy").write_bytes(b"torn")
    with pytest.raises(Refused, match=r"torn\.npy cannot be read"):
        read("torn")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reader_comes_back(kind: str, tmp_path: Path) -> None:
    before, stored = NETS.reader_of(kind), tmp_path / "features"
    stored.mkdir()
    for k in range(3):
        np.save(stored / f"s{k}.npy", features(k, 2 + k))
    config = NETS.config_of(kind, regions=True)
    save(tmp_path / "net", before.net, config=config, words=WORDS, frame=before.frame, card={})
    model = OwnCaptioner(str(tmp_path / "net"), regions=str(stored)).load("mine")
    assert (model.frame.count, model.frame.width) == (COUNT, WIDTH)
    assert model.hash == before.hash
    samples = [Sample(f"s{k}", lambda: None) for k in range(3)]
    cases = [each[0] for each in model.ask(samples, "written")]
    assert model.write(model.stack(cases), cases) == before.write(model.stack(cases), cases)
    with pytest.raises(Refused, match=r"no captioner 'single'.* There are: adaptive, multi_head"):
        build({**config, "architecture": "single"}, "config.json")
