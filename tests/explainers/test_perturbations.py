"""Lime against scikit-learn's ridge; Shapley values against their definition, and what both cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof import segments
from heatproof.contract import Case
from heatproof.errors import Refused

Worth = Callable[[frozenset[int]], float]


def cells_kept(case: Case, cells: int, there: Any) -> Tensor:
    """The image with the baseline (0) in the cells that are not there, cell by cell."""
    pixels, (high, wide) = case.pixels.clone(), case.pixels.shape[1:]
    for y in range(high):
        for x in range(wide):
            if (y * cells // high) * cells + x * cells // wide not in there:
                pixels[:, y, x] = 0
    return pixels


def image_worth(model: Any, case: Case, cells: int) -> Worth:
    def worth(there: frozenset[int]) -> float:
        with torch.no_grad():
            return float(model.score(cells_kept(case, cells, there)[None], [case]))

    return worth


def text_worth(model: Any, case: Case, groups: list[list[int]]) -> Worth:
    def worth(there: frozenset[int]) -> float:
        keep = torch.ones(1, len(case.words))
        for i, group in enumerate(groups):
            keep[0, group] = float(i in there)
        with torch.no_grad():
            return float(model.score_text(keep, [case]))

    return worth


def by_definition(worth: Worth, players: int) -> np.ndarray:
    """Shapley's formula, coalition by coalition."""
    known: dict[frozenset[int], float] = {}
    value = lambda there: known.setdefault(there, worth(there))
    found = np.zeros(players)
    for i in range(players):
        others = [j for j in range(players) if j != i]
        for size in range(players):
            share = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for some in itertools.combinations(others, size):
                there = frozenset(some)
                found[i] += share * (value(there | {i}) - value(there))
    return found


def by_orders(worth: Worth, orders: Tensor) -> np.ndarray:
    found = np.zeros(orders.shape[1])
    for order in orders.tolist():
        for turn, i in enumerate(order):
            found[i] += worth(frozenset(order[: turn + 1])) - worth(frozenset(order[:turn]))
    return found / len(orders)


def words_of(case: Case) -> list[list[int]]:
    """Every word of the tests' texts is one token, between two special ones."""
    return [[k] for k, word in enumerate(case.words) if word >= 0]


@pytest.mark.parametrize("name", ["cnn", "vit", "clip", "adaptive"])
def test_few_players_have_exact_values(
    name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models[name]
    cases = asked(model, 3)
    model.memo.clear()
    with model.part() as spent:
        found = explainer("shapley", cells=2, text="none").explain(model, cases)
    off = 0.0
    for case, told in zip(cases, found, strict=True):
        expected = by_definition(image_worth(model, case, 2), 4).reshape(2, 2)
        off = max(off, float(np.abs(told.image.numpy() - expected).max()))
        np.testing.assert_allclose(told.image.numpy(), expected, atol=1e-5)
        if name in ("cnn", "vit"):
            assert spent.forward[case.id] == pytest.approx(16)
        elif name == "clip":
            assert spent.forward[case.id] == pytest.approx(17)  # and the caption's embedding
    print(f"{name}: exact Shapley values off by {off:.1e}")


@pytest.mark.parametrize("name", ["clip", "adaptive"])
def test_words_have_exact_values(name: str, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model, off = models[name], 0.0
    for case in asked(model, 3)[1:]:
        (told,) = explainer("shapley", cells=1).explain(model, [case])
        groups = words_of(case) if name == "clip" else [[k] for k in range(1, case.target + 1)]
        expected = np.zeros(len(case.words))
        for group, value in zip(
            groups, by_definition(text_worth(model, case, groups), len(groups)), strict=True
        ):
            expected[group] = value
        off = max(off, float(np.abs(told.text.numpy() - expected).max()))
        np.testing.assert_allclose(told.text.numpy(), expected, atol=1e-5)
    print(f"{name}: exact Shapley values of words off by {off:.1e}")


def test_many_players_are_sampled_order_by_order(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models["cnn"]
    (case,) = asked(model, 1)
    model.memo.clear()
    with model.part() as spent:
        (told,) = explainer("shapley", cells=4, orders=3).explain(model, [case])
    orders = torch.rand(3, 16, generator=case.generator("shapley image")).argsort(1)
    worth = image_worth(model, case, 4)
    np.testing.assert_allclose(told.image.numpy().ravel(), by_orders(worth, orders), atol=1e-5)
    whole, nobody = worth(frozenset(range(16))), worth(frozenset())
    assert float(told.image.double().sum()) == pytest.approx(whole - nobody, abs=1e-4)
    different = {frozenset(order[:k]) for order in orders.tolist() for k in range(17)}
    assert spent.forward[case.id] == len(different) <= 3 * 15 + 2


def test_sampled_values_come_to_the_exact_ones(source: Any) -> None:
    """A game of 8 players with interactions of every order: within three standard errors of Shapley's formula."""
    games, shapley = source("shapley").games, source("shapley")
    scores = torch.randn(256, generator=torch.Generator().manual_seed(0)).double()
    exact = by_definition(lambda there: float(scores[sum(2**i for i in there)]), 8)
    np.testing.assert_allclose(shapley.exact(scores).numpy(), exact, atol=1e-12)
    orders = torch.rand(4000, 8, generator=torch.Generator().manual_seed(1)).argsort(1)
    place = (shapley.arrivals(orders) * 2 ** torch.arange(8)).sum(-1)
    assert torch.equal(games.everyone(8)[place], shapley.arrivals(orders))
    sampled = shapley.added(orders, scores[place].flatten())
    assert float((sampled - torch.from_numpy(exact)).abs().max()) < 3 * 1.5 / 4000**0.5


def sklearn_slopes(coalitions: Any, scores: Any, width: float, ridge: float) -> np.ndarray:
    """As the authors' package does it: cosine distances by scikit-learn, its kernel, and its Ridge."""
    linear = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    rows = coalitions.numpy().astype(float)
    distance = metrics.pairwise_distances(rows, np.ones((1, rows.shape[1])), metric="cosine").ravel()
    weight = np.sqrt(np.exp(-(distance**2) / width**2))
    fitted = linear.Ridge(alpha=ridge, fit_intercept=True).fit(rows, scores.numpy(), sample_weight=weight)
    return np.asarray(fitted.coef_)


@pytest.mark.parametrize("ridge", [1.0, 1e-3])
@pytest.mark.parametrize("width", [0.25, 1.0])
@pytest.mark.parametrize("players", [1, 5, 49])
def test_ridge_as_scikit_learn_has_it(players: int, width: float, ridge: float, source: Any) -> None:
    chance = torch.Generator().manual_seed(players)
    coalitions = torch.rand(300, players, generator=chance) < 0.5
    coalitions[0], coalitions[1] = True, False
    scores = torch.randn(300, generator=chance).double()
    found = source("lime").slopes(coalitions, scores, width, ridge).numpy()
    expected = sklearn_slopes(coalitions, scores, width, ridge)
    print(f"{players} players: off by {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_lime_from_the_image_and_the_text_on(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["clip"]
    case = asked(model, 3)[2]
    settings = {"samples": 40, "cells": 3, "baseline": "mean", "ridge": 0.01}
    model.memo.clear()
    with model.part() as spent:
        (told,) = explainer("lime", **settings).explain(model, [case])
    there = torch.rand(40, 9, generator=case.generator("lime image")) < 0.5
    there[0] = True
    worth = image_worth(model, case, 3)
    scores = torch.tensor([worth(frozenset(row.nonzero()[:, 0].tolist())) for row in there]).double()
    np.testing.assert_allclose(
        told.image.numpy().ravel(), sklearn_slopes(there, scores, 0.25, 0.01), atol=1e-5
    )

    groups = words_of(case)
    chance = case.generator("lime text")
    gone = torch.randint(1, len(groups) + 1, (40, 1), generator=chance)
    ranks = torch.rand(40, len(groups), generator=chance).argsort(1).argsort(1)
    said = ranks >= gone
    said[0] = True
    assert ((~said[1:]).sum(1) >= 1).all()
    worth = text_worth(model, case, groups)
    scores = torch.tensor([worth(frozenset(row.nonzero()[:, 0].tolist())) for row in said]).double()
    expected = sklearn_slopes(said, scores, 0.25, 0.01)
    np.testing.assert_allclose(told.text.numpy()[1:-1], expected, atol=1e-5)
    assert told.text[[0, -1]].tolist() == [0, 0]
    different = len({tuple(r) for r in there.tolist()}) + len({tuple(r) for r in said.tolist()})
    assert spent.forward[case.id] == pytest.approx(different + 2)  # and either side's own embedding


@pytest.mark.parametrize("name", ["clip", "adaptive"])
def test_words_are_ablated_one_by_one(
    name: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models[name]
    cases = asked(model, 4)
    found = explainer("captum_suite:FeatureAblation", cells=1, text="word").explain(model, cases)
    for case, told in zip(cases, found, strict=True):
        groups = words_of(case) if name == "clip" else [[k] for k in range(1, case.target + 1)]
        worth, everyone = text_worth(model, case, groups), frozenset(range(len(groups)))
        expected = np.zeros(len(case.words))
        for i, (place,) in enumerate(groups):
            expected[place] = worth(everyone) - worth(everyone - {i})
        np.testing.assert_allclose(told.text.numpy(), expected, atol=1e-6)


def test_kernel_shap_of_words_comes_to_the_exact_values(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models["clip"]
    for case in asked(model, 4):
        (told,) = explainer("captum_suite:KernelShap", cells=2, samples=4000, text="token").explain(
            model, [case]
        )
        (exact,) = explainer("shapley", cells=1, text="token").explain(model, [case])
        assert float(told.text.sum()) == pytest.approx(float(exact.text.sum()), abs=1e-4)
        np.testing.assert_allclose(told.text.numpy(), exact.text.numpy(), atol=4e-3)


COUNTS: dict[str, dict[str, Any]] = {
    "lime": {"samples": 30, "text": "token", "removal": "pad"},
    "shapley": {"orders": 2, "text": "token", "removal": "pad"},
    "captum_suite:KernelShap": {"samples": 30, "text": "token"},
    "captum_suite:FeatureAblation": {"text": "token"},
}


@pytest.mark.parametrize("use", COUNTS)
def test_superpixels_and_tokens_and_neighbours(
    use: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    pytest.importorskip("skimage")
    model = models["clip"]
    ramp = torch.linspace(-1, 1, 32)
    picture = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)])
    cases = [replace(case, pixels=(k + 1) / 5 * picture) for k, case in enumerate(asked(model))]
    made = explainer(use, cells=3, segments="slic", **COUNTS[use])

    def answers(some: list[Case]) -> list[Any]:
        model.memo.clear()
        return made.explain(model, some)

    whole = answers(cases)
    for told, case in zip(whole, cases, strict=True):
        assert told.image.shape == case.pixels.shape[1:]
        assert 1 < len(told.image.unique()) <= 16
    others = (
        [answers([case])[0] for case in cases],
        answers(cases[:3]) + answers(cases[3:]),
        answers(cases[::-1])[::-1],
    )
    for again in others:
        for a, b in zip(whole, again, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.text, b.text)
    moved = made.explain(model, [replace(case, seed=1) for case in cases])
    assert torch.equal(moved[0].image, whole[0].image) == use.endswith(
        "FeatureAblation"
    )  # nothing is drawn there


def test_a_superpixel_is_ablated_whole(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    pytest.importorskip("skimage")
    model = models["cnn"]
    (case,) = asked(model, 1)
    case = replace(case, id="ramp", pixels=case.pixels * 0.2 + torch.linspace(-1, 1, case.pixels.shape[2]))
    (told,) = explainer("captum_suite:FeatureAblation", cells=3, segments="slic").explain(model, [case])
    places = segments.slic(case.pixels, 9, 10.0, model.frame)
    with torch.no_grad():
        clean = model.score(case.pixels[None], [case])
        for one in places.unique():
            gone = case.pixels.masked_fill(places == one, 0)
            lost = float(clean - model.score(gone[None], [case]))
            here = told.image[places == one]
            assert here.unique().numel() == 1
            assert float(here[0]) == pytest.approx(lost, abs=1e-5)


@pytest.mark.parametrize(
    ("use", "settings", "said"),
    [
        ("lime", {"samples": 1}, "samples 1"),
        ("lime", {"width": 0.0}, "width 0.0"),
        ("lime", {"segments": "slick"}, "did you mean 'slic'"),
        ("shapley", {"orders": 0}, "orders: found 0"),
        ("shapley", {"text": "words"}, "did you mean 'word'"),
    ],
)
def test_wrong_settings_are_refused(
    use: str, settings: dict[str, Any], said: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    with pytest.raises(Refused, match=said):
        explainer(use, **settings).explain(models["cnn"], asked(models["cnn"], 1))
