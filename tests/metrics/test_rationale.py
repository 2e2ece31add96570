"""Comprehensiveness and sufficiency against ERASER's sums in loops, on a dual encoder and a captioner."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heatproof.contract import Explanation, Metric, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.metrics import rationale
from heatproof.metrics.rationale import Plan, Rationale
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner import Captioner
from heatproof.models.words import WordList

TEXTS = ("red ball on grass red ball", "red ball on grass", "ball", "ball on ball")
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def batch(toys, count=4):
    chance = torch.Generator().manual_seed(3)
    cases = [toys.worded(f"c{i}", TEXTS[i % 4], torch.randn(3, 4, 4, generator=chance)) for i in range(count)]
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


def slow(model, case, text, free, removal, shares, answer=float):
    """One share at a time, one question at a time: the text, the text without its top tokens, those alone."""
    ranked = sorted(free, key=lambda place: -float(text[place]))

    def ask(gone):
        keep = torch.ones(1, len(case.words))
        keep[0, list(gone)] = 0
        return answer(float(model.score_text(keep, [case], removal)))

    needed, enough = [], []
    for share in shares:
        k = max(1, math.floor(share * len(ranked) + 0.5))
        needed.append(ask(()) - ask(ranked[:k]))
        enough.append(ask(()) - ask(ranked[k:]))
    return needed, enough


def compared(score, needed, enough, shares):
    worst = 0.0
    for name, expected in (("comprehensiveness", needed), ("sufficiency", enough)):
        x, y = score.curves[name]
        assert x == list(shares)
        worst = max(worst, *(abs(a - b) for a, b in zip(y, expected, strict=True)))
        worst = max(worst, abs(score.values[name].number - sum(expected) / len(expected)))
    return worst


@pytest.mark.parametrize("removal", ["delete", "attention", "pad", "unknown", "embedding"])
def test_dual_is_the_slow_twin(toys, removal):
    model, cases, answers = batch(toys)
    worst = 0.0
    for shares in (SHARES, (0.3, 0.9, 1.0)):
        scores = Rationale(removal=removal, shares=shares).measure(toys.trials(model, cases, answers))
        for case, answer, score in zip(cases, answers, scores, strict=True):
            told = slow(model, case, answer.text, range(1, len(case.words) - 1), removal, shares)
            worst = max(worst, compared(score, *told, shares))
    print(f"largest deviation {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parametrize(("output", "answer"), [("native", float), ("probability", math.exp)])
def test_captioner_is_the_slow_twin_over_the_words_before(toys, captioner, output, answer):
    cases = [spoken(toys, captioner, f"w{t}", "red ball on grass", t) for t in range(4)]
    answers = [Explanation(text=torch.randn(5, generator=c.generator("text"))) for c in cases]
    metric, worst = Rationale(output=output), 0.0
    first, *rest = metric.measure(toys.trials(captioner, cases, answers))
    assert {v.reason for v in first.values.values()} == {"no token that may be removed"}
    for case, told, score in zip(cases[1:], answers[1:], rest, strict=True):
        twin = slow(captioner, case, told.text, range(1, case.target + 1), "delete", SHARES, answer)
        worst = max(worst, compared(score, *twin, SHARES))
    print(f"largest deviation {worst:.1e}")
    assert worst < 1e-6


@given(st.integers(1, 12), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_exactly_k_tokens_go_and_as_many_stay(many, shares):
    groups = [[place + 1] for place in range(many)]
    plan = Plan.of(groups, many + 2, shares)
    counts = [max(1, math.floor(share * many + 0.5)) for share in shares]
    assert bool((plan.kept[0] == 1).all())
    assert bool((plan.kept[:, [0, -1]] == 1).all())  # special tokens
    for k, without, alone in zip(counts, plan.without, plan.alone, strict=True):
        assert plan.kept[without, 1:-1].tolist() == [0] * k + [1] * (many - k)
        assert plan.kept[alone, 1:-1].tolist() == ([1] * k + [0] * (many - k))
    assert len(plan.kept.unique(dim=0)) == len(plan.kept)  # no row twice
    assert len(plan.kept) == 1 + 2 * len(set(counts)) - (many in counts)


def test_drop_is_the_mean_fall():
    assert rationale.drop(2.0, [1.0, 1.0, 3.5]) == pytest.approx(1 / 6)
    assert rationale.drop(-1.0, [-1.0]) == 0


def test_a_sum_of_words_has_its_closed_form(toys, monkeypatch):
    """A score that adds what each kept token is worth: the drop is the worth of what went."""
    model, (case, *_), _ = batch(toys)
    worth = torch.tensor([0.0, 5.0, 1.0, 3.0, 2.0, 4.0, 0.5, 0.0])
    monkeypatch.setattr(model, "score_text", lambda keep, cases, removal: keep @ worth)
    for told, needed, enough in (
        (worth, (5 * 4 + 12) / 5, (10.5 * 4 + 3.5) / 5),  # 6 tokens: 1, 1, 1, 1 and 3 of them
        (-worth, (0.5 * 4 + 3.5) / 5, (15 * 4 + 12) / 5),
    ):
        (score,) = Rationale().measure(toys.trials(model, [case], [Explanation(text=told)]))
        assert score.values["comprehensiveness"].number == pytest.approx(needed, abs=1e-6)
        assert score.values["sufficiency"].number == pytest.approx(enough, abs=1e-6)
        model.memo.clear()


def test_a_word_goes_with_all_its_tokens(toys):
    model, (case, *_), _ = batch(toys)
    case = toys.worded("c", "red ball on grass", case.pixels)
    joined = type(case)(**{**vars(case), "words": (-1, 0, 0, 1, 2, -1)})
    text = torch.tensor([9.0, 1.0, 1.0, 1.5, -1.0, 9.0])
    metric = Rationale(unit="word", shares=(0.4,))
    (score,) = metric.measure(toys.trials(model, [joined], [Explanation(text=text)]))
    keep = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 1]]).float()
    whole, without, alone = model.score_text(keep, [joined] * 3, "delete").tolist()
    assert score.curves["comprehensiveness"][1] == pytest.approx([whole - without], abs=1e-6)
    assert score.curves["sufficiency"][1] == pytest.approx([whole - alone], abs=1e-6)


def test_ranks_alone_count_and_signs_are_settings(toys):
    model, cases, answers = batch(toys)
    expected = toys.numbers(Rationale(), model, cases, answers)
    for same in (lambda t: t * 8, lambda t: t * 0.3, lambda t: t.double()):
        assert (
            toys.numbers(Rationale(), model, cases, [Explanation(text=same(a.text)) for a in answers])
            == expected
        )
    halves = [Explanation(text=a.text.half()) for a in answers]
    assert toys.numbers(Rationale(), model, cases, halves) == expected
    absolute = toys.numbers(Rationale(sign="abs"), model, cases, answers)
    assert absolute == toys.numbers(
        Rationale(), model, cases, [Explanation(text=a.text.abs()) for a in answers]
    )
    assert absolute != expected


def test_equal_words_go_in_an_order_of_the_cases_own(toys):
    model, cases, _ = batch(toys, 8)
    answers = [Explanation(text=torch.ones(len(c.words))) for c in cases]
    found = toys.numbers(Rationale(), model, cases, answers)
    assert all(v is not None for values in found for v in values.values())
    assert toys.numbers(Rationale(), model, cases[::-1], answers[::-1])[::-1] == found


@pytest.mark.parametrize(
    ("shares", "rows"),
    [(SHARES, 1 + 4), ((0.2, 0.4, 0.6, 0.8), 1 + 8), ((1.0,), 1 + 1), ((0.5, 1.0), 1 + 2 + 1)],
)
def test_two_rows_a_count_by_hook_and_by_meter(toys, shares, rows):
    model, (case, *_), _ = batch(toys)
    model.memo.on = True
    cases = [toys.worded(f"c{i}", "red ball on grass red", case.pixels) for i in range(8)]
    answers = [Explanation(text=torch.randn(7, generator=c.generator("text"))) for c in cases]
    metric, seen = Rationale(shares=shares), {"eye": 0, "ear": 0}
    metric.measure(toys.trials(model, cases, answers))  # the stages are weighed once
    model.memo.clear()
    model.net.eye.register_forward_hook(lambda *call: seen.update(eye=seen["eye"] + len(call[-1])))
    model.net.ear.register_forward_hook(lambda *call: seen.update(ear=seen["ear"] + len(call[-1])))
    with model.part() as spent:
        metric.measure(toys.trials(model, cases, answers))
    assert seen == {"eye": 8, "ear": 8 * rows}
    assert {c: round(n) for c, n in spent.forward.items()} == {c.id: rows + 1 for c in cases}
    metric.measure(toys.trials(model, cases, answers))
    assert seen == {"eye": 8, "ear": 8 * (2 * rows - 1)}  # the image and the whole text are known by now


@pytest.mark.parametrize(
    "metric", [Rationale(), Rationale(removal="attention", unit="word", shares=(0.3, 1.0))]
)
def test_chunks_and_order_change_nothing(toys, metric):
    def asked(chunk, order):
        model, cases, answers = batch(toys, 11)
        answers[4], answers[7] = Explanation(), Explanation(text=answers[7].text.sign())
        pairs, found = list(zip(cases, answers, strict=True))[::order], {}
        for first in range(0, len(pairs), chunk):
            some = pairs[first : first + chunk]
            model.memo.clear()
            with torch.inference_mode():
                scores = metric.measure(toys.trials(model, *zip(*some, strict=True)))
            found |= {case.id: (s.values, s.curves) for (case, _), s in zip(some, scores, strict=True)}
        return found

    expected = asked(11, 1)
    for chunk in (1, 3, 4, 11):
        for order in (1, -1):
            assert asked(chunk, order) == expected
    assert len({v.number for values, _ in expected.values() for v in values.values()}) > 10


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Explanation(), "no text relevance"),
        (None, "no text relevance"),
        (Explanation(text=torch.tensor([math.nan] * 8)), "NaN or infinity in the text relevance"),
    ],
)
def test_undefined_is_never_a_number(toys, answer, reason):
    model, cases, answers = batch(toys)
    with model.part() as spent:
        found = Rationale().measure(toys.trials(model, cases[:2], [answer, answers[1]]))
    assert {(v.number, v.reason) for v in found[0].values.values()} == {(None, reason)}
    assert set(spent.forward) == {cases[1].id}
    (alone,) = Rationale().measure(toys.trials(model, cases[1:2], answers[1:2]))
    assert found[1].values == alone.values
    empty = toys.worded("empty", "", cases[0].pixels)
    (score,) = Rationale().measure(toys.trials(model, [empty], [Explanation(text=torch.zeros(2))]))
    assert {v.reason for v in score.values.values()} == {"no token that may be removed"}


def test_wrong_models_lengths_and_settings(toys):
    assert isinstance(Rationale(), Metric)
    assert Rationale().measure([]) == []
    with pytest.raises(Unsuited, match="reads no text"):
        Rationale().measure(toys.trials(toys.linear(), [toys.case()], [None]))
    model, cases, answers = batch(toys)
    with pytest.raises(Unsuited, match="cosine"):
        Rationale(output="probability").measure(toys.trials(model, cases, answers))
    with pytest.raises(ValueError, match=r"accepted is \[8\]"):
        Rationale().measure(toys.trials(model, cases[:1], [Explanation(text=torch.zeros(3))]))
    for setting, said in (
        ({"unit": "words"}, "did you mean 'word'"),
        ({"sign": "plus"}, "no sign 'plus'"),
        ({"output": "logit"}, "no output 'logit'"),
        ({"shares": ()}, r"found \(\)"),
        ({"shares": (0.1, 1.2)}, "above 0 and up to 1"),
    ):
        with pytest.raises(Refused, match=said):
            Rationale(**setting)
