"""Small captioners with random weights that say different words, and questions to them."""

from __future__ import annotations

import numpy as np
import torch

from heatproof.contract import Case, Object, Sample
from heatproof.geometry import Frame
from heatproof.models.captioner import Captioner
from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.own_captioner import build
from heatproof.models.regions import Regions
from heatproof.models.words import WordList

SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]
WORDS = {w: i for i, w in enumerate([*SPECIAL, *"a the red with dog dogs cat ball bus hot".split()])}
OBJECTS = ("dog", "cat", "ball", "hot dog", "zebra")
SIDE, LENGTH = 32, 7
COUNT = 5  # regions
KINDS = ("adaptive", "multi_head", "single")
# sizes of whole vectors: torch.sigmoid rounds the ragged end of a tensor in another way
SIZES = {"vocabulary": len(WORDS), "channels": 8, "embed": 4, "hidden": 16}


def config_of(kind: str, *, regions: bool = False) -> dict:
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    cells = COUNT if regions else 16
    return {
        "architecture": kind,
        "encoder": {"kind": "regions"} if regions else {"kind": "resnet", **resnet},
        "decoder": {**SIZES, **({"heads": 2} if kind == "multi_head" else {"cells": cells})},
        "length": LENGTH,
        "objects": list(OBJECTS),
    }


def net_of(kind: str, seed: int = 0, *, regions: bool = False) -> CaptionNet:
    torch.manual_seed(seed)
    net = build(config_of(kind, regions=regions))
    with torch.no_grad():
        net.output.weight.normal_(std=3.0)  # an untrained net says one word for ever, this one does not
        net.embedding.weight.normal_(std=3.0)
        net.output.bias[[0, 1, 2]] = -20.0
    return net.eval()


def model_of(kind: str, seed: int = 0, **settings_: object) -> Captioner:
    more = {"words": WordList(WORDS), "objects": OBJECTS, "length": LENGTH, **settings_}
    return Captioner(kind, net_of(kind, seed), Frame(SIDE), **more)


def reader_of(kind: str, folder: str = "", **settings_: object) -> Captioner:
    """A captioner that reads region features."""
    more = {"words": WordList(WORDS), "objects": OBJECTS, "length": LENGTH, **settings_}
    frame = Regions(count=COUNT, width=SIZES["channels"], folder=folder)
    return Captioner(kind, net_of(kind, regions=True), frame, **more)


def sample_of(i: int, captions: tuple[str, ...] = (), names: tuple[str, ...] = ("dog",)) -> Sample:
    dice = np.random.default_rng(i)
    image = dice.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:20, 8:24] = True
    things = tuple(Object(name, (8, 4, 24, 20), mask) for name in names)
    return Sample(f"s{i}", lambda: image, captions=captions, objects=things)


CAPTIONS = ("a red dog with the ball", "the cat", "a dog with a dog", "the bus with the red cat")


def cases_of(model: Captioner) -> list[Case]:
    samples = [sample_of(i, (text,)) for i, text in enumerate(CAPTIONS)]
    return [case for cases in model.ask(samples, "caption 0") for case in cases]
