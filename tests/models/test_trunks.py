"""Frozen trunks under captioners: read by their files' names, left out of what is saved, and explained down to the pixels."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from heatproof import Refused, Sample, shelf
from heatproof.lrp.decoder import DecoderRules, relevance
from heatproof.models import imagenet, own_captioner
from heatproof.models.captioner import Captioner
from heatproof.models.own_captioner import OwnCaptioner
from heatproof.models.recipe import Recipe
from heatproof.models.trunks import TRUNKS
from heatproof.shelf import Place

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
WORDS = {word: k for k, word in enumerate((*SPECIAL, *"a the red dog dogs cat ball runs".split()))}
KINDS = [("adaptive", "squeezenet"), ("multi_head", "squeezenet"), ("adaptive", "mobilenet")]
CAPTIONS = ("a red dog runs", "the cat", "a dog the ball a dog")


def shaken(layers: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through them, and biases that are not zero."""
    dice = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in layers.state_dict().items():
        wide = value[0].numel() if value.ndim > 1 else 400
        weights[name] = torch.randn(value.shape, generator=dice) * (2 / wide) ** 0.5
    return weights


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder of untrained weights, with classifiers' heads that are none of the trunks' business."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "weights").mkdir()
    for kind in ("squeezenet", "mobilenet"):
        own = shaken(nn.ModuleDict({"features": nn.Sequential(*TRUNKS[kind].layers())}))
        own["classifier.1.weight"] = torch.ones(3)
        save_file(own, folder / "weights" / f"{TRUNKS[kind].file}.safetensors")
    return folder


def saved(architecture: str, encoder: str, out: Path) -> Path:
    """A folder of an untrained captioner in float16."""
    trunk = TRUNKS[encoder]
    more = {"cells": trunk.cells, "query_along": "features"} if architecture == "adaptive" else {"heads": 2}
    config = {
        "architecture": architecture,
        "encoder": {"kind": encoder},
        "decoder": {
            "vocabulary": len(WORDS),
            "channels": trunk.channels,
            "embed": 16,
            "hidden": 32,
            **more,
        },
        "length": 8,
        "objects": ["dog", "cat", "ball"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = own_captioner.build(config)
    with torch.no_grad():
        net.output.weight.normal_(std=2.0)
        net.output.bias[:3] = -20.0
    card = {"source": "untrained"}
    own_captioner.save(out, net.half(), config=config, words=WORDS, frame=trunk.frame, card=card)
    return out


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request, data, tmp_path_factory) -> Captioner:
    out = saved(*request.param, tmp_path_factory.mktemp("captioner"))
    return OwnCaptioner(str(out), folder=str(data)).load("mine")


def cases_of(model: Captioner) -> list:
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in CAPTIONS]
    samples = [
        Sample(f"s{k}", lambda i=i: i, captions=(text,))
        for k, (i, text) in enumerate(zip(images, CAPTIONS, strict=True))
    ]
    return [case for asked in model.ask(samples, "caption 0") for case in asked]


@pytest.mark.parametrize("kind", TRUNKS)
def test_the_last_feature_map_has_the_size_that_is_told(kind):
    trunk = TRUNKS[kind]
    with torch.device("meta"):
        found = trunk.fresh()(torch.empty(1, 3, 224, 224))
    assert (found.shape[1], found.shape[2] * found.shape[3]) == (trunk.channels, trunk.cells)


def test_vgg16_reads_the_names_that_torchvision_gives(tmp_path):
    """Against the layers in a row, numbered as they come; a file of one more stage than is used, and a head."""
    layers: list[nn.Module] = []
    for wide, out in pairwise((3, 64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)):
        if not out:
            layers.append(nn.MaxPool2d(2, 2))
            last = wide
        else:
            layers += [nn.Conv2d(wide or last, out, 3, padding=1), nn.ReLU()]
    reference = nn.Sequential(*layers)
    reference.load_state_dict(shaken(reference))
    weights = {f"features.{name}": value for name, value in reference.state_dict().items()}
    assert [name for name in weights if "weight" in name][-1] == "features.28.weight"
    (tmp_path / "weights").mkdir()
    save_file({**weights, "classifier.0.bias": torch.ones(2)}, tmp_path / "weights" / "vgg16.safetensors")
    trunk = TRUNKS["vgg16"].read(str(tmp_path), "mine")
    assert [len(stage) for stage in trunk] == [5, 5, 7, 7, 6]
    assert not trunk.training
    assert not any(weight.requires_grad for weight in trunk.parameters())
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = trunk(image), reference(image)
    assert found.shape == (1, 512, 2, 3)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "net"), [("squeezenet", imagenet.SqueezeNetNet), ("mobilenet", imagenet.MobileNetV2Net)]
)
def test_a_trunk_sees_what_the_classifiers_features_see(data, kind, net):
    whole = net().features.eval()
    file = load_file(data / "weights" / f"{TRUNKS[kind].file}.safetensors")
    whole.load_state_dict({k.removeprefix("features."): v for k, v in file.items() if "features" in k})
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    trunk = TRUNKS[kind].read(str(data), "mine")
    assert len(trunk) == {"squeezenet": 9, "mobilenet": 19}[kind]
    with torch.no_grad():
        assert torch.allclose(trunk.double()(image.double()), whole.double()(image.double()), atol=1e-9)


def test_a_missing_or_broken_trunk_is_refused_by_name(tmp_path):
    with pytest.raises(
        Refused, match=r"model mine: .*squeezenet1_1\.safetensors is not there; name the data folder"
    ):
        TRUNKS["squeezenet"].read(str(tmp_path), "mine")
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "vgg16.safetensors"
    save_file({"features.0.weight": torch.ones(2)}, file)
    with pytest.raises(Refused, match=r"model mine: .*vgg16\.safetensors"):
        TRUNKS["vgg16"].read(str(tmp_path), "mine")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(Refused, match=r"model mine: .*vgg16\.safetensors"):
        TRUNKS["vgg16"].read(str(tmp_path), "mine")


def test_the_folder_holds_no_trunk_and_the_net_is_what_it_says(data, tmp_path):
    out = saved("adaptive", "squeezenet", tmp_path)
    weights = load_file(out / "model.safetensors")
    assert not [name for name in weights if name.startswith("encoder.")]
    assert {value.dtype for value in weights.values()} == {torch.float16}
    page = json.loads((out / "preprocessor_config.json").read_text())
    assert (page["do_flip_channel_order"], page["rescale_factor"]) == (True, 1.0)
    model = OwnCaptioner(str(out), folder=str(data)).load("mine")
    assert model.frame == TRUNKS["squeezenet"].frame
    assert model.frame.channels == "bgr"
    net = model.net.state_dict()
    assert {value.dtype for value in net.values()} == {torch.float32}
    assert all(torch.equal(net[name], value.float()) for name, value in weights.items())
    file = load_file(data / "weights" / "squeezenet1_1.safetensors")
    assert torch.equal(net["encoder.1.1.squeeze.weight"], file["features.3.squeeze.weight"])
    with pytest.raises(Refused, match="name the data folder"):
        OwnCaptioner(str(out), folder=str(tmp_path)).load("mine")


def test_a_recipe_hands_the_data_folder_on(data, tmp_path):
    saved("multi_head", "squeezenet", tmp_path / "weights" / "mine")
    model = Recipe("mine", str(tmp_path / "mine.toml"), folder=str(data)).load("mine")
    assert (model.family, model.card) == ("captioner", {"source": "untrained"})


def test_the_score_is_the_nets_own_and_sites_compose_to_it(model):
    cases = cases_of(model)
    assert [case.about for case in cases] == ["dog", "cat", "dog", "ball", "dog"]
    pixels = model.stack(cases)
    score = model.score(pixels, cases)
    net = model.net
    for case, found in zip(cases, score, strict=True):
        with torch.no_grad():
            logits = net(case.pixels[None], case.tokens[None])[0, case.target]
        expected = F.log_softmax(logits, 0)[case.tokens[case.target + 1]]
        assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-4)
    with torch.no_grad():
        for site in ("image.conv 0", "image.conv 1", model.site("image.conv", -1), "text.embed 0"):
            seen = model.upto(site, pixels, cases)
            assert torch.allclose(model.above(site, seen, cases), score, atol=1e-5), site
        kept = model.score_text(torch.ones(len(cases), 8), cases)
    assert torch.allclose(kept, score, atol=1e-5)
    cells = next(trunk for trunk in TRUNKS.values() if trunk.frame == model.frame).cells
    assert model.features(pixels, cases).flatten(2).shape[2] == cells


def answers(model: Captioner, cases: list) -> list[Tensor]:
    """Score, pixels' gradient, LRP and captions of each case."""
    pixels = model.stack(cases).requires_grad_()
    score = model.score(pixels, cases)
    slope = torch.autograd.grad(score.sum(), pixels)[0]
    lrp = shelf.find("explainers", "lrp", Place(Path.cwd(), Path.cwd()), "test")(composite="alpha1beta0")
    model.memo.clear()
    found = lrp.explain(model, cases)
    said = model.write(model.stack(cases), cases)
    heats = torch.stack([torch.as_tensor(one.image) for one in found])
    texts = [torch.as_tensor(one.text) for one in found]
    padded = torch.stack([F.pad(text, (0, 8 - len(text))) for text in texts])
    return [score.detach(), slope, heats, padded, torch.tensor([hash(str(text)) for text in said])]


@pytest.mark.parametrize("model", KINDS[:2], indirect=True, ids="-".join)
def test_answers_depend_on_no_neighbour(model):
    cases = cases_of(model)
    whole = answers(model, cases)
    ones = [answers(model, [case]) for case in cases]
    threes = [answers(model, cases[k : k + 3]) for k in (0, 3)]
    turned = [part.flip(0) for part in answers(model, cases[::-1])]
    for k, part in enumerate(whole):
        assert torch.equal(part, torch.cat([one[k] for one in ones]))
        assert torch.equal(part, torch.cat([some[k] for some in threes]))
        assert torch.equal(part, turned[k])


# ---------------------------------------------------------------- LRP through the trunk, layer by layer


def positive(layer: nn.Conv2d, x: Tensor, above: Tensor) -> Tensor:
    """R_i = sum_j max(x_i w_ij, 0) R_j / sum_i max(x_i w_ij, 0), written with convolutions and their transposes."""
    told = {"stride": layer.stride, "padding": layer.padding}
    up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    warm, cold = x.clamp(min=0), x.clamp(max=0)
    below = F.conv2d(warm, up, **told) + F.conv2d(cold, down, **told)
    share = torch.where(below == 0, 0.0, above / below)
    back = [torch.nn.grad.conv2d_input(x.shape, weight, share, **told) for weight in (up, down)]
    return warm * back[0] + cold * back[1]


def winners(pool: nn.MaxPool2d, x: Tensor, above: Tensor) -> Tensor:
    """All relevance of a maximum to the place where it was found."""
    _, places = F.max_pool2d(x, pool.kernel_size, pool.stride, ceil_mode=True, return_indices=True)
    zero = torch.zeros_like(x).flatten(2)
    return zero.scatter_add(2, places.flatten(2), above.flatten(2)).view_as(x)


def back(layer: nn.Module, x: Tensor, above: Tensor) -> Tensor:
    """Relevance of a layer's output -> of its input."""
    if isinstance(layer, nn.Conv2d):
        return positive(layer, x, above)
    if isinstance(layer, nn.MaxPool2d):
        return winners(layer, x, above)
    if isinstance(layer, nn.ReLU):
        return above
    assert isinstance(layer, imagenet.Fire)
    squeezed = layer.squeeze(x)
    kept = squeezed.clamp(min=0)
    half = above.shape[1] // 2
    both = positive(layer.expand1x1, kept, above[:, :half]) + positive(layer.expand3x3, kept, above[:, half:])
    return positive(layer.squeeze, x, both)


@pytest.mark.parametrize("architecture", ["adaptive", "multi_head"])
def test_lrp_goes_down_squeezenet_layer_by_layer(data, tmp_path, architecture):
    model = OwnCaptioner(str(saved(architecture, "squeezenet", tmp_path)), folder=str(data)).load("mine")
    cases = cases_of(model)[:3]
    lrp = shelf.find("explainers", "lrp", Place(Path.cwd(), Path.cwd()), "test")(composite="alpha1beta0")
    found = torch.stack([torch.as_tensor(one.image) for one in lrp.explain(model, cases)])
    below = relevance(model, cases, DecoderRules(0.01)).features
    whole = below.sum((1, 2, 3))
    layers = [layer for stage in model.net.encoder for layer in stage]
    with torch.no_grad():
        seen = [model.stack(cases)]
        for layer in layers:
            seen.append(layer(seen[-1]))
        for layer, x in zip(reversed(layers), reversed(seen[:-1]), strict=True):
            below = back(layer, x, below)
    assert [m.ceil_mode for m in layers if isinstance(m, nn.MaxPool2d)] == [True] * 3
    assert below.abs().amax() > 0
    assert torch.allclose(found, below, rtol=1e-3, atol=1e-4 * float(below.abs().amax()))
    assert torch.allclose(found.sum((1, 2, 3)), whole, rtol=1e-2, atol=1e-3 * float(below.abs().sum()))


def test_the_real_squeezenet_sees_169_cells():
    """A captioner on the weights of the data folder; without it, nothing to see with."""
    trunk = TRUNKS["squeezenet"]
    if not (imagenet.data_folder() / "weights" / f"{trunk.file}.safetensors").is_file():
        pytest.skip("HEATPROOF_DATA, else ../shared/data, has no weights/squeezenet1_1.safetensors")
    eyes = trunk.read("", "mine")
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    classifier = imagenet.SqueezeNet().load("whole").net
    with torch.no_grad():
        found = eyes(trunk.frame.image(image)[None])
        expected = classifier.features(trunk.frame.image(image)[None])
    assert found.shape == (1, 512, 13, 13)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
