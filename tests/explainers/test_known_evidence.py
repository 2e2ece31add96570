"""Methods on nets whose true evidence is known: better than chance, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from heatproof import Unsuited, geometry, shelf
from heatproof.models import controlled
from heatproof.shelf import Place

POLICIES = {"Cnn": "label", "Vit": "label", "Clip": "caption 0", "Captioner": "said objects"}
USES = {
    "cams:GradCamPlusPlus": {},
    "cams:HiResCam": {},
    "cams:LayerCam": {},
    "cams:EigenCam": {},
    "score_cam": {},
    "guided:GuidedBackprop": {},
    "guided:GuidedGradCam": {},
    "smoothgrad": {"samples": 10},
    "smoothgrad:VarGrad": {"samples": 10},
    "layer_ig:LayerIg": {"steps": 10},
    "layer_ig:Nib": {},
    "deeplift": {},
    "chefer": {},
    "chefer:AttentionGradient": {},
    "grad_eclip": {},
    "legrad": {},
    "clip_surgery": {},
    "attention": {},
    "rollout": {},
    "rollout:Flow": {},
    "gradcam": {},
    "lrp": {},
    "m2ib": {"repeats": 4},
    "captioner_gradients:Gradient": {},
    "captioner_gradients:InputXGradient": {},
    "captioner_gradients:GuidedBackprop": {},
    "captioner_gradients:GradCam": {},
    "captioner_gradients:GuidedGradCam": {},
    "captum_suite:Saliency": {},
    "captum_suite:InputXGradient": {},
    "captum_suite:IntegratedGradients": {"steps": 10},
    "captum_suite:GradientShap": {"samples": 10},
    "captum_suite:Occlusion": {},
    "captum_suite:FeatureAblation": {},
    "captum_suite:KernelShap": {},
    "rise": {"masks": 400},
    "lime": {"samples": 200, "baseline": "mean"},
    "shapley": {"orders": 4},
    "interactions": {},
}
# they look at no model, or at another method's map; files have no map of their own
CONTROLS = {
    "random",
    "centre",
    "edges",
    "prior",
    "oracle",
    "swapped",
    "blurred",
    "shuffled",
    "mismatched",
    "precomputed",
}
ABSOLUTE = {
    "captioner_gradients:Gradient",
    "captioner_gradients:GuidedBackprop",
    "captioner_gradients:GuidedGradCam",
    "guided:GuidedBackprop",
    "guided:GuidedGradCam",
    "smoothgrad",
    "smoothgrad:VarGrad",
    "captum_suite:Saliency",
}
# what falls short, and why it must
EXCEPTIONS = {
    ("cams:EigenCam", "Captioner"): "it looks at no score: another channel of the map varies more",
    (
        "smoothgrad:VarGrad",
        "Cnn",
    ): "the gradient is steadiest where a detector is surely on: on the evidence itself",
    (
        "clip_surgery",
        "Clip",
    ): "every text has the same embedding there, so that nothing is left when one is taken away",
}


@cache
def asked(kind: str) -> tuple[Any, list[Any]]:
    model = getattr(controlled, kind)(on="region").load(kind)
    samples = shelf.load(shelf.house() / "datasets" / "controlled.py").Controlled(sample=8).samples()
    cases = [case for some in model.ask(samples, POLICIES[kind]) for case in some]
    return model, [case for case in cases if case.mask is not None and case.mask.any()]


def test_every_method_of_the_shelf_is_asked() -> None:
    """A new one is to be better than chance here, or an exception with its reason."""
    place = Place(shelf.house(), shelf.house())
    there = {use for path in place.files("explainers").values() for use in shelf.uses("explainers", path)}
    assert there - CONTROLS == {"layer_ig" if use == "layer_ig:LayerIg" else use for use in USES}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("use", USES)
def test_the_evidence_is_brighter_than_the_rest(use: str, kind: str, explainer: Callable[..., Any]) -> None:
    model, cases = asked(kind)
    model.memo.clear()
    try:
        found = explainer(use, **USES[use]).explain(model, cases)
    except Unsuited:
        return
    sign = "abs" if use in ABSOLUTE else "signed"
    areas = []
    for case, told in zip(cases, found, strict=True):
        heat = geometry.read(told.image, tuple(case.pixels.shape[-2:]), sign=sign)
        areas.append(roc_auc_score(case.mask.flatten().numpy(), heat.flatten().numpy()))
    mean = float(np.mean(areas))
    if (use, kind) in EXCEPTIONS:
        assert mean < 0.8, f"{EXCEPTIONS[use, kind]}: no exception any more"
    else:
        assert mean > 0.9


def test_the_map_of_another_caption_is_the_same_where_no_text_is_heard(explainer: Callable[..., Any]) -> None:
    model, cases = asked("Clip")
    cases = [replace(case, other=lambda k=k: cases[k - 1]) for k, case in enumerate(cases)]
    made = explainer("chefer")
    model.memo.clear()
    for own, told in zip(
        made.explain(model, cases), explainer("mismatched", of=made).explain(model, cases), strict=True
    ):
        np.testing.assert_allclose(own.image.numpy(), told.image.numpy(), rtol=1e-5)


@pytest.mark.parametrize("use", ["cams:LayerCam", "chefer", "chefer:AttentionGradient", "grad_eclip"])
def test_the_word_that_is_heard(use: str, explainer: Callable[..., Any]) -> None:
    """On the word "bright": the score knows it, and the text map has it above every word that is not."""
    model = controlled.Clip(on="word").load("word")
    samples = shelf.load(shelf.house() / "datasets" / "controlled.py").Controlled(sample=8).samples()
    cases = [case for some in model.ask(samples, "caption 0") for case in some]
    for case, told in zip(cases, explainer(use).explain(model, cases), strict=True):
        words = np.array(case.words) >= 0
        cue, heat = case.evidence_text.numpy(), told.text.numpy()
        assert heat[cue].min() > np.abs(heat[words & ~cue]).max()
