"""LRP through attention: AttnLRP's rules against relevance that goes back by loops, and what each block keeps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

from heatproof.contract import Case
from heatproof.geometry import Frame
from heatproof.lrp import attention
from heatproof.lrp.composites import Composite, from_score, from_text
from heatproof.models import hf_classifier
from heatproof.models.attention import tell_sites
from heatproof.models.classifier import Classifier
from heatproof.models.hf_clip import clip
from heatproof.models.words import WordList

EPS = 1e-6
SIDE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
WORDS = ["<pad>", "<bos>", "<unk>", "<eos>", "a", "red", "dog", "runs"]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield
    torch.set_default_dtype(torch.float32)


def stir(net: Any, biased: bool = True) -> Any:
    for name, value in net.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                value.copy_(torch.randn(value.shape) * 0.3 * biased)
            elif value.ndim < 2:
                value.copy_(0.5 + torch.rand(value.shape))
            else:
                value.copy_(torch.randn(value.shape) * 1.5 / math.sqrt(value.shape[-1]))
    return net


def vit(biased: bool = True) -> Classifier:
    net = stir(
        ViTForImageClassification(ViTConfig(**SIDE, image_size=12, patch_size=6, num_labels=3)), biased
    )
    tell_sites(net, [net.config], {"image": [b.attention for b in net.vit.layers]})
    labels = {name: (k,) for k, name in enumerate("pqr")}
    return Classifier("v", net, Frame(12), stages=hf_classifier.vit, labels=labels)


def pair(biased: bool = True) -> Any:
    told = {
        "projection_dim": 6,
        "vision_config": {**SIDE, "image_size": 12, "patch_size": 6, "projection_dim": 6},
        "text_config": {
            **SIDE, "projection_dim": 6, "vocab_size": len(WORDS), "max_position_embeddings": 8,
            "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
        },
    }  # fmt: skip
    tokens = WordList({word: k for k, word in enumerate(WORDS)})
    return clip("c", stir(CLIPModel(CLIPConfig(**told)), biased), tokens, frame=Frame(12))


def case(words: str = "a red dog") -> Case:
    ids, of, spoken = WordList({word: k for k, word in enumerate(WORDS)})(words, 8)
    text = {"tokens": torch.tensor(ids), "words": tuple(of), "spoken": tuple(spoken)}
    return Case(f"c {words}", "s", "p", torch.randn(3, 12, 12), 1, **text)


# ---------------------------------------------------------------- relevance itself, going back by loops


def away(z: Tensor) -> Tensor:
    return z + torch.where(z >= 0, EPS, -EPS)


class Slow:
    """A transformer whose every step notes how relevance R goes back through it; ``kept`` is what a step swallowed."""

    def __init__(self, composite: Composite) -> None:
        self.composite = composite
        self.trail: list[tuple[str, Any]] = []
        self.kept: dict[str, float] = {}
        self.at = ""

    def linear(self, layer: Any, x: Tensor, gamma: float) -> tuple[Tensor, Any]:
        """x [T, I] -> z [T, J], and R of z -> R of x."""
        weight, bias = layer.weight.flatten(1), layer.bias
        z = x @ weight.T + (0 if bias is None else bias)

        def back(relevance: Tensor) -> Tensor:
            found = torch.zeros_like(x)
            for t in range(len(x)):
                for j in range(z.shape[1]):
                    parts = x[t] * weight[j]
                    constant = 0.0 if bias is None else float(bias[j])
                    if gamma:
                        sign = 1.0 if z[t, j] >= 0 else -1.0
                        parts = parts + gamma * torch.where(parts * sign > 0, parts, 0.0)
                        constant += gamma * (constant if constant * sign > 0 else 0.0)
                        below = parts.sum() + constant
                    else:
                        below = away(z[t, j])
                    found[t] += parts / below * relevance[t, j]
            return found

        return z, back

    def norm(self, layer: Any, x: Tensor) -> tuple[Tensor, Any]:
        z, width = layer(x), x.shape[1]
        size = (x.var(1, unbiased=False) + layer.eps).sqrt()

        def back(relevance: Tensor) -> Tensor:
            found = torch.zeros_like(x)
            for t in range(len(x)):
                map_ = (torch.eye(width) - 1 / width) * layer.weight[:, None] / size[t]
                for i in range(width):
                    found[t] += x[t] * map_[i] / away(z[t, i]) * relevance[t, i]
            return found

        return z, back

    def product(self, a: Tensor, b: Tensor, halved: bool) -> tuple[Tensor, Any]:
        """a [J, I] times b [I, P]; R -> R of a, R of b."""
        out = a @ b

        def back(relevance: Tensor) -> tuple[Tensor, Tensor]:
            below = away(2 * out) if halved else away(out)
            each = a[:, :, None] * b[None] * (relevance / below)[:, None]
            return (each.sum(2) if halved else torch.zeros_like(a)), each.sum(0)

        return out, back

    def attention(self, module: Any, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Any]:
        gamma = self.composite.linear_gamma
        mixing = self.composite.mixing == "attnlrp"
        q, back_q = self.linear(module.q_proj, x, gamma)
        k, back_k = self.linear(module.k_proj, x, gamma)
        v, back_v = self.linear(module.v_proj, x, gamma)
        heads, steps = SIDE["num_attention_heads"], []
        width = q.shape[1] // heads
        mixed = []
        for h in range(heads):
            own = slice(h * width, (h + 1) * width)
            raw, back_raw = self.product(q[:, own], k[:, own].T, mixing)
            logits = raw / math.sqrt(width) + (0 if mask is None else mask)
            share = torch.softmax(logits, -1)
            out, back_out = self.product(share, v[:, own], mixing)
            mixed.append(out)
            steps.append((own, back_raw, logits, share, back_out))
        output = module.o_proj if hasattr(module, "o_proj") else module.out_proj
        found, back_o = self.linear(output, torch.cat(mixed, 1), gamma)

        def back(relevance: Tensor) -> Tensor:
            inner = back_o(relevance)
            rq, rk, rv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for own, back_raw, logits, share, back_out in steps:
                of_share, rv[:, own] = back_out(inner[:, own])
                of_logits = logits * (of_share - share * of_share.sum(1, keepdim=True))
                rq[:, own], keys = back_raw(of_logits)
                rk[:, own] = keys.T
            return back_q(rq) + back_k(rk) + back_v(rv)

        return found, back

    def mlp(self, first: Any, act: Any, last: Any, x: Tensor) -> tuple[Tensor, Any]:
        inner, back_first = self.linear(first, x, self.composite.linear_gamma)
        found, back_last = self.linear(last, act(inner), self.composite.linear_gamma)
        return found, lambda r: back_first(back_last(r))

    def residual(self, x: Tensor, inner: Tensor, back_inner: Any) -> tuple[Tensor, Any]:
        out = x + inner
        return out, lambda r: x / out * r + back_inner(inner / out * r)

    def block(self, parts: tuple[Any, ...], x: Tensor, mask: Tensor | None) -> tuple[Tensor, Any]:
        norm1, module, norm2, first, act, last = parts
        a, back_a = self.norm(norm1, x)
        b, back_b = self.attention(module, a, mask)
        y, back_y = self.residual(x, b, lambda r: back_a(back_b(r)))
        c, back_c = self.norm(norm2, y)
        d, back_d = self.mlp(first, act, last, c)
        z, back_z = self.residual(y, d, lambda r: back_c(back_d(r)))
        return z, lambda r: back_y(back_z(r))


def parts_of(block: Any) -> tuple[Any, ...]:
    if hasattr(block, "layernorm_before"):
        inner = dict(block.mlp.named_children())
        names = list(inner)
        first, last = (inner[n] for n in names if isinstance(inner[n], torch.nn.Linear))
        act = next(inner[n] for n in names if not isinstance(inner[n], torch.nn.Linear | torch.nn.Dropout))
        return block.layernorm_before, block.attention, block.layernorm_after, first, act, last
    mlp = block.mlp
    return block.layer_norm1, block.self_attn, block.layer_norm2, mlp.fc1, mlp.activation_fn, mlp.fc2


def slow_tower(slow: Slow, embedded: Tensor, blocks: Any, norm: Any, head: Any, at: int, mask: Any = None):
    """[T, D] of embedded tokens -> what the head says of token ``at``, and R of it -> R after embedding and each block."""
    backs, x = [], embedded
    for block in blocks:
        x, back = slow.block(parts_of(block), x, mask)
        backs.append(back)
    z, back_norm = slow.norm(norm, x)
    out, back_head = slow.linear(head, z[at : at + 1], slow.composite.linear_gamma)

    def back(relevance: Tensor) -> list[Tensor]:
        inner = torch.zeros_like(z)
        inner[at : at + 1] = back_head(relevance)
        found = [back_norm(inner)]
        for step in reversed(backs):
            found.append(step(found[-1]))
        return found[::-1]

    return out[0], back


def patches(conv: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """[C, H, W] -> what each patch holds [4, C*6*6], and what the convolution makes of it [4, D]."""
    held = torch.nn.functional.unfold(image[None], 6, stride=6)[0].T
    return held, conv(image[None])[0].flatten(1).T


def slow_pixels(slow: Slow, conv: Any, image: Tensor, tokens: Tensor, relevance: Tensor) -> Tensor:
    """R of tokens (class token first, positions added) -> R of pixels."""
    held, seen = patches(conv, image)
    _, back = slow.linear(conv, held, slow.composite.gamma if slow.composite.name == "gamma" else 0.0)
    found = back(seen / tokens[1:] * relevance[1:])
    return torch.nn.functional.fold(found.T[None], (12, 12), 6, stride=6)[0]


COMPOSITES = [
    Composite("epsilon", EPS),
    Composite("epsilon", EPS, mixing="constant"),
    Composite("gamma", EPS, 0.25, 0.05),
]


@pytest.mark.parametrize("composite", COMPOSITES, ids=str)
def test_a_vit_is_explained_step_by_step(composite: Composite) -> None:
    model, asked = vit(), case()
    net, slow = model.net.vit, Slow(composite)
    tokens = net.embeddings(asked.pixels[None])[0]
    logits, back = slow_tower(slow, tokens, net.layers, net.layernorm, model.net.classifier, 0)
    relevance = torch.zeros(1, 3)
    relevance[0, 1] = logits[1]
    embedded, *blocks = back(relevance)
    conv = net.embeddings.patch_embeddings.projection
    expected = slow_pixels(slow, conv, asked.pixels, tokens, embedded)
    found = from_score(model, composite, [asked])[0]
    worst = float((found - expected).abs().max() / expected.abs().max())
    print(f"vit {composite}: off by {worst:.1e} of the largest")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert totals(model, composite, asked)[:2] == pytest.approx(
        [float(embedded.sum()), float(blocks[0].sum())], rel=1e-6
    )


@pytest.mark.parametrize("composite", COMPOSITES, ids=str)
def test_a_clip_is_explained_step_by_step_on_both_sides(composite: Composite) -> None:
    model, asked = pair(), case()
    net, slow = model.net, Slow(composite)
    image, text = model.embed(model.stack([asked]), [asked])[0], model.embed_text([asked])[0]
    cosine = float(image @ text / image.norm() / text.norm())

    vision = net.vision_model
    tokens = vision.pre_layrnorm(vision.embeddings(asked.pixels[None]))[0]
    before = vision.embeddings(asked.pixels[None])[0]
    out, back = slow_tower(
        slow, tokens, vision.encoder.layers, vision.post_layernorm, net.visual_projection, 0
    )
    np.testing.assert_allclose(out, image, rtol=1e-9)
    start = (image * text / image.norm() / text.norm())[None]  # what each channel adds to the cosine
    embedded, *_ = back(start)
    _, back_norm = slow.norm(vision.pre_layrnorm, before)
    conv = vision.embeddings.patch_embedding
    expected = slow_pixels(slow, conv, asked.pixels, before, back_norm(embedded))
    found = from_score(model, composite, [asked])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))

    told = net.text_model
    ids = asked.tokens
    tokens = told.embeddings.token_embedding(ids) + told.embeddings.position_embedding.weight[: len(ids)]
    hidden = torch.ones(len(ids), len(ids)).triu(1).bool()
    mask = torch.zeros(len(ids), len(ids)).masked_fill(hidden, torch.finfo(torch.float32).min)
    blocks, last = told.encoder.layers, len(ids) - 1
    out, back = slow_tower(slow, tokens, blocks, told.final_layer_norm, net.text_projection, last, mask)
    np.testing.assert_allclose(out, text, rtol=1e-9)
    expected = back(start)[0].sum(1)
    (heard,) = from_text(model, composite, [asked])
    np.testing.assert_allclose(heard, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    if composite.mixing == "attnlrp":
        assert (
            abs(float(heard.sum()) - cosine) > 1e-3
        )  # biases and softmax keep some: the next test says when none


# ---------------------------------------------------------------- conservation, block by block


def totals(model: Any, composite: Composite, asked: Case) -> list[float]:
    """The relevance that stands at image.embed 0 and at each image.block, summed, and the score."""
    twin = model.twin(partial(composite.edit, frame=model.frame), f"lrp {composite}")
    sites = [
        model.site("image.embed", 0),
        *(model.site("image.block", k) for k in range(model.sites["image.block"])),
    ]
    found = []
    for site in sites:
        with twin.watch(site) as seen:
            score = twin.score(model.stack([asked]), [asked])
            (g,) = torch.autograd.grad(score.sum(), seen.value)
        found.append(float((seen.value.detach() * g).sum()))
    return [*found, float(score.detach().sum())]


@pytest.mark.parametrize("make", [vit, pair])
@pytest.mark.parametrize("linear_gamma", [0.0, 0.05])
def test_without_biases_and_softmax_every_block_hands_on_all(make: Any, linear_gamma: float) -> None:
    composite = Composite("gamma", 1e-14, 0.25, linear_gamma, "constant")
    model, asked = make(biased=False), case()
    found = totals(model, composite, asked)
    assert found == pytest.approx([found[-1]] * len(found), rel=1e-6)


def test_what_the_softmax_keeps_is_all_that_a_block_keeps() -> None:
    """AttnLRP's softmax absorbs relevance; measured where it happens, it closes the account of every block."""
    composite = Composite("epsilon", 1e-14)
    model, asked = vit(biased=False), case()
    twin = model.twin(partial(composite.edit, frame=model.frame), f"lrp {composite}")
    kept = []
    for k in range(2):
        with twin.watch(f"image.attention {k}") as seen:
            score = twin.score(model.stack([asked]), [asked])
            (g,) = torch.autograd.grad(score.sum(), seen.value)
        share = seen.value.detach()
        relevance = share * g  # of the probabilities
        logits = share.log()  # up to a constant a row, by which the rule's outcome does not move
        handed = logits * (relevance - share * relevance.sum(-1, keepdim=True))
        kept.append(float(relevance.sum() - handed.sum()))
    embed, first, *_, score_ = totals(model, composite, asked)
    assert first == pytest.approx(score_ - kept[1], rel=1e-5)
    assert embed == pytest.approx(first - kept[0], rel=1e-5)
    assert max(abs(k) for k in kept) > 1e-3  # else nothing was tested


# ---------------------------------------------------------------- parts


def test_the_twin_computes_what_the_model_computes_and_leaves_it_alone() -> None:
    for model in (vit(), pair()):
        asked, weights = case(), {k: v.clone() for k, v in model.net.state_dict().items()}
        score = model.score(model.stack([asked]), [asked])
        twin = model.twin(Composite().edit, "lrp")
        assert torch.allclose(twin.score(model.stack([asked]), [asked]), score, rtol=1e-10)
        assert torch.equal(model.score(model.stack([asked]), [asked]), score)
        assert all(torch.equal(v, weights[k]) for k, v in model.net.state_dict().items())


def test_relevance_does_not_depend_on_neighbours() -> None:
    torch.set_default_dtype(torch.float32)
    model = pair()
    some = [case(words) for words in ("a red dog", "dog", "a dog runs", "red", "a red red dog runs")]
    composite = Composite("gamma", EPS, 0.25, 0.05)
    images, texts = from_score(model, composite, some), from_text(model, composite, some)
    for k, one in enumerate(some):
        assert torch.equal(from_score(model, composite, [one])[0], images[k])
        assert torch.equal(from_text(model, composite, [one])[0], texts[k])
    back = from_text(model, composite, some[::-1])
    assert all(torch.equal(a, b) for a, b in zip(back[::-1], texts, strict=True))


def test_an_activation_hands_on_all_and_a_norm_all_but_its_bias() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    y = attention.Passed(torch.nn.GELU())(x)
    (g,) = torch.autograd.grad(y, x, torch.full((4,), 2.0))
    np.testing.assert_allclose(x.detach() * g, 2 * y.detach())
    norm = torch.nn.LayerNorm(4, elementwise_affine=False)
    z = attention.Normalised(norm, 0.0)(x)
    (g,) = torch.autograd.grad((z * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), x)
    expected = float((z.detach() * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum())
    assert float((x.detach() * g).sum()) == pytest.approx(expected)
