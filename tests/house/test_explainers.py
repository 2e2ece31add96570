"""Every explainer on a shelf, of the house or of the folder one stands in, on every small model: no list, no naming.

A file dropped in ``explainers/`` is covered by being there. What must hold for all: it suits a model or says why not;
its answers have the right sizes, are finite, and are the same alone and among others and whatever the global generators
hold; and it leaves the model, the image and the generators as it found them.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import Explanation, Unsuited, checks, shelf
from heatproof.shelf import Place

PLACE = Place(Path.cwd(), Path.cwd())
USES = sorted(use for path in PLACE.files("explainers").values() for use in shelf.uses("explainers", path))
MODELS = ("resnet", "vit", "clip", "captioner")
MOST = 8  # of anything that is counted in a setting: masks, steps, samples


def make(use: str) -> typing.Any:
    """An instance with its defaults, made cheap: whole numbers of more than a few are cut down."""
    cls = shelf.find("explainers", use, PLACE, "tests/house")
    hints, given = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if (
            getattr(hints[field.name], "__name__", "") == "Explainer"
        ):  # the first method that is no control of others
            given[field.name] = make(next(u for u in USES if "of" not in fields(u)))
        elif type(field.default) is int and field.default > MOST:
            given[field.name] = MOST
        elif field.init and field.default is field.default_factory is dataclasses.MISSING:
            pytest.skip(f"{use} cannot be without its {field.name}: it has tests of its own")
    return cls(**given)


def fields(use: str) -> set[str]:
    return {f.name for f in dataclasses.fields(shelf.find("explainers", use, PLACE, "tests/house"))}


def ask(made, model, cases) -> list[Explanation]:
    model.memo.clear()
    extra = [made.fit(model, iter([list(cases)]))] if hasattr(made, "fit") else []
    return list(made.explain(model, cases, *extra))


def tensors(told: Explanation) -> dict[str, torch.Tensor]:
    found = {n: t for n in ("image", "text", "pairs") if (t := getattr(told, n)) is not None}
    return found | {f"{v}/{n}": t for v, view in told.views.items() for n, t in tensors(view).items()}


def same(a: Explanation, b: Explanation) -> bool:
    x, y = tensors(a), tensors(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def shake(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("use", USES)
def test_a_frozen_dataclass_that_says_what_it_is(use):
    cls = shelf.find("explainers", use, PLACE, "tests/house")
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen, "settings are part of the key: write @dataclass(frozen=True)"
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), (
        "the first line of the docstring stands in the table"
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use", USES)
def test_suits_the_model_or_says_why_not_and_keeps_every_promise(use, name, families):
    model, cases = families[name]
    made, before = make(use), checks.condition(model.net)
    pixels = [case.pixels.clone() for case in cases]
    shake(1)
    try:
        whole = ask(made, model, cases)
    except Unsuited as unsuited:
        reason = str(unsuited)
        assert len(reason) > 10, "say why: the reason stands in the table"
        assert checks.condition(model.net) == before
        return
    generators = torch.get_rng_state(), np.random.get_state()[1]
    shake(1)
    assert torch.equal(generators[0], torch.get_rng_state()), "draws from torch's global generator"
    assert (generators[1] == np.random.get_state()[1]).all(), "draws from numpy's global generator"
    assert len(whole) == len(cases)
    for case, told in zip(cases, whole, strict=True):
        assert isinstance(told, Explanation)
        assert tensors(told) or told.concepts or told.sentence
        for part, tensor in tensors(told).items():
            assert tensor.isfinite().all(), part
        if told.image is not None:
            assert told.image.ndim in (2, 3)
            assert max(told.image.shape[-2:]) <= max(case.pixels.shape[-2:])
        if told.text is not None:
            assert told.text.shape == case.tokens.shape
    shake(2)
    if not hasattr(made, "fit"):  # what is fitted depends on what it is fitted on
        (alone,) = ask(made, model, cases[5:6])
        assert same(alone, whole[5]), "is another answer alone than among eight"
        for k, told in enumerate(ask(made, model, cases[::-1])[::-1]):
            assert same(told, whole[k]), f"case {k} is another answer in another order"
    else:
        assert all(same(a, b) for a, b in zip(ask(made, model, cases), whole, strict=True))
    assert checks.condition(model.net) == before
    assert not model._watches
    assert all(torch.equal(case.pixels, kept) for case, kept in zip(cases, pixels, strict=True))


def test_the_shelves_are_not_empty_and_a_new_file_is_seen(tmp_path):
    assert len(USES) > 10
    (tmp_path / "explainers").mkdir()
    (tmp_path / "explainers" / "fresh.py").write_text(
        "class Fresh:\n    def explain(self, model, cases): ...\n"
    )
    there = Place(tmp_path, tmp_path).files("explainers")
    assert there["fresh"] == (tmp_path / "explainers" / "fresh.py").resolve()
    assert set(there) >= {path.stem for path in (shelf.house() / "explainers").glob("*.py")}
