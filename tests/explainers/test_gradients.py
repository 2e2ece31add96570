"""SmoothGrad, VarGrad, layer integrated gradients and DeepLIFT: loops, closed forms, Captum, the released NIB arrays."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, NoiseTunnel, Saliency
from captum.attr import IntegratedGradients as CaptumIG
from torch import nn
from transformers import CLIPConfig, CLIPModel

from heatproof import Unsuited, geometry, seeds
from heatproof.contract import Case
from heatproof.errors import Refused
from heatproof.geometry import Frame
from heatproof.lrp.rescale import rescale
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier
from heatproof.models.hf_clip import clip

FOLDER = Path(os.environ.get("HEATPROOF_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


def slope(model: Any, x: torch.Tensor, case: Case) -> torch.Tensor:
    x = x[None].clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.net(x).logits[0, case.target], x)
    return grad[0].double()


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_mean_and_variance_copy_by_copy(
    name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    means = explainer("smoothgrad", samples=7, noise=0.1).explain(model, cases)
    variances = explainer("smoothgrad:VarGrad", samples=7, noise=0.1).explain(model, cases)
    for case, mean, variance in zip(cases, means, variances, strict=True):
        chance, grads = case.generator("smoothgrad"), []
        spread = 0.1 * float(case.pixels.max() - case.pixels.min())
        for _ in range(7):
            noise = spread * torch.randn(case.pixels.shape, generator=chance)
            grads.append(slope(model, case.pixels + noise, case).numpy())
        scale = np.abs(grads).max()
        np.testing.assert_allclose(mean.image.numpy(), np.mean(grads, 0), rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(variance.image.numpy(), np.var(grads, 0), rtol=1e-2, atol=1e-4 * scale**2)


def test_captum_smooths_to_the_same_in_expectation(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, (case,) = models["cnn"], asked(models["cnn"], 1)
    spread = 0.15 * float(case.pixels.max() - case.pixels.min())
    tunnel = NoiseTunnel(Saliency(lambda rows: model.score(rows, [case] * len(rows))))
    for use, kind in (("smoothgrad", "smoothgrad"), ("smoothgrad:VarGrad", "vargrad")):
        (told,) = explainer(use, samples=400).explain(model, [case])
        with seeds.forked("captum"):
            expected = tunnel.attribute(
                case.pixels[None],
                nt_type=kind,
                nt_samples=400,
                nt_samples_batch_size=40,
                stdevs=spread,
                abs=False,
            )
        similar = torch.corrcoef(torch.stack([told.image.flatten(), expected.flatten()]))[0, 1]
        assert float(similar) > 0.9
        assert float(told.image.norm()) == pytest.approx(float(expected.norm()), rel=0.1)


# ---------------------------------------------------------------- a layer's path


@pytest.mark.parametrize(("name", "layer"), [("cnn", 0), ("vit", 0), ("clip", 0), ("adaptive", -1)])
@pytest.mark.parametrize("rule", ["riemann_right", "gausslegendre"])
def test_captum_integrates_the_layer_to_the_same(
    rule: str, name: str, layer: int, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name], 2)
    found = explainer("layer_ig:LayerIg", layer=layer, steps=6, rule=rule).explain(model, cases)
    towers = ["image"] + (["text"] if name == "clip" else [])
    for case, told in zip(cases, found, strict=True):
        for tower in towers:
            kind = f"{tower}.conv" if f"{tower}.conv" in model.sites else f"{tower}.block"
            site = model.site(kind, layer)
            with torch.no_grad():
                hidden = model.upto(site, case.pixels[None], [case])
            reference = CaptumIG(lambda rows, s=site, c=case: model.above(s, rows, [c] * len(rows)))
            expected = reference.attribute(hidden, n_steps=6, method=rule)[0]
            if tower == "text":
                size = len(case.tokens)
                np.testing.assert_allclose(
                    told.text.numpy(), expected[:size].sum(-1).numpy(), rtol=1e-3, atol=1e-5
                )
                assert float(expected[size:].abs().max()) == 0, "padding is not read"
            else:
                expected = model.grid(expected) if kind == "image.block" else expected
                np.testing.assert_allclose(told.image.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)


def test_it_sums_to_the_score(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 3)
    found = explainer("layer_ig:LayerIg", layer=1, steps=100).explain(model, cases)
    site = model.site("image.conv", 1)
    with torch.no_grad():
        hidden = model.upto(site, model.stack(cases), cases)
        gap = model.above(site, hidden, cases) - model.above(site, 0 * hidden, cases)
    np.testing.assert_allclose([float(t.image.sum()) for t in found], gap.numpy(), rtol=0.01, atol=1e-3)


def test_what_is_below_the_layer_is_run_once(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["vit"]
    cases = asked(model, 3)
    with model.part() as spent:
        explainer("layer_ig:LayerIg", steps=9, layer=1).explain(model, cases)
    below = sum(model._weights("image")[:3])
    for case in cases:
        assert spent.forward[case.id] == pytest.approx(below + 9 * (1 - below))
        assert spent.backward[case.id] == pytest.approx(9 * (1 - below))


def test_nib_is_layer_ig(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["clip"], asked(models["clip"], 2)
    named = explainer("layer_ig:Nib").explain(model, cases)
    meant = explainer("layer_ig:LayerIg", layer=-2, steps=10, rule="riemann_right").explain(model, cases)
    for a, b in zip(named, meant, strict=True):  # two sites: a lower tower is read at its first
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.text, b.text)


@pytest.mark.skipif(not (FOLDER / "m2ib").is_dir(), reason=f"HEATPROOF_PARITY: nothing at {FOLDER}")
def test_the_released_nib_maps(explainer: Callable[..., Any]) -> None:
    """FIXTURES.md: layer IG at the hidden state that enters the block after the stored layer's; tolerance 1e-6."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(FOLDER / "m2ib" / f"{name}.npz") as file:
            return dict(file)

    config = json.loads((FOLDER / "m2ib" / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng():
        net = CLIPModel(CLIPConfig(**config))
    net.load_state_dict({k: torch.from_numpy(v) for k, v in read("state").items()}, strict=False)

    class Ids:
        bos, eos, pad = (config["text_config"][f"{k}_token_id"] for k in ("bos", "eos", "pad"))
        unknown = pad

    model = clip("reference", net, Ids(), frame=Frame(config["vision_config"]["image_size"]))
    inputs, told = read("inputs"), read("ref_nib")
    pixels, ids = torch.from_numpy(inputs["pixel_values"])[0], torch.from_numpy(inputs["input_ids"])[0]
    case = Case("c", "s", "", pixels, "", tokens=ids, words=(-1,) * len(ids))
    (found,) = explainer("layer_ig:Nib", layer=1).explain(model, [case])  # what enters block 2
    heat = geometry.read(found.image, (224, 224))
    np.testing.assert_allclose(scaled(heat).numpy(), told["vision_layer2_steps10"][0, 0], atol=1e-5)
    np.testing.assert_allclose(scaled(found.text).numpy(), told["text_layer2_steps10"], atol=1e-5)


def scaled(heat: torch.Tensor) -> torch.Tensor:
    return (heat - heat.min()) / (heat.max() - heat.min())


# ---------------------------------------------------------------- DeepLIFT


def plain(*layers: nn.Module) -> Classifier:
    """A classifier of 32 x 32 images out of layers, with what leaves the convolutions meaned and told apart."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        body = nn.Sequential(*(copy.deepcopy(layer) for layer in layers))
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        net = nn.Sequential(body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(4))
        net(torch.zeros(1, 3, 32, 32))

    def stages(net: nn.Sequential) -> list[Stage]:
        rest = net[1:]
        return [Stage("image.conv 0", lambda x, _: net[0](x)), Stage(None, lambda x, _: rest(x))]

    labels = {name: (k,) for k, name in enumerate("pqrs")}
    return Classifier("plain", net, Frame(32), stages=stages, labels=labels)


class Twice(nn.Module):
    """One module, two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(0.5 - self.act(x))


@pytest.mark.parametrize("baseline", ["mean", "black"])
@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.ReLU()),
        (nn.Conv2d(3, 5, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(5, 6, 3), nn.ReLU(inplace=True)),
    ],
    ids=["maximum", "mean"],
)
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captum_lifts_to_the_same(
    layers: Any, baseline: str, asked: Any, explainer: Callable[..., Any]
) -> None:
    """Where a maximum stands right above an activation function, Captum's does not: see the next test."""
    model = plain(*layers)
    cases = asked(model, 3)
    found = explainer("deeplift", baseline=baseline).explain(model, cases)
    blank = -torch.ones(1, 3, 32, 32) if baseline == "black" else torch.zeros(1, 3, 32, 32)
    reference = DeepLift(copy.deepcopy(model.net))
    for case, told in zip(cases, found, strict=True):
        expected = reference.attribute(case.pixels[None].clone().requires_grad_(), blank, target=case.target)[
            0
        ].detach()
        scale = float(expected.abs().max())
        print("largest deviation from Captum", float((told.image - expected).abs().max()) / scale)
        np.testing.assert_allclose(told.image.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_a_maximum_right_above_an_activation_is_complete_here_and_not_in_captum() -> None:
    """The maximum falls from tanh 0.9 at the last place to tanh 0.8: the change is the last place's."""
    net = nn.Sequential(nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.ones_(net[3].weight)
    x, base = torch.tensor([[[[0.1, 0.8], [0.3, -0.5]]]]), torch.tensor([[[[0.6, 0.2], [-0.4, 0.9]]]])
    gap = float((net(x) - net(base)).detach())
    twin = copy.deepcopy(net)
    rescale(twin)
    with torch.no_grad():
        twin(base)
    for layer in twin[:2]:
        layer.second = True
    rows = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(twin(rows).sum(), rows)
    np.testing.assert_allclose((grad * (x - base))[0, 0].numpy(), [[0, 0], [0, gap]], atol=1e-6)
    captum = DeepLift(net).attribute(x.clone().requires_grad_(), base, target=0)
    assert abs(float(captum.sum().detach()) - gap) > 0.1


@pytest.mark.parametrize("baseline", ["mean", "black"])
@pytest.mark.parametrize("kind", ["resnet", "relu6", "gelu"])
def test_it_sums_to_the_difference(
    kind: str, baseline: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """With overlapping maxima (the ResNet's stem has 3 x 3 at stride 2), ReLU6 and smooth functions too."""
    model = models["cnn"]
    if kind != "resnet":
        act = nn.ReLU6() if kind == "relu6" else nn.GELU()
        layers = (nn.Conv2d(3, 5, 3), copy.deepcopy(act), nn.MaxPool2d(3, 2, 1, ceil_mode=True))
        model = plain(*layers, nn.Conv2d(5, 6, 3), copy.deepcopy(act))
    cases = asked(model)
    found = explainer("deeplift", baseline=baseline).explain(model, cases)
    x = model.stack(cases)
    blank = -torch.ones_like(x) if baseline == "black" else torch.zeros_like(x)
    gap = model.score(x, cases) - model.score(blank, cases)
    np.testing.assert_allclose([float(t.image.sum()) for t in found], gap.numpy(), rtol=1e-3, atol=1e-4)


def test_one_unit_in_closed_form(asked: Any, explainer: Callable[..., Any]) -> None:
    """relu(w x + b): each input has its share of the unit's change, whichever side of the kink it ends on."""
    model = plain(nn.Conv2d(3, 1, 32), nn.ReLU())
    with torch.no_grad():
        model.net[0][0].bias[:] = -0.2
    (case,) = asked(model, 1)
    (told,) = explainer("deeplift").explain(model, [case])
    with torch.no_grad():
        into = float(model.net[0][0](case.pixels[None]))
        above = float(model.net[3].weight[case.target].sum())
    change = max(into, 0.0) - max(-0.2, 0.0)
    expected = model.net[0][0].weight[0] * case.pixels * above * change / (into + 0.2)
    np.testing.assert_allclose(told.image.numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-7)


def test_deeplift_forgets_also_when_it_fails(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    made = explainer("deeplift")
    before = made.explain(model, cases)

    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("on the way back")

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", fails)
        with pytest.raises(ValueError, match="on the way back"):
            made.explain(model, cases)
    assert all(torch.equal(a.image, b.image) for a, b in zip(made.explain(model, cases), before, strict=True))
    assert not any(type(m).__name__.startswith("Rescaled") for m in model.net.modules())


def test_where_deeplift_is_defined(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    made = explainer("deeplift")
    cases = asked(models["cnn"], 3)
    with models["cnn"].part() as spent:
        made.explain(models["cnn"], cases)
    assert [spent.forward[c.id] for c in cases] == [2.0] * 3
    assert [spent.backward[c.id] for c in cases] == [1.0] * 3
    for name in ("vit", "clip", "adaptive", "multi_head"):
        with pytest.raises(Unsuited, match="activations multiply each other"):
            made.explain(models[name], asked(models[name], 1))
    strange = plain(nn.Conv2d(3, 4, 3), nn.Softmax2d())
    with pytest.raises(Unsuited, match=r"no rule for Softmax2d \(0\.1\)"):
        made.explain(strange, asked(strange, 1))
    twice = plain(nn.Conv2d(3, 3, 3), Twice())
    with pytest.raises(Unsuited, match="a ReLU is called twice"):
        made.explain(twice, asked(twice, 1))
    with pytest.raises(Refused, match="'grey', accepted are mean, black"):
        explainer("deeplift", baseline="grey").explain(models["cnn"], cases)
