"""Every explainer of the shelf asked about SigLIP, which has no class token, pools by attention and reads padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Unsuited, geometry, shelf

ROOT = Path(__file__).resolve().parents[2]
NETS = shelf.load(ROOT / "tests" / "models" / "siglip_nets.py")
EVERY = shelf.load(Path(__file__).with_name("test_every.py"))
UNSUITED = {
    "clip_surgery": "as its class token is read; .* with 0 such tokens",
    "deeplift": "where activations multiply each other",
    "grad_eclip": "reads the class token .* with 0 such tokens",
    "guided:GuidedBackprop": "needs ReLU layers",
    "guided:GuidedGradCam": "needs convolutions",
    **{
        f"captioner_gradients:{name}": "go through a captioner's decoder"
        for name in ("Gradient", "InputXGradient", "GuidedBackprop", "GradCam", "GuidedGradCam")
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return NETS.models(tmp_path_factory.mktemp("siglips"))


@pytest.fixture
def asked(made: Any) -> Any:
    model, net = made["siglip"]
    model.memo.clear()
    return model, net, NETS.cases(model)


def partners(cases: list[Any]) -> list[Any]:
    """Each case with the next as its other."""
    following = [*cases[1:], cases[0]]
    return [dataclasses.replace(c, other=lambda o=o: o) for c, o in zip(cases, following, strict=True)]


@pytest.mark.parametrize("use", EVERY.SHELF)
def test_each_works_or_says_why_not(use: str, asked: Any, explainer: Callable[..., Any]) -> None:
    model, _, cases = asked
    cases, made = partners(cases), EVERY.build(explainer, use)
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    if use in UNSUITED:
        with pytest.raises(Unsuited, match=UNSUITED[use]):
            EVERY.answer(made, model, cases)
        return
    whole = EVERY.answer(made, model, cases)
    fitted = hasattr(made, "fit")
    parts = whole if fitted else [EVERY.answer(made, model, [case])[0] for case in cases]
    backwards = EVERY.answer(made, model, cases[::-1])[::-1]
    for case, told, alone, turned in zip(cases, whole, parts, backwards, strict=True):
        assert EVERY.same(told, alone)
        assert EVERY.same(told, turned)
        assert told.image.isfinite().all()
        assert geometry.read(told.image, (NETS.SIZE, NETS.SIZE)).shape == (NETS.SIZE, NETS.SIZE)
        assert told.text is None or (told.text.shape == case.tokens.shape and told.text.isfinite().all())
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    assert not model._watches


# ---------------------------------------------------------------- slow twins from the formulas


def pool(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, D] after some block -> the image's embedding [D] and the probe's attention [heads, T], head by head."""
    head, x = net.vision_model.head, net.vision_model.post_layernorm(x)
    width, attention = x.shape[1], net.vision_model.head.attention
    rows, values = [], []
    for h in range(2):
        q, k, v = (slice(p * width + 8 * h, p * width + 8 * h + 8) for p in range(3))
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        query = head.probe[0, 0] @ weight[q].T + bias[q]
        rows.append(((x @ weight[k].T + bias[k]) @ query / 8**0.5).softmax(0))
        values.append(x @ weight[v].T + bias[v])
    looks = torch.stack(rows)
    y = attention.out_proj(torch.cat([look @ value for look, value in zip(looks, values, strict=True)]))
    return y + head.mlp(head.layernorm(y)), looks


def library(net: Any, case: Any) -> dict[str, Any]:
    """The library's forward on one case, with its attention probabilities in the graph, and the pooling's by the twin."""
    out = net(
        input_ids=NETS.padded(case.tokens),
        **NETS.seen(net, case.pixels),
        output_attentions=True,
        output_hidden_states=True,
    )
    hidden = out.vision_model_output.hidden_states
    image, row = pool(net, hidden[3][0])
    text = out.text_model_output.pooler_output[0]
    assert torch.allclose(image, out.vision_model_output.pooler_output[0], atol=1e-5)
    return {
        "hidden": hidden,
        "pool": row,
        "image": out.vision_model_output.attentions,
        "text": out.text_model_output.attentions,
        "text_embedding": text,
        "score": F.cosine_similarity(image, text, dim=0),
    }


def gap(found: Tensor, expected: Tensor) -> None:
    off = float((found - expected).detach().abs().max())
    size = float(expected.detach().abs().max())
    print(f"off by at most {off:.1e} of {size:.1e}")
    assert found.shape == expected.shape
    assert off < 1e-5 * max(1.0, size)
    assert off < 1e-2 * size


def test_attention_and_rollout(asked: Any, explainer: Callable[..., Any]) -> None:
    model, net, cases = asked
    raw, low, rolled = (
        explainer(*use).explain(model, cases)
        if len(use) == 1
        else explainer(use[0], **use[1]).explain(model, cases)
        for use in (("attention",), ("attention", {"layer": 1}), ("rollout",))
    )
    for k, case in enumerate(cases):
        own, n = library(net, case), len(case.tokens)
        gap(raw[k].image.flatten(), own["pool"].mean(0))
        gap(raw[k].text, own["text"][2][0].mean(0)[-1, :n])
        gap(low[k].image.flatten(), own["image"][1][0].mean((0, 1)))
        gap(low[k].text, own["text"][1][0].mean(0)[-1, :n])
        image, text = torch.eye(16), torch.eye(NETS.LENGTH)
        for layer in range(3):
            image = half(own["image"][layer]) @ image
            text = half(own["text"][layer]) @ text
        gap(rolled[k].image.flatten(), own["pool"].mean(0) @ image)
        gap(rolled[k].text, text[-1, :n])
        assert float(rolled[k].image.sum()) == pytest.approx(1, abs=1e-5)


def half(attention: Tensor) -> Tensor:
    """[1, heads, T, T] -> (mean + identity) / 2."""
    mean = attention[0].mean(0)
    return (mean + torch.eye(len(mean))) / 2


def test_chefer_and_attention_times_gradient(asked: Any, explainer: Callable[..., Any]) -> None:
    model, net, cases = asked
    last = explainer("chefer").explain(model, cases)
    every = explainer("chefer", start_layer=0, start_layer_text=0).explain(model, cases)
    product = explainer("chefer:AttentionGradient").explain(model, cases)
    middle = explainer("chefer:AttentionGradient", layer=1).explain(model, cases)
    for k, case in enumerate(cases):
        own, n = library(net, case), len(case.tokens)
        held = [own["pool"], *own["image"], *own["text"]]
        grads = torch.autograd.grad(own["score"], held)
        (pooled, *layers) = (a * g for a, g in zip(held, grads, strict=True))
        images, texts = layers[:3], layers[3:]
        gap(last[k].image.flatten(), pooled.clamp(min=0).mean(0))
        gap(product[k].image.flatten(), pooled.mean(0))
        gap(product[k].text, texts[2][0, :, -1, :n].mean(0))
        gap(middle[k].image.flatten(), images[1][0].mean((0, 1)))
        row = torch.zeros(NETS.LENGTH)
        row[-1] = 1
        gap(last[k].text, (row + texts[2][0].clamp(min=0).mean(0)[-1])[:n])
        image, text = torch.eye(16), torch.eye(NETS.LENGTH)
        for a, b in zip(images, texts, strict=True):
            image = image + a[0].clamp(min=0).mean(0) @ image
            text = text + b[0].clamp(min=0).mean(0) @ text
        gap(every[k].image.flatten(), pooled.clamp(min=0).mean(0) @ image)
        gap(every[k].text, text[-1, :n])


@pytest.mark.parametrize("layers", [1, 2, None])
def test_legrad_reads_each_layer_by_the_pooling(
    asked: Any, explainer: Callable[..., Any], layers: Any
) -> None:
    model, net, cases = asked
    found = explainer("legrad", layers=layers).explain(model, cases)
    for told, case in zip(found, cases, strict=True):
        own, heat = library(net, case), torch.zeros(16)
        for k in range(3 if layers is None else layers):
            image, row = pool(net, own["hidden"][3 - k][0].detach())
            score = F.cosine_similarity(image, own["text_embedding"].detach(), dim=0)
            heat = heat + torch.autograd.grad(score, row)[0].clamp(min=0).mean(0)
        gap(told.image.flatten(), heat)


def test_m2ib_puts_padding_through_the_bottleneck_too(asked: Any, explainer: Callable[..., Any]) -> None:
    model, _, cases = asked
    made, sizes, true = explainer("m2ib", steps=3, repeats=2), [], model.above

    def above(site: str, activation: Tensor, *more: Any, **settings: Any) -> Tensor:
        sizes.append((site, activation.shape[1]))
        return true(site, activation, *more, **settings)

    model.above = above
    try:
        found = made.explain(model, cases)
    finally:
        del model.above
    assert set(sizes) == {("image.block 1", 16), ("text.block 0", NETS.LENGTH)}
    for told, case in zip(found, cases, strict=True):
        assert told.text.shape == case.tokens.shape
        assert (told.text > 0).all()
