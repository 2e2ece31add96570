"""CLIPScore: how near is a caption to its image, and to what people said, in the space of a dual encoder?

Hessel, Holtzman, Forbes, Le Bras, Choi, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021,
https://arxiv.org/abs/2104.08718.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import seeds
from heatproof.contract import Model, Sample, Unsuited

WEIGHT = 2.5  # spreads the cosines of their model over 0 to 1; order is the same without
BLOCK = 8  # images held at a time
PROMPT = "A photo depicts "  # before every text, as in the paper


class ClipScore(NamedTuple):
    """CLIPScore, and RefCLIPScore; NaN where there are no references."""

    alone: float
    referred: float


def clip_score(image: Tensor, text: Tensor) -> float:
    """2.5 times the cosine of two embeddings [D], 0 where that is negative: 0 to 2.5.

    >>> clip_score(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])), clip_score(torch.ones(2), -torch.ones(2))
    (1.5, 0.0)
    """
    return WEIGHT * max(0.0, _cosine(image, text))


def ref_clip_score(image: Tensor, text: Tensor, references: Tensor) -> float:
    """The harmonic mean of ``clip_score`` and the largest cosine of text [D] and ``references`` [K, D], not below 0: 0 to 1.43.

    0 where one of the two is 0. NaN: no references.

    >>> text, other = torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> round(ref_clip_score(torch.tensor([1.0, 0.0]), text, other), 4)
    1.0435
    """
    if not len(references):
        return math.nan
    alone, near = clip_score(image, text), max(0.0, *(_cosine(text, other) for other in references))
    return 2 * alone * near / (alone + near) if alone and near else 0.0


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=0))


def clip_scores(
    model: Model,
    samples: Sequence[Sample],
    said: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    prompt: str = PROMPT,
) -> list[ClipScore]:
    """CLIPScore and RefCLIPScore of every caption through a dual encoder of this house.

    ``said[i]`` is one caption of ``samples[i]``, as written; ``references``: what people said, None the samples' own captions.
    ``prompt`` stands before each text; "" where the model's words do not have it. Numbers of different encoders cannot be set
    side by side, and one that was trained on these captions is no judge of them. Unsuited: what is no dual encoder.
    """
    if model.family != "dual":
        raise Unsuited(
            f"{model.name} is a {model.family}: only a dual encoder embeds images and texts in one space"
        )
    others = [sample.captions for sample in samples] if references is None else references
    asked = [
        _asked(sample, tuple(prompt + one for one in (text, *some)))
        for sample, text, some in zip(samples, said, others, strict=True)
    ]
    found: list[ClipScore] = []
    for first in range(0, len(asked), BLOCK):
        found += _scored(model, asked[first : first + BLOCK])
    return found


def _asked(sample: Sample, texts: tuple[str, ...]) -> Sample:
    """The sample with these captions, under a name of its own: a model remembers embeddings by the case's name."""
    name = f"{sample.id}.{seeds.number(repr(texts))}"
    return replace(sample, id=name, captions=texts, objects=(), extras={})


def _scored(model: Model, asked: Sequence[Sample]) -> list[ClipScore]:
    cases = [[model.ask([one], f"caption {k}")[0][0] for k in range(len(one.captions))] for one in asked]
    firsts = [some[0] for some in cases]
    with torch.inference_mode():
        images = model.embed(model.stack(firsts), firsts).cpu()
        texts = iter(model.embed_text([case for some in cases for case in some]).cpu())
    found = []
    for image, some in zip(images, cases, strict=True):
        mine, *theirs = (next(texts) for _ in some)
        words = torch.stack(theirs) if theirs else torch.zeros(0, len(mine))
        found.append(ClipScore(clip_score(image, mine), ref_clip_score(image, mine, words)))
    return found
