"""Caption quality and CHAIR as metrics of a captioner: published scores through the harness, and what one image's number is."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from heatproof.captions import bleu, chair, cider, meteor
from heatproof.captions.tokens import plain
from heatproof.contract import Case, Refused, Trial, Unsuited
from heatproof.metrics.caption_quality import CaptionQuality, Counts
from heatproof.metrics.chair import Chair
from heatproof.records import Record
from heatproof.reducers import Numbering, reduce

DATA = Path(os.environ.get("HEATPROOF_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PUBLISHED = DATA / "captions" / "where_image2"
SYNONYMS = DATA / "annotations" / "coco" / "chair_synonyms.txt"
SPEAKER = SimpleNamespace(name="speaker", family="captioner", objects=("dog", "cat", "ball"))
TOLD = [("a red ball", "one red ball on grass"), ("the blue fish", "a fish"), ("a dog runs", "the dog")]


def case(name, said, references=(), things=None) -> Case:
    spoken = ("", *said.split())
    return Case(name, name, "", torch.zeros(1), 0, spoken=spoken, references=tuple(references), things=things)


def column(metric, cases, scores, name):
    measure = next(m for m in metric.measures if m.name == name)
    rows = [
        Record(
            benchmark="b", model="m", family="captioner", replicate=0, explainer="", role="model", sample=c.sample, case=c.id,
            about="", metric="x", name=name, value=s.values[name].number, parts=dict(s.values[name].parts), status="value",
            reason="", forwards=0.0, backwards=0.0, key="",
        )
        for c, s in zip(cases, scores, strict=True)
    ]  # fmt: skip
    return reduce(measure.reduce, Numbering.of(rows).rows(rows, measure.reduce))


def ask(metric, cases, corpus=None):
    extra = (metric.fit(None, iter([corpus or cases])),) if hasattr(metric, "fit") else ()
    return metric.measure([Trial(SPEAKER, c) for c in cases], *extra)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"HEATPROOF_DATA: nothing at {PUBLISHED}")
@pytest.mark.parametrize("system", ["init", "merge"])
def test_published_scores_come_out_of_the_harness(system):
    names = (PUBLISHED / "imgs_flickr8k.txt").read_text().split()
    told: dict[str, list[str]] = {}
    for line in (
        (DATA / "annotations" / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    ):
        image, _, text = line.partition("\t")
        told.setdefault(image.partition("#")[0], []).append(text)
    said = (PUBLISHED / f"flickr8k_{system}_1.txt").read_text(encoding="utf-8").splitlines()
    cases = [case(n, text, told[n]) for n, text in zip(names, said, strict=True)]
    metric = CaptionQuality()
    scores = ask(metric, cases)
    rows = list(csv.DictReader((PUBLISHED / "published_scores.tsv").read_text().splitlines(), delimiter="\t"))
    (row,) = (
        r for r in rows if (r["dataset_name"], r["architecture"], r["run"]) == ("flickr8k", system, "1")
    )
    worst = 0.0
    for name, key in (
        ("cider_d", "CIDEr"),
        ("rouge_l", "ROUGE_L"),
        *((f"bleu_{n}", f"Bleu_{n}") for n in (1, 2, 3, 4)),
    ):
        worst = max(worst, abs(column(metric, cases, scores, name) - float(row[key])))
    print(f"{system}: off the published scores by {worst:.1e}")
    assert worst < 2e-4


def test_an_images_score_depends_on_the_fit_split_and_on_nothing_beside_it():
    cases = [
        case(f"s{k}", said, t)
        for k, (said, t) in enumerate(zip(("a red ball", "a fish runs", "a cat"), TOLD, strict=True))
    ]
    metric = CaptionQuality()
    whole = ask(metric, cases)
    for k in range(3):
        assert ask(metric, cases[k : k + 1], cases)[0].values == whole[k].values
    assert [s.values for s in ask(metric, cases[::-1], cases)][::-1] == [s.values for s in whole]
    fewer = ask(metric, cases, cases[:2])
    assert fewer[0].values["cider_d"] != whole[0].values["cider_d"]
    assert fewer[0].values["rouge_l"] == whole[0].values["rouge_l"]


def test_each_value_is_what_the_functions_say():
    said = ["A red ball!", "a fish runs", "a cat"]
    cases = [case(f"s{k}", text, t) for k, (text, t) in enumerate(zip(said, TOLD, strict=True))]
    texts, told = [plain(text) for text in said], [[plain(t) for t in some] for some in TOLD]
    metric = CaptionQuality()
    scores = ask(metric, cases)
    assert [s.values["cider_d"].number for s in scores] == pytest.approx(
        cider.cider_d(texts, told), abs=1e-12
    )
    assert [s.values["meteor"].number for s in scores] == pytest.approx(meteor.meteor(texts, told), abs=1e-12)
    corpus = bleu.corpus_bleu(texts, told)
    for n in (1, 2):
        assert column(metric, cases, scores, f"bleu_{n}") == pytest.approx(corpus[n - 1], abs=1e-12)
    assert column(metric, cases, scores, "bleu_4") == 0.0


def test_stems_are_partners_where_asked_for():
    pytest.importorskip("snowballstemmer")
    one = [case("s", "a dog running", ["a dog runs"]), case("t", "a", ["a"])]
    plainly, stemmed = (
        ask(CaptionQuality(stem=stem), one)[0].values["meteor"].number for stem in (False, True)
    )
    assert stemmed > plainly


def test_meteor_knows_synonyms_and_function_words_where_asked_for(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("puppy, dog\n")
    cases = [case("s", "a puppy runs", ["the dog runs"]), case("t", "a", ["a"])]
    texts, told = ["a puppy runs"], [["the dog runs"]]
    metric = CaptionQuality(synonyms=str(file), function_words=True)
    how = meteor.Settings(synonyms={"dog": {"puppy"}}, function_words={"a", "the"})
    found = [ask(one, cases)[0].values for one in (CaptionQuality(), metric)]
    assert [v["meteor"].number for v in found] == [
        meteor.meteor(texts, told)[0],
        meteor.meteor(texts, told, how)[0],
    ]
    # dog and runs in one run: P and R are 0.75 (1 + 0.8) of 1.75
    wanted = 0.75 * 1.8 / 1.75 * (1 - 0.6 * 0.5**0.2)
    assert found[1]["meteor"].number == pytest.approx(wanted, abs=1e-12)
    assert {k: v for k, v in found[0].items() if k != "meteor"} == {
        k: v for k, v in found[1].items() if k != "meteor"
    }


@pytest.mark.parametrize("metric", [CaptionQuality, Chair])
def test_the_key_holds_the_bytes_of_the_list(metric, tmp_path):
    file, told = tmp_path / "list.txt", []
    for text in ("puppy, dog\n", "puppy, cat\n"):
        file.write_text(text)
        made = metric(synonyms=str(file))
        told.append((made.digest, made))
    assert told[0][0] != told[1][0]
    assert told[0][1] != told[1][1]
    assert metric().digest == metric().digest
    with pytest.raises(Refused, match=r"synonyms: there is no file"):
        metric(synonyms=str(tmp_path / "none.txt"))


def test_without_references_there_is_no_number():
    (score, _) = ask(CaptionQuality(), [case("s", "a dog"), case("t", "a dog", ["a dog"])])
    assert {v.reason for v in score.values.values()} == {"no reference captions"}
    (alone,) = ask(CaptionQuality(), [case("t", "a dog", ["a dog"])])
    assert "fewer than two images" in alone.values["cider_d"].reason


def test_counts_are_those_of_the_n_grams():
    corpus = cider.Frequencies.of([list(t) for t in TOLD])
    stored = Counts(**Counts.of(corpus.counts).tensors)
    assert all(stored[gram] == count for gram, count in corpus.counts.items())
    assert ("no", "such") not in stored
    with pytest.raises(TypeError, match="not stored"):
        list(stored)


# ---------------------------------------------------------------- CHAIR


def test_chair_pools_mentions_and_counts_captions():
    cases = [
        case("s", "a dog and a cat", ["a dog"], ("dog",)),
        case("t", "a ball", ["the cat"], ("ball", "cat")),
        case("u", "nothing here", ["a dog"], ()),
    ]
    metric = Chair()
    scores = ask(metric, cases)
    assert column(metric, cases, scores, "chair_i") == pytest.approx(1 / 3)
    assert column(metric, cases, scores, "chair_s") == pytest.approx(1 / 3)
    known = {name: name for name in SPEAKER.objects}
    there = [chair.present(known, c.things, c.references) for c in cases]
    pooled = chair.chair([" ".join(c.spoken[1:]) for c in cases], there, known)
    assert (pooled.i, pooled.s) == pytest.approx((1 / 3, 1 / 3))


def test_truth_is_what_is_annotated_what_is_told_or_both():
    one = [case("s", "a dog and a cat", ["a dog"], ("cat",))]
    found = {
        truth: ask(Chair(truth=truth), one)[0].values["chair_i"].number
        for truth in ("both", "objects", "references")
    }
    assert found == {"both": 0.0, "objects": 0.5, "references": 0.5}
    (nothing,) = ask(Chair(truth="objects"), [case("s", "a dog", ["a dog"])])
    assert nothing.values["chair_s"].reason == "nothing annotated and nothing told"
    with pytest.raises(Refused, match="did you mean 'objects'"):
        Chair(truth="object")
    with pytest.raises(Unsuited, match="give `synonyms` a list"):
        Chair().measure([Trial(SimpleNamespace(name="mute", family="captioner"), one[0])])


@pytest.mark.skipif(not SYNONYMS.is_file(), reason=f"HEATPROOF_DATA: nothing at {SYNONYMS}")
def test_the_authors_list_knows_synonyms():
    (score,) = ask(Chair(synonyms=str(SYNONYMS)), [case("s", "a puppy on a bike", (), ("dog", "bicycle"))])
    assert score.values["chair_i"].number == 0
    (score,) = ask(Chair(synonyms=str(SYNONYMS)), [case("s", "a puppy on a bike", (), ("cat",))])
    assert (score.values["chair_i"].number, score.values["chair_i"].parts) == (1.0, {"num": 2, "den": 2})
    assert np.isfinite(score.values["chair_s"].number)
