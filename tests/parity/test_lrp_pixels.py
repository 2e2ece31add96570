"""Pixel LRP of a captioner, decoder and VGG together, against what the authors' released code computed.

Everything is read from ``lrp_captioning`` (its FIXTURES.md says what the arrays are); tolerance 1e-12 of the largest
value, as stated there for float64.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.lrp.composites import Composite
from heatproof.lrp.decoder import DecoderRules
from heatproof.lrp.words import from_word
from heatproof.models.captioner import Captioner
from heatproof.models.captioner_nets import (
    AdaptiveCaptioner,
    AdaptiveConfig,
    CaptionNet,
    MultiHeadCaptioner,
    MultiHeadConfig,
    vgg,
)
from heatproof.models.words import WordList

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", ROOT.parent / "shared" / "parity")) / "lrp_captioning"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"HEATPROOF_PARITY: nothing at {FOLDER}")


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def model_of(kind: str) -> Captioner:
    told = read("setup")
    channels, convolutions = told["conv_channels"].tolist(), told["convs_per_stage"].tolist()
    encoder, words = vgg(channels, convolutions), {str(w): k for k, w in enumerate(told["vocab"])}
    embed, hidden = int(told["embed_dim"]), int(told["hidden_dim"])
    net: CaptionNet
    if kind == "gridtd":
        cells = (told["image"].shape[-1] // 2 ** (len(channels) - 1)) ** 2
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(len(words), channels[-1], cells, embed, hidden))
    else:
        heads = int(told["num_heads"])
        net = MultiHeadCaptioner(encoder, MultiHeadConfig(len(words), channels[-1], embed, hidden, heads))
    net.double().load_released({k: torch.from_numpy(v) for k, v in read(f"{kind}_state").items()})
    told_of = {"words": WordList(words), "objects": (), "length": len(told["caption_encode"])}
    return Captioner(kind, net, Frame(told["image"].shape[-1]), rows=3, **told_of)


@pytest.mark.parametrize("kind", ["gridtd", "aoa"])
def test_every_stored_word_and_their_released_sum(kind: str) -> None:
    told, expected = read("setup"), read("lrp_pixels")
    tokens, image = torch.from_numpy(told["caption_encode"]), torch.from_numpy(told["image"])[0]
    cases = [Case(f"w{t}", "s", "", image, t, tokens=tokens) for t in range(len(tokens) - 1)]
    head = int(told["aoa_explained_head"]) if kind == "aoa" else None
    model = model_of(kind)
    rules = DecoderRules.released(head)
    found = from_word(model, Composite("alpha1beta0"), rules, cases)[0].numpy()
    keys = [key for key in expected if key.startswith(f"{kind}_")]
    assert keys
    for key in keys:
        form, _, rest = key.removeprefix(f"{kind}_").partition("_R_")
        word, _, sub = rest.partition("_")
        t = int(word)
        mine = (
            found[t] if form == "cleared" else found[: t + 1].sum(0)
        )  # released: gradients pile up over the words
        mine = mine[:, 0::2, 1::2] if sub else mine
        scale = np.abs(expected[key]).max()
        np.testing.assert_allclose(mine, expected[key][0], rtol=0, atol=1e-12 * scale, err_msg=key)
    other = from_word(model, Composite("gamma"), rules, cases[:1])[
        0
    ].numpy()  # the test can fail: another rule is another map
    assert np.abs(other[0] - found[0]).max() > 0.01 * np.abs(found[0]).max()
