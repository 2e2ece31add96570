"""CLIPScore: how near is a caption to its image, and to what people said, in the space of a dual encoder? (quality)

Hessel, Holtzman, Forbes, Le Bras, Choi, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021,
https://arxiv.org/abs/2104.08718.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry, judge, seeds
from heatproof.contract import Measure, Model, Refused, Sample, Score, Trial, Unsuited, Value
from heatproof.metrics import maps

WEIGHT = 2.5  # spreads the cosines of their model over 0 to 1; order is the same without
BLOCK = 8  # images held at a time
WHERE = "metrics.clip_score.judge"
PROMPT = "A photo depicts "  # before every text, as in the paper


class Nearness(NamedTuple):
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
) -> list[Nearness]:
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
    found: list[Nearness] = []
    for first in range(0, len(asked), BLOCK):
        found += _scored(model, asked[first : first + BLOCK])
    return found


def _asked(sample: Sample, texts: tuple[str, ...]) -> Sample:
    """The sample with these captions, under a name of its own: a model remembers embeddings by the case's name."""
    name = f"{sample.id}.{seeds.number(repr(texts))}"
    return replace(sample, id=name, captions=texts, objects=(), extras={})


def _scored(model: Model, asked: Sequence[Sample]) -> list[Nearness]:
    cases = [[model.ask([one], f"caption {k}")[0][0] for k in range(len(one.captions))] for one in asked]
    firsts = [some[0] for some in cases]
    with torch.inference_mode():
        images = model.embed(model.stack(firsts), firsts).cpu()
        texts = iter(model.embed_text([case for some in cases for case in some]).cpu())
    found = []
    for image, some in zip(images, cases, strict=True):
        mine, *theirs = (next(texts) for _ in some)
        words = torch.stack(theirs) if theirs else torch.zeros(0, len(mine))
        found.append(Nearness(clip_score(image, mine), ref_clip_score(image, mine, words)))
    return found


@dataclass(frozen=True)
class ClipScore:
    """How near the captions that the model writes are to their images, and to what people said, in the space of a dual encoder.

    Hessel et al. 2021 (EMNLP, arXiv 2104.08718):

    - ``clip_s``: 2.5 times the cosine of image and caption, 0 where that is negative: 0 to 2.5. No reference is needed
    - ``ref_clip_s``: the harmonic mean of that and of the largest cosine of the caption and a reference: 0 to 1.43

    Higher is better. ``judge``: the dual encoder, as under `models`: "small_clip", or { use = "hf_clip", name = "FOLDER" } (theirs is
    CLIP ViT-B/32); paths count from the current folder. ``prompt`` stands before every text; "" where the judge's words do not have it.
    The judge sees the image as the captioner does, cropped and as small as that: what the captioner cannot see, it is not held to. It is no
    part of the model: cost does not count it. Undefined: ``ref_clip_s`` of an image without references. Unsuited: captioners that read
    region features.

    Known criticism: numbers of two judges cannot be set side by side, and one that was trained on these captions is no judge of them; dual
    encoders read a caption much like a bag of words, so that order and relations hardly count (Yuksekgonul et al. 2023,
    arXiv 2210.01936); a captioner tuned to the number says what the judge likes to hear.
    """

    judge: str | Mapping[str, Any]
    prompt: str = PROMPT
    digest: str = field(init=False)  # of the judge's files and of the source that reads them: part of the key

    asks: ClassVar[dict[str, str]] = {"captioner": "written"}

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("clip_s", "higher", "quality"),
        Measure("ref_clip_s", "higher", "quality"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", judge.seal(judge.make(self.judge, WHERE)))

    def measure(self, trials: Sequence[Trial]) -> list[Score]:
        maps.needs_pixels(trials, "judge")
        model: Any = judge.load(judge.make(self.judge, WHERE), self.digest, WHERE)
        if model.family != "dual":
            raise Refused(f"{WHERE}: found a {model.family}, accepted is a dual encoder: {judge.EXAMPLE}")
        said = [" ".join(trial.case.spoken[1:]) for trial in trials]
        try:
            scores = clip_scores(model, [_seen(trial) for trial in trials], said, prompt=self.prompt)
        finally:
            model.memo.clear()  # the run empties that of the model under test alone
        return [
            Score(
                {"clip_s": Value.of(one.alone), "ref_clip_s": Value.of(one.referred, "no reference captions")}
            )
            for one in scores
        ]


def _seen(trial: Trial) -> Sample:
    """The image as the model sees it, with what people said of it."""
    frame = cast("geometry.Frame", trial.model.frame)  # type: ignore[attr-defined]  # every implementation has one
    case = trial.case
    return Sample(case.sample, lambda: frame.picture(case.pixels), captions=case.references)
