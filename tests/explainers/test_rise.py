"""RISE against a loop over masks, pixels and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from heatproof import segments
from heatproof.errors import Refused


def enlarged(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, edges repeated: one pixel at a time."""
    found = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (y + 0.5) * cells.shape[0] / size[0] - 0.5, (x + 0.5) * cells.shape[1] / size[1] - 0.5
            for dv in (0, 1):
                for du in (0, 1):
                    i, j = math.floor(v) + dv, math.floor(u) + du
                    share = (1 - abs(v - i)) * (1 - abs(u - j))
                    i, j = min(max(i, 0), cells.shape[0] - 1), min(max(j, 0), cells.shape[1] - 1)
                    found[y, x] += share * cells[i, j]
    return found


@pytest.mark.parametrize("probability", [True, False])
@pytest.mark.parametrize("normalise", ["coverage", "expectation"])
def test_mask_by_mask(
    normalise: str, probability: bool, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, grid, count, keep = models["cnn"], 3, 6, 0.4
    (case,) = asked(model, 1)
    made = explainer("rise", masks=count, grid=grid, keep=keep, normalise=normalise, probability=probability)
    (told,) = made.explain(model, [case])
    side = case.pixels.shape[1]
    cell = math.ceil(side / grid)
    chance = case.generator("rise image")
    kept = (torch.rand(count, grid, grid, generator=chance) < keep).numpy()
    down = torch.randint(0, cell, (count,), generator=chance).tolist()
    right = torch.randint(0, cell, (count,), generator=chance).tolist()
    heat, cover = np.zeros((side, side)), np.zeros((side, side))
    for m in range(count):
        wide = enlarged(kept[m].astype(float), ((grid + 1) * cell,) * 2)
        mask = wide[down[m] : down[m] + side, right[m] : right[m] + side]
        x = case.pixels * torch.from_numpy(mask).float()
        with torch.no_grad():
            logits = model.net(x[None]).logits[0]
        chosen = logits.softmax(0) if probability else logits
        heat += float(chosen[case.target]) * mask
        cover += mask
    expected = heat / (cover if normalise == "coverage" else count * keep)
    well = cover > 0.01
    np.testing.assert_allclose(told.image.numpy()[well], expected[well], rtol=1e-3, atol=1e-4)


def test_more_masks_than_a_block_cost_one_forward_each(
    models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 2)
    with model.part() as spent:
        found = explainer("rise", masks=130).explain(model, cases)
    assert {spent.forward[c.id] for c in cases} == {130.0}
    assert found[0].image.shape == cases[0].pixels.shape[1:]


def test_a_constant_score_gives_a_flat_map(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = models["cnn"], asked(models["cnn"], 1)
    monkeypatch.setattr(model, "score", lambda pixels, cases: torch.full((len(cases),), 3.0))
    (told,) = explainer("rise", masks=100, probability=False).explain(model, cases)
    np.testing.assert_allclose(told.image.numpy(), 3.0, rtol=1e-5)


def test_a_log_probability_weighs_by_its_exponential(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = models["adaptive"], asked(models["adaptive"], 1)
    monkeypatch.setattr(model, "score", lambda pixels, cases: torch.full((len(cases),), -2.0))
    (told,) = explainer("rise", masks=100).explain(model, cases)
    np.testing.assert_allclose(told.image.numpy(), math.exp(-2), rtol=1e-5)


def test_special_tokens_are_never_removed(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = models["clip"], asked(models["clip"], 1)
    seen = []
    scored = model.score_text
    monkeypatch.setattr(model, "score_text", lambda keep, some: (seen.append(keep), scored(keep, some))[1])
    (told,) = explainer("rise", masks=8, text_masks=30).explain(model, cases)
    keep = seen[0]
    assert keep[:, [0, -1]].all()
    assert 0 < keep[:, 1:-1].mean() < 1
    scores = scored(keep, cases * 30)
    word = 1
    expected = (scores * keep[:, word]).sum() / keep[:, word].sum()
    assert float(told.text[word]) == pytest.approx(float(expected), rel=1e-4)


def test_superpixels_are_kept_whole(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    pytest.importorskip("skimage")
    model, count, keep = models["cnn"], 40, 0.6
    cases = asked(model, 3)
    made = explainer("rise", masks=count, grid=3, keep=keep, segments="slic", probability=False)
    whole = made.explain(model, cases)
    for case, told in zip(cases, whole, strict=True):
        places = segments.slic(case.pixels, 9, 10.0, model.frame)
        kept = torch.rand(count, int(places.max()) + 1, generator=case.generator("rise image")) < keep
        with torch.no_grad():
            scores = model.score(torch.stack([case.pixels * row[places] for row in kept]), [case] * count)
        for one in places.unique():
            there = told.image[places == one]
            assert there.unique().numel() == 1
            assert float(there[0]) == pytest.approx(float(scores[kept[:, one]].mean()), rel=1e-4)
    assert all(
        torch.equal(made.explain(model, [c])[0].image, t.image) for c, t in zip(cases, whole, strict=True)
    )


def test_the_tokens_of_a_word_go_together(
    models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = models["clip"], []
    (case,) = asked(model, 1)
    case = replace(case, words=(-1, *(k // 2 for k in range(len(case.words) - 2)), -1))
    scored = model.score_text
    monkeypatch.setattr(model, "score_text", lambda keep, some: (seen.append(keep), scored(keep, some))[1])
    (told,) = explainer("rise", masks=1, text_masks=30, unit="word").explain(model, [case])
    keep = seen[0]
    assert keep[:, [0, -1]].all()
    assert torch.equal(keep[:, 1], keep[:, 2])
    assert float(told.text[1]) == float(told.text[2])
    assert 0 < keep[:, 1].mean() < 1
    if len(case.words) > 4:
        assert not torch.equal(keep[:, 1], keep[:, 3])
    with pytest.raises(Refused, match="did you mean 'word'"):
        explainer("rise", unit="words").explain(model, [case])


def test_an_unknown_normalisation_is_refused(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="'max'"):
        explainer("rise", normalise="max").explain(models["cnn"], asked(models["cnn"], 1))
