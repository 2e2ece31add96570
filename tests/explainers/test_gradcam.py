"""Grad-CAM against plain autograd through the bare net, without the model's door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heatproof import Unsuited


def cam(value: torch.Tensor, grad: torch.Tensor, pool: str) -> np.ndarray:
    """Places x channels, in loops over channels."""
    heat = np.zeros(value.shape[0])
    for d in range(value.shape[1]):
        weight = float(grad[:, d].mean()) if pool == "mean" else grad[:, d].numpy()
        heat += weight * value[:, d].numpy()
    return heat


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_convolutions(pool: str, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, net = models["cnn"], models["cnn"].net
    cases = asked(model)
    for layer in (-1, 0):
        found = explainer("gradcam", layer=layer, pool=pool).explain(model, cases)
        for case, told in zip(cases, found, strict=True):
            stages = [net.resnet.embedder, *net.resnet.encoder.stages]
            below, above = (stages, []) if layer == -1 else (stages[:1], stages[1:])
            x = case.pixels[None]
            for stage in below:
                x = stage(x)
            x = x.detach().requires_grad_()
            y = x.clone()
            for stage in above:
                y = stage(y)
            logit = net.classifier(y.mean((2, 3), keepdim=True))[0, case.target]
            (grad,) = torch.autograd.grad(logit, x)
            value = x.detach()
            expected = cam(value[0].flatten(1).T, grad[0].flatten(1).T, pool)
            np.testing.assert_allclose(told.image.flatten().numpy(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 0])
def test_tokens_of_both_towers(layer: int, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, net = models["clip"], models["clip"].net
    cases = asked(model)
    found = explainer("gradcam", layer=layer).explain(model, cases)
    vision, text = net.vision_model, net.text_model
    for case, told in zip(cases, found, strict=True):
        with torch.no_grad():
            seen = net.visual_projection(vision(case.pixels[None]).pooler_output)
            x = vision.pre_layrnorm(vision.embeddings(case.pixels[None]))
            words = text.embeddings(case.tokens[None])
            mask = torch.full((1, 1, words.shape[1], words.shape[1]), -1e30).triu(1)
            said = words
            for block in text.encoder.layers:
                said = block(said, mask)
            said = net.text_projection(text.final_layer_norm(said[:, -1]))
        cut = len(vision.encoder.layers) - 1 if layer == -1 else layer + 1
        for block in vision.encoder.layers[:cut]:
            x = block(x, None)
        for block in text.encoder.layers[:cut]:
            words = block(words, mask)
        x, words = x.detach().requires_grad_(), words.detach().requires_grad_()
        y, spoken = x.clone(), words.clone()
        for block in vision.encoder.layers[cut:]:
            y = block(y, None)
        for block in text.encoder.layers[cut:]:
            spoken = block(spoken, mask)
        image = F.cosine_similarity(net.visual_projection(vision.post_layernorm(y[:, 0])), said)
        (grad,) = torch.autograd.grad(image.sum(), x)
        expected = cam(x[0, 1:].detach(), grad[0, 1:], "mean")
        np.testing.assert_allclose(told.image.flatten().numpy(), expected, rtol=1e-3, atol=1e-6)
        caption = F.cosine_similarity(net.text_projection(text.final_layer_norm(spoken[:, -1])), seen)
        (grad,) = torch.autograd.grad(caption.sum(), words)
        expected = cam(words[0].detach(), grad[0], "mean")
        np.testing.assert_allclose(told.text.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_relu_keeps_the_positive_part(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"])
    signed = explainer("gradcam").explain(model, cases)
    positive = explainer("gradcam", relu=True).explain(model, cases)
    assert any((told.image < 0).any() for told in signed)
    for a, b in zip(signed, positive, strict=True):
        assert torch.equal(a.image.clamp(min=0), b.image)


def test_one_forward_and_one_backward(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"])
    with model.part() as spent:
        explainer("gradcam").explain(model, cases)
    assert {spent.forward[c.id] for c in cases} == {1.0}
    assert {spent.backward[c.id] for c in cases} == {1.0}


def test_gradient_times_activation_vanishes_under_a_layer_norm(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """At the last site the patches are read through a layer norm alone: the reason for refusing ``pool = "none"``."""
    model = models["vit"]
    cases = asked(model)
    with model.watch(model.site("image.block")) as seen:
        (grad,) = torch.autograd.grad(model.score(model.stack(cases), cases).sum(), seen.value)
    product = (grad * seen.value.detach())[:, 1:]
    assert float(product.abs().sum(-1).mean()) > 1e-2
    assert float(product.sum(-1).abs().max()) < 1e-4 * float(product.abs().sum(-1).max())
    with pytest.raises(Unsuited, match="take a lower layer"):
        explainer("gradcam", pool="none").explain(model, cases)
    lower = explainer("gradcam", pool="none", layer=-2).explain(model, cases)
    assert float(lower[0].image.abs().max()) > 1e-3
