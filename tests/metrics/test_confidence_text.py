"""Confidence's hard text mask and the released quirks against slow twins: a bag of tokens, and transformers' own CLIP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from heatproof import seeds
from heatproof.contract import Explanation, Refused
from heatproof.geometry import Frame
from heatproof.metrics.confidence import Confidence
from heatproof.metrics.confidence_text import above_median, bare, upper_half
from heatproof.models.hf_clip import clip
from heatproof.models.m2ib_clip import wrapped
from heatproof.models.words import WordList

WORDS = ("red", "ball", "on", "grass", "blue", "box")
TEXTS = ("red ball on grass", "blue box on red ball", "ball", "grass red box")
HARD = Confidence(
    output="cosine", drop="absolute", image_mask="normalised", text_mask="median", sign="signed"
)


def tower(eos: int):
    """A CLIP of the library's; its config is of the old kind where the end token's id is 2."""
    special = ("<unk>", "<bos>", "<eos>", "<pad>") if eos == 2 else ("<unk>", "<bos>", "<pad>", "<eos>")
    words = WordList({w: k for k, w in enumerate((*special, *WORDS))})
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    shape["initializer_range"] = 0.5
    ends = {"bos_token_id": words.bos, "eos_token_id": words.eos, "pad_token_id": words.pad}
    config = CLIPConfig(
        text_config={**shape, **ends, "vocab_size": len(words.ids), "max_position_embeddings": 12},
        vision_config={**shape, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with seeds.forked("confidence text"):
        return clip("tower", CLIPModel(config), words, frame=Frame(16))


def asked(toys, model, texts=TEXTS, seed=0):
    cases, answers = [], []
    for k, text in enumerate(texts):
        chance = torch.Generator().manual_seed(seed + k)
        ids, words, spoken = model.tokenizer(text, 12)
        pixels = torch.randn(3, 16, 16, generator=chance)
        cases.append(
            toys.case(
                f"c{k}", pixels, text, tokens=torch.tensor(ids), words=tuple(words), spoken=tuple(spoken)
            )
        )
        answers.append(
            Explanation(torch.randn(2, 2, generator=chance), torch.randn(len(ids), generator=chance))
        )
    return cases, answers


def by_hand(net, case, ids):
    """The library's own cosine of these ids, as they are: no padding, and whatever position it reads."""
    with torch.no_grad():
        out = net(input_ids=torch.tensor([ids]), pixel_values=case.pixels[None])
    return float((out.image_embeds[0] * out.text_embeds[0]).sum())


def values(y, o):
    return {
        "text_drop": 100 * max(0, y - o),
        "text_increase": 100.0 * (o > y),
        "text_gain": 100 * max(0, o - y),
    }


def off(score, expected):
    return max(abs(score.values[name].number - value) for name, value in expected.items())


# ---------------------------------------------------------------- which tokens stay


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.75, 2.0, 3.0]), min_size=1, max_size=9), st.integers(0, 99)
)
def test_exactly_half_stays_and_a_threshold_takes_no_more(heat, seed):
    relevance, chance = torch.tensor(heat), torch.Generator().manual_seed(seed)
    kept, above = upper_half(relevance, chance), above_median(relevance)
    assert int(kept.sum()) == len(heat) // 2
    assert above.sum() <= len(heat) / 2
    ordered = sorted(heat)
    middle = (ordered[(len(heat) - 1) // 2] + ordered[len(heat) // 2]) / 2
    assert above.tolist() == [float(v > middle) for v in heat]
    if len(set(heat)) == len(heat):
        assert torch.equal(kept, above)
    if 0 < kept.sum():
        assert relevance[kept == 1].min() >= relevance[kept == 0].max()


# ---------------------------------------------------------------- slow twins


@pytest.mark.parametrize("removal", ["pad", "unknown", "delete"])
@pytest.mark.parametrize("eos", [2, 3])
def test_the_upper_half_stays_and_the_ends_too(toys, eos, removal, record_property):
    """Each caption with its ends, word by word, read at the end by the library's own layers."""
    model, worst = tower(eos), 0.0
    cases, answers = asked(toys, model)
    metric = replace(HARD, text_removal=removal)
    found = metric.measure(toys.trials(model, cases, answers))
    for case, answer, score in zip(cases, answers, found, strict=True):
        inner = answer.text[1:-1].tolist()
        best = sorted(range(len(inner)), key=lambda k: -inner[k])[: len(inner) // 2]
        words = [
            int(t)
            if k in best
            else {"pad": model.tokenizer.pad, "unknown": model.tokenizer.unknown}.get(removal)
            for k, t in enumerate(case.tokens[1:-1])
        ]
        ids = [int(case.tokens[0]), *(w for w in words if w is not None), int(case.tokens[-1])]
        y, o = (_ended(model, case, row) for row in (case.tokens.tolist(), ids))
        worst = max(worst, off(score, values(y, o)))
    print(f"largest deviation from the library ({removal}): {worst:.1e}")
    record_property("deviation", worst)
    assert worst < 1e-4


def _ended(model, case, ids):
    """The cosine at the end token, by the library's own layers."""
    net = model.net
    with torch.no_grad():
        hidden = net.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        image = net.visual_projection(net.vision_model(pixel_values=case.pixels[None]).pooler_output)[0]
        return float(torch.cosine_similarity(net.text_projection(hidden), image, dim=0))


@pytest.mark.parametrize("eos", [2, 3])
def test_without_ends_the_score_is_read_where_the_library_reads_it(toys, eos, record_property):
    """The release's protocol on the library's own forward: ids times the mask, nothing before and nothing behind."""
    model, worst = tower(eos), 0.0
    cases, answers = asked(toys, model)
    moved = 0
    found = replace(HARD, as_released=True).measure(toys.trials(model, cases, answers))
    for case, answer, score in zip(cases, answers, found, strict=True):
        ids, inner = case.tokens[1:-1], answer.text[1:-1]
        mask = inner > torch.tensor(sorted(inner.tolist())).quantile(0.5)
        gone = (ids * mask).tolist()
        moved += int(ids.argmax() != (ids * mask).argmax())
        y, o = (by_hand(model.net, case, row) for row in (ids.tolist(), gone))
        worst = max(worst, off(score, values(y, o)))
    print(f"largest deviation from the library (eos {eos}): {worst:.1e}")
    record_property("deviation", worst)
    assert worst < 1e-4
    assert moved  # where the config is old, the position read has moved


def test_m2ibs_wrapper_reads_the_last_token_that_is_left(toys):
    model = wrapped(tower(3), no_causal_mask=False)
    cases, answers = asked(toys, model)
    found = replace(HARD, no_ends=True, zero_ids=True).measure(toys.trials(model, cases, answers))
    net = model.net
    for case, answer, score in zip(cases, answers, found, strict=True):
        ids, inner = case.tokens[1:-1], answer.text[1:-1]
        mask = inner > torch.tensor(sorted(inner.tolist())).quantile(0.5)
        found_by_hand = []
        for row in (ids, ids * mask):
            with torch.no_grad():
                last = net.text_model(input_ids=row[None]).last_hidden_state[0, -1]
                image = net.visual_projection(net.vision_model(pixel_values=case.pixels[None]).pooler_output)[
                    0
                ]
                text = net.text_projection(net.text_projection(last))
                found_by_hand.append(float(torch.cosine_similarity(text, image, dim=0)))
        assert off(score, values(*found_by_hand)) < 1e-4


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_soft_weights_as_nib_has_them(toys, ends, tied):
    """A bag of embeddings times their weights, word by word; the sentence's ends are not there at all."""
    model = toys.dual()
    chance = torch.Generator().manual_seed(1)
    case = toys.worded("c", "red ball on red grass", torch.randn(3, 4, 6, generator=chance))
    relevance = torch.randn(7, generator=chance)
    relevance[6] = 9.0  # the end token's
    soft = replace(HARD, text_mask="embedding", no_ends=True, scale_with_ends=ends, tied_words=tied)
    (score,) = soft.measure(toys.trials(model, [case], [Explanation(text=relevance)]))
    told, ids = relevance.tolist(), case.tokens.tolist()
    scale = told if ends else told[1:-1]
    weight = [(v - min(scale)) / (max(scale) - min(scale)) for v in told]
    rows, plain = [], []
    for k in range(1, 6):
        row = model.net.table.weight[ids[k]]
        plain.append(row)
        for other in range(1, 6):
            if other == k or (tied and ids[other] == ids[k]):
                row = row * weight[other]
        rows.append(row)
    image = model.net.eye(case.pixels.mean((1, 2)))
    y, o = (float(torch.cosine_similarity(model.net.ear(sum(bag)), image, dim=0)) for bag in (plain, rows))
    assert off(score, values(y, o)) < 1e-4
    if ends and tied:
        (released,) = replace(soft, as_released=True).measure(
            toys.trials(model, [case], [Explanation(text=relevance)])
        )
        assert released.values["text_drop"] == score.values["text_drop"]


def test_the_first_row_of_the_map_stands_for_all(toys):
    """Weights 1 and 0 in the first row: the left half of the image stays, whatever the other rows say."""
    case = toys.case(pixels=torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]))
    heat = torch.tensor([[2.0, 0.0], [1.0, 1.5]])
    for quirk in ({"row0": True}, {"as_released": True}):
        (found,) = toys.numbers(Confidence(output="native", **quirk), toys.linear(), [case], [heat])
        assert found["image_drop"] == pytest.approx(0.4)
    (found,) = toys.numbers(Confidence(output="native"), toys.linear(), [case], [heat])
    assert found["image_drop"] == pytest.approx(1 - (4 + 2 * 0.5 + 0.75) / 10)


# ---------------------------------------------------------------- laws


QUIRKS = [
    {},
    {"as_released": True},
    {"no_ends": True, "text_removal": "unknown"},
    {"text_removal": "delete"},
]


@pytest.mark.parametrize("quirks", QUIRKS)
def test_chunks_and_order_change_nothing(toys, quirks):
    model, metric = tower(3), replace(HARD, **quirks)
    cases, answers = asked(toys, model, TEXTS * 2 + ("red on red",))
    answers[1].text[:] = 1.0  # tied: by lot
    answers[3] = Explanation(image=answers[3].image)
    trials = toys.trials(model, cases, answers)
    expected = metric.measure(trials)
    for chunk in (1, 3, len(trials)):
        for way in (1, -1):
            turned, found = trials[::way], []
            for first in range(0, len(turned), chunk):
                model.memo.clear()
                with torch.inference_mode():
                    found += metric.measure(turned[first : first + chunk])
            assert [s.values for s in found[::way]] == [s.values for s in expected]
    assert len({(s.values["text_drop"].number, s.values["text_gain"].number) for s in expected}) > 3
    assert expected[3].values["text_drop"].reason == "no text relevance"
    assert expected[1].values["text_drop"].defined


def test_the_case_pays_and_nothing_is_computed_twice(toys):
    model = toys.dual()
    cases = [
        toys.worded(f"c{k}", text, torch.ones(3, 4, 6) * k) for k, text in enumerate(("red ball", "on grass"))
    ]
    answers = [Explanation(text=torch.arange(4.0)) for _ in cases]
    trials, metric = toys.trials(model, cases, answers), replace(HARD, as_released=True)
    metric.measure(trials)
    model.memo.clear()
    with model.part() as spent:
        metric.measure(trials)
    # the image's embedding, the text without its ends, and what is left of that; no map of the image, no clean score
    assert dict(spent.forward) == {case.id: pytest.approx(3) for case in cases}
    model.memo.on = True
    metric.measure(trials)
    run = model.meter.run
    metric.measure(trials)
    assert model.meter.run - run == pytest.approx(2)


def test_a_case_without_its_ends_is_another_case(toys):
    case = toys.worded("c", "red ball", torch.zeros(3, 4, 6))
    short = bare(case)
    assert (short.tokens.tolist(), short.words, short.spoken) == ([4, 5], (0, 1), ("red", "ball"))
    assert short.id != case.id
    assert short.charge == case.id
    assert case.tokens.tolist() == [1, 4, 5, 2]


def test_quirks_of_captions_are_no_captioners_and_wrong_settings_are_refused(toys, families):
    model, cases = families["captioner"]
    answers = [Explanation(image=torch.eye(2), text=torch.arange(float(len(c.words)))) for c in cases]
    metric = Confidence(text_mask="median", as_released=True)
    for score in metric.measure(toys.trials(model, cases, answers)):
        assert "are of a dual encoder's captions" in score.values["text_drop"].reason
        assert score.values["image_drop"].defined
    plain = Confidence(text_mask="median").measure(toys.trials(model, cases, answers))
    assert any(score.values["text_drop"].defined for score in plain)
    with pytest.raises(Refused, match="no text_removal 'zero'"):
        Confidence(text_mask="median", text_removal="zero")
    with pytest.raises(Refused, match="no text_mask 'hard'"):
        Confidence(text_mask="hard")
