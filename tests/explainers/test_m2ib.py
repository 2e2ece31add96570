"""M2IB beyond parity (tests/parity/test_m2ib.py): cost, padding, saturation, and what it must not depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence


def test_blocks_below_the_site_run_once(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, (case,) = models["clip"], asked(models["clip"], 1)
    cases = [replace(case, id=f"{case.id} {k}") for k in range(4)]
    rows, hooks, asked_of = Counter(), [], set()
    for tower, blocks in (
        ("image", model.net.vision_model.encoder.layers),
        ("text", model.net.text_model.encoder.layers),
    ):
        for k, block in enumerate(blocks):
            count = lambda _, args, name=(tower, k): rows.update({name: 1})
            hooks.append(block.self_attn.k_proj.register_forward_pre_hook(count))
        last = blocks[-1].self_attn.q_proj
        hooks.append(last.register_forward_pre_hook(lambda _, args: asked_of.add(args[0].shape[1])))
    try:
        model._weights("image"), model._weights("text")
        rows.clear(), asked_of.clear()
        model.memo.clear()
        explainer("m2ib", layer=1, steps=4, repeats=8, before_last=True).explain(model, cases)
    finally:
        for hook in hooks:
            hook.remove()
    # four cases are one block of rows; each tower runs whole once more for the other's embedding
    assert rows["image", 0] == rows["text", 0] == 2
    # three updates of 8 copies of 4 cases, in blocks of 8 rows; and the embedding
    assert rows["image", 2] == rows["text", 2] == 3 * 4 + 1
    assert asked_of == {1, 17, 12}  # the query of one token; of all of them for the embeddings


def test_capacity_is_the_divergence_and_stays_finite(source: Any) -> None:
    capacity = source("m2ib").capacity
    alpha, hidden = torch.linspace(-6, 6, 25).double(), torch.linspace(-3, 3, 25).double()
    share = torch.sigmoid(alpha)
    expected = kl_divergence(Normal(share * hidden, 1 - share), Normal(torch.zeros(25), torch.ones(25)))
    assert torch.allclose(capacity(hidden, alpha), expected, rtol=1e-8)
    far = torch.tensor([-200.0, 60.0, 200.0], requires_grad=True)  # 1 - sigmoid(60) is 0 in float32
    found = capacity(torch.ones(3), far)
    (slope,) = torch.autograd.grad(found.sum(), far)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    assert found[1].item() == pytest.approx(60, rel=1e-3)


def test_padding_enters_neither_capacity_nor_fit(models: Any, asked: Any, source: Any) -> None:
    """The same text gives the same map among longer ones, and however far the model pads it."""
    model, made = models["clip"], source("m2ib").M2ib(steps=4, repeats=3)
    cases = asked(model, 5)
    site = model.site("text.block", -2)
    sizes = [len(case.tokens) for case in cases]
    assert len(set(sizes)) > 2
    for size, heat in zip(sizes, made._heat(model, site, cases), strict=True):
        assert heat.shape == (size,)
    with torch.no_grad():
        hidden = model.upto(site, model.stack(cases[:1]), cases[:1])
    short, long = hidden[:, : sizes[0]], torch.cat([hidden[:, : sizes[0]], 1e3 + hidden[:, sizes[0] :]], 1)
    scores = [model.above(site, x, cases[:1], brief=True) for x in (short, long)]
    assert torch.allclose(*scores, atol=1e-6)


@pytest.mark.parametrize("site", ["image.block", "text.block"])
def test_a_brief_last_block_gives_the_same_score_and_slope(site: str, models: Any, asked: Any) -> None:
    model, cases = models["clip"], asked(models["clip"], 5)
    for index in range(model.sites[site]):
        name = model.site(site, index)
        with torch.no_grad():
            hidden = model.upto(name, model.stack(cases), cases)
        found = []
        for brief in (False, True):
            x = hidden.clone().requires_grad_()
            with model.part() as spent:
                score = model.above(name, x, cases, brief=brief)
            found.append((score, *torch.autograd.grad(score.sum(), x), spent.forward["case0"]))
        (whole, slope, dear), (short, other, cheap) = found
        assert torch.allclose(whole, short, atol=1e-6)
        assert torch.allclose(slope, other, atol=1e-6)
        assert cheap < dear
        with model.watch(model.site(site.replace("block", "attention"))) as seen:
            watched = model.above(name, hidden, cases, brief=True)
        assert torch.equal(watched, whole)  # a watcher sees every token's row
        assert seen.value.shape[2] == seen.value.shape[3]


def test_noise_belongs_to_the_case_and_the_loss_falls(
    models: Any, asked: Any, explainer: Callable[..., Any], source: Any
) -> None:
    model, made = models["clip"], source("m2ib").M2ib()
    cases = asked(model, 2)
    first, again = explainer("m2ib").explain(model, cases), explainer("m2ib").explain(model, cases)
    moved = explainer("m2ib").explain(model, [replace(case, seed=1) for case in cases])
    assert torch.equal(first[0].image, again[0].image)
    assert not torch.equal(first[0].image, moved[0].image)
    site = model.site("image.block", -2)
    with torch.no_grad():
        hidden = model.upto(site, model.stack(cases), cases)
    _, trace = made.optimise(model, site, hidden, cases, made._noise(site, hidden, cases))
    losses = torch.stack(trace)[:, :, 2]
    assert (losses[-1] < losses[0]).all()
    assert (first[0].image >= 0).all()


class Half:
    """Anything behind a bottleneck whose activations are half precision."""

    def above(self, site: str, activation: torch.Tensor, cases: Any, *, brief: bool) -> torch.Tensor:
        assert activation.dtype == torch.float16
        return torch.tanh(activation.mean((1, 2)) * 4)


@pytest.mark.parametrize("beta", [0.1, 0.0])
@pytest.mark.parametrize("alpha", [5.0, 60.0, -60.0])
def test_half_precision_and_saturated_shares_stay_finite(alpha: float, beta: float, source: Any) -> None:
    """60: 1 - sigmoid(alpha) is 0 in float32, and its logarithm minus infinity."""
    m2ib = source("m2ib")
    made = m2ib.M2ib(alpha=alpha, beta=beta, steps=6, repeats=2)
    hidden = 30 * torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    hidden[0, 0, 0] = 6e4  # its square is beyond half's range
    chance = torch.Generator().manual_seed(1)
    noise = lambda _: torch.randn(2, 4, 6, generator=chance)
    alphas, trace = made.optimise(Half(), "image.block 0", hidden.half(), ["a", "b"], noise)
    assert all(a.dtype == torch.float32 and a.isfinite().all() for a in alphas)
    assert torch.stack(trace).isfinite().all()
    for h, a in zip(hidden.half(), alphas, strict=True):
        assert m2ib.capacity(h.float(), a).isfinite().all()
        assert (m2ib.capacity(h.float(), a) >= 0).all()
        if beta and alpha > 0:  # at -60 the slope is e-26, which Adam's own epsilon hides in any precision
            assert not torch.equal(a, torch.full_like(a, alpha)), "half precision stops Adam"


def test_a_release_without_quirks_makes_one_more_update(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["clip"], asked(models["clip"], 2)
    late = explainer("m2ib", steps=3, repeats=2).explain(model, cases)
    released = explainer("m2ib", steps=4, repeats=2, as_released=True).explain(model, cases)
    for a, b in zip(late, released, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.text, b.text)
