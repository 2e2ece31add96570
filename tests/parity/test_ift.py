"""LRP-inference fine-tuning against arrays that the authors' code computed: weights, both readings, losses, gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import shelf
from heatproof.lrp.inference import losses, normalised, readings, weights
from heatproof.models.adaptive import AdaptiveCaptioner

folder = shelf.load(Path(__file__).with_name("folder.py"))
read, every, whole, net_of, apart = folder.read, folder.every, folder.whole, folder.net_of, folder.apart
pytestmark = folder.present
LOSS, GRADIENT, SINGLE = 1e-6, 1e-5, 1e-5


def asked(kind: str, dtype: torch.dtype = torch.float64):
    """The net, both readings of the two captions, and the captions: the image, and the image mirrored."""
    net, setup, arrays = net_of(kind).to(dtype), read("setup"), read(f"{kind}_ift")
    image = torch.from_numpy(setup["image"]).to(dtype)
    captions = torch.from_numpy(arrays["captions"])
    features = net.encoder(torch.cat([image, image.flip(-1)]))
    if isinstance(net, AdaptiveCaptioner):
        net.newest = True  # the released fine-tuning reads the new state there
    found = readings(net, features, captions[:, :-1], torch.from_numpy(setup["excluded_ids"]))
    return net, found, captions, arrays


@whole("normalize")
def test_relevance_becomes_weights(name: str) -> None:
    with every(name) as arrays:
        for key in set(arrays) - {"X"}:
            temperature = {"t1": 1.0, "t2": 2.0, "t05": 0.5}[key]
            found = normalised(torch.from_numpy(arrays["X"]), temperature)
            np.testing.assert_allclose(found.numpy(), arrays[key], atol=1e-12, err_msg=key)


@whole("gridtd_ift_weight_step")
def test_one_step_of_weights(name: str) -> None:
    with every(name) as file:
        arrays = {key: torch.from_numpy(value) for key, value in file.items()}
    layer = nn.Linear(*arrays["fc_weight"].T.shape).double()
    layer.weight.data, layer.bias.data = arrays["fc_weight"], arrays["fc_bias"]
    without = torch.from_numpy(read("setup")["excluded_ids"])
    found = weights(layer, arrays["context"], arrays["h"], arrays["logits"], without)
    mixed = layer(arrays["h"] + arrays["context"])
    told = {"w_context": found[0], "w_h": found[1], "logits": mixed}
    off = {key: apart(one, arrays[key].numpy()) for key, one in told.items()}
    print(f"weights of one step off by {off}")
    assert max(off.values()) < 1e-12
    still = (arrays["w_context"] == 1).all(1)
    assert 0 < int(still.sum()) < len(still)  # both sorts of words were tried


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@whole("gridtd_ift", "aoa_ift")
def test_both_readings_their_losses_and_the_gradients(name: str, dtype: torch.dtype) -> None:
    net, found, captions, _ = asked(name.partition("_")[0], dtype)
    plain, weighted = losses(found, captions[:, 1:], 0)
    learned = {"grad_fc_weight": net.output, "grad_emb": net.embedding, "grad_wv": net.key}
    grads = torch.autograd.grad(plain + weighted, [layer.weight for layer in learned.values()])
    told = {
        "captions": captions,
        "lens": (captions != 0).sum(1),
        "logits": found.plain,
        "weighted_logits": found.weighted,
        "loss_standard": plain,
        "loss_lrp": weighted,
        **dict(zip(learned, grads, strict=True)),
    }
    with every(name) as arrays:
        off = {key: apart(told[key], value) for key, value in arrays.items()}
    print(f"{name} {dtype}: off by {off}")
    readings_tolerance = 1e-12 if dtype == torch.float64 else SINGLE
    for key, much in off.items():
        kind = key.partition("_")[0]
        assert much < {"loss": LOSS, "grad": GRADIENT}.get(kind, readings_tolerance), key


def test_the_released_gate_is_another_and_the_corrected_reading_is_the_nets_own() -> None:
    net, released, captions, _ = asked("gridtd")
    net.newest = False
    setup = read("setup")
    image = torch.from_numpy(setup["image"])
    batch = torch.cat([image, image.flip(-1)])
    without = torch.from_numpy(setup["excluded_ids"])
    found = readings(net, net.encoder(batch), captions[:, :-1], without)
    assert float((found.plain - released.plain).detach().abs().max()) > 1e-4
    assert torch.allclose(found.plain, net(batch, captions[:, :-1]), rtol=1e-10)
