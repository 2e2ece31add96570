"""A CLIP on a MobileNetV2's feature map: the library's own forward, sites that compose, and explainers that work on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from heatproof import Refused, Sample, shelf
from heatproof.models import hf_clip, imagenet, mobilenet_clip
from heatproof.models.mobilenet_clip import MobileNetClip
from heatproof.models.words import WordList
from heatproof.shelf import Place

WORDS = ["<pad>", "<bos>", "<unk>", "<eos>", *"a black white dog runs jumps on the grass".split()]
SIDE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = {
    "architectures": ["MobileNetClip"],
    "projection_dim": 8,
    "vision_config": {**SIDE, "image_size": 224, "patch_size": 32, "projection_dim": 8},
    "text_config": {
        **SIDE, "projection_dim": 8, "vocab_size": len(WORDS), "max_position_embeddings": 12,
        "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
    },
}  # fmt: skip
METHODS = ("attention", "rollout", "chefer", "gradcam", "layer_ig", "m2ib", "grad_eclip")


@pytest.fixture(scope="module")
def made():
    """An untrained net, its untrained trunk, the model, and three cases."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mobilenet_clip.build(CONFIG)
        net.vision_model.embeddings.trunk = imagenet.MobileNetV2Net().features
    tokens = WordList({word: k for k, word in enumerate(WORDS)})
    frame = imagenet.Frame(224, "squash")
    model = hf_clip.clip("photo", net, tokens, stages=mobilenet_clip.image_stages, frame=frame)
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(3)]
    texts = ("A black dog runs.", "a white dog jumps on the grass", "dog")
    samples = [
        Sample(f"s{k}", lambda i=i: i, captions=(t,))
        for k, (i, t) in enumerate(zip(images, texts, strict=True))
    ]
    return model, [case for asked in model.ask(samples, "caption 0") for case in asked]


def test_score_is_the_librarys_own_cosine(made):
    model, cases = made
    score = model.score(model.stack(cases), cases)
    for case, found in zip(cases, score, strict=True):
        ids = torch.zeros(1, 12, dtype=torch.long)
        ids[0, : len(case.tokens)] = case.tokens
        with torch.no_grad():
            out = model.net(
                input_ids=ids, pixel_values=case.pixels[None], attention_mask=torch.ones_like(ids)
            )
        assert float(found) == pytest.approx(float((out.image_embeds * out.text_embeds).sum()), abs=1e-5)
    text = model.score_text(torch.ones(3, 12), cases)
    assert torch.allclose(text, score, atol=1e-6)
    both = [F.normalize(x, dim=-1) for x in (model.embed(model.stack(cases), cases), model.embed_text(cases))]
    assert torch.allclose((both[0] * both[1]).sum(-1), score, atol=1e-6)


def test_sites_compose_to_the_score(made):
    model, cases = made
    assert {k: model.sites[k] for k in ("image.conv", "image.embed", "image.block", "image.attention")} == {
        "image.conv": 19, "image.embed": 1, "image.block": 2, "image.attention": 3,
    }  # fmt: skip
    pixels = model.stack(cases)
    with torch.no_grad():
        whole = model.score(pixels, cases)
        for kind in ("image.conv", "image.embed", "image.block", "text.embed", "text.block"):
            for index in (0, -1):
                site = model.site(kind, index)
                part = model.above(site, model.upto(site, pixels, cases), cases)
                assert torch.equal(part, whole) or torch.allclose(part, whole, atol=1e-6), site
    assert model.grid(model.upto("image.block 1", pixels, cases)[0]).shape == (16, 7, 7)


def test_a_case_alone_scores_as_among_others(made):
    model, cases = made
    whole = model.score(model.stack(cases), cases)
    for k, case in enumerate(cases):
        assert torch.equal(model.score(model.stack([case]), [case])[0], whole[k])


@pytest.mark.parametrize("name", METHODS)
def test_explainers_work_on_it(made, name):
    model, cases = made
    explainer = shelf.find("explainers", name, Place(shelf.house(), shelf.house()), "test")()
    for case, found in zip(cases, explainer.explain(model, cases), strict=True):
        assert torch.isfinite(found.image).all()
        assert found.image.shape[-2:] == (7, 7)
        assert found.text is None or found.text.shape == (len(case.tokens),)


def test_a_folder_without_its_weights_is_refused(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(Refused, match=r"model m: .*model\.safetensors"):
        MobileNetClip(str(tmp_path), str(data)).load("m")
    weights = mobilenet_clip.build(CONFIG).state_dict()
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match="name the data folder"):
        MobileNetClip(str(tmp_path), str(tmp_path)).load("m")
    assert not [name for name in weights if "trunk" in name]
