"""M2IB against arrays of its released code; everything, sizes too, is read from the folder ``m2ib``.

Tolerances are those of its FIXTURES.md.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from heatproof import shelf
from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.models.hf_clip import clip

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", ROOT.parent / "shared" / "parity")) / "m2ib"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"HEATPROOF_PARITY: nothing at {FOLDER}")
M2IB = shelf.load(ROOT / "explainers" / "m2ib.py")
RELEASED = shelf.load(ROOT / "benchmarks" / "speed" / "released_m2ib.py")
REFERENCES = sorted(p.stem for p in FOLDER.glob("ref_*_beta*.npz")) if FOLDER.is_dir() else ["none"]


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


class Ids:
    """The special ids are all of a tokenizer that the model asks for here."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.bos, self.eos, self.pad = (config[f"{k}_token_id"] for k in ("bos", "eos", "pad"))
        self.unknown = self.pad


@pytest.fixture(scope="module")
def model() -> Any:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng():
        net = CLIPModel(CLIPConfig(**config))
    found = net.load_state_dict({k: torch.from_numpy(v) for k, v in read("state").items()}, strict=False)
    assert not found.missing_keys
    frame = Frame(config["vision_config"]["image_size"])
    return clip("reference", net, Ids(config["text_config"]), frame=frame)


@pytest.fixture(scope="module")
def case() -> Case:
    inputs = read("inputs")
    pixels, ids = torch.from_numpy(inputs["pixel_values"])[0], torch.from_numpy(inputs["input_ids"])[0]
    return Case("c", "s", "", pixels, "", tokens=ids, words=(-1,) * len(ids))


def told(eps: np.ndarray) -> Callable[[int], Tensor]:
    """The reference's own noise, step by step; the step after the last may look at anything."""
    draws = iter([*torch.from_numpy(eps), torch.zeros(eps.shape[1:])])
    return lambda _: next(draws)


def scaled(heat: Tensor) -> Tensor:
    return (heat - heat.min()) / (heat.max() - heat.min())


def test_embeddings(model: Any, case: Case) -> None:
    inputs = read("inputs")
    image, text = model.embed(model.stack([case]), [case]), model.embed_text([case])
    np.testing.assert_allclose(image.numpy(), inputs["image_features"], atol=5e-6)
    np.testing.assert_allclose(text.numpy(), inputs["text_features"], atol=5e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_whole_optimisation(name: str, model: Any, case: Case) -> None:
    expected = read(name)
    tower = "image" if "vision" in name else "text"
    numbers = {k: expected[k].item() for k in ("beta", "steps", "repeats", "lr")}
    made = M2IB.M2ib(**numbers)
    site = model.site(f"{tower}.block", int(expected["layer_idx"]))
    with torch.no_grad():
        hidden = model.upto(site, model.stack([case]), [case])
    real = hidden[:, : expected["layer_output"].shape[1]]
    np.testing.assert_allclose(real.numpy(), expected["layer_output"], atol=5e-6)

    losses: list[Tensor] = []
    for updates in range(1, made.steps + 1):
        noise = told(expected["eps"])
        (alpha,), losses = made.optimise(model, site, real, [case], noise, updates=updates)
        before = expected["alpha_final"] if updates == made.steps else expected["alpha"][updates]
        off = np.abs(alpha.numpy() - before[0])
        assert (off > 1e-3).mean() < 1e-3, f"alpha after {updates} updates"
    np.testing.assert_allclose(torch.stack(losses)[:, 0].numpy(), expected["losses"], atol=1e-5)

    # what explain() itself answers, fed the same noise: the map is read before the last update
    fed = _Fed(**numbers, layer=int(expected["layer_idx"]), as_released=True)
    _Fed.eps = expected["eps"]
    (raw,) = fed._heat(model, site, [case])
    off = float((raw / torch.from_numpy(expected["raw_token_capacity"]) - 1).abs().max())
    print(f"{name}: raw capacity off by {off:.1e} of itself")
    np.testing.assert_allclose(raw.numpy(), expected["raw_token_capacity"], rtol=1e-4)
    if tower == "image":
        size = expected["heatmap"].shape
        plane = model.grid(raw)[None, None]
        raw = F.interpolate(plane, size=size, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(scaled(raw).numpy(), expected["heatmap"], atol=1e-4)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_slow_twin_is_faithful_and_forwards_far_more(name: str, model: Any, case: Case) -> None:
    """What ``benchmarks/speed`` times gives the reference's numbers, and a hook counts what each procedure runs."""
    expected, tower = read(name), "image" if "vision" in name else "text"
    layer = int(expected["layer_idx"])
    numbers = {k: expected[k].item() for k in ("beta", "steps", "repeats", "lr")}
    net = copy.deepcopy(model.net).requires_grad_()
    draws = iter(torch.from_numpy(expected["eps"]))
    with counted(net) as slow:
        args = case.pixels[None], case.tokens[None], tower, layer, lambda: next(draws)
        raw, losses = RELEASED.token_capacity(net, *args, **numbers)
    np.testing.assert_allclose(losses, expected["losses"][:, 2], atol=1e-5)
    np.testing.assert_allclose(raw.numpy(), expected["raw_token_capacity"], rtol=1e-4)
    assert sum(p.grad is not None for p in net.parameters()) > 0.9 * len(list(net.parameters()))

    fed = _Fed(**numbers, layer=layer, as_released=True)
    _Fed.eps = expected["eps"]
    model._weights("image"), model._weights("text")
    model.memo.clear()
    rows, model.rows = model.rows, 1  # so that a hook counts rows and not blocks
    try:
        with counted(model.net) as ours:
            fed._heat(model, model.site(f"{tower}.block", layer), [case])
    finally:
        model.rows = rows
    entered = [sum(count[t, 0] for t in ("image", "text")) for count in (slow, ours)]
    blocks = [sum(count.values()) for count in (slow, ours)]
    print(f"{name}: towers entered {entered[0]} and {entered[1]}, blocks run {blocks[0]} and {blocks[1]}")
    assert entered[0] == 2 * fed.steps * fed.repeats
    assert entered[1] == 2  # the explained tower below the site, and the other one
    assert entered[0] >= 20 * entered[1]
    depths = [len(m.encoder.layers) for m in (net.vision_model, net.text_model)]
    assert blocks[0] == fed.steps * fed.repeats * sum(depths)
    own, other = depths if tower == "image" else depths[::-1]
    assert blocks[1] == layer + 1 + other + (fed.steps - 1) * fed.repeats * (own - layer - 1)


@contextmanager
def counted(net: Any) -> Iterator[Counter[tuple[str, int]]]:
    """Rows that pass each block of each tower, by hook."""
    rows: Counter[tuple[str, int]] = Counter()
    hooks = []
    for tower, part in (("image", net.vision_model), ("text", net.text_model)):
        for k, block in enumerate(part.encoder.layers):
            count = lambda _, args, name=(tower, k): rows.update({name: len(args[0])})
            hooks.append(block.self_attn.k_proj.register_forward_pre_hook(count))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def test_the_quirk_has_a_name_of_its_own(model: Any, case: Case) -> None:
    """before_last alone is all that as_released does to the map; without it the last update counts."""
    expected = read(REFERENCES[0])
    site = model.site(f"{'image' if 'vision' in REFERENCES[0] else 'text'}.block", int(expected["layer_idx"]))
    _Fed.eps = expected["eps"]
    numbers = {k: expected[k].item() for k in ("beta", "steps", "repeats", "lr")}
    (named,) = _Fed(**numbers, before_last=True)._heat(model, site, [case])
    (released,) = _Fed(**numbers, as_released=True)._heat(model, site, [case])
    (corrected,) = _Fed(**numbers)._heat(model, site, [case])
    assert torch.equal(named, released)
    hidden, alpha = (torch.from_numpy(expected[k]) for k in ("layer_output", "alpha_final"))
    after = M2IB.capacity(hidden.reshape(alpha.shape[-2:]), alpha.reshape(alpha.shape[-2:])).sum(-1)
    np.testing.assert_allclose(corrected.numpy(), after.numpy(), rtol=1e-3)
    assert not torch.allclose(released, corrected, rtol=1e-2)


class _Fed(M2IB.M2ib):
    eps: np.ndarray

    def _noise(self, *_: Any) -> Callable[[int], Tensor]:
        return told(type(self).eps)


def test_capacity_at_the_start() -> None:
    for name in REFERENCES:
        expected = read(name)
        hidden, alpha = (torch.from_numpy(expected[k][0]) for k in ("layer_output", "alpha"))
        found = M2IB.capacity(
            hidden[0] if hidden.ndim == 3 else hidden, alpha[0] if alpha.ndim == 3 else alpha
        )
        assert float(found.mean()) == pytest.approx(expected["losses"][0, 0], rel=1e-5)
