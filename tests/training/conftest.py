"""A small Flickr8k of coloured squares, an untrained trunk, and recipes for captioners on them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from heatproof.geometry import Frame
from heatproof.models import own_captioner, trunks
from heatproof.models.trunks import Trunk

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250), "white": (250, 250, 250)}
SIZES = {"train": 8, "dev": 4, "test": 6}
RECIPE = """
title = "Small"
task = "describe"
[data]
sample = 8
folder = "FOLDER"
dataset = { use = "flickr8k", images = "{data}/{split}.zip", text = "{data}", split = "{split}" }
[settings]
epochs = 3
batch = 4
texts = 3
rate = 1e-2
patience = 1
[net]
architecture = "ARCHITECTURE"
encoder = "squares"
length = 8
embed = 8
hidden = 16
objects = ["dog", "thing"]
"""


def layers() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 4, 8, 8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
    ]


@pytest.fixture(scope="module")
def eyes():
    """An untrained trunk of two stages and 4 x 4 cells, whose file is in the data folder."""
    small = Trunk(
        "squares",
        layers,
        (1, 4),
        6,
        16,
        Frame(64, mean=(9.0,) * 3, std=(1.0,) * 3, scale=1.0, channels="bgr"),
    )
    patch = pytest.MonkeyPatch()
    patch.setitem(trunks.TRUNKS, "squares", small)
    patch.setitem(own_captioner.ENCODERS, "squares", small.fresh)
    yield small
    patch.undo()


@pytest.fixture(scope="module")
def folder(eyes, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("small")
    lines = []
    for split, count in SIZES.items():
        names = []
        with zipfile.ZipFile(place / f"{split}.zip", "w") as pack:
            for k in range(count):
                name, colour = f"{split}{k}.jpg", list(COLOURS)[k % 4]
                pixels = np.full((64, 64, 3), 120, np.uint8)
                pixels[5 * (k // 4) : 40, :30] = COLOURS[colour]
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "PNG")
                pack.writestr(name, out.getvalue())
                names.append(name)
                said = (
                    f"A {colour} dog",
                    f"the {colour} thing on the left",
                    f"{colour}",
                    f"a dog runs unseen{split}{k}",
                    "the dog jumps",
                )
                lines += [f"{name}#{i}\t{text} ." for i, text in enumerate(said)]
        (place / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    (place / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (place / "weights").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*layers())
    save_file(
        {f"features.{k}": v for k, v in net.state_dict().items()}, place / "weights" / "squares.safetensors"
    )
    (place / "recipes").mkdir()
    for kind in ("adaptive", "multi_head"):
        text = RECIPE.replace("FOLDER", place.as_posix()).replace("ARCHITECTURE", kind)
        (place / "recipes" / f"{kind}.toml").write_text(text)
    return place


@pytest.fixture(scope="module", params=["adaptive", "multi_head"])
def recipe(request, folder) -> Path:
    return folder / "recipes" / f"{request.param}.toml"
