"""The Captum suite: completeness, exact counts, slow twins of the perturbation methods, Captum itself as reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, GradientShap, KernelShap, Occlusion
from captum.attr import IntegratedGradients as CaptumIG

from heatproof import seeds
from heatproof.errors import Refused


def costs(model: Any, cases: Any, made: Any) -> tuple[set[float], set[float]]:
    model.memo.clear()
    with model.part() as spent:
        made.explain(model, cases)
    return {spent.forward[c.id] for c in cases}, {spent.backward[c.id] for c in cases}


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("baseline", ["mean", "black"])
def test_integrated_gradients_are_complete(
    name: str, baseline: str, models: Any, asked: Any, explainer: Callable[..., Any], source: Any
) -> None:
    model, cases = models[name], asked(models[name], 3)
    found = explainer("captum_suite:IntegratedGradients", steps=100, baseline=baseline).explain(model, cases)
    x = model.stack(cases)
    gap = model.score(x, cases) - model.score(source("captum_suite").blank(baseline, model, x), cases)
    total = torch.stack([told.image.sum() for told in found])
    assert float(gap.abs().min()) > 1e-3
    np.testing.assert_allclose(total.numpy(), gap.numpy(), rtol=0.03, atol=2e-3)


def test_integrated_gradients_of_text_are_complete(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["clip"], asked(models["clip"], 2)
    found = explainer("captum_suite:IntegratedGradients", steps=80, text=True).explain(model, cases)
    site = model.site("text.embed")
    with torch.no_grad():
        words = model.upto(site, model.stack(cases), cases)
        gap = model.above(site, words, cases) - model.above(site, 0 * words, cases)
    # padding after the end token is never read, so that the real tokens hold it all
    np.testing.assert_allclose([float(t.text.sum()) for t in found], gap.numpy(), rtol=0.05, atol=5e-3)


@pytest.mark.parametrize(
    "rule", ["gausslegendre", "riemann_trapezoid", "riemann_middle", "riemann_left", "riemann_right"]
)
def test_captum_integrates_to_the_same(
    rule: str, models: Any, asked: Any, explainer: Callable[..., Any], source: Any
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    found = explainer("captum_suite:IntegratedGradients", steps=7, rule=rule).explain(model, cases)
    reference = CaptumIG(lambda rows: model.score(rows, cases * (len(rows) // len(cases))))
    expected = reference.attribute(model.stack(cases), n_steps=7, method=rule)
    for told, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(told.image.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("use", "settings", "forward", "backward"),
    [
        ("IntegratedGradients", {"steps": 9}, 9, 9),
        ("Saliency", {}, 1, 1),
        ("InputXGradient", {}, 1, 1),
        ("GradientShap", {"samples": 3}, 3, 3),
        ("Occlusion", {"window": 0.5, "stride": 0.25}, 1 + 9, 0),
        ("FeatureAblation", {"cells": 3}, 1 + 9, 0),
    ],
)
def test_exactly_the_forwards_that_the_definition_needs(
    use: str, settings: Any, forward: int, backward: int, models: Any, asked: Any, explainer: Any
) -> None:
    model, made = models["cnn"], explainer(f"captum_suite:{use}", **settings)
    assert costs(model, asked(model), made) == ({float(forward)}, {float(backward)})


def test_kernel_shap_asks_each_different_coalition_once(models: Any, asked: Any, explainer: Any) -> None:
    model, cases, made = (
        models["cnn"],
        asked(models["cnn"]),
        explainer("captum_suite:KernelShap", cells=2, samples=40),
    )
    drawn = [made._coalitions(4, case.generator("kernel shap")) for case in cases]
    with model.part() as spent:
        made.explain(model, cases)
    assert [spent.forward[c.id] for c in cases] == [len(rows.unique(dim=0)) for rows in drawn]
    assert max(spent.forward.values()) <= 16


def test_gradients(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["vit"], asked(models["vit"])
    slopes = explainer("captum_suite:Saliency").explain(model, cases)
    products = explainer("captum_suite:InputXGradient").explain(model, cases)
    for case, slope, product in zip(cases, slopes, products, strict=True):
        x = case.pixels[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.net(x).logits[0, case.target], x)
        np.testing.assert_allclose(slope.image.numpy(), grad[0].numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            product.image.numpy(), (x * grad)[0].detach().numpy(), rtol=1e-3, atol=1e-5
        )


def test_occlusion_window_by_window(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    found = explainer("captum_suite:Occlusion", window=0.4, stride=0.2, baseline="black").explain(
        model, cases
    )
    side = cases[0].pixels.shape[1]
    window, stride = round(0.4 * side), round(0.2 * side)
    starts = [*range(0, side - window, stride), None]
    for case, told in zip(cases, found, strict=True):
        lost, seen = np.zeros((side, side)), np.zeros((side, side))
        clean = float(model.clean([case])[0])
        places = [s if s is not None else starts[-2] + stride for s in starts]
        for top in places:
            for left in places:
                x = case.pixels.clone()
                x[:, top : top + window, left : left + window] = -1.0  # black, normalised by 0.5 and 0.5
                drop = clean - float(model.score(x[None], [case])[0])
                lost[top : top + window, left : left + window] += drop
                seen[top : top + window, left : left + window] += 1
        np.testing.assert_allclose(told.image.numpy(), lost / seen, rtol=1e-3, atol=1e-5)


def test_ablation_cell_by_cell(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    found = explainer("captum_suite:FeatureAblation", cells=4).explain(model, cases)
    side = cases[0].pixels.shape[1] // 4
    for case, told in zip(cases, found, strict=True):
        clean = float(model.clean([case])[0])
        for r in range(4):
            for c in range(4):
                x = case.pixels.clone()
                x[:, r * side : (r + 1) * side, c * side : (c + 1) * side] = 0
                drop = clean - float(model.score(x[None], [case])[0])
                assert float(told.image[r, c]) == pytest.approx(drop, rel=1e-3, abs=1e-5)


def test_captum_occludes_and_ablates_to_the_same(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, (case,) = models["vit"], asked(models["vit"], 1)

    def score(rows: torch.Tensor) -> torch.Tensor:
        return model.score(rows, [case] * len(rows))

    side = case.pixels.shape[1]
    (told,) = explainer("captum_suite:Occlusion", window=0.3, stride=0.22).explain(model, [case])
    window, stride = round(0.3 * side), round(0.22 * side)
    expected = Occlusion(score).attribute(
        case.pixels[None], sliding_window_shapes=(3, window, window), strides=(3, stride, stride)
    )
    np.testing.assert_allclose(told.image.numpy(), expected[0, 0].numpy(), rtol=1e-3, atol=1e-6)
    (told,) = explainer("captum_suite:FeatureAblation", cells=3).explain(model, [case])
    axis = torch.arange(side) * 3 // side
    expected = FeatureAblation(score).attribute(
        case.pixels[None], feature_mask=(axis[:, None] * 3 + axis)[None, None]
    )
    first = [int((axis == k).nonzero()[0]) for k in range(3)]
    np.testing.assert_allclose(
        told.image.numpy(), expected[0, 0][first][:, first].numpy(), rtol=1e-3, atol=1e-6
    )


def test_gradient_shap_sample_by_sample(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, cases = models["vit"], asked(models["vit"], 2)
    found = explainer("captum_suite:GradientShap", samples=3, noise=0.2, baseline="black").explain(
        model, cases
    )
    for case, told in zip(cases, found, strict=True):
        chance, total = case.generator("gradient shap"), torch.zeros_like(case.pixels)
        for _ in range(3):
            noisy = case.pixels + 0.2 * torch.randn(case.pixels.shape, generator=chance)
            share = torch.rand((), generator=chance)
            x = (-1 + share * (noisy + 1)).requires_grad_()
            (grad,) = torch.autograd.grad(model.net(x[None]).logits[0, case.target], x)
            total += (noisy + 1) * grad / 3
        np.testing.assert_allclose(told.image.numpy(), total.numpy(), rtol=1e-3, atol=1e-5)


def test_gradient_shap_is_captums_in_expectation(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """Both estimate integrated gradients where there is no noise: their means agree within their own spread."""
    model, (case,) = models["cnn"], asked(models["cnn"], 1)
    x = case.pixels[None]
    (told,) = explainer("captum_suite:GradientShap", samples=400, noise=0.0).explain(model, [case])
    with seeds.forked("captum"):
        reference = GradientShap(lambda rows: model.score(rows, [case] * len(rows)))
        expected = reference.attribute(x, torch.zeros_like(x), n_samples=400, stdevs=0.0)
    assert float(told.image.sum()) == pytest.approx(float(expected.sum()), rel=0.1)
    similar = torch.corrcoef(torch.stack([told.image.flatten(), expected.flatten()]))[0, 1]
    assert float(similar) > 0.97


def test_kernel_shap_finds_the_shapley_values(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    """Four players: every order in which they can join is tried."""
    model, (case,) = models["cnn"], asked(models["cnn"], 1)
    half = case.pixels.shape[1] // 2

    @cache
    def worth(players: frozenset[int]) -> float:
        x = torch.zeros_like(case.pixels)
        for player in players:
            y, z = player // 2 * half, player % 2 * half
            x[:, y : y + half, z : z + half] = case.pixels[:, y : y + half, z : z + half]
        return float(model.score(x[None], [case])[0])

    expected = np.zeros(4)
    for order in permutations(range(4)):
        for k, player in enumerate(order):
            expected[player] += (worth(frozenset(order[: k + 1])) - worth(frozenset(order[:k]))) / 24
    (told,) = explainer("captum_suite:KernelShap", cells=2, samples=600).explain(model, [case])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(told.image.flatten().numpy(), expected, atol=0.08 * scale)
    assert float(told.image.sum()) == pytest.approx(
        expected.sum(), abs=1e-3 * scale
    )  # all and none are exact
    with seeds.forked("captum"):
        grid = torch.arange(case.pixels.shape[1]) * 2 // case.pixels.shape[1]
        reference = KernelShap(lambda rows: model.score(rows, [case] * len(rows)))
        other = reference.attribute(
            case.pixels[None],
            feature_mask=(grid[:, None] * 2 + grid)[None, None],
            n_samples=600,
            perturbations_per_eval=8,
            return_input_shape=False,
        )
    np.testing.assert_allclose(other[0].numpy(), expected, atol=0.08 * scale)


def test_kernel_shap_of_an_additive_score_is_each_players_share(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    """Where the score is a sum over cells, Shapley values are the cells' own terms, whatever was sampled."""
    model = models["cnn"]
    (case,) = asked(model, 1)

    class Additive:
        name, family, frame, rows = "sum", "classifier", model.frame, 8

        def stack(self, cases: Any) -> torch.Tensor:
            return torch.stack([c.pixels for c in cases])

        def score(self, pixels: torch.Tensor, cases: Any) -> torch.Tensor:
            return pixels.sum((1, 2, 3))

        def clean(self, cases: Any) -> torch.Tensor:
            return self.score(self.stack(cases), cases)

    (told,) = explainer("captum_suite:KernelShap", cells=3, samples=60).explain(Additive(), [case])
    rows = torch.arange(case.pixels.shape[1]) * 3 // case.pixels.shape[1]
    for r in range(3):
        for c in range(3):
            own = case.pixels[:, rows == r][:, :, rows == c].sum()
            assert float(told.image[r, c]) == pytest.approx(float(own), rel=1e-3, abs=1e-2)


def test_an_unknown_baseline_is_refused(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="'grey', accepted are mean, black"):
        explainer("captum_suite:Occlusion", baseline="grey").explain(models["cnn"], asked(models["cnn"], 1))
