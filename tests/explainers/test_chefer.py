"""Attention with its gradient against loops over a tower that was written once more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heatproof import Unsuited, shelf
from heatproof.errors import Refused

SLOW = shelf.load(Path(__file__).with_name("slow_towers.py"))


def gradients(run: Any) -> list[np.ndarray]:
    return [g.numpy() for g in torch.autograd.grad(run.score, run.attention, retain_graph=True)]


def rolled(run: Any, first: int, reader: int) -> np.ndarray:
    """R whole, entry by entry."""
    size = run.attention[0].shape[1]
    joint = np.eye(size)
    layers = zip((a.detach().numpy() for a in run.attention), gradients(run), strict=True)
    for attention, grad in list(layers)[first:]:
        weighed = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                products = [max(0.0, float(a[i, j] * g[i, j])) for a, g in zip(attention, grad, strict=True)]
                weighed[i, j] = sum(products) / len(products)
        joint = joint + weighed @ joint
    return joint[reader]


@pytest.mark.parametrize(("name", "usual"), [("vit", 0), ("clip", -1)])
def test_rollout_layer_by_layer(
    name: str, usual: int, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    published = explainer("chefer").explain(model, cases)
    every = explainer("chefer", start_layer=0, start_layer_text=-2).explain(model, cases)
    last = explainer("chefer", start_layer=-1).explain(model, cases)
    for k, case in enumerate(cases):
        run = SLOW.pass_through(model, case)
        for told, first in ((published, usual), (every, 0), (last, -1)):
            expected = SLOW.square(rolled(run, first, 0))
            np.testing.assert_allclose(told[k].image.numpy(), expected, rtol=1e-3, atol=1e-6)
            assert float(told[k].image.min()) >= 0
        if name == "clip":
            run = SLOW.pass_through(model, case, "text")
            for told, first in ((published, -1), (every, -2)):
                expected = rolled(run, first, -1)
                np.testing.assert_allclose(told[k].text.numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "clip"])
@pytest.mark.parametrize("form", ["product", "positive", "gradient"])
@pytest.mark.parametrize("layer", [0, -1])
def test_one_layer(
    layer: int, form: str, name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    found = explainer("chefer:AttentionGradient", layer=layer, form=form).explain(model, cases)
    for told, case in zip(found, cases, strict=True):
        towers = {"image": (told.image.numpy(), 0)}
        if name == "clip":
            towers["text"] = (told.text.numpy(), -1)
        for tower, (heat, reader) in towers.items():
            run = SLOW.pass_through(model, case, tower)
            grad, rows = gradients(run)[layer][:, reader], run.attention[layer][:, reader].detach().numpy()
            product = rows * grad
            forms = {"product": product, "positive": np.maximum(product, 0), "gradient": np.abs(grad)}
            expected = forms[form].mean(0)
            expected = SLOW.square(expected) if tower == "image" else expected
            np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["adaptive", "multi_head"])
def test_a_captioners_step(name: str, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    """The gradient at attention is the score's slope when a little is added to one cell's probability."""
    model, (case,) = models[name], asked(models[name], 1)
    (told,) = explainer("chefer:AttentionGradient").explain(model, [case])
    (raw,) = explainer("attention").explain(model, [case])
    with model.watch("cross.attention 0") as seen:
        (grad,) = torch.autograd.grad(model.score(model.stack([case]), [case]).sum(), seen.value)
    step = seen.value.detach()[0, case.target]
    expected = torch.zeros(step.shape[1])
    for head in range(len(step)):
        for cell in range(step.shape[1]):
            expected[cell] += step[head, cell] * grad[0, case.target, head, cell] / len(step)
    np.testing.assert_allclose(told.image.flatten().numpy(), expected.numpy(), rtol=1e-4, atol=1e-7)
    assert told.image.shape == raw.image.shape
    assert float(told.image.abs().max()) > 0


def test_counts_and_refusals(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["vit"]
    cases = asked(model)
    for use in ("chefer", "chefer:AttentionGradient"):
        with model.part() as spent:
            explainer(use).explain(model, cases)
        assert [spent.forward[c.id] for c in cases] == [pytest.approx(1.0)] * len(cases)
        assert [spent.backward[c.id] for c in cases] == [pytest.approx(1.0)] * len(cases)
    with pytest.raises(Refused, match="found 3, vit has layers 0 to 2"):
        explainer("chefer", start_layer=3).explain(model, cases)
    with pytest.raises(Refused, match="'mean', accepted are product, positive, gradient"):
        explainer("chefer:AttentionGradient", form="mean").explain(model, cases)
    with pytest.raises(Unsuited, match="self-attention"):
        explainer("chefer").explain(models["cnn"], asked(models["cnn"]))
