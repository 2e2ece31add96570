"""The gradients of Sun et al. through a captioner: from one word's raw logit to the pixels and to the words before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited, geometry
from heatproof.contract import Case
from heatproof.lrp.held import HeldRules, at_features, at_pixels


@dataclass(frozen=True)
class Gradient:
    """Sun et al. 2022 (arXiv 2001.01037): the gradient of a word's raw logit at the pixels, [C, H, W], signed.

    Attention weights, the sentinel's share and its gate are constants, LSTMs are differentiated in full, and the ReLUs
    between the features and the decoder let every gradient pass; ``captum_suite:Saliency`` is the magnitude of the
    log-probability's gradient with nothing held. A word's relevance [T] is the gradient at its embedding, summed over
    the dimensions, signed and not normalised (the authors divide by the largest magnitude).

    ``as_released`` turns on the bugs of the released code: with adaptive attention the first LSTM's gradient to its own
    last state is lost, with multi-head attention the gradient at the mean cell is step 0's alone. ``head`` keeps one
    attention head's way to the cells, as the released code does; None keeps all, whose sum is the gradient.
    """

    as_released: bool = False
    head: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = at_pixels(model, cases, _rules(self, model))
        return _told(cases, found.at_pixels, found.at_words.sum(2))


@dataclass(frozen=True)
class InputXGradient:
    """``Gradient`` times what it is the gradient at: normalised pixels [C, H, W], and embeddings, summed [T]; signed.

    Sun et al. have it for pixels in their first release alone. ``captum_suite:InputXGradient`` is the same of the
    log-probability, with nothing held. ``as_released`` and ``head`` are those of ``Gradient``.
    """

    as_released: bool = False
    head: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = at_pixels(model, cases, _rules(self, model))
        return _told(cases, found.pixels * found.at_pixels, (found.words * found.at_words).sum(2))


@dataclass(frozen=True)
class GuidedBackprop:
    """``Gradient`` whose ReLUs in the encoder let positive gradients alone pass (Springenberg et al. 2015), [C, H, W].

    ``guided:GuidedBackprop`` differentiates the log-probability with nothing held, and has no words; here they are
    those of ``Gradient``. ``as_released`` also stops, with adaptive attention, the gradient where a feature is not
    positive, which an encoder that ends in a ReLU does as well. ``head`` is that of ``Gradient``.
    """

    as_released: bool = False
    head: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = at_pixels(model, cases, _rules(self, model, guided=True))
        return _told(cases, found.at_pixels, found.at_words.sum(2))


@dataclass(frozen=True)
class GradCam:
    """Grad-CAM on the features that a captioner's decoder reads, [h, w], from 0 to 1: Sun et al. 2022.

    The sum over channels of each feature times the mean of its ``Gradient``, its positive part, divided by its maximum
    plus 1e-6. ``gradcam`` goes from the log-probability with nothing held, is signed, and has no words; here they are
    those of ``Gradient``, and so are ``as_released`` and ``head``.
    """

    as_released: bool = False
    head: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = at_features(model, cases, _rules(self, model))
        return _told(cases, _cams(found.features, found.at_features), found.at_words.sum(2))


@dataclass(frozen=True)
class GuidedGradCam:
    """``GuidedBackprop`` times ``GradCam`` enlarged to the image, [C, H, W], signed: Sun et al. 2022.

    The map is enlarged linearly and then smoothed by a Gaussian whose sigma is a third of the enlargement, as
    scikit-image's ``pyramid_expand`` does; ``guided:GuidedGradCam`` enlarges bilinearly alone, goes from the
    log-probability with nothing held, and has no words. ``as_released`` also takes Grad-CAM's weights, with adaptive
    attention, from the gradient where a feature is positive alone. ``head`` and the words are those of ``Gradient``.
    """

    as_released: bool = False
    head: int | None = None

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        found = at_pixels(model, cases, _rules(self, model, guided=True))
        size = found.pixels.shape[2], found.pixels.shape[3]
        cams = [geometry.pyramid(cam, size) for cam in _cams(found.features, found.at_features)]
        return _told(cases, found.at_pixels * torch.stack(cams)[:, None], found.at_words.sum(2))


def _rules(made: Any, model: Any, *, guided: bool = False) -> HeldRules:
    if model.family != "captioner":
        raise Unsuited(
            f"these gradients go through a captioner's decoder; {model.name} is a {model.family}: take "
            "captum_suite:Saliency, captum_suite:InputXGradient, guided or gradcam"
        )
    if "image.conv" not in model.sites:
        raise Unsuited(
            f"these gradients go from a decoder to convolutions; {model.name} has {', '.join(model.sites)}"
        )
    return HeldRules.released(made.head, guided=guided) if made.as_released else HeldRules(made.head, guided)


def _cams(features: Tensor, grads: Tensor) -> Tensor:
    """[N, C, h, w] of features and gradients -> [N, h, w]."""
    cams = (features * grads.mean((2, 3), keepdim=True)).sum(1).clamp(min=0)
    return cams / (cams.amax((1, 2), keepdim=True) + 1e-6)


def _told(cases: Sequence[Case], images: Tensor, words: Tensor) -> list[Explanation]:
    sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
    rows = zip(images, words, sizes, strict=True)
    return [Explanation(image=image, text=word[:size]) for image, word, size in rows]
