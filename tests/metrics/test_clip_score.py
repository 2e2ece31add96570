"""CLIPScore against a slow twin over the model's own embeddings, and the law of neighbours."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from heatproof import Sample, Unsuited, checks
from heatproof.metrics.clip_score import clip_score, clip_scores, ref_clip_score

CAPTIONS = [
    ("a red ball on the grass",),
    ("a blue star", "the star"),
    (),
    ("red", "green", "a ball next to a star"),
]
SAID = ["a red ball", "the sky", "a star on the grass", "blue blue blue"]


def drawing(k):
    return Sample(f"s{k}", lambda: np.random.default_rng(k).integers(0, 255, (32, 32, 3)).astype(np.uint8))


SAMPLES = [dataclasses.replace(drawing(k), captions=some) for k, some in enumerate(CAPTIONS)]


def twin(image, text, others):
    """Number by number, from the two formulas."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    alone = 2.5 * max(cosine(image, text), 0)
    if not others:
        return alone, math.nan
    near = max(0, *(cosine(text, other) for other in others))
    return alone, 2 / (1 / alone + 1 / near) if alone and near else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_the_formulas_against_the_twin(seed):
    dice = torch.Generator().manual_seed(seed)
    make = torch.rand if seed % 2 else torch.randn  # near each other, or on any side
    image, text, *others = make(2 + seed % 4, 3, generator=dice).double()
    stacked = torch.stack(others) if others else torch.zeros(0, 3)
    alone, referred = twin(image.tolist(), text.tolist(), [other.tolist() for other in others])
    assert clip_score(image, text) == pytest.approx(alone, abs=1e-12)
    assert ref_clip_score(image, text, stacked) == pytest.approx(referred, abs=1e-12, nan_ok=True)
    assert clip_score(3 * image, 0.5 * text) == pytest.approx(alone, abs=1e-12)


def test_what_is_against_the_references_gets_nothing():
    one = torch.ones(3)
    assert clip_score(one, one) == pytest.approx(2.5)
    assert ref_clip_score(one, one, -one[None]) == 0.0
    assert ref_clip_score(-one, one, one[None]) == 0.0


@pytest.fixture(scope="module")
def clip(families):
    return families["clip"][0]


def test_through_a_model_against_the_twin(clip):
    found = clip_scores(clip, SAMPLES, SAID, prompt="a ")
    for sample, said, score in zip(SAMPLES, SAID, found, strict=True):
        texts = tuple(f"a {one}" for one in (said, *sample.captions))
        clip.memo.clear()
        plain = dataclasses.replace(sample, id=f"twin {said}", captions=texts)
        cases = [clip.ask([plain], f"caption {k}")[0][0] for k in range(len(texts))]
        image = clip.embed(clip.stack(cases[:1]), cases[:1])[0].tolist()
        mine, *others = clip.embed_text(cases).tolist()
        assert tuple(score) == pytest.approx(twin(image, mine, others), abs=1e-6, nan_ok=True)
    assert math.isnan(found[2].referred)
    assert {score.alone > 0 for score in found} == {True, False}  # both sides of the clamp


def test_no_score_depends_on_its_neighbours_or_on_what_was_asked_before(clip, monkeypatch):
    """Law 1, with ==; law 5."""
    references = [some or ("a ball",) for some in CAPTIONS]
    before = checks.condition(clip.net)

    def asked(order, size):
        found = {}
        for k in range(0, len(order), size):
            some = order[k : k + size]
            scores = clip_scores(
                clip, [SAMPLES[i] for i in some], [SAID[i] for i in some], [references[i] for i in some]
            )
            found |= dict(zip(some, scores, strict=True))
        return [found[i] for i in range(4)]

    clip.memo.clear()
    whole = asked([0, 1, 2, 3], 4)
    assert asked([0, 1, 2, 3], 1) == asked([0, 1, 2, 3], 3) == asked([3, 2, 1, 0], 4) == whole
    monkeypatch.setattr("heatproof.metrics.clip_score.BLOCK", 3)
    assert asked([0, 1, 2, 3], 4) == whole
    other = clip_scores(clip, SAMPLES, SAID[::-1], references)
    assert other != whole
    clip.memo.clear()
    assert clip_scores(clip, SAMPLES, SAID[::-1], references) == other
    assert checks.condition(clip.net) == before


def test_what_is_no_dual_encoder_is_unsuited(families):
    with pytest.raises(Unsuited, match="resnet is a classifier: only a dual encoder"):
        clip_scores(families["resnet"][0], SAMPLES, SAID)
