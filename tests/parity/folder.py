"""What the tests share that hold the captioners against arrays of the authors' code: the folder, its nets, its cases.

Everything comes from the folder itself (``lrp_captioning/FIXTURES.md`` describes it): another folder of the same
layout passes as it is. Tolerances are relative to the largest value of the reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner import Captioner
from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.encoders import vgg
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig
from heatproof.models.words import WordList

HOUSE = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", HOUSE.parent / "shared" / "parity")) / "lrp_captioning"
present = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference arrays in {FOLDER} (set HEATPROOF_PARITY)"
)
EXACT, SINGLE, SINGLE_LRP, STORED = 1e-12, 1e-5, 1e-4, 1e-6  # the last is of maps stored in float32
NETS = ("gridtd", "aoa")
CLAIMED: set[str] = set()  # files of which some test reads every key


def read(name: str) -> MappingProxyType[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return MappingProxyType(dict(file))


class Ledger(Mapping[str, np.ndarray]):
    """A file's arrays, and which of them nobody has read yet."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays, self.unread = arrays, set(arrays)

    def __getitem__(self, key: str) -> np.ndarray:
        self.unread.discard(key)
        return self.arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


@contextmanager
def every(name: str) -> Iterator[Ledger]:
    """A file's arrays for a test that reads them all: it fails where it left one unread."""
    ledger = Ledger(read(name))
    yield ledger
    assert not ledger.unread, f"{name}.npz has keys that no test reads: {', '.join(sorted(ledger.unread))}"


def whole(*names: str) -> pytest.MarkDecorator:
    """Parametrises a test by the files of which it reads ``every`` key."""
    CLAIMED.update(names)
    return pytest.mark.parametrize("name", names)


def words_of() -> WordList:
    return WordList({str(word): i for i, word in enumerate(read("setup")["vocab"])})


def net_of(kind: str) -> CaptionNet:
    """The folder's net, in float64."""
    setup = read("setup")
    encoder = vgg(setup["conv_channels"].tolist(), setup["convs_per_stage"].tolist())
    vocabulary, channels = len(setup["vocab"]), int(setup["conv_channels"][-1])
    embed, hidden = int(setup["embed_dim"]), int(setup["hidden_dim"])
    net: CaptionNet
    if kind == "gridtd":
        side = setup["image"].shape[-1] // 2 ** (len(setup["conv_channels"]) - 1)
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(vocabulary, channels, side * side, embed, hidden))
    else:
        heads = int(setup["num_heads"])
        net = MultiHeadCaptioner(encoder, MultiHeadConfig(vocabulary, channels, embed, hidden, heads))
    net.double().load_released({name: torch.from_numpy(v) for name, v in read(f"{kind}_state").items()})
    return net.eval()


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> Captioner:
    """The folder's net behind the contract."""
    setup = read("setup")
    frame = Frame(setup["image"].shape[-1], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    length = len(setup["caption_encode"])
    net = net_of(kind).to(dtype)
    return Captioner(kind, net, frame, words=words_of(), objects=(), length=length, rows=3)


def cases_of(dtype: torch.dtype = torch.float64) -> list[Case]:
    """One case a word of the caption."""
    setup = read("setup")
    tokens, image = torch.from_numpy(setup["caption_encode"]), torch.from_numpy(setup["image"])[0]
    return [
        Case(f"w{t}", "image", str(word), image.to(dtype), t, tokens=tokens)
        for t, word in enumerate(setup["caption_words"])
    ]


def head_of(kind: str) -> int | None:
    """The attention head whose pixel maps the authors' code gave."""
    return int(read("setup")["aoa_explained_head"]) if kind == "aoa" else None


def place(key: str) -> tuple[str, int, bool]:
    """ "gradient_R_0_sub" -> "gradient_R", word 0, every second row and column alone."""
    name, _, t = key.removesuffix("_sub").rpartition("_")
    return name, int(t), key.endswith("_sub")


def seen(image: Tensor, sub: bool) -> Tensor:
    """[C, H, W] as the folder stores it: [1, C, H, W], ``sub`` with rows 0, 2, ... and columns 1, 3, ... alone."""
    return (image[:, 0::2, 1::2] if sub else image)[None]


def apart(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """The largest deviation as a share of the largest value of the reference, or as it is where that is zero."""
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def words_apart(found: Tensor, expected: np.ndarray, t: int) -> float:
    """Word scores [length], of which the folder has those up to word t divided by their largest magnitude."""
    assert (found[t + 1 :] == 0).all()
    return apart(found[: t + 1] / found.abs().max(), expected)
