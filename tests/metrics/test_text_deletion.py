"""Text deletion against a token-by-token twin on a dual encoder and a captioner; what never goes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import text_deletion
from heatproof.metrics.text_deletion import TextDeletion
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner import Captioner
from heatproof.models.words import WordList

TEXTS = ("red ball", "red ball on grass", "grass", "ball on ball")


def batch(toys):
    chance = torch.Generator().manual_seed(3)
    cases = [
        toys.worded(f"c{i}", text, torch.randn(3, 4, 4, generator=chance)) for i, text in enumerate(TEXTS)
    ]
    texts = [torch.randn(len(c.words), generator=chance) for c in cases]
    return toys.dual(), cases, [Explanation(text=t) for t in texts]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()))
        net = AdaptiveCaptioner(encoder, AdaptiveConfig(embed=5, hidden=7, cells=9, channels=6, vocabulary=8))
    words = WordList({w: i for i, w in enumerate("<pad> red ball on grass <unk> <start> <end>".split())})
    return Captioner("tiny", net, Frame(6), words=words, objects=("ball",), length=6)


def spoken(toys, model, name, caption, target):
    ids = torch.tensor([model.words.bos, *(model.words.ids[w] for w in caption.split())])
    pixels = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(target))
    return toys.case(name, pixels, target, tokens=ids, words=tuple(range(-1, len(ids) - 1)))


def slow(model, case, text, free, removal):
    """One token a step, one question at a time, the most relevant first."""
    order = sorted(free, key=lambda place: -float(text[place]))
    down, up = [], []
    for done in range(len(order) + 1):
        keep = torch.ones(1, len(case.words))
        keep[0, order[:done]] = 0
        down.append(float(model.score_text(keep, [case], removal)))
        keep[0, order[:done]], keep[0, order[done:]] = 1, 0
        up.append(float(model.score_text(keep, [case], removal)))
    return down, up


def area(curve):
    return sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / (len(curve) - 1)


@pytest.mark.parametrize("removal", ["delete", "attention", "pad", "unknown", "embedding"])
def test_dual_is_the_slow_twin(toys, removal):
    model, cases, answers = batch(toys)
    scores = TextDeletion(removal=removal).measure(toys.trials(model, cases, answers))
    for case, answer, score in zip(cases, answers, scores, strict=True):
        down, up = slow(model, case, answer.text, range(1, len(case.words) - 1), removal)
        assert score.curves["deletion"][1] == pytest.approx(down, abs=1e-6)
        assert score.curves["insertion"][1] == pytest.approx(up, abs=1e-6)
        assert score.values["text_deletion"].number == pytest.approx(area(down), abs=1e-6)
        assert score.values["text_srg"].number == pytest.approx(area(up) - area(down), abs=1e-6)


@pytest.mark.parametrize("removal", ["delete", "unknown"])
def test_captioner_is_the_slow_twin_over_the_words_before(toys, captioner, removal):
    cases = [spoken(toys, captioner, f"w{t}", "red ball on grass", t) for t in range(4)]
    answers = [Explanation(text=torch.randn(5, generator=c.generator("text"))) for c in cases]
    first, *rest = TextDeletion(removal=removal).measure(toys.trials(captioner, cases, answers))
    assert {v.reason for v in first.values.values()} == {"no token that may be removed"}
    for case, answer, score in zip(cases[1:], answers[1:], rest, strict=True):
        down, up = slow(captioner, case, answer.text, range(1, case.target + 1), removal)
        assert score.curves["deletion"][1] == pytest.approx(down, abs=1e-6)
        assert score.curves["insertion"][1] == pytest.approx(up, abs=1e-6)


def test_special_tokens_and_what_follows_the_word_are_always_kept(toys):
    case = toys.case("c", target=1, words=(-1, 0, 0, 1, 2, -1))
    groups = text_deletion.removable(case, "captioner")
    assert groups == [[1]]  # the word spoken is token 2
    for family, unit in (("dual", "token"), ("dual", "word"), ("captioner", "token")):
        groups = text_deletion.removable(case, family, unit)
        kept = text_deletion.keeps(groups, 6)
        free = list(itertools.chain(*groups))
        outside = [p for p in range(6) if p not in free]
        assert bool((kept[:, outside] == 1).all())
        n = len(groups)
        sizes = torch.tensor([len(g) for g in groups])
        assert kept[:n].sum(1).tolist() == [6 - int(sizes[:k].sum()) for k in range(n)]
        assert bool((kept[:n] + kept[n:] - 1)[:, free].eq(0).all())


def test_a_word_goes_with_all_its_tokens(toys):
    model, (case, *_), _ = batch(toys)
    case = toys.worded("c", "red ball on grass", case.pixels)
    joined = type(case)(**{**vars(case), "words": (-1, 0, 0, 1, 2, -1)})
    text = torch.tensor([9.0, 1.0, 1.0, 1.5, -1.0, 9.0])
    (score,) = TextDeletion(unit="word").measure(toys.trials(model, [joined], [Explanation(text=text)]))
    keep = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]]
    ).float()
    expected = model.score_text(keep, [joined] * 4, "delete")
    assert score.curves["deletion"][1] == pytest.approx(expected.tolist(), abs=1e-6)


def test_two_rows_a_token_by_hook(toys):
    model, (case, *_), _ = batch(toys)
    cases = [toys.worded(f"c{i}", "red ball on", case.pixels) for i in range(8)]
    answers = [Explanation(text=torch.randn(5, generator=c.generator("text"))) for c in cases]
    metric, seen = TextDeletion(), {"eye": 0, "ear": 0}
    metric.measure(toys.trials(model, cases, answers))  # the stages are weighed once
    model.memo.clear()
    model.net.eye.register_forward_hook(lambda *call: seen.update(eye=seen["eye"] + len(call[-1])))
    model.net.ear.register_forward_hook(lambda *call: seen.update(ear=seen["ear"] + len(call[-1])))
    metric.measure(toys.trials(model, cases, answers))
    assert seen == {"eye": 8, "ear": 8 * 2 * 3}  # 8 cases fill whole blocks, so nothing is padding
    metric.measure(toys.trials(model, cases, answers))
    assert seen == {"eye": 8, "ear": 8 * 2 * 3 + 8 * 2 * 2}  # the ends are known by now


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Explanation(), "no text relevance"),
        (
            Explanation(text=torch.tensor([0.0, float("nan"), 0.0, 0.0])),
            "NaN or infinity in the text relevance",
        ),
    ],
)
def test_undefined_is_never_a_number(toys, answer, reason):
    model, cases, answers = batch(toys)
    found = TextDeletion().measure(toys.trials(model, cases[:2], [answer, answers[1]]))
    assert {(v.number, v.reason) for v in found[0].values.values()} == {(None, reason)}
    (alone,) = TextDeletion().measure(toys.trials(model, cases[1:2], answers[1:2]))
    assert found[1].values == alone.values


def test_only_special_tokens_leave_nothing_to_remove(toys):
    model, (case, *_), _ = batch(toys)
    empty = toys.worded("empty", "", case.pixels)
    trials = toys.trials(model, [empty], [Explanation(text=torch.zeros(2))])
    (score,) = TextDeletion().measure(trials)
    assert {v.reason for v in score.values.values()} == {"no token that may be removed"}


def test_wrong_models_lengths_and_settings(toys):
    with pytest.raises(Unsuited, match="reads no text"):
        TextDeletion().measure(toys.trials(toys.linear(), [toys.case()], [None]))
    model, cases, _ = batch(toys)
    with pytest.raises(ValueError, match=r"accepted is \[4\]"):
        TextDeletion().measure(toys.trials(model, cases[:1], [Explanation(text=torch.zeros(3))]))
    with pytest.raises(Refused, match="did you mean 'word'"):
        TextDeletion(unit="words")
