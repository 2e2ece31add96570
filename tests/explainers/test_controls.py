"""The controls: what they know, and that they know nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from heatproof import Explanation, Unsuited, geometry

BLIND = ("random", "centre", "edges", "oracle")


@pytest.mark.parametrize("use", BLIND)
def test_a_control_never_looks_at_the_model(
    use: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    cases = asked(models["cnn"])
    assert len(explainer(use).explain(None, cases)) == len(cases)


def test_random_is_uniform_and_the_cases_own(asked: Any, models: Any, explainer: Callable[..., Any]) -> None:
    cases = asked(models["clip"])
    first, again = (explainer("random", cells=40).explain(None, cases) for _ in range(2))
    assert torch.equal(first[0].image, again[0].image)
    assert not torch.equal(first[0].image, first[1].image)
    assert float(first[0].image.mean()) == pytest.approx(0.5, abs=0.03)
    assert first[0].text.shape == cases[0].tokens.shape
    moved = explainer("random", cells=40).explain(None, [replace(cases[0], seed=7)])[0]
    assert not torch.equal(first[0].image, moved.image)


def test_centre_is_a_gaussian(asked: Any, models: Any, explainer: Callable[..., Any]) -> None:
    (told,) = explainer("centre", cells=3, sigma=0.5).explain(None, asked(models["cnn"], 1))
    assert float(told.image[1, 1]) == 1
    assert float(told.image[0, 1]) == pytest.approx(np.exp(-((1 / 3) ** 2) / (2 * 0.25)))
    assert torch.equal(told.image, told.image.T)


def test_edges_are_sobels(asked: Any, models: Any, explainer: Callable[..., Any]) -> None:
    (case,) = asked(models["cnn"], 1)
    grey = case.pixels.mean(0).numpy()
    expected = np.hypot(*(ndimage.sobel(grey, axis, mode="nearest") for axis in (0, 1)))
    (told,) = explainer("edges").explain(None, [case])
    np.testing.assert_allclose(told.image.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_oracle_is_the_mask_or_nothing(asked: Any, models: Any, explainer: Callable[..., Any]) -> None:
    (case,) = asked(models["cnn"], 1)
    empty = replace(case, evidence=torch.zeros(0, *case.pixels.shape[1:], dtype=torch.bool))
    told = explainer("oracle").explain(None, [case, empty, replace(case, evidence=None)])
    assert torch.equal(told[0].image, case.mask.float())
    assert told[1].image is None
    assert told[2].image is None


def test_prior_is_the_mean_mask_of_the_fit_split(
    asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    cases, made = asked(models["cnn"], 4), explainer("prior", cells=8)
    bare = replace(cases[3], evidence=None)
    fitted = made.fit(None, iter([cases[:2], [cases[2], bare]]))
    masks = torch.stack([case.mask.float() for case in cases[:3]]).mean(0)
    expected = masks.view(8, 4, 8, 4).mean((1, 3))
    assert torch.allclose(fitted["prior"], expected)
    assert torch.equal(made.explain(None, cases, fitted)[1].image, fitted["prior"])
    with pytest.raises(Unsuited, match="no case of the fit split"):
        made.fit(None, [[bare]])


@dataclass(frozen=True)
class Pixels:
    """An explainer that spends one forward and answers with the image."""

    def explain(self, model: Any, cases: Any) -> list[Explanation]:
        with torch.no_grad():
            model.score(model.stack(cases), cases)
        return [Explanation(image=case.pixels.clone(), text=torch.ones(2)) for case in cases]


def test_swapped_is_the_others_map_at_this_cases_cost(
    asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 3)
    alone = replace(cases[2], other=None)
    model.memo.clear()
    with model.part() as spent:
        told = explainer("swapped", of=Pixels()).explain(model, [*cases[:2], alone])
    assert torch.equal(told[0].image, cases[1].pixels)
    assert torch.equal(told[1].image, cases[2].pixels)
    assert told[0].text is None
    assert told[2].image is None
    assert dict(spent.forward) == {"case0": 1.0, "case1": 1.0}
    assert explainer("swapped", of=Pixels()).needs_other


def test_blurred_is_the_map_smoothed_on_the_images_grid(
    asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    model, (case,) = models["cnn"], asked(models["cnn"], 1)
    model.memo.clear()
    (told,) = explainer("blurred", of=Pixels(), sigma=0.06).explain(model, [case])
    heat = geometry.read(case.pixels, (32, 32)).numpy()
    expected = ndimage.gaussian_filter(heat, 0.06 * 32, mode="nearest", truncate=4.3)
    np.testing.assert_allclose(told.image.numpy(), expected, atol=1e-4)
    assert torch.equal(told.text, torch.ones(2))


@dataclass(frozen=True)
class Numbered:
    """Every place of the map has a number of its own, the channels in step; so have the words."""

    size: tuple[int, ...] = (2, 8, 14)

    def explain(self, model: Any, cases: Any) -> list[Explanation]:
        plane = torch.arange(float(np.prod(self.size[-2:]))).reshape(self.size[-2:])
        heat = torch.stack([plane, 1000 + plane]) if len(self.size) == 3 else plane
        return [
            Explanation(image=heat, text=None if c.tokens is None else torch.arange(float(len(c.words))))
            for c in cases
        ]


def test_shuffled_moves_whole_blocks_with_all_channels_and_words_among_words(
    asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    cases = asked(models["clip"], 3)
    own = Numbered().explain(None, cases)
    moved = explainer("shuffled", of=Numbered()).explain(models["clip"], cases)
    for case, before, after in zip(cases, own, moved, strict=True):
        assert torch.equal(after.image[0].flatten().sort().values, before.image[0].flatten())
        assert torch.equal(after.image[1], after.image[0] + 1000)
        assert not torch.equal(after.image, before.image)
        pieces = after.image[0].reshape(4, 2, 7, 2).movedim(2, 1)  # blocks of 2 x 2: 8 = 4 x 2, 14 = 7 x 2
        for piece in pieces.reshape(-1, 2, 2).tolist():
            (a, b), (c, d) = piece
            assert (b - a, c - a, d - a) == (1, 14, 15)
        special = [k for k, word in enumerate(case.words) if word < 0]
        assert after.text[special].tolist() == before.text[special].tolist()
        assert sorted(after.text.tolist()) == before.text.tolist()
    (alone,) = explainer("shuffled", of=Numbered()).explain(models["clip"], cases[2:])
    assert torch.equal(alone.image, moved[2].image)


def test_random_spares_the_words_before_a_captioners_target(
    asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    cases = asked(models["adaptive"])
    plain, spared = (explainer("random", spare=k).explain(models["adaptive"], cases) for k in (0, 2))
    for case, before, after in zip(cases, plain, spared, strict=True):
        gone = [t for t in (case.target - 1, case.target) if t >= 0]
        assert (after.text[gone] == 0).all()
        rest = [t for t in range(len(case.tokens)) if t not in gone]
        assert torch.equal(before.text[rest], after.text[rest])
        assert (before.text[gone] > 0).all()
        assert torch.equal(before.image, after.image)


@pytest.mark.parametrize("settings", [{"as_released": True}, {"head": 0}])
def test_what_is_of_a_captioners_decoder_is_refused_elsewhere(
    settings: Any, asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    name = next(
        name for name, model in models.items() if model.family == "classifier" and "image.conv" in model.sites
    )
    with pytest.raises(Unsuited, match="are of a captioner's decoder"):
        explainer("lrp", **settings).explain(models[name], asked(models[name]))
