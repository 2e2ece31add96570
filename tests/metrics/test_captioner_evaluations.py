"""What Sun et al. ask of captioners' explanations: patches and words taken away, hallucination, object words; slow twins."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from heatproof import records
from heatproof.contract import Case, Explanation, Refused, Sample, Trial, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics.hallucination import STATISTICS, Hallucination, statistics_of
from heatproof.metrics.object_words import ObjectWords, counted
from heatproof.metrics.patch_ablation import PatchAblation, hottest_patches
from heatproof.metrics.prefix_ablation import PrefixAblation
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner import Captioner
from heatproof.models.words import WordList
from heatproof.reducers import Numbering, reduce

FOLDER = Path(os.environ.get("HEATPROOF_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))
ARRAYS = FOLDER / "lrp_captioning"
present = pytest.mark.skipif(not ARRAYS.is_dir(), reason=f"HEATPROOF_PARITY: nothing at {ARRAYS}")
WORDS = [
    "<pad>",
    "<unk>",
    "<start>",
    "<end>",
    *"a red blue ball box on under the tall grass dog runs by tree sky".split(),
]
LENGTH = 12


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(nn.ReLU(), nn.AvgPool2d(8)))
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(len(WORDS), 6, 16, embed=8, hidden=12))
        for value in net.parameters():
            value.data.mul_(2.5)
    words = WordList({w: k for k, w in enumerate(WORDS)})
    return Captioner("c", net, Frame(32), words=words, objects=("ball", "box", "dog", "tree"), length=LENGTH)


@pytest.fixture(scope="module")
def asked(captioner) -> list[Case]:
    """Every word of the captions that it writes about ten images."""
    chance = np.random.default_rng(1)
    images = [chance.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(10)]
    samples = [
        Sample(f"s{k}", lambda i=i: i, captions=("A red ball.", "the dog")) for k, i in enumerate(images)
    ]
    cases = []
    for (case,) in captioner.ask(samples, "written"):
        cases += [replace(case, id=f"{case.id}.w{t}", target=t) for t in range(len(case.spoken) - 1)]
    assert len(cases) > 20
    return cases[:40]


def heats(cases, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return [
        Explanation(
            image=torch.randn(3, 32, 32, generator=chance), text=torch.randn(len(c.words), generator=chance)
        )
        for c in cases
    ]


def ask(metric, model, cases, answers):
    model.memo.clear()
    return metric.measure([Trial(model, c, None, e) for c, e in zip(cases, answers, strict=True)])


def probability(model, pixels, ids, word):
    """The net's own forward, teacher-forced."""
    with torch.no_grad():
        logits = model.net(pixels[None], torch.tensor([ids]))
    return float(logits[0, -1].softmax(0)[word])


# ---------------------------------------------------------------- patches


def test_patches_are_taken_away_one_by_one(captioner, asked):
    metric, answers = PatchAblation(side=4, patches=9), heats(asked)
    found, gone = ask(metric, captioner, asked, answers), 0
    for case, answer, score in zip(asked, answers, found, strict=True):
        if case.target < 1:
            assert {v.reason for v in score.values.values()} == {
                "the word stands before place 1 of its caption"
            }
            continue
        heat = answer.image.mean(0).numpy()
        sums = sorted(
            ((heat[y : y + 4, x : x + 4].sum(), y, x) for y in range(0, 32, 4) for x in range(0, 32, 4)),
            reverse=True,
        )
        pixels = case.pixels.clone()
        for _, y, x in sums[:9]:
            pixels[:, y : y + 4, x : x + 4] = 0
        word, ids = case.spoken[case.target + 1], case.tokens.tolist()
        before = probability(captioner, case.pixels, ids[: case.target + 1], ids[case.target + 1])
        said = captioner.write(pixels[None], [case])[0].split()
        values = {name: v.number for name, v in score.values.items()}
        forced = probability(captioner, pixels, ids[: case.target + 1], ids[case.target + 1])
        assert values["forced_drop"] == pytest.approx(before - forced, abs=1e-5)
        assert values["disappeared"] == float(word not in said)
        gone += word not in said
        if word in said:
            new = [captioner.words.ids[w] for w in said]
            at = said.index(word)
            now = probability(captioner, pixels, [captioner.words.bos, *new[:at]], new[at])
            assert values["drop"] == pytest.approx(before - now, abs=1e-5)
            assert values["lower"] == float(values["drop"] >= 0)
        else:
            assert (values["drop"], values["lower"]) == (0.0, 0.0)
    assert 0 < gone < len(asked)  # else half of it was not tried


@present
def test_the_mask_is_the_releases():
    with np.load(ARRAYS / "metrics.npz") as arrays:
        gone = hottest_patches(torch.from_numpy(arrays["R"]), 8, 20, torch.Generator())
        assert (gone.numpy() == (arrays["mask"] == 0)).all()


# ---------------------------------------------------------------- words


def test_preceding_words_are_deleted(captioner, asked):
    metric, answers = PrefixAblation(count=2, least=3), heats(asked, 1)
    found = ask(metric, captioner, asked, answers)
    tried = 0
    for case, answer, score in zip(asked, answers, found, strict=True):
        if case.target < 3:
            assert "before place 3" in score.values["drop"].reason
            continue
        tried += 1
        ids, word = case.tokens.tolist(), int(case.tokens[case.target + 1])
        order = sorted(range(1, case.target + 1), key=lambda k: -float(answer.text[k]))
        left = [i for k, i in enumerate(ids[: case.target + 1]) if k not in order[:2]]
        lost = probability(captioner, case.pixels, ids[: case.target + 1], word) - probability(
            captioner, case.pixels, left, word
        )
        assert score.values["drop"].number == pytest.approx(lost, abs=1e-5)
        assert score.values["lower"].number == float(score.values["drop"].number >= 0)
    assert tried > 5


@pytest.mark.parametrize("metric", [PatchAblation(side=4, patches=9), PrefixAblation(2, 3), Hallucination()])
def test_neighbours_do_not_matter(metric, captioner, asked):
    answers = heats(asked, 2)
    whole = [s.values for s in ask(metric, captioner, asked, answers)]
    back = [s.values for s in ask(metric, captioner, asked[::-1], answers[::-1])][::-1]
    alone = [ask(metric, captioner, [c], [e])[0].values for c, e in zip(asked[:9], answers, strict=False)]
    threes = [
        s.values for k in range(0, 9, 3) for s in ask(metric, captioner, asked[k : k + 3], answers[k : k + 3])
    ]
    assert whole == back
    assert whole[:9] == alone == threes


# ---------------------------------------------------------------- hallucination


def test_a_statistic_of_the_map_and_its_area(captioner, asked):
    answers = heats(asked, 3)
    found = ask(Hallucination(), captioner, asked, answers)
    rows = {name: ([], []) for name in STATISTICS}
    for case, answer, score in zip(asked, answers, found, strict=True):
        heat = answer.image.mean(0).double().numpy().ravel()
        true = case.spoken[case.target + 1] in {"a", "red", "ball", "the", "dog"}
        expected = {
            "mean": heat.mean(), "abs_mean": np.abs(heat).mean(), "positive_mean": heat[heat > 0].mean(), "max": heat.max(),
            **{f"q{q}": np.quantile(heat, q / 100) for q in (0, 10, 20, 30, 40, 50)},
        }  # fmt: skip
        for name, value in score.values.items():
            assert value.number == pytest.approx(expected[name], rel=1e-5)  # six digits are kept
            assert value.parts == {"label": int(true), "score": value.number}
            rows[name][0].append(int(true))
            rows[name][1].append(value.number)
    for name, (labels, scores) in rows.items():
        assert 0 < sum(labels) < len(labels)
        kept = [record(c, name, s.values[name]) for c, s in zip(asked, found, strict=True)]
        area = reduce("roc_auc", Numbering.of(kept).rows(kept, "roc_auc"))
        assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def record(case, name, value):
    told = {
        "benchmark": "b", "model": "m", "family": "captioner", "replicate": 0, "explainer": "e", "role": "method",
        "metric": "x", "forwards": 0.0, "backwards": 0.0, "key": "", "reason": "",
    }  # fmt: skip
    return records.Record(
        **told, sample=case.sample, case=case.id, about=case.about, name=name, value=value.number,
        parts=dict(value.parts), status="value",
    )  # fmt: skip


def test_truth_by_what_is_annotated(captioner, asked):
    seen = replace(asked[0], evidence=torch.ones(1, 32, 32, dtype=torch.bool))
    unseen = replace(asked[0], evidence=torch.zeros(0, 32, 32, dtype=torch.bool))
    answers = heats([seen, unseen, asked[0]])
    found = ask(Hallucination(truth="objects"), captioner, [seen, unseen, asked[0]], answers)
    assert [s.values["mean"].parts.get("label") for s in found] == [1, 0, None]
    assert found[2].values["mean"].reason == "nothing annotated"
    (nobody,) = ask(Hallucination(), captioner, [replace(asked[0], references=())], answers[:1])
    assert nobody.values["mean"].reason == "no reference captions"


def test_a_statistic_that_is_constant_but_for_rounding_tells_nothing():
    chance = torch.Generator().manual_seed(0)
    heats = torch.softmax(torch.randn(50, 13, 13, generator=chance).flatten(1), 1).view(50, 13, 13)
    assert len({float(heat.mean()) for heat in heats}) > 1
    assert len({statistics_of(heat)["mean"] for heat in heats}) == 1
    assert len({statistics_of(heat)["max"] for heat in heats}) == 50


def test_fewer_statistics_are_the_same_ones(captioner, asked):
    answers = heats(asked, 3)
    few, every = (
        ask(Hallucination(statistics=names), captioner, asked, answers)
        for names in (("max", "q10"), STATISTICS)
    )
    assert [m.name for m in Hallucination(statistics=("max", "q10")).measures] == ["max", "q10"]
    for some, whole in zip(few, every, strict=True):
        assert some.values == {name: whole.values[name] for name in ("max", "q10")}
    with pytest.raises(Refused, match="no statistic 'q99'"):
        Hallucination(statistics=("q99",))


def test_as_released_repeated_words_and_last_quantiles(captioner, asked):
    """Of a word that its image's caption repeats the extremes; every word has the quantiles of the image's last word."""
    twice = [
        replace(case, sample=f"s{k // 4}", about=("dog", "cat")[k % 4 > 1]) for k, case in enumerate(asked)
    ]
    twice = [
        replace(c, references=("a red ball",) if k // 4 % 2 else ("nothing",)) for k, c in enumerate(twice)
    ]
    judge = Hallucination(as_released=True)
    found = ask(judge, captioner, twice, heats(asked, 6))
    true = [judge.true(case) for case in twice]
    for name in STATISTICS:
        kept = [record(c, name, s.values[name]) for c, s in zip(twice, found, strict=True)]
        how = next(m.reduce for m in judge.measures if m.name == name)
        words: dict = {}
        for k, (case, score) in enumerate(zip(twice, found, strict=True)):
            value = score.values[name].number
            if name.startswith("q"):
                mates = [i for i, other in enumerate(twice) if other.sample == case.sample]
                value = found[max(mates, key=lambda i: twice[i].target)].values[name].number
            words.setdefault((case.sample, case.about, true[k]), []).append(value)
        labels = [int(label) for _, _, label in words]
        scores = [max(some) if label else min(some) for (_, _, label), some in words.items()]
        assert 0 < sum(labels) < len(labels)
        area = reduce(how, Numbering.of(kept).rows(kept, how))
        assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


# ---------------------------------------------------------------- object words


@present
@pytest.mark.parametrize("as_released", [True, False])
def test_precision_and_recall_are_the_releases(as_released, captioner):
    with np.load(ARRAYS / "hallucination.npz") as arrays:
        told = {k: v for k, v in arrays.items()}
    words = tuple(str(w) for w in told["words"])
    metric = ObjectWords(words=words, as_released=as_released)
    cases = [
        Case(
            f"c{k}", f"s{k}", "", torch.zeros(3, 2, 2), 0, spoken=("", *str(said).split()),
            references=tuple(str(r) for r in told["references"][k] if r),
        )
        for k, said in enumerate(told["predictions"])
    ]  # fmt: skip
    found = metric.measure([Trial(captioner, c) for c in cases])
    for measure in metric.measures:
        kept = [record(c, measure.name, s.values[measure.name]) for c, s in zip(cases, found, strict=True)]
        value = reduce(measure.reduce, Numbering.of(kept).rows(kept, measure.reduce))
        released = float(told[f"mean_{measure.name}"])
        if as_released:
            assert value == pytest.approx(released, abs=1e-12)
        else:
            assert value > released  # words that were never said, or are never there, take no part


def test_what_the_first_release_called_map(captioner):
    """Two words: the recalls 1/2 and 1, over one word less than there are."""
    metric = ObjectWords(words=("dog", "cat"), first_release=True)
    told = [("a dog", ("a dog",)), ("a cat", ("a dog and a cat",))]
    cases = [
        Case(f"c{k}", f"s{k}", "", torch.zeros(3, 2, 2), 0, spoken=("", *said.split()), references=some)
        for k, (said, some) in enumerate(told)
    ]
    found = metric.measure([Trial(captioner, c) for c in cases])
    kept = [record(c, "map", s.values["map"]) for c, s in zip(cases, found, strict=True)]
    assert reduce("ratio_over_fewer", Numbering.of(kept).rows(kept, "ratio_over_fewer")) == pytest.approx(1.5)
    with pytest.raises(Refused, match="2 at least"):
        ObjectWords(words=("dog",), first_release=True)


def test_a_word_counts_once_an_image():
    assert counted("dog dog dogs", ["a Dog!", "cats and a cat"], ["dog", "cat", "cats"]) == (
        [1, 0, 0],
        [1, 1, 1],
    )
    none = Case("c", "s", "", torch.zeros(1), 0, spoken=("", "dog"))
    (score,) = ObjectWords().measure([Trial(None, none)])
    assert {v.reason for v in score.values.values()} == {"no reference captions"}
    with pytest.raises(Refused, match="different words"):
        ObjectWords(words=("dog", "dog"))


def test_who_is_unsuited_and_what_is_refused():
    other = SimpleNamespace(family="dual", name="pair")
    for metric in (PatchAblation(), PrefixAblation(), Hallucination()):
        with pytest.raises(Unsuited, match="pair"):
            metric.measure([Trial(other, Case("c", "s", "", torch.zeros(3, 4, 4), 0))])
    with pytest.raises(Refused, match="patches 0"):
        PatchAblation(patches=0)
    with pytest.raises(Refused, match="count 7 and least 6"):
        PrefixAblation(count=7)
    with pytest.raises(Refused, match="did you mean 'references'"):
        Hallucination(truth="reference")
    assert math.isfinite(PatchAblation().least)
