"""What holds for every explainer of the shelf: laws 1 and 5, and shapes that the contract allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from heatproof import Explanation, Unsuited, shelf
from heatproof.contract import Case

ROOT = Path(__file__).resolve().parents[2]
SMALL = {  # settings that keep a test fast; every class of the shelf is asked, named here or not
    "captum_suite:IntegratedGradients": {"steps": 5, "text": True},
    "captum_suite:GradientShap": {"samples": 3},
    "captum_suite:Occlusion": {"window": 0.4, "stride": 0.3},
    "captum_suite:FeatureAblation": {"cells": 3, "text": "word"},
    "captum_suite:KernelShap": {"cells": 3, "samples": 20, "text": "token"},
    "lime": {"cells": 3, "samples": 20},
    "shapley": {"cells": 3, "orders": 2},
    "interactions": {"cells": 3, "image_masks": 20, "text_masks": 9},
    "rise": {"masks": 70, "grid": 3, "text_masks": 10},
    "m2ib": {"steps": 3, "repeats": 3},
    "smoothgrad": {"samples": 5},
    "smoothgrad:VarGrad": {"samples": 5},
    "layer_ig:LayerIg": {"steps": 5},
}
SHELF = [use for path in sorted((ROOT / "explainers").glob("*.py")) for use in shelf.uses("explainers", path)]
SHELF.remove("precomputed")  # cannot be without a folder of maps: test_precomputed.py
SPECTRAL = str(ROOT / "tests" / "explainers" / "spectral.py")
MODELS = ("cnn", "vit", "clip", "adaptive", "multi_head")


def answer(made: Any, model: Any, cases: Sequence[Case]) -> list[Explanation]:
    model.memo.clear()
    extra = [made.fit(model, [list(cases)])] if hasattr(made, "fit") else []
    return list(made.explain(model, cases, *extra))


def same(a: Explanation, b: Explanation) -> bool:
    pairs = [(a.image, b.image), (a.text, b.text), (a.pairs, b.pairs)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def build(explainer: Callable[..., Any], use: str) -> Any:
    settings = dict(SMALL.get(use, {}))
    if use in ("swapped", "blurred", "mismatched", "shuffled"):
        settings["of"] = explainer("captum_suite:Saliency")
    return explainer(use, **settings)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use", [*SHELF, SPECTRAL], ids=lambda u: Path(u).name)
def test_neighbours_change_nothing_and_the_model_is_left_as_found(
    use: str, name: str, models: dict[str, Any], asked: Any, explainer: Callable[..., Any]
) -> None:
    model, made = models[name], build(explainer, use)
    cases = asked(model)
    before = copy.deepcopy(model.net.state_dict())
    pixels = [case.pixels.clone() for case in cases]
    try:
        whole = answer(made, model, cases)
    except Unsuited:
        return
    fitted = hasattr(made, "fit")  # what is fitted is fitted on these cases, whatever the chunk
    ones = whole if fitted else [answer(made, model, [case])[0] for case in cases]
    threes = whole if fitted else [e for i in (0, 3) for e in answer(made, model, cases[i : i + 3])]
    backwards = answer(made, model, cases[::-1])[::-1]
    for k, told in enumerate(whole):
        assert same(told, ones[k]), f"alone, case {k}"
        assert same(told, threes[k]), f"in threes, case {k}"
        assert same(told, backwards[k]), f"reversed, case {k}"
    for case, told, kept in zip(cases, whole, pixels, strict=True):
        assert torch.equal(case.pixels, kept)
        if told.image is not None:
            assert told.image.ndim in (2, 3)
            assert told.image.isfinite().all()
            assert use == SPECTRAL or not told.image.requires_grad  # the runner detaches an outsider's
            assert not told.image.is_inference()
        if told.text is not None:
            assert told.text.shape == case.tokens.shape
            assert told.text.isfinite().all()
        if told.pairs is not None:
            assert told.pairs.shape == (told.image.numel(), *case.tokens.shape)
            assert told.pairs.isfinite().all()
    after = model.net.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not model.net.training
    assert all(not p.requires_grad and p.grad is None for p in model.net.parameters())
    assert not model._watches


@pytest.mark.parametrize(
    ("use", "suited"),
    [
        ("attention", {"vit", "clip", "adaptive", "multi_head"}),
        ("rollout", {"vit", "clip"}),
        ("rollout:Flow", {"vit", "clip"}),
        ("lrp", set(MODELS)),
        ("gradcam", set(MODELS)),
        ("m2ib", {"clip"}),
        ("rise", set(MODELS)),
        ("lime", set(MODELS)),
        ("shapley", set(MODELS)),
        ("interactions", {"clip"}),
        ("captum_suite:IntegratedGradients", set(MODELS)),
        (SPECTRAL, {"vit", "clip"}),
    ],
    ids=lambda u: Path(u).name if isinstance(u, str) else "",
)
def test_who_is_suited(
    use: str, suited: set[str], models: dict[str, Any], asked: Any, explainer: Callable[..., Any]
) -> None:
    for name, model in models.items():
        made = build(explainer, use)
        if name in suited:
            assert answer(made, model, asked(model, 1))[0].image is not None
        else:
            with pytest.raises(Unsuited):
                answer(made, model, asked(model, 1))
