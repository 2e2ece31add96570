"""Interactions against their definition and against one big regression; what they cost; what first-order maps cannot say."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof.errors import Refused, Unsuited

KEEP = 0.7
WORDS = ["", "red", "ball", "tall", "box", ""]


def banzhaf(
    worth: Callable[[frozenset[int]], float], players: int, who: tuple[int, ...], keep: float
) -> float:
    """The weighted Banzhaf value (one player) or interaction (two), coalition by coalition."""
    others, found = [i for i in range(players) if i not in who], 0.0
    for size in range(len(others) + 1):
        for some in itertools.combinations(others, size):
            chance = keep**size * (1 - keep) ** (len(others) - size)
            for many in range(len(who) + 1):
                for more in itertools.combinations(who, many):
                    found += chance * (-1) ** (len(who) - many) * worth(frozenset(some) | frozenset(more))
    return found


def cosine(model: Any, case: Any, free: list[int], there: frozenset[int]) -> float:
    """Of an image in four quarters (players 0 to 3) and of a text's words (the others) with some of them there."""
    pixels = case.pixels.clone()
    high, wide = (side // 2 for side in pixels.shape[1:])
    for i in {0, 1, 2, 3} - there:
        y, x = i // 2 * high, i % 2 * wide
        pixels[:, y : y + high, x : x + wide] = 0
    stays = [k not in free or 4 + free.index(k) in there for k in range(len(case.words))]
    told = replace(case, id=f"{case.id} {sorted(there)}", tokens=case.tokens[torch.tensor(stays)])
    with torch.no_grad():
        image, text = model.embed(pixels[None], [case]), model.embed_text([told])
    return float(F.cosine_similarity(image.double(), text.double()))


@pytest.mark.parametrize("keep", [0.5, KEEP])
def test_all_coalitions_give_the_definition(
    keep: float, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model, off = models["clip"], 0.0
    for case in asked(model, 2):
        (told,) = explainer("interactions", cells=2, keep=keep).explain(model, [case])
        free = [k for k, word in enumerate(case.words) if word >= 0]
        players = 4 + len(free)
        worth = cache(lambda there, case=case, free=free: cosine(model, case, free, there))
        for i in range(4):
            expected = banzhaf(worth, players, (i,), keep)
            off = max(off, abs(float(told.image.flatten()[i]) - expected))
            for j, place in enumerate(free):
                expected = banzhaf(worth, players, (i, 4 + j), keep)
                off = max(off, abs(float(told.pairs[i, place]) - expected))
        for j, place in enumerate(free):
            off = max(off, abs(float(told.text[place]) - banzhaf(worth, players, (4 + j,), keep)))
        assert told.pairs.shape == (4, len(case.words))
        assert told.pairs[:, [0, -1]].abs().max() == 0
    print(f"keep {keep}: values and interactions off by {off:.1e}")
    assert off < 1e-6


def test_drawn_coalitions_are_one_big_weighted_regression(source: Any) -> None:
    module, chance = source("interactions"), torch.Generator().manual_seed(0)
    sides = []
    for masks, players in ((40, 9), (12, 3)):
        rows, which = module.games.distinct(torch.rand(masks, players, generator=chance) < KEEP)
        sides.append((rows, torch.bincount(which).double() / masks))
    (seen, wide), (said, narrow) = sides
    values = torch.randn(len(seen), len(said), generator=chance).double()
    design, weights = [], []
    for x, v in zip(seen.numpy(), wide.numpy(), strict=True):
        for y, w in zip(said.numpy(), narrow.numpy(), strict=True):
            first, second = [1.0, *(x - KEEP)], [1.0, *(y - KEEP)]
            design.append([a * b for a in first for b in second])
            weights.append(v * w)
    root = np.sqrt(weights)
    expected = np.linalg.lstsq(root[:, None] * np.array(design), root * values.numpy().ravel(), rcond=None)[0]
    found = module.fit(values, sides[0], sides[1], KEEP).numpy().ravel()
    print(f"off by {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(("cells", "rows"), [(2, 16), (4, 30)])
def test_m_times_n_values_cost_m_plus_n_forwards(
    cells: int, rows: int, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    model = models["clip"]
    case = asked(model, 3)[2]
    words = len([word for word in case.words if word >= 0])
    texts = min(2**words, 20)
    model._weights("image"), model._weights("text")
    model.memo.clear()
    counted: Counter[str] = Counter()
    hooks = [
        part.encoder.layers[0].register_forward_pre_hook(
            lambda _, args, name=name: counted.update({name: len(args[0])})
        )
        for name, part in (("image", model.net.vision_model), ("text", model.net.text_model))
    ]
    kept, model.rows = model.rows, 1  # so that a hook counts rows and not blocks
    try:
        with model.part() as spent:
            explainer("interactions", cells=cells, image_masks=30, text_masks=20).explain(model, [case])
    finally:
        model.rows = kept
        for hook in hooks:
            hook.remove()
    assert 0 < counted["image"] <= rows
    assert 0 < counted["text"] <= texts
    if cells == 2:
        assert counted["image"] == 16
    assert spent.forward[case.id] == pytest.approx(counted["image"] + counted["text"])


def test_what_was_drawn_twice_is_embedded_once(source: Any, asked: Any, models: Any) -> None:
    made = source("interactions").Interactions(image_masks=200)
    case = asked(models["clip"], 1)[0]
    rows, weight = made._side(case, "image", 8, 200)
    assert len(rows) == len({tuple(row) for row in rows.tolist()}) < 200
    assert float(weight.sum()) == pytest.approx(1)
    drawn = torch.rand(200, 8, generator=case.generator("interactions image")) < KEEP
    counts = Counter(tuple(row) for row in drawn.tolist())
    assert [counts[tuple(row)] for row in rows.tolist()] == (weight * 200).round().int().tolist()
    everyone, chances = made._side(case, "image", 7, 200)
    assert len(everyone) == 128
    assert float(chances.sum()) == pytest.approx(1)


class Mosaic:
    """A dual encoder that knows what stands in each cell: an image is the sum of its things, a text of its words."""

    name, family, rows = "mosaic", "dual", 8

    def __init__(self, things: list[str]) -> None:
        self.things = things
        self.side = int(len(things) ** 0.5)

    def embed(self, pixels: Tensor, cases: Any) -> Tensor:
        seen = F.adaptive_avg_pool2d(pixels[:, :1], self.side).flatten(1)
        found = torch.full((len(pixels), len(WORDS) + 1), 0.05)
        for i, thing in enumerate(self.things):
            found[:, WORDS.index(thing)] += seen[:, i]
        return found

    def embed_text(self, cases: Any) -> Tensor:
        found = torch.full((len(cases), len(WORDS) + 1), 0.05)
        for row, case in zip(found, cases, strict=True):
            for token in case.tokens.tolist():
                row[token] += float(0 < token < len(WORDS) - 1)
        return found


@pytest.mark.parametrize("things", [["red", "ball", "tall", "box"], ["ball", "box", "ball", "box"]])
def test_each_word_finds_its_own_thing_where_first_order_maps_cannot(
    things: list[str], asked: Any, models: Any, explainer: Callable[..., Any]
) -> None:
    case = asked(models["clip"], 1)[0]
    said = sorted({WORDS.index(thing) for thing in things})
    ids = torch.tensor([0, *said, len(WORDS) - 1])
    told = replace(case, pixels=torch.ones(3, 32, 32), tokens=ids, words=(-1, *range(len(said)), -1))
    (found,) = explainer("interactions", cells=2).explain(Mosaic(things), [told])
    for place, token in enumerate(said, 1):
        own = torch.tensor([WORDS.index(thing) == token for thing in things])
        column = found.pairs[:, place]
        assert float(column[own].min()) > 0 > float(column[~own].max())
    # all things are as good for the text as a whole: one map for all words tells none apart
    assert float(found.image.max() - found.image.min()) < 1e-6


def test_neighbours_change_nothing(models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    model = models["clip"]
    cases, made = asked(model), explainer("interactions", cells=4, image_masks=40, text_masks=9)

    def answers(some: Any) -> Any:
        model.memo.clear()
        return made.explain(model, some)

    whole = answers(cases)
    for again in (
        [answers([case])[0] for case in cases],
        answers(cases[:3]) + answers(cases[3:]),
        answers(cases[::-1])[::-1],
    ):
        for a, b in zip(whole, again, strict=True):
            assert torch.equal(a.pairs, b.pairs)
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.text, b.text)


@pytest.mark.parametrize("removal", ["pad", "unknown"])
def test_another_token_may_stand_there(
    removal: str, models: Any, asked: Any, explainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = models["clip"], []
    (case,) = asked(model, 1)
    embed = model.embed_text
    monkeypatch.setattr(model, "embed_text", lambda cases: (seen.extend(cases), embed(cases))[1])
    explainer("interactions", cells=2, removal=removal).explain(model, [case])
    assert {len(told.tokens) for told in seen} == {len(case.tokens)}
    assert len({told.id for told in seen}) == len(seen) == 8
    assert {told.charge for told in seen} == {case.id}
    other = getattr(model.tokenizer, removal)
    for told in seen:
        assert all(a in (b, other) for a, b in zip(told.tokens.tolist(), case.tokens.tolist(), strict=True))
    with pytest.raises(Unsuited, match="no mask token"):
        explainer("interactions", cells=2, removal="mask").explain(model, [case])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 1.0}, "keep 1.0"),
        ({"image_masks": 0}, "masks 0"),
        ({"removal": "attention"}, "removal 'attention'"),
        ({"unit": "words"}, "did you mean 'word'"),
        ({"baseline": "grey"}, "baseline 'grey'"),
    ],
)
def test_wrong_settings_are_refused(
    settings: dict[str, Any], said: str, models: Any, asked: Any, explainer: Callable[..., Any]
) -> None:
    with pytest.raises(Refused, match=said):
        explainer("interactions", **settings).explain(models["clip"], asked(models["clip"], 1))


@pytest.mark.parametrize("name", ["cnn", "vit", "adaptive"])
def test_it_takes_a_dual_encoder(name: str, models: Any, asked: Any, explainer: Callable[..., Any]) -> None:
    with pytest.raises(Unsuited, match="an image and a text"):
        explainer("interactions").explain(models[name], asked(models[name], 1))
