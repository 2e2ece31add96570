"""Small worlds for tests: tiny random models, a workspace with a spec, and where real data may be."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported

WORDS = ["<pad>", "<bos>", "<unk>", "<eos>", *"a red blue green ball star on the sky grass next to".split()]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real photographs and weights, or a skip that says so."""
    folder = Path(os.environ.get("HEATPROOF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"HEATPROOF_DATA: no data at {folder}")
    return folder


def _save(net: torch.nn.Module, folder: Path, **files: object) -> Path:
    net.save_pretrained(folder)
    frame = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, content in {"preprocessor_config": frame, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _seeded(make: object, config: object) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(config)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained models that load in milliseconds: resnet, vit, clip, captioner."""
    import transformers as t

    top = tmp_path_factory.mktemp("tiny")
    labels = {
        "id2label": {i: n for i, n in enumerate(NAMES)},
        "label2id": {n: i for i, n in enumerate(NAMES)},
    }
    resnet = t.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **labels
    )
    vit = t.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, **labels,
    )  # fmt: skip
    side = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    clip = t.CLIPConfig(
        text_config={
            **side, "vocab_size": len(WORDS), "max_position_embeddings": 16,
            "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
        },
        vision_config={**side, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    return {
        "resnet": _save(_seeded(t.ResNetForImageClassification, resnet), top / "resnet"),
        "vit": _save(_seeded(t.ViTForImageClassification, vit), top / "vit"),
        "clip": _save(_seeded(t.CLIPModel, clip), top / "clip", words={w: i for i, w in enumerate(WORDS)}),
        "captioner": _captioner(top / "captioner"),
    }


def _captioner(folder: Path) -> Path:
    from heatproof.geometry import Frame
    from heatproof.models import own_captioner

    config = {
        "architecture": "adaptive",
        "encoder": {"kind": "vgg", "channels": [4, 6], "convolutions": [1, 1]},
        "decoder": {"vocabulary": len(WORDS), "channels": 6, "cells": 256, "embed": 6, "hidden": 8},
        "length": 12,
        "objects": NAMES,
    }
    words = {w: i for i, w in enumerate(WORDS)}
    net = _seeded(own_captioner.build, config)
    own_captioner.save(folder, net, config=config, words=words, frame=Frame(32), card={"source": "untrained"})
    return folder


NAMES = ["ball", "star"]

DATASET = '''"""Squares on noise: the class is the colour of the square."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from heatproof import Card, Object, Sample


@dataclass(frozen=True)
class Squares:
    """Squares on noise."""

    count: int = 6
    card: ClassVar[Card] = Card("generated", "1", "CC0-1.0")

    def samples(self):
        return [self._sample(i) for i in range(self.count)]

    def _sample(self, i):
        dice = np.random.default_rng(i)
        y, x = dice.integers(2, 18, 2)
        mask = np.zeros((32, 32), bool)
        mask[y : y + 10, x : x + 10] = True
        name = ("ball", "star")[i % 2]
        thing = Object(name, (float(x), float(y), float(x + 10), float(y + 10)), mask)
        low = np.zeros((32, 32), bool)
        low[29:] = True
        grass = Object("grass", (0.0, 29.0, 32.0, 32.0), low)
        return Sample(f"s{i}", partial(_draw, i, mask), name, (f"a red {name} on the grass",), (thing, grass))


def _draw(i, mask):
    image = np.random.default_rng(i + 99).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    image[mask] = (255, 0, 25 * i % 256)
    return image
'''

EXPLAINER = '''"""Brightness: the pixels themselves."""

from dataclasses import dataclass

from heatproof import Explanation


@dataclass(frozen=True)
class Bright:
    """The mean of the colours."""

    gain: float = 1.0

    def explain(self, model, cases):
        return [Explanation(image=case.pixels.mean(0) * self.gain) for case in cases]
'''

NOISE = '''"""Noise: random numbers of the case."""

from dataclasses import dataclass

import torch

from heatproof import Explanation


@dataclass(frozen=True)
class Noise:
    """Uniform noise."""

    size: int = 4

    def explain(self, model, cases):
        return [
            Explanation(image=torch.rand(self.size, self.size, generator=case.generator("noise")))
            for case in cases
        ]
'''

METRIC = '''"""Inside: the share of positive heat inside the evidence, and the score without the image."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from heatproof import Measure, Score, Value
from heatproof.geometry import read


@dataclass(frozen=True)
class Inside:
    """Share of positive heat inside."""

    power: float = 1.0
    measures: ClassVar = [Measure("mass", "higher", "plausibility"), Measure("blank", "lower", "quality")]

    def measure(self, trials):
        model = trials[0].model
        cases = [t.case for t in trials]
        blank = model.score(torch.zeros_like(model.stack(cases)), cases)
        scores = []
        for trial, score in zip(trials, blank):
            heat = read(trial.explanation.image, (32, 32), sign="positive") ** self.power
            mass = heat[trial.case.mask].sum() / heat.sum()
            scores.append(Score({"mass": Value.of(mass, "no positive heat"), "blank": Value.of(score)}))
        return scores
'''


@pytest.fixture(scope="session")
def families(
    tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, list[Any]]]:
    """The tiny models, loaded, each with eight cases of its own about the squares."""
    from heatproof import shelf
    from heatproof.models.hf_classifier import HfClassifier
    from heatproof.models.hf_clip import HfClip
    from heatproof.models.own_captioner import OwnCaptioner

    file = tmp_path_factory.mktemp("datasets") / "squares.py"
    file.write_text(DATASET)
    samples = shelf.load(file).Squares(8).samples()
    policies = {"resnet": "label", "vit": "label", "clip": "caption 0", "captioner": "caption 0"}
    kinds = {"clip": HfClip, "captioner": OwnCaptioner}
    found = {}
    for name, policy in policies.items():
        model = kinds.get(name, HfClassifier)(str(tiny[name])).load(name)
        cases = [case for asked in model.ask(samples, policy) for case in asked]
        partners = [*cases[1:], cases[0]]
        found[name] = (
            model,
            [dataclasses.replace(c, other=lambda p=p: p) for c, p in zip(cases, partners, strict=True)],
        )
    return found


@pytest.fixture
def world(tmp_path: Path, tiny: dict[str, Path]) -> Path:
    """A workspace of an outsider: a data set, two explainers, a metric, and benchmarks/toy.toml."""
    for shelf, name, text in (
        ("datasets", "squares", DATASET),
        ("explainers", "bright", EXPLAINER),
        ("explainers", "noise", NOISE),
        ("metrics", "inside", METRIC),
    ):
        (tmp_path / shelf).mkdir(exist_ok=True)
        (tmp_path / shelf / f"{name}.py").write_text(text)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "toy.toml").write_text(
        f"""title = "Toy"
kind = "instrument"
seed = 3
chunk = 4
dataset = "squares"
headline = ["inside.mass"]
models = [
  {{ use = "hf_classifier", name = "{tiny["resnet"]}", as = "cnn" }},
  {{ use = "hf_classifier", name = "{tiny["vit"]}", as = "vit" }},
  {{ use = "hf_clip", name = "{tiny["clip"]}", as = "clip" }},
  {{ use = "own_captioner", name = "{tiny["captioner"]}", as = "captioner" }},
]
explainers = ["bright", {{ use = "bright", gain = -1.0, as = "dark" }}]
controls = ["noise"]
metrics = ["inside"]
[targets]
captioner = "caption 0"
[tolerances]
"inside.mass" = 0.01
"""
    )
    return tmp_path
