"""Tiny, randomly initialised models of each family, questions to them, and the shelf's classes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from heatproof import shelf
from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.models import hf_classifier, own_captioner
from heatproof.models.attention import tell_sites
from heatproof.models.captioner import Captioner
from heatproof.models.classifier import Classifier
from heatproof.models.hf_clip import clip
from heatproof.models.words import WordList

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *"a red ball on blue box tall cone".split()]
TEXTS = ["a red ball", "blue box", "a tall cone on a red box", "red", "a ball on a box"]
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TOWER["initializer_range"] = 0.3  # the usual 0.02 leaves tiny nets without gradient


@contextmanager
def drawn(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def shaken(net: nn.Module) -> nn.Module:
    """Biases and batch-norm statistics away from their trivial start."""
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape))
        elif value.is_floating_point() and value.ndim <= 1:
            value.add_(0.2 * torch.randn(value.shape))
    return net


def cnn(**more: Any) -> Classifier:
    sizes = {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 2], "layer_type": "basic"}
    config = hf.ResNetConfig(num_labels=4, **sizes | more)
    labels = {name: (k,) for k, name in enumerate("pqrs")}
    with drawn():
        net = shaken(hf.ResNetForImageClassification(config))
    return Classifier("cnn", net, Frame(SIZE), stages=hf_classifier.resnet, labels=labels)


def vit() -> Classifier:
    config = hf.ViTConfig(image_size=SIZE, patch_size=8, num_labels=4, **TOWER)
    labels = {name: (k,) for k, name in enumerate("pqrs")}
    with drawn():
        net = shaken(hf.ViTForImageClassification(config))
    tell_sites(net, [net.config], {"image": [b.attention for b in net.vit.layers]})
    return Classifier("vit", net, Frame(SIZE), stages=hf_classifier.vit, labels=labels)


def dual() -> Any:
    ids = {word: k for k, word in enumerate(WORDS)}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "projection_dim": 8}
    config = hf.CLIPConfig(
        text_config={**TOWER, **special, "vocab_size": len(ids), "max_position_embeddings": 12},
        vision_config={**TOWER, "image_size": SIZE, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    with drawn():
        net = shaken(hf.CLIPModel(config))
    return clip("clip", net, WordList(ids), frame=Frame(SIZE))


def captioner(architecture: str) -> Captioner:
    sizes: dict[str, Any] = {"vocabulary": len(WORDS), "channels": 6, "embed": 4, "hidden": 8}
    sizes |= {"cells": 64} if architecture == "adaptive" else {"heads": 2}
    encoder = {"kind": "vgg", "channels": [4, 5, 6], "convolutions": [1, 1, 1]}
    with drawn():
        net = own_captioner.build({"architecture": architecture, "encoder": encoder, "decoder": sizes})
    words = WordList({word: k for k, word in enumerate(WORDS)})
    told = {"words": words, "objects": ("ball", "box", "cone"), "length": 12}
    return Captioner(architecture, shaken(net), Frame(SIZE), **told)


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    made = [cnn(), vit(), dual(), captioner("adaptive"), captioner("multi_head")]
    return {model.name: model for model in made}


@pytest.fixture(scope="session")
def asked() -> Callable[[Any], list[Case]]:
    """Five questions that differ in image, target, text length and evidence."""

    def ask(model: Any, count: int = 5) -> list[Case]:
        found = [_case(model, k) for k in range(count)]
        return [
            replace(case, other=lambda k=k: _case(model, (k + 1) % count)) for k, case in enumerate(found)
        ]

    return ask


def _case(model: Any, k: int) -> Case:
    pixels = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(100 + k))
    evidence = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    evidence[0, 4 + k : 16 + k, 3 : 20 - k] = True
    case = Case(f"case{k}", f"s{k}", "p", pixels, k % 4, evidence=evidence)
    if model.family == "classifier":
        return case
    words = model.tokenizer if model.family == "dual" else model.words
    ids, places, spoken = words(TEXTS[k % len(TEXTS)], 12)
    if model.family == "captioner":
        ids, places, spoken = ids[:-1], places[:-1], spoken[:-1]
        case = replace(case, target=len(ids) - 2)
    told = {"tokens": torch.tensor(ids), "words": tuple(places), "spoken": tuple(spoken)}
    return replace(case, **told)


@pytest.fixture(scope="session")
def explainer() -> Callable[..., Any]:
    """``explainer("gradcam", relu=True)``: an instance by the name that a spec would use."""
    place = shelf.Place(ROOT, ROOT)

    def make(use: str, **settings: Any) -> Any:
        return shelf.find("explainers", use, place, "test")(**settings)

    return make


@pytest.fixture(scope="session")
def source() -> Callable[[str], ModuleType]:
    """A shelf file as a module: ``source("rollout")``."""
    return lambda stem: shelf.load(ROOT / "explainers" / f"{stem}.py")
