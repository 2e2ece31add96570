"""CLIPScore against a slow twin over the model's own embeddings, the law of neighbours, and through a run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from heatproof import Sample, Unsuited, checks, judge, shelf
from heatproof.contract import Trial
from heatproof.errors import Refused
from heatproof.metrics.clip_score import ClipScore, clip_score, clip_scores, ref_clip_score
from heatproof.progress import Silent
from heatproof.runner import Order, run

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


# ---------------------------------------------------------------- as a metric of a captioner

SPEC = """title = "Captions"
kind = "instrument"
chunk = 3
dataset = { use = "scenes", split = "test", sample = 5 }
explainers = []
models = ["small_captioner"]
metrics = [{ use = "clip_score", judge = { use = "small_clip", rows = 4 }, prompt = "" }]
"""
SCENES = 12


def scenes(count):
    return shelf.load(shelf.house() / "datasets" / "scenes.py").Scenes(split="test", sample=count).samples()


def loaded(name):
    return judge.make(name, "tests").load(name)


def test_through_a_run_each_value_is_the_functions(tmp_path):
    (tmp_path / "said.toml").write_text(SPEC)
    result = run(Order(str(tmp_path / "said.toml"), cwd=tmp_path), Silent)
    assert not result.run["failures"]
    samples = scenes(5)
    cases = [case for (case,) in loaded("small_captioner").ask(samples, "written")]
    said = [" ".join(case.spoken[1:]) for case in cases]
    wanted = clip_scores(loaded({"use": "small_clip", "rows": 4}), samples, said, prompt="")
    found = {(r.sample, r.name): r for r in result.records}
    for sample, score in zip(samples, wanted, strict=True):
        assert found[sample.id, "clip_s"].value == score.alone
        assert found[sample.id, "ref_clip_s"].value == score.referred
    assert {r.forwards for r in result.records} == {0.0}  # the judge is no part of the model


@pytest.fixture(scope="module")
def speaker():
    return loaded("small_captioner")


@pytest.fixture(scope="module")
def told(speaker):
    """Scenes and their own first captions, as if the captioner had written them."""
    found = []
    for (case,) in speaker.ask(scenes(SCENES), "written"):
        own, *others = case.references
        found.append(dataclasses.replace(case, spoken=("", *own.split()), references=tuple(others)))
    return found


def test_a_scenes_own_caption_is_nearer_than_another_scenes(speaker, told):
    metric = ClipScore("small_clip", prompt="")
    exchanged = [
        dataclasses.replace(case, spoken=other.spoken)
        for case, other in zip(told, [*told[1:], told[0]], strict=True)
    ]
    own, other = (metric.measure([Trial(speaker, c) for c in some]) for some in (told, exchanged))
    for name in ("clip_s", "ref_clip_s"):
        gaps = [a.values[name].number - b.values[name].number for a, b in zip(own, other, strict=True)]
        assert sum(gaps) / SCENES > 0.25, (name, gaps)
        assert sum(gap > 0 for gap in gaps) >= SCENES - 2, (name, gaps)


def test_a_trials_score_is_its_own_and_the_judge_is_left_as_found(speaker, told):
    """Law 1, with ==; laws 4 and 5; asked in inference mode as a run does, and outside of it."""
    metric = ClipScore("small_clip", prompt="")
    alone = dataclasses.replace(told[1], references=())
    trials = [Trial(speaker, case) for case in (told[0], alone, *told[2:5])]
    model = judge.load(judge.make("small_clip", "tests"), metric.digest, "metrics.clip_score.judge")
    before = checks.condition(model.net), checks.condition(speaker.net)
    with torch.inference_mode():
        whole = [s.values for s in metric.measure(trials)]
    for size in (1, 3):
        assert [s.values for k in range(0, 5, size) for s in metric.measure(trials[k : k + size])] == whole
    assert [s.values for s in metric.measure(trials[::-1])][::-1] == whole
    assert (checks.condition(model.net), checks.condition(speaker.net)) == before
    assert not model.memo.kept
    assert whole[1]["clip_s"].defined
    assert whole[1]["ref_clip_s"].reason == "no reference captions"
    assert not model.net.training


def test_a_judge_that_cannot_judge_is_refused_with_what_to_type(tmp_path, speaker, told, tiny):
    trials = [Trial(speaker, told[0])]
    for entry, said in (
        ("small_clop", "judge: no model 'small_clop'; did you mean 'small_clip'"),
        ({"name": "x"}, r"judge: found .*, accepted is \"small_clip\", or \{ use = \"hf_clip\""),
        ({"use": "hf_clip", "named": "x"}, "no setting 'named'; did you mean 'name'"),
        ({"use": "hf_clip", "name": 3}, r"judge\.name: found 3, accepted is str"),
        ({"use": "hf_clip"}, "missing 1 required positional argument: 'name'"),
        ({"use": "hf_clip", "name": "{shared}/clip"}, "type the path"),
    ):
        with pytest.raises(Refused, match=said):
            ClipScore(entry)
    with pytest.raises(Refused, match="accepted is a dual encoder"):
        ClipScore({"use": "hf_classifier", "name": str(tiny["vit"])}).measure(trials)
    with pytest.raises(Refused, match=r"type: hf download NAME --local-dir FOLDER"):
        ClipScore({"use": "hf_clip", "name": str(tmp_path / "none")}).measure(trials)
    regions = dataclasses.replace(told[0], pixels=torch.zeros(3, 8))
    with pytest.raises(Unsuited, match="no pixels to judge"):
        ClipScore("small_clip").measure([Trial(speaker, regions)])


def test_the_key_holds_the_judges_bytes(tiny, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny["clip"].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "two" / "words.json").write_text((tiny["clip"] / "words.json").read_text() + " ")
    digests = [ClipScore({"use": "hf_clip", "name": str(tmp_path / name)}).digest for name in ("one", "two")]
    assert digests[0] == ClipScore({"use": "hf_clip", "name": str(tiny["clip"])}).digest
    assert digests[0] != digests[1]
    assert ClipScore("small_clip").digest not in digests
