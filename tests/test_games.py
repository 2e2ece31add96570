"""Games: who is there in a row, what stands for who is not, and what each coalition costs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatproof import games
from heatproof.contract import Case, Refused, Unsuited
from heatproof.geometry import Frame


class Linear:
    """A score that is a sum over pixels, and over kept tokens; it counts the rows that it is asked."""

    name, family, rows, sites = "linear", "dual", 4, ("text.embed",)

    def __init__(self, channels: int = 3) -> None:
        chance = torch.Generator().manual_seed(0)
        self.weight = torch.randn(channels, 6, 10, generator=chance)
        self.frame = Frame(6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        self.asked, self.sizes = 0, []

    def score(self, pixels: Tensor, cases: Any) -> Tensor:
        self.asked += len(pixels)
        self.sizes.append(len(pixels))
        return (pixels * self.weight).sum((1, 2, 3))

    def clean(self, cases: Any) -> Tensor:
        return (torch.stack([c.pixels for c in cases]) * self.weight).sum((1, 2, 3))

    def score_text(self, keep: Tensor, cases: Any, removal: str = "usual") -> Tensor:
        self.asked += len(keep)
        self.removal = removal
        return (keep * torch.arange(1.0, keep.shape[1] + 1)).sum(1)


def case(name: str = "a", channels: int = 3, seed: int = 1) -> Case:
    pixels = torch.randn(channels, 6, 10, generator=torch.Generator().manual_seed(seed))
    return Case(name, "s", "", pixels, 0, tokens=torch.arange(6), words=(-1, 0, 0, 1, 2, -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("baseline", games.BASELINES)
def test_rows_pixel_by_pixel(baseline: str, channels: int) -> None:
    model = Linear(channels)
    if channels == 1:
        model.frame = Frame(6, mean=(0.4,), std=(0.2,))
    asked = case(channels=channels)
    game = games.Pictures(model, [asked], 3, baseline=baseline)
    there = torch.rand(5, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    found = game.rows([(0, row) for row in there])
    for row, got in zip(there, found, strict=True):
        for y in range(6):
            for x in range(10):
                mine = [
                    (v, u)
                    for v in range(6)
                    for u in range(10)
                    if (v // 2, u * 3 // 10) == (y // 2, x * 3 // 10)
                ]
                for c in range(channels):
                    mean = np.mean([float(asked.pixels[c, v, u]) for v, u in mine])
                    gone = {
                        "mean": 0.0,
                        "black": -model.frame.mean[c] / model.frame.std[c],
                        "segment_mean": mean,
                    }
                    stays = bool(row[y // 2 * 3 + x * 3 // 10])
                    want = float(asked.pixels[c, y, x]) if stays else gone[baseline]
                    assert float(got[c, y, x]) == pytest.approx(want, abs=1e-6)


def test_each_different_coalition_costs_one_row_and_rows_come_a_batch_at_a_time() -> None:
    model, cases = Linear(), [case("a"), case("b", seed=2)]
    game = games.Pictures(model, cases, 2)
    everyone = games.everyone(4)
    twice = torch.cat([everyone, everyone.flip(0)])
    found = game.values([twice, everyone[:3]])
    assert model.asked == 15 + 3  # everyone at once is the clean score
    assert [len(f) for f in found] == [32, 3]
    assert torch.equal(found[0][:16], found[0][16:].flip(0))
    expected = model.score(game.rows([(0, row) for row in twice]), cases[:1] * 32).double()
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-5)

    model.sizes = []
    wide = games.Pictures(model, cases, 5)
    some = torch.rand(150, 25, generator=torch.Generator().manual_seed(3)) < 0.5
    wide.values([some, some])
    assert sum(model.sizes) == 300
    assert max(model.sizes) == games.TOGETHER


@pytest.mark.parametrize(("unit", "sums"), [("token", [2, 3, 4, 5]), ("word", [5, 4, 5])])
def test_tokens_and_words(unit: str, sums: list[int]) -> None:
    model, asked = Linear(), [case(), replace(case("b"), words=(-1, 0, -1))]
    game = games.Texts(model, asked, unit)
    whole, nobody = (torch.full((1, n), stays) for stays in (True, False) for n in game.players[:1])
    own = torch.eye(len(sums)).bool()
    found = game.values([torch.cat([whole, nobody, own]), torch.ones(1, 1).bool()])
    assert found[0].tolist() == [21, 7, *(7 + s for s in sums)]
    assert model.removal == "usual"
    painted = game.paint(0, torch.tensor(sums).double())
    assert painted[[0, -1]].tolist() == [0, 0]
    assert float(painted.sum()) == sum(sums)
    assert game.paint(0, torch.ones(2, len(sums))).shape == (2, 6)


def test_superpixels_are_painted_where_they_are() -> None:
    pytest.importorskip("skimage")
    asked = case()
    game = games.Pictures(Linear(), [asked], 3, "slic")
    values = torch.arange(game.players[0]).double()
    assert torch.equal(game.paint(0, values), game.places[0].float())
    assert game.players[0] == len(game.places[0].unique())


def test_nobody_may_go() -> None:
    silent = replace(case(), words=(-1, -1))
    game = games.Texts(Linear(), [silent])
    assert game.players == [0]
    (found,) = game.values([torch.ones(3, 0).bool()])
    assert found.tolist() == [3, 3, 3]
    assert game.paint(0, torch.zeros(0)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cut": "slick"}, "did you mean 'slic'"),
        ({"baseline": "means"}, "did you mean 'mean'"),
        ({"cells": 0}, "cells: found 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        games.Pictures(Linear(), [case()], **{"cells": 3} | settings)
    with pytest.raises(Refused, match="did you mean 'word'"):
        games.texts(Linear(), [case()], "words")


def test_without_scikit_image_slic_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="pip install scikit-image"):
        games.Pictures(Linear(), [case()], 3, "slic")


def test_region_features_have_no_pixels_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsuited, match="region features"):
        games.Pictures(SimpleNamespace(name="up-down"), [replace(case(), pixels=torch.zeros(4, 8))], 3)
