"""Gradients through the captioners with attention held, against what the authors' code computed (``folder.py``)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import shelf
from heatproof.lrp.held import HeldRules, at_features

folder = shelf.load(Path(__file__).with_name("folder.py"))
every, whole, apart, model_of, cases_of = (
    *(folder.every, folder.whole, folder.apart),
    *(folder.model_of, folder.cases_of),
)
pytestmark = folder.present
HERE = shelf.load(folder.HOUSE / "explainers" / "captioner_gradients.py")
METHODS = {
    "gradient": HERE.Gradient,
    "guidedbp": HERE.GuidedBackprop,
    "gradcam": HERE.GradCam,
    "guidedgradcam": HERE.GuidedGradCam,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@whole("gridtd_gradients", "aoa_gradients")
def test_the_released_gradients(name: str, dtype: torch.dtype) -> None:
    kind = name.partition("_")[0]
    head, model, cases = folder.head_of(kind), model_of(kind, dtype), cases_of(dtype)
    told = {key: made(as_released=True, head=head).explain(model, cases) for key, made in METHODS.items()}
    plain = at_features(model, cases, HeldRules.released(head)).at_features
    guided = at_features(model, cases, HeldRules.released(head, guided=True)).at_features
    worst: dict[str, float] = {}
    with every(name) as expected:
        for key, value in expected.items():
            what, t, sub = folder.place(key)
            method = what.removesuffix("_R")
            if what == "words":
                off = max(folder.words_apart(one[t].text, value, t) for one in told.values())
            elif what == "d_img_feature":
                off = apart(plain[t : t + 1], value)
            elif what == "d_img_feature_guided":
                off = apart(guided[t : t + 1], value)
            elif method == "gradcam":
                off = apart(told[method][t].image.flatten()[None], value)
            else:
                off = apart(folder.seen(told[method][t].image, sub), value)
            stored = {"guidedgradcam": folder.SINGLE, "gradient": folder.STORED, "guidedbp": folder.STORED}
            tolerance = folder.SINGLE if dtype == torch.float32 else stored.get(method, folder.EXACT)
            worst[method] = max(worst.get(method, 0.0), off)
            assert off < tolerance, key
    print(f"{name} {dtype}: off by {worst}")


@pytest.mark.parametrize("bug", ["head", "lost_recurrence", "lost_steps", "active_only"])
def test_each_bug_of_the_release_shows_in_its_arrays(bug: str) -> None:
    kind = "gridtd" if bug in ("lost_recurrence", "active_only") else "aoa"
    expected = folder.read(f"{kind}_gradients")
    released = HeldRules.released(folder.head_of(kind), guided=kind == "gridtd")
    last = len(cases_of()) - 1
    key = f"d_img_feature_{'guided_' * (kind == 'gridtd')}{last}"
    off = {f.name: f.default for f in fields(HeldRules)}
    model, cases = model_of(kind), cases_of()[-1:]
    right = at_features(model, cases, replace(released, **{bug: off[bug]})).at_features
    assert apart(right, expected[key]) > 1e-3
    assert apart(at_features(model, cases, released).at_features, expected[key]) < folder.EXACT


@pytest.mark.parametrize("kind", folder.NETS)
@pytest.mark.parametrize("name", METHODS)
def test_the_switch_moves_the_published_maps(name: str, kind: str) -> None:
    model, cases = model_of(kind), cases_of()[-1:]
    (released,) = METHODS[name](as_released=True).explain(model, cases)
    (corrected,) = METHODS[name]().explain(model, cases)
    assert apart(corrected.image, np.asarray(released.image)) > 1e-3
    # scores of words hear of the first LSTM's loop, and the gradient at the mean cell reaches none
    assert (apart(corrected.text, np.asarray(released.text)) > 1e-3) == (kind == "gridtd")
