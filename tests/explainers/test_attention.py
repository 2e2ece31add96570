"""Raw attention and rollout against probabilities recomputed from the nets' own projections, in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from heatproof.errors import Refused


def probabilities(block: Any, x: torch.Tensor, heads: int, *, causal: bool) -> np.ndarray:
    """[heads, T, T] of one block, from its own query and key layers."""
    attention = getattr(block, "self_attn", None) or block.attention
    x = (block.layer_norm1 if hasattr(block, "layer_norm1") else block.layernorm_before)(x)
    query, key = attention.q_proj(x)[0], attention.k_proj(x)[0]
    width = query.shape[1] // heads
    found = np.zeros((heads, len(query), len(query)))
    for h in range(heads):
        q, k = (v[:, h * width : (h + 1) * width].numpy() for v in (query, key))
        for i in range(len(q)):
            stop = i + 1 if causal else len(k)
            logits = [float(q[i] @ k[j]) / math.sqrt(width) for j in range(stop)]
            weights = np.exp(np.array(logits) - max(logits))
            found[h, i, :stop] = weights / weights.sum()
    return found


def layers_of(model: Any, case: Any, tower: str) -> list[np.ndarray]:
    """Every layer's probabilities for one case, real tokens only."""
    with torch.no_grad():
        if tower == "text":
            text = model.net.text_model
            x = text.embeddings(case.tokens[None])
            mask = torch.full((1, 1, len(case.tokens), len(case.tokens)), -1e30).triu(1)
            found = []
            for block in text.encoder.layers:
                found.append(probabilities(block, x, text.config.num_attention_heads, causal=True))
                x = block(x, mask)
            return found
        if model.family == "dual":
            vision = model.net.vision_model
            x, blocks = vision.pre_layrnorm(vision.embeddings(case.pixels[None])), vision.encoder.layers
            heads = vision.config.num_attention_heads
        else:
            x, blocks = model.net.vit.embeddings(case.pixels[None]), model.net.vit.layers
            heads = model.net.config.num_attention_heads
        found = []
        for block in blocks:
            found.append(probabilities(block, x, heads, causal=False))
            x = block(x, None)
        return found


def rollout(layers: list[np.ndarray], reader: int) -> np.ndarray:
    """Abnar and Zuidema's product, whole matrices, lowest layer rightmost."""
    joint = np.eye(layers[0].shape[1])
    for attention in layers:
        mixed = np.zeros(joint.shape)
        for i in range(len(mixed)):
            row = [attention[:, i, j].mean() + (i == j) for j in range(len(mixed))]
            mixed[i] = np.array(row) / sum(row)
        joint = mixed @ joint
    return joint[reader]


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_the_reading_tokens_row(name: str, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models[name], asked(models[name])
    raw = explainer("attention").explain(model, cases)
    first = explainer("attention", layer=0, heads="max").explain(model, cases)
    rolled = explainer("rollout").explain(model, cases)
    late = explainer("rollout", start=1).explain(model, cases)
    for k, case in enumerate(cases):
        layers = layers_of(model, case, "image")
        side = raw[k].image.shape[0]
        for found, expected in (
            (raw[k].image, layers[-1].mean(0)[0]),
            (first[k].image, layers[0].max(0)[0]),
            (rolled[k].image, rollout(layers, 0)),
            (late[k].image, rollout(layers[1:], 0)),
        ):
            np.testing.assert_allclose(found.numpy(), expected[1:].reshape(side, side), atol=1e-5)
        if name == "clip":
            layers = layers_of(model, case, "text")
            np.testing.assert_allclose(raw[k].text.numpy(), layers[-1].mean(0)[-1], atol=1e-5)
            np.testing.assert_allclose(rolled[k].text.numpy(), rollout(layers, -1), atol=1e-5)


def least_cut(layers: list[np.ndarray], reader: int, token: int) -> float:
    """The most that flows is the least that must be cut (Ford and Fulkerson): a linear program, nodes above and below."""
    size, depth = layers[0].shape[1], len(layers)
    nodes = (depth + 1) * size
    pipes = [
        ((k + 1) * size + i, k * size + j, (attention[:, i, j].mean() + (i == j)) / 2)
        for k, attention in enumerate(layers)
        for i in range(size)
        for j in range(size)
    ]
    # variables: a cut pipe each, then a side each node; cut >= side(above) - side(below)
    cost = [width for _, _, width in pipes] + [0.0] * nodes
    table = np.zeros((len(pipes), len(cost)))
    for row, (above, below, _) in enumerate(pipes):
        table[row, row], table[row, len(pipes) + above], table[row, len(pipes) + below] = -1, 1, -1
    bounds = [(0, None)] * len(pipes) + [(0, 1)] * nodes
    bounds[len(pipes) + depth * size + reader], bounds[len(pipes) + token] = (1, 1), (0, 0)
    return float(linprog(cost, table, np.zeros(len(pipes)), bounds=bounds).fun)


def test_the_most_that_flows_is_the_least_cut(source: Any) -> None:
    chance, module = torch.Generator().manual_seed(2), source("rollout")
    layers = [torch.rand(2, 4, 4, generator=chance).pow(3).div(2) for _ in range(3)]
    layers = [a / a.sum(-1, keepdim=True) for a in layers]
    found = module.flowing(layers, reader=1)
    expected = [least_cut([a.numpy() for a in layers], 1, token) for token in range(4)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    rolled = module.rolled(layers, reader=1)
    assert (found >= rolled - 1e-5).all()  # what is shared out along all pipes at once can flow


def test_flow_of_a_pooled_tower_starts_at_the_pooling(source: Any) -> None:
    module = source("rollout")
    below, pool = torch.eye(3)[None], torch.tensor([[[0.5, 0.25, 0.25]]])
    assert module.flowing([below, pool], reader=0).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_flow_maps_the_patches(
    name: str, models: Any, asked: Any, explainer: Callable[..., Any], source: Any
) -> None:
    model, cases = models[name], asked(models[name], 2)
    found = explainer("rollout:Flow").explain(model, cases)
    for case, told in zip(cases, found, strict=True):
        flow = source("rollout").flowing([torch.from_numpy(a) for a in layers_of(model, case, "image")], 0)
        side = told.image.shape[0]
        np.testing.assert_allclose(told.image.flatten().numpy(), flow[1:].numpy(), atol=1e-5)
        assert told.image.shape == (side, side)


@pytest.mark.parametrize("name", ["adaptive", "multi_head"])
def test_a_captioner_looks_where_its_net_looks(
    name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models[name], asked(models[name])
    found = explainer("attention").explain(model, cases)
    net = model.net
    for case, told in zip(cases, found, strict=True):
        with torch.no_grad():
            features = net.encoder(case.pixels[None])
            cells = net.look(features)
            state = net.start(cells.whole)
            for t in range(case.target + 1):
                state, _, seen = net.step(state, cells, case.tokens[t : t + 1])
        side = features.shape[-1]
        np.testing.assert_allclose(told.image.numpy(), seen[0].mean(0).view(side, side).numpy(), atol=1e-6)
        assert float(told.image.sum()) == pytest.approx(1, abs=1e-5)


def test_an_unknown_head_rule_is_refused(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="'median', accepted are mean, max"):
        explainer("attention", heads="median").explain(models["vit"], asked(models["vit"]))
