"""LRP's rules, composites and folding, against loops written from the formulas and against Captum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LRP as CaptumLRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from heatproof.contract import Case, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.lrp.composites import NAMES, Composite, from_score
from heatproof.lrp.folding import fold_batch_norms
from heatproof.lrp.rules import Alpha1Beta0, Clipped, Epsilon, Gamma
from heatproof.models import hf_classifier
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier

EPSILON, GAMMA = 1e-6, 0.25
RULES: dict[str, Callable[[Any], nn.Module]] = {
    "epsilon": lambda layer: Epsilon(layer, 0.3),
    "gamma": lambda layer: Gamma(layer, 0.4),
    "alpha1beta0": Alpha1Beta0,
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield
    torch.set_default_dtype(torch.float32)


def case(size: int, target: int = 1) -> Case:
    return Case("c", "s", "p", torch.randn(3, size, size), target)


# ---------------------------------------------------------------- one layer, by loops over contributions


def shares(rule: str, x: np.ndarray, w: np.ndarray, b: np.ndarray, settings: float) -> np.ndarray:
    """[inputs, outputs]: which share of each output's relevance an input gets; x [I], w [I, J], b [J]."""
    found = np.zeros(w.shape)
    for j in range(w.shape[1]):
        c = [x[i] * w[i, j] for i in range(len(x))]
        z = sum(c) + b[j]
        if rule == "epsilon":
            counted, below = c, z + (settings if z >= 0 else -settings)
        elif rule == "gamma":
            sign = 1 if z >= 0 else -1
            own = [v if v * sign > 0 else 0.0 for v in c]
            counted = [v + settings * o for v, o in zip(c, own, strict=True)]
            below = sum(counted) + b[j] + settings * (b[j] if b[j] * sign > 0 else 0.0)
        else:
            counted = [max(v, 0.0) for v in c]
            below = sum(counted) or 1e-7
        for i in range(len(x)):
            found[i, j] = counted[i] / below
    return found


def dense(layer: nn.Module, x: Tensor) -> np.ndarray:
    """The layer's weights as one matrix [inputs, outputs]."""
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0].flatten(), x)
    return jacobian.reshape(jacobian.shape[0], -1).T.numpy()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "no bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 3, 3)),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula(rule: str, kind: str, signed: bool) -> None:
    make, shape = LAYERS[kind]
    layer = make().requires_grad_(False)
    x = torch.randn(shape) if signed else torch.rand(shape)
    z = layer(x[None])[0].flatten()
    given_ = torch.randn(z.shape)
    bias = np.zeros(len(z)) if layer.bias is None else layer(torch.zeros(1, *shape)).flatten().numpy()
    setting = {"epsilon": 0.3, "gamma": 0.4}.get(rule, 0.0)
    expected = shares(rule, x.flatten().numpy(), dense(layer, x), bias, setting) @ given_.numpy()

    probe = x[None].clone().requires_grad_()
    out = RULES[rule](layer)(probe)
    assert torch.allclose(out.detach().flatten(), z, rtol=1e-12)  # the forward is untouched
    (g,) = torch.autograd.grad(out, probe, (given_ / z).view_as(out))
    np.testing.assert_allclose((x * g[0]).flatten().numpy(), expected, rtol=1e-9, atol=1e-11)


@given(st.integers(0, 10_000), st.sampled_from(sorted(RULES)))
@settings(max_examples=40, deadline=None)
def test_without_bias_and_stabiliser_nothing_is_lost(seed: int, rule: str) -> None:
    chance = torch.Generator().manual_seed(seed)
    layer = nn.Linear(7, 4, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(4, 7, generator=chance))
    x = torch.randn(1, 7, generator=chance).requires_grad_()
    made = Epsilon(layer, 0.0) if rule == "epsilon" else RULES[rule](layer)
    z = made(x)
    fed = (layer.weight * x > 0).any(1)  # an output to which nothing contributes has nobody to give to
    whole = (z * fed).sum()
    (g,) = torch.autograd.grad(whole, x)
    assert float((x.detach() * g).sum()) == pytest.approx(float(whole.detach()), rel=1e-9, abs=1e-9)


def test_relu6_hands_on_all_relevance_where_it_saturates() -> None:
    x = torch.tensor([-1.0, 0.0, 3.0, 9.0], requires_grad=True)
    y = Clipped()(x)
    assert y.tolist() == [0, 0, 3, 6]
    (g,) = torch.autograd.grad(y, x, torch.full((4,), 2.0))
    assert (x * g).tolist() == [0, 0, 6, 12]  # = y * 2


@pytest.mark.parametrize("name", ["epsilon_gamma_box", "epsilon_plus_flat"])
def test_no_relevance_is_lost_into_padding_that_stands_alone(name: str) -> None:
    """A zero pad before the first convolution is the same net as one inside it, and no zero of it is a pixel."""
    inside = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU()).requires_grad_(False)
    apart = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()).requires_grad_(False)
    apart[1].weight.copy_(inside[0].weight)
    x = torch.rand(2, 3, 5, 5) * 2 - 1
    found = []
    for net in (inside, apart):
        Composite(name).edit(net, frame=Frame(5))
        probe = x.clone().requires_grad_()
        y = net(probe)
        found.append(torch.autograd.grad(y.sum(), probe)[0])
        assert float(found[-1].sum()) == pytest.approx(float(y.detach().sum()), rel=1e-9)
    assert torch.allclose(found[0], found[1])


# ---------------------------------------------------------------- folding


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_keeps_the_function(affine: bool, bias: bool) -> None:
    norm = nn.BatchNorm2d(4, affine=affine)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), norm, nn.ReLU()).eval()
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape))
    x = torch.randn(2, 3, 6, 6)
    before = net(x)
    fold_batch_norms(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert torch.allclose(net(x), before, rtol=1e-12)


def test_a_batch_norm_without_its_convolution_is_refused_by_name() -> None:
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    with pytest.raises(Unsuited, match=r"BatchNorm2d \(1\)"):
        Composite().edit(net)
    with pytest.raises(Unsuited, match="Softplus"):
        Composite().edit(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softplus()))
    with pytest.raises(Unsuited, match="no convolution sees pixels"):
        Composite("epsilon_plus_flat").edit(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(Refused, match="mixing: found 'half', accepted are attnlrp, constant"):
        Composite(mixing="half")
    with pytest.raises(Refused, match="gama"):
        Composite("gama")


# ---------------------------------------------------------------- a residual net, relevance form, layer by layer


def resnet(biased: bool = True) -> Classifier:
    config = ResNetConfig(
        num_labels=3, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2], layer_type="basic"
    )
    net = ResNetForImageClassification(config)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape))
        elif value.is_floating_point() and value.ndim == 1:
            plain = name.endswith(("bias", "running_mean"))
            value.copy_(torch.randn(value.shape) * 0.5 if biased or not plain else value * 0)
    labels = {name: (k,) for k, name in enumerate("pqr")}
    model = Classifier("r", net.double(), Frame(24), stages=hf_classifier.resnet, labels=labels)
    return model


def _ones(layer: nn.Conv2d) -> nn.Conv2d:
    made = copy.deepcopy(layer)
    made.weight.fill_(1.0)
    return made


class Slow:
    """Relevance R itself goes back here (not g), through a net whose batch norms are folded."""

    def __init__(self, composite: str) -> None:
        self.composite = composite
        self.kept = 0.0  # by biases and stabilisers

    def weights(self, layer: Any, x: Tensor, relevance: Tensor) -> Tensor:
        linear = isinstance(layer, nn.Linear)
        name = self.composite.replace("epsilon_gamma_box", "gamma").removesuffix("_flat")
        rule = {"epsilon_plus": "epsilon" if linear else "alpha1beta0"}.get(name, name)
        if linear and rule == "gamma":
            rule = "epsilon"
        size = layer(x).shape
        bias = layer(torch.zeros_like(x)).flatten().numpy()
        setting = {"epsilon": EPSILON, "gamma": GAMMA}.get(rule, 0.0)
        share = shares(rule, x[0].flatten().numpy(), dense(layer, x[0]), bias, setting)
        found = torch.from_numpy(share @ relevance.reshape(size).flatten().numpy())
        self.kept += float(relevance.sum() - found.sum())
        return found.view_as(x)

    def pixels(self, layer: Any, x: Tensor, relevance: Tensor) -> Tensor:
        """The box rule for pixels in [-1, 1], or equal parts for all that an output sees."""
        w, x0, r = dense(layer, x[0]), x[0].flatten().numpy(), relevance.flatten().numpy()
        found = np.zeros(len(x0))
        seen = dense(_ones(layer), x[0])
        for j in range(w.shape[1]):
            if self.composite.endswith("_flat"):
                parts = seen[:, j]
            else:
                parts = np.array([x0[i] * v - (-1) * max(v, 0) - min(v, 0) for i, v in enumerate(w[:, j])])
            found += parts / parts.sum() * r[j]
        self.kept += float(relevance.sum()) - found.sum()
        return torch.from_numpy(found).view_as(x)

    def run(self, net: Any, x: Tensor, target: int) -> Tensor:
        stem = net.resnet.embedder
        trail: list[Callable[[Tensor], Tensor]] = []
        conv = stem.embedder.convolution
        own = self.composite.endswith(("_box", "_flat"))
        trail.append(lambda r, x=x: (self.pixels if own else self.weights)(conv, x, r))
        y = torch.relu(conv(x))
        top, where = nn.functional.max_pool2d(y, 3, 2, 1, return_indices=True)
        trail.append(lambda r, y=y, where=where: self.winners(r, where, y))
        y = top
        for stage in net.resnet.encoder.stages:
            for block in stage.layers:
                y = self.block(block, y, trail)
        pooled = y.mean((2, 3))
        trail.append(lambda r, y=y, p=pooled: y / y[0, 0].numel() * (r / self.safe(p))[..., None, None])
        head = net.classifier[1]
        trail.append(lambda r, p=pooled: self.weights(head, p, r))
        logits = head(pooled)
        relevance = torch.zeros_like(logits)
        relevance[0, target] = logits[0, target]
        for back in reversed(trail):
            relevance = back(relevance)
        return relevance

    @staticmethod
    def safe(x: Tensor) -> Tensor:
        return torch.where(x == 0, 1.0, x)

    @staticmethod
    def winners(relevance: Tensor, where: Tensor, y: Tensor) -> Tensor:
        found = torch.zeros_like(y).flatten(2)
        return found.scatter_add(2, where.flatten(2), relevance.flatten(2)).view_as(y)

    def block(self, block: Any, x: Tensor, trail: list[Any]) -> Tensor:
        first, second = (layer.convolution for layer in block.layer)
        inner = torch.relu(first(x))
        deep = second(inner)
        short = block.shortcut(x)
        total = deep + short

        def back(r: Tensor) -> Tensor:
            ratio = r / self.safe(total)  # the sum's relevance is split by value
            down = self.weights(first, x, self.weights(second, inner, deep * ratio))
            if isinstance(block.shortcut, nn.Identity):
                return down + short * ratio
            return down + self.weights(block.shortcut.convolution, x, short * ratio)

        trail.append(back)
        return torch.relu(total)


@pytest.mark.parametrize("composite", NAMES)
def test_a_residual_net_is_explained_layer_by_layer(composite: str) -> None:
    model, asked = resnet(), case(24)
    found = from_score(model, Composite(composite, EPSILON, GAMMA), [asked])[0]
    net = model.twin(fold_batch_norms, "folded").net
    slow = Slow(composite)
    expected = slow.run(net, asked.pixels[None], asked.target)[0]
    np.testing.assert_allclose(
        found.numpy(), expected.numpy(), rtol=1e-6, atol=1e-9 * float(expected.abs().max())
    )
    logit = float(model.clean([asked])[0])
    assert float(found.sum()) + slow.kept == pytest.approx(logit, rel=1e-6)


@pytest.mark.parametrize("composite", NAMES)
def test_without_biases_the_pixels_share_the_whole_logit(composite: str) -> None:
    model, asked = resnet(biased=False), case(24)
    found = from_score(model, Composite(composite, 1e-15), [asked])
    assert float(found.sum()) == pytest.approx(float(model.clean([asked])[0]), rel=1e-6)


def test_the_twin_computes_what_the_model_computes() -> None:
    model, asked = resnet(), case(24)
    twin = model.twin(Composite().edit, "lrp")
    x = asked.pixels[None]
    assert torch.allclose(twin.score(x, [asked]), model.score(x, [asked]), rtol=1e-10)


# ---------------------------------------------------------------- against Captum, on the nets it knows


class Plain(nn.Module):
    """Flattened by a function: Captum knows no nn.Flatten."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 6, 3, padding=1, bias=biased), nn.Conv2d(6, 8, 3, bias=biased)
        self.convs = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8 * 6 * 6, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).flatten(1))


@pytest.mark.parametrize(
    ("composite", "conv_rule"),
    [
        ("epsilon", lambda: EpsilonRule(EPSILON)),
        ("gamma", lambda: GammaRule(gamma=GAMMA)),
        ("epsilon_plus", Alpha1_Beta0_Rule),
    ],
)
def test_captum_says_the_same(composite: str, conv_rule: Callable[[], Any]) -> None:
    net = Plain(biased=composite == "epsilon").eval()  # gamma: Captum leaves the bias as it is
    labels = {name: (k,) for k, name in enumerate("pqrs")}
    model = Classifier(
        "plain", net, Frame(16), stages=lambda n: [Stage("image.conv 0", lambda x, _: n(x))], labels=labels
    )
    asked = Case("c", "s", "p", torch.rand(3, 16, 16), 2)  # positive: Captum's rules know no other input
    found = from_score(model, Composite(composite, EPSILON, GAMMA), [asked])
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.rule = conv_rule()
        elif isinstance(layer, nn.Linear):
            layer.rule = EpsilonRule(EPSILON)
    expected = CaptumLRP(net).attribute(asked.pixels[None].requires_grad_(), target=2).detach()
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6 * scale)
