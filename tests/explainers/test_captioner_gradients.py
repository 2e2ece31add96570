"""The captioners' gradients behind the shelf: what stands in an Explanation, and who is unsuited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from heatproof import Unsuited, geometry
from heatproof.lrp.held import HeldRules, at_pixels

KINDS = ["adaptive", "multi_head"]
ALL = ["Gradient", "InputXGradient", "GuidedBackprop", "GradCam", "GuidedGradCam"]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_each_method_tells(kind: str, released: bool, models, asked, explainer) -> None:
    model = models[kind]
    cases = asked(model)
    told = {
        name: explainer(f"captioner_gradients:{name}", as_released=released).explain(model, cases)
        for name in ALL
    }
    rules, positive = HeldRules(), HeldRules(guided=True)
    if released:
        rules, positive = HeldRules.released(), HeldRules.released(guided=True)
    plain, guided = at_pixels(model, cases, rules), at_pixels(model, cases, positive)
    for n, case in enumerate(cases):
        size, channels = len(case.tokens), plain.features.shape[1]
        maps = {}
        for name, found in (("GradCam", plain), ("GuidedGradCam", guided)):
            weights = [float(found.at_features[n, c].mean()) for c in range(channels)]
            heat = sum(w * found.features[n, c] for c, w in enumerate(weights)).clamp(min=0)
            maps[name] = heat / (heat.max() + 1e-6)
        fine = geometry.pyramid(maps["GuidedGradCam"], tuple(case.pixels.shape[1:]))
        expected = {
            "Gradient": plain.at_pixels[n],
            "InputXGradient": case.pixels * plain.at_pixels[n],
            "GuidedBackprop": guided.at_pixels[n],
            "GradCam": maps["GradCam"],
            "GuidedGradCam": guided.at_pixels[n] * fine,
        }
        for name in ALL:
            torch.testing.assert_close(told[name][n].image, expected[name], rtol=1e-4, atol=1e-6, msg=name)
            words = plain.at_words[n] * (plain.words[n] if name == "InputXGradient" else 1)
            torch.testing.assert_close(
                told[name][n].text, words.sum(1)[:size], rtol=1e-4, atol=1e-7, msg=name
            )


@pytest.mark.parametrize("size", [(14, 14), (7, 5), (2, 3), (1, 1)])
@pytest.mark.parametrize("factor", [2, 3, 16])
def test_enlarged_as_by_a_gaussian_pyramid(size: tuple[int, int], factor: int) -> None:
    theirs = pytest.importorskip("skimage.transform").pyramid_expand
    heat = np.random.default_rng(factor).random(size)
    mine = geometry.pyramid(torch.from_numpy(heat), (size[0] * factor, size[1] * factor))
    np.testing.assert_allclose(mine.numpy(), theirs(heat, upscale=factor), rtol=0, atol=1e-14)


def test_enlarged_to_any_size_and_a_constant_stays_one() -> None:
    found = geometry.pyramid(torch.full((5, 7), 0.25), (32, 33))
    torch.testing.assert_close(found, torch.full((32, 33), 0.25))


@pytest.mark.parametrize("name", ALL)
def test_starts_at_the_raw_logit(name: str, models, asked, explainer) -> None:
    """Another bias of another word moves the log-probability's gradient and not this one."""
    model = models["adaptive"]
    cases, made = asked(model), explainer(f"captioner_gradients:{name}")

    def louder(net: torch.nn.Module) -> None:
        other = next(k for k in range(8) if k not in {int(c.tokens[c.target + 1]) for c in cases})
        net.output.bias[other] += 3.0

    before, after = made.explain(model, cases), made.explain(model.twin(louder, f"louder {name}"), cases)
    assert all(torch.equal(a.image, b.image) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_one_head_at_a_time(name: str, models, asked, explainer: Callable[..., Any]) -> None:
    model = models["multi_head"]
    cases = asked(model)
    one, two = (explainer(f"captioner_gradients:{name}", head=head).explain(model, cases) for head in (0, 1))
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    # what words say goes by the LSTM
    assert all(torch.equal(a.text, b.text) for a, b in zip(one, two, strict=True))
    with pytest.raises(Unsuited, match="there is no head 2"):
        explainer(f"captioner_gradients:{name}", head=2).explain(model, cases)


@pytest.mark.parametrize("name", ALL)
def test_captioners_with_pixels_alone(name: str, models, asked, explainer) -> None:
    made = explainer(f"captioner_gradients:{name}")
    for kind in ("cnn", "vit", "clip"):
        with pytest.raises(Unsuited, match="go through a captioner's decoder"):
            made.explain(models[kind], asked(models[kind]))
    blind = replace(models["adaptive"])
    del blind.sites["image.conv"]
    with pytest.raises(Unsuited, match=r"has text\.embed, cross\.attention"):
        made.explain(blind, asked(blind))
