"""Grad-ECLIP, LeGrad, CLIP Surgery and the mismatched pair against a tower that was written once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heatproof import Unsuited, shelf
from heatproof.errors import Refused

SLOW = shelf.load(Path(__file__).with_name("slow_towers.py"))


def joined(run: Any, layer: int, heads: torch.Tensor) -> torch.Tensor:
    return run.outputs[layer](torch.cat(list(heads), -1))


def eclip(run: Any, layers: int, spatial: str, reader: int, first: int) -> np.ndarray:
    """Token by token, head by head."""
    grads = torch.autograd.grad(run.score, run.mixed, retain_graph=True)
    size = run.attention[0].shape[1]
    heat = np.zeros(size)
    for layer in range(len(run.mixed))[-layers:]:
        query, key = joined(run, layer, run.query[layer]), joined(run, layer, run.key[layer])
        near = np.array([float(F.cosine_similarity(query[reader], k, dim=0).detach()) for k in key])
        low, high = near[first:].min(), near[first:].max()
        for i in range(size):
            for head, grad in enumerate(grads[layer]):
                own = float((grad[reader] @ run.value[layer][head, i]).detach())
                weight = {
                    "loose": (near[i] - low) / (high - low),
                    "attention": float(run.attention[layer][head, reader, i].detach()),
                    "none": 1.0,
                }[spatial]
                heat[i] += weight * own
    return heat


@pytest.mark.parametrize("spatial", ["loose", "attention", "none"])
def test_grad_eclip_token_by_token(
    spatial: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["clip"], asked(models["clip"], 2)
    for layers, text_layers in ((1, 8), (2, 1)):
        made = explainer("grad_eclip", layers=layers, text_layers=text_layers, spatial=spatial)
        for case, told in zip(cases, made.explain(model, cases), strict=True):
            run = SLOW.pass_through(model, case)
            expected = SLOW.square(eclip(run, layers, spatial, 0, 1))
            np.testing.assert_allclose(told.image.numpy(), expected, rtol=2e-3, atol=1e-6)
            run = SLOW.pass_through(model, case, "text")
            expected = eclip(run, text_layers, spatial, -1, 0)
            np.testing.assert_allclose(told.text.numpy(), expected, rtol=2e-3, atol=1e-6)


def test_attention_weights_make_grad_eclip_the_slope_of_what_is_mixed(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """With w the probabilities, all tokens of the last layer together are g times the mixed value itself."""
    model, (case,) = models["clip"], asked(models["clip"], 1)
    run = SLOW.pass_through(model, case, "text")
    grad = torch.autograd.grad(run.score, run.mixed[-1])[0]
    (told,) = explainer("grad_eclip", text_layers=1, spatial="attention").explain(model, [case])
    assert float(told.text.sum()) == pytest.approx(
        float((grad[:, -1] * run.mixed[-1][:, -1]).sum().detach()), rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("name", ["vit", "clip"])
@pytest.mark.parametrize("layers", [1, 2, None])
def test_legrad_layer_by_layer(
    layers: int | None, name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    found = explainer("legrad", layers=layers).explain(model, cases)
    for case, told in zip(cases, found, strict=True):
        run = SLOW.pass_through(model, case)
        count, heat = len(run.attention), 0.0
        for layer in range(count - (layers or count), count):
            answer = SLOW.read(model, case, sum(run.tokens[layer + 1]) / len(run.tokens[0]))
            (grad,) = torch.autograd.grad(answer, run.attention[layer], retain_graph=True)
            heat = heat + grad.clamp(min=0).mean(0).mean(0).numpy()
        np.testing.assert_allclose(told.image.numpy(), SLOW.square(heat), rtol=1e-3, atol=1e-6)
        assert told.text is None


def second_path(run: Any, depth: int) -> torch.Tensor:
    """[T, D]: each value of a head compared with each other, one by one."""
    count = len(run.value)
    path = run.tokens[count - depth].detach().clone()
    for layer in range(count - depth, count):
        heads = []
        for value in run.value[layer].detach():
            rows = []
            for v in value:
                logits = torch.stack([v @ other / v.shape[0] ** 0.5 for other in value])
                chance = logits.exp() / logits.exp().sum()
                rows.append(sum(c * other for c, other in zip(chance, value, strict=True)))
            heads.append(torch.stack(rows))
        path = path + joined(run, layer, torch.stack(heads)).detach()
    return path


def cosines(model: Any, tokens: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    net = model.net
    with torch.no_grad():
        rows = net.visual_projection(net.vision_model.post_layernorm(tokens))
        return F.cosine_similarity(rows, text[None]).numpy()


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_surgery_path_by_path(depth: int, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["clip"], asked(models["clip"], 2)
    plain = explainer("clip_surgery", depth=depth, features="none").explain(model, cases)
    empty = explainer("clip_surgery", depth=depth).explain(model, cases)
    for k, case in enumerate(cases):
        run = SLOW.pass_through(model, case)
        tokens = second_path(run, min(depth, len(run.value)))
        own = cosines(model, tokens, SLOW.said(model, case.tokens))
        nothing = cosines(model, tokens, SLOW.said(model, torch.tensor([1, 2])))
        np.testing.assert_allclose(plain[k].image.numpy(), SLOW.square(own), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(empty[k].image.numpy(), SLOW.square(own - nothing), rtol=1e-3, atol=1e-5)


def test_feature_surgery_among_choices(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["clip"]
    texts = ("a red ball", "blue box", "a tall cone")
    (case,) = asked(model, 1)
    case = replace(case, target="blue box", choices=texts)
    (told,) = explainer("clip_surgery", features="choices", depth=0).explain(model, [case])
    ids = [torch.tensor(model.tokenizer(text, 12)[0]) for text in texts]
    said = [F.normalize(SLOW.said(model, i), dim=0) for i in ids]
    tokens = SLOW.pass_through(model, case).tokens[-1].detach()
    net = model.net
    with torch.no_grad():
        feats = F.normalize(net.visual_projection(net.vision_model.post_layernorm(tokens)), dim=-1)
    whole = torch.softmax(2 * torch.stack([feats[0] @ t for t in said]), 0)
    weights = whole / whole.mean()
    # channel by channel, as published: products, less their mean over texts, summed
    products = torch.stack([w * feats * t for w, t in zip(weights, said, strict=True)])
    expected = (products - products.mean(0)).sum(-1)[1]
    np.testing.assert_allclose(told.image.numpy(), SLOW.square(expected.numpy()), rtol=1e-3, atol=1e-5)
    with pytest.raises(Refused, match="needs the text among rivals"):
        explainer("clip_surgery", features="choices").explain(model, asked(model, 1))


def test_costs(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    """A tower each for Grad-ECLIP, and what its text and image are compared with; LeGrad's layers; Surgery's texts."""
    model = models["clip"]
    cases = asked(model, 3)

    def spent(use: str, **settings: Any) -> tuple[float, float]:
        model.memo.clear()
        with model.part() as meter:
            explainer(use, **settings).explain(model, cases)
        assert len({round(meter.forward[c.id], 9) for c in cases}) == 1
        assert set(meter.forward) == {c.id for c in cases}
        return meter.forward["case0"], meter.backward["case0"]

    assert spent("grad_eclip") == (4.0, 2.0)
    forward, backward = spent("legrad", layers=1)
    assert forward == pytest.approx(2.0), "the text, and the image once"
    forward, _ = spent("legrad", layers=2)
    assert 2.6 < forward < 2.8
    assert backward > 0
    forward, backward = spent("clip_surgery")
    assert 3.0 < forward < 3.2
    assert backward == 0


def test_who_is_suited(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    for use, suited in (
        ("grad_eclip", {"clip"}),
        ("legrad", {"clip", "vit"}),
        ("clip_surgery", {"clip"}),
    ):
        for name, model in models.items():
            if name in suited:
                assert explainer(use).explain(model, asked(model, 1))[0].image.shape == (4, 4)
            else:
                with pytest.raises(Unsuited):
                    explainer(use).explain(model, asked(model, 1))
    with pytest.raises(Refused, match="'tight', accepted are loose, attention, none"):
        explainer("grad_eclip", spatial="tight").explain(models["clip"], asked(models["clip"], 1))
    with pytest.raises(Refused, match="found less than 1"):
        explainer("grad_eclip", layers=0).explain(models["clip"], asked(models["clip"], 1))
    with pytest.raises(Refused, match="'all', accepted are empty, choices, none"):
        explainer("clip_surgery", features="all").explain(models["clip"], asked(models["clip"], 1))


def test_mismatched_is_this_image_told_anothers_text(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models["clip"]
    cases = asked(model, 3)
    alone = replace(cases[2], other=None)
    gradcam = explainer("gradcam")
    model.memo.clear()
    made = explainer("mismatched", of=gradcam)
    with model.part() as spent:
        told = made.explain(model, [*cases[:2], alone])
    assert set(spent.forward) == {"case0", "case1"}
    for k in range(2):
        other = cases[k + 1]
        pair = replace(other, id=f"pair {k}", pixels=cases[k].pixels)
        (expected,) = gradcam.explain(model, [pair])
        assert torch.equal(told[k].image, expected.image)
        (own,) = gradcam.explain(model, [cases[k]])
        assert not torch.equal(told[k].image, own.image)
        assert told[k].text is None
    assert told[2].image is None
    assert made.needs_other
    assert explainer("mismatched", of=gradcam).explain(models["adaptive"], asked(models["adaptive"], 2))
    with pytest.raises(Unsuited, match="no caption to exchange"):
        explainer("mismatched", of=gradcam).explain(models["cnn"], asked(models["cnn"], 1))
