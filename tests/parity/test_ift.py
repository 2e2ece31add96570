"""LRP-inference fine-tuning against arrays that the authors' code computed: weights, both readings, losses, gradients.

Everything comes from the folder itself (``lrp_captioning/FIXTURES.md`` describes it): another folder of the same layout passes as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.lrp.inference import excluded, losses, normalised, readings, weights
from heatproof.models.captioner_nets import (
    AdaptiveCaptioner,
    AdaptiveConfig,
    CaptionNet,
    MultiHeadCaptioner,
    MultiHeadConfig,
    vgg,
)

HOUSE = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", HOUSE.parent / "shared" / "parity")) / "lrp_captioning"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference arrays in {FOLDER} (set HEATPROOF_PARITY)"
)
LOSS, GRADIENT, SINGLE = 1e-6, 1e-5, 1e-5


def read(name: str) -> MappingProxyType[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return MappingProxyType(dict(file))


def net_of(kind: str) -> CaptionNet:
    setup = read("setup")
    encoder = vgg(setup["conv_channels"].tolist(), setup["convs_per_stage"].tolist())
    vocabulary, channels = len(setup["vocab"]), int(setup["conv_channels"][-1])
    embed, hidden = int(setup["embed_dim"]), int(setup["hidden_dim"])
    if kind == "gridtd":
        side = setup["image"].shape[-1] // 2 ** (len(setup["conv_channels"]) - 1)
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(vocabulary, channels, side * side, embed, hidden))
    else:
        heads = int(setup["num_heads"])
        net = MultiHeadCaptioner(encoder, MultiHeadConfig(vocabulary, channels, embed, hidden, heads))
    net.double().load_released({name: torch.from_numpy(v) for name, v in read(f"{kind}_state").items()})
    return net.eval()


def apart(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.detach().double().numpy() - expected).max() / np.abs(expected).max())


def asked(kind: str, dtype: torch.dtype = torch.float64):
    """The net, both readings of the two captions, and the captions: the image, and the image mirrored."""
    net, setup, arrays = net_of(kind).to(dtype), read("setup"), read(f"{kind}_ift")
    image = torch.from_numpy(setup["image"]).to(dtype)
    captions = torch.from_numpy(arrays["captions"])
    features = net.encoder(torch.cat([image, image.flip(-1)]))
    if isinstance(net, AdaptiveCaptioner):
        net.newest = True  # the released fine-tuning reads the new state there
    found = readings(net, features, captions[:, :-1], excluded(setup["excluded_ids"].tolist()))
    return net, found, captions, arrays


@pytest.mark.parametrize(("key", "temperature"), [("t1", 1.0), ("t2", 2.0), ("t05", 0.5)])
def test_relevance_becomes_weights(key: str, temperature: float) -> None:
    arrays = read("normalize")
    found = normalised(torch.from_numpy(arrays["X"]), temperature)
    np.testing.assert_allclose(found.numpy(), arrays[key], atol=1e-12)


def test_one_step_of_weights() -> None:
    arrays = {k: torch.from_numpy(v) for k, v in read("gridtd_ift_weight_step").items()}
    layer = nn.Linear(*arrays["fc_weight"].T.shape).double()
    layer.weight.data, layer.bias.data = arrays["fc_weight"], arrays["fc_bias"]
    without = excluded(read("setup")["excluded_ids"].tolist())
    found = weights(layer, arrays["context"], arrays["h"], arrays["logits"], without)
    off = [apart(one, arrays[key].numpy()) for one, key in zip(found, ("w_context", "w_h"), strict=True)]
    print(f"weights of one step off by {max(off):.1e}")
    assert max(off) < 1e-12
    still = (arrays["w_context"] == 1).all(1)
    assert 0 < int(still.sum()) < len(still)  # both sorts of words were tried


@pytest.mark.parametrize("kind", ["gridtd", "aoa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_readings_and_their_losses(kind: str, dtype: torch.dtype) -> None:
    _, found, captions, arrays = asked(kind, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else SINGLE
    off = apart(found.plain, arrays["logits"]), apart(found.weighted, arrays["weighted_logits"])
    plain, weighted = losses(found, captions, pad=0)
    lost = apart(plain, arrays["loss_standard"]), apart(weighted, arrays["loss_lrp"])
    print(f"{kind} {dtype}: readings off by {max(off):.1e}, losses by {max(lost):.1e}")
    assert max(off) < tolerance
    assert max(lost) < LOSS


def test_gradients_of_both_losses() -> None:
    net, found, captions, arrays = asked("gridtd")
    named = {"grad_fc_weight": net.output, "grad_emb": net.embedding, "grad_wv": net.key}
    grads = torch.autograd.grad(sum(losses(found, captions, pad=0)), [m.weight for m in named.values()])
    off = [apart(grad, arrays[key]) for grad, key in zip(grads, named, strict=True)]
    print(f"gradients off by {max(off):.1e}")
    assert max(off) < GRADIENT


def test_the_released_gate_is_another_and_the_corrected_reading_is_the_nets_own() -> None:
    net, released, captions, _ = asked("gridtd")
    net.newest = False
    setup = read("setup")
    image = torch.from_numpy(setup["image"])
    batch = torch.cat([image, image.flip(-1)])
    without = excluded(setup["excluded_ids"].tolist())
    found = readings(net, net.encoder(batch), captions[:, :-1], without)
    assert float((found.plain - released.plain).detach().abs().max()) > 1e-4
    assert torch.allclose(found.plain, net(batch, captions[:, :-1]), rtol=1e-10)
