"""The CAM family against loops over activations and gradients of the bare nets, and against Captum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, GuidedGradCam
from torch import nn

from heatproof import Unsuited, shelf
from heatproof.errors import Refused
from heatproof.models.controlled import Cnn

SLOW = shelf.load(Path(__file__).with_name("slow_towers.py"))


def stages(net: Any) -> list[Any]:
    return [net.resnet.embedder, *net.resnet.encoder.stages]


def seen(model: Any, case: Any, layer: int, tower: str = "image") -> tuple[np.ndarray, np.ndarray]:
    """Activation and gradient, places x channels, of the bare net."""
    if model.name == "cnn":
        x = case.pixels[None]
        cut = len(stages(model.net)) if layer == -1 else layer + 1
        for stage in stages(model.net)[:cut]:
            x = stage(x)
        x = y = x.detach().requires_grad_()
        for stage in stages(model.net)[cut:]:
            y = stage(y)
        score = model.net.classifier(y.mean((2, 3), keepdim=True))[0, case.target]
        (grad,) = torch.autograd.grad(score, x)
        return x.detach()[0].flatten(1).T.numpy(), grad[0].flatten(1).T.numpy()
    run = SLOW.pass_through(model, case, tower)
    tokens = run.tokens[1:-1][layer]  # the last block's output is no site
    (grad,) = torch.autograd.grad(run.score, tokens)
    first = 1 if tower == "image" else 0
    return tokens.detach()[first:].numpy(), grad[first:].numpy()


def plus_plus(value: np.ndarray, grad: np.ndarray) -> np.ndarray:
    heat = np.zeros(len(value))
    for d in range(value.shape[1]):
        weight, total = 0.0, value[:, d].sum()
        for g in grad[:, d]:
            if g > 0:
                weight += g * g**2 / (2 * g**2 + total * g**3)
        heat += weight * value[:, d]
    return heat


def place_by_place(value: np.ndarray, grad: np.ndarray, *, positive: bool) -> np.ndarray:
    heat = np.zeros(len(value))
    for i in range(len(value)):
        for v, g in zip(value[i], grad[i], strict=True):
            heat[i] += v * (max(g, 0.0) if positive else g)
    return heat


RULES = {
    "GradCamPlusPlus": plus_plus,
    "HiResCam": lambda v, g: place_by_place(v, g, positive=False),
    "LayerCam": lambda v, g: place_by_place(v, g, positive=True),
}


@pytest.mark.parametrize("use", RULES)
@pytest.mark.parametrize(("name", "layer"), [("cnn", -1), ("cnn", 0), ("vit", 0), ("clip", 0)])
def test_weights_by_gradient(
    name: str, layer: int, use: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 3)
    extra = {"token_layer": layer} if use == "HiResCam" else {}
    signed = explainer(f"cams:{use}", layer=layer, **extra).explain(model, cases)
    positive = explainer(f"cams:{use}", layer=layer, relu=True, **extra).explain(model, cases)
    for case, told, clipped in zip(cases, signed, positive, strict=True):
        expected = RULES[use](*seen(model, case, layer))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(told.image.flatten().numpy(), expected, rtol=2e-3, atol=1e-4 * scale)
        assert torch.equal(clipped.image, told.image.clamp(min=0))
        if name == "clip":
            expected = RULES[use](*seen(model, case, layer, "text"))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(told.text.numpy(), expected, rtol=2e-3, atol=1e-4 * scale)


def test_hires_is_each_places_share_of_the_logit(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["cnn"], asked(models["cnn"])
    found = explainer("cams:HiResCam").explain(model, cases)
    plain = explainer("gradcam", pool="none").explain(model, cases)
    bias = model.net.classifier[-1].bias.detach()
    for case, told, other, score in zip(cases, found, plain, model.clean(cases), strict=True):
        assert torch.equal(told.image, other.image)
        assert float(told.image.sum()) == pytest.approx(float(score - bias[case.target]), rel=1e-3, abs=1e-4)


def test_hires_has_no_map_where_a_norm_alone_reads(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    with pytest.raises(Unsuited, match="take a lower layer"):
        explainer("cams:HiResCam", token_layer=-1).explain(models["vit"], asked(models["vit"], 1))


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("centred", [None, True, False])
def test_eigen_is_the_direction_of_most_variance(
    centred: bool | None, name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """By power iteration, whose sign is then set."""
    model, cases = models[name], asked(models[name], 2)
    with model.part() as spent:
        found = explainer("cams:EigenCam", centred=centred).explain(model, cases)
    assert sum(spent.backward.values()) == 0
    for case, told in zip(cases, found, strict=True):
        rows = seen(model, case, -1)[0].astype(np.float64)
        if centred or (centred is None and name == "vit"):
            rows = rows - rows.mean(0)
        direction = np.ones(rows.shape[1])
        for _ in range(3000):
            direction = rows.T @ (rows @ direction)
            direction /= np.linalg.norm(direction)
        heat = rows @ direction
        heat *= np.sign(heat[np.abs(heat).argmax()])
        np.testing.assert_allclose(told.image.flatten().numpy(), heat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cnn", "vit", "adaptive"])
@pytest.mark.parametrize("weights", ["softmax", "increase"])
def test_score_cam_channel_by_channel(
    weights: str, name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    kind = "image.conv" if "image.conv" in model.sites else "image.block"
    widest, score = [], model.score
    model.score = lambda rows, some: (widest.append(len(rows)), score(rows, some))[1]
    try:
        with model.part() as spent:
            found = explainer("score_cam", weights=weights).explain(model, cases)
    finally:
        del model.score
    assert max(widest) <= 32, "masks are made block by block"
    for case, told in zip(cases, found, strict=True):
        with torch.no_grad():
            value = model.upto(model.site(kind), case.pixels[None], [case])[0]
            value = model.grid(value) if kind == "image.block" else value
            scores, kept = [], []
            for channel in value:
                wide = F.interpolate(channel[None, None], case.pixels.shape[1:], mode="bilinear")[0]
                if channel.max() > channel.min():
                    mask = (wide - wide.min()) / (wide.max() - wide.min())
                    scores.append(float(model.score((case.pixels * mask)[None], [case])))
                    kept.append(channel)
            blank = float(model.score(0 * case.pixels[None], [case]))
        shares = np.exp(scores) / np.exp(scores).sum() if weights == "softmax" else np.array(scores) - blank
        expected = sum(float(w) * channel for w, channel in zip(shares, kept, strict=True))
        np.testing.assert_allclose(told.image.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
        rows = len(scores) + (weights == "increase")
        assert rows <= spent.forward[case.id] <= rows + 1, "and the way up to the layer"


def test_a_channel_that_is_constant_is_not_asked(explainer: Callable[..., Any], asked: Any) -> None:
    model = Cnn().load("wired")
    (case,) = asked(model, 1)
    case = replace(case, target=0, pixels=torch.zeros(3, 56, 56))  # grey: every detector is silent
    for weights in ("softmax", "increase"):
        with model.part() as spent:
            (told,) = explainer("score_cam", weights=weights).explain(model, [case])
        assert not told.image.any()
        assert spent.forward[case.id] <= 2
    with pytest.raises(Refused, match="'mean', accepted are softmax, increase"):
        explainer("score_cam", weights="mean").explain(model, [case])


# ---------------------------------------------------------------- guided


class Logits(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).logits


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_captum_guides_to_the_same(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 3)
    fine = explainer("guided:GuidedBackprop").explain(model, cases)
    both = explainer("guided:GuidedGradCam").explain(model, cases)
    bare = Logits(copy.deepcopy(model.net))
    layer = bare.net.resnet.encoder.stages[-1]
    for case, guided, product in zip(cases, fine, both, strict=True):
        x = case.pixels[None].clone().requires_grad_()
        expected = GuidedBackprop(bare).attribute(x, target=case.target)[0].detach()
        np.testing.assert_allclose(guided.image.numpy(), expected.numpy(), rtol=1e-3, atol=1e-6)
        # the positive part is taken before it is enlarged
        expected = GuidedGradCam(bare, layer).attribute(x, target=case.target, interpolate_mode="bilinear")[0]
        np.testing.assert_allclose(product.image.numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-6)


def test_relu6_passes_between_its_ends(source: Any) -> None:
    net = nn.Sequential(nn.ReLU6(), nn.ReLU())
    source("guided").guide(net)
    x = torch.tensor([-1.0, 0.0, 1.0, 5.0, 6.0, 7.0, 2.0], requires_grad=True)
    y = net(x)
    assert y.tolist() == [0.0, 0.0, 1.0, 5.0, 6.0, 6.0, 2.0]
    (grad,) = torch.autograd.grad(y, x, torch.tensor([1.0, 1.0, 2.0, -3.0, 4.0, 5.0, 6.0]))
    assert grad.tolist() == [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 6.0]


def test_guiding_leaves_the_model_as_it_was_also_when_it_fails(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    plain = explainer("captum_suite:Saliency").explain(model, cases)

    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("on the way back")

    for use in ("guided:GuidedBackprop", "guided:GuidedGradCam"):
        explainer(use).explain(model, cases)
        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "grad", fails)
            with pytest.raises(ValueError, match="on the way back"):
                explainer(use).explain(model, cases)
    assert not any(type(module).__name__ == "Guided" for module in model.net.modules())
    assert not any(m._backward_hooks or m._forward_hooks for m in model.net.modules())
    assert not model._watches
    again = explainer("captum_suite:Saliency").explain(model, cases)
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, again, strict=True))


def test_guided_costs_and_refusals(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["cnn"]
    cases = asked(model, 3)
    for use, passes in (("GuidedBackprop", 1.0), ("GuidedGradCam", 2.0)):
        with model.part() as spent:
            explainer(f"guided:{use}").explain(model, cases)
        assert [spent.forward[c.id] for c in cases] == [pytest.approx(passes)] * 3
        assert [spent.backward[c.id] for c in cases] == [pytest.approx(passes)] * 3
    with pytest.raises(Unsuited, match="needs ReLU layers"):
        explainer("guided:GuidedBackprop").explain(models["vit"], asked(models["vit"], 1))
    with pytest.raises(Unsuited, match="needs convolutions"):
        explainer("guided:GuidedGradCam").explain(models["vit"], asked(models["vit"], 1))
