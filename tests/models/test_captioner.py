"""The captioner behind the contract: every verb, law 1 with ==, and plain loops for what is batched."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heatproof import shelf
from heatproof.contract import Case, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.models.captioner import REMOVALS, Captioner
from heatproof.models.own_captioner import OwnCaptioner, build, save

NETS = shelf.load(Path(__file__).with_name("captioners.py"))
KINDS, WORDS, OBJECTS = NETS.KINDS, NETS.WORDS, NETS.OBJECTS
SIDE, LENGTH, SIZES = NETS.SIDE, NETS.LENGTH, NETS.SIZES
config_of, net_of, model_of = NETS.config_of, NETS.net_of, NETS.model_of
sample_of, cases_of = NETS.sample_of, NETS.cases_of


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Captioner:
    return model_of(request.param)


@pytest.fixture(scope="module")
def cases(model) -> list[Case]:
    return cases_of(model)


# ---------------------------------------------------------------- the score


def test_score_is_the_log_softmax_of_the_teacher_forced_net(model, cases) -> None:
    found = model.score(model.stack(cases), cases)
    for n, case in enumerate(cases):
        with torch.no_grad():
            logits = model.net(case.pixels[None], case.tokens[None])[0, case.target]
        expected = torch.log_softmax(logits, 0)[case.tokens[case.target + 1]]
        assert torch.allclose(found[n], expected, atol=1e-5)
        assert torch.allclose(model.logits(model.stack(cases), cases)[n], logits, atol=1e-5)


def everything(model: Captioner, cases: list[Case]) -> list[Tensor]:
    """All that the verbs answer, gradients and captions among it."""
    pixels = model.stack(cases).requires_grad_()
    sites = ["image.conv 1", "text.embed 0", "cross.attention 0"]
    with model.watch(sites[0]) as a, model.watch(sites[1]) as b, model.watch(sites[2]) as c:
        score = model.score(pixels, cases)
        seen = [a.value, b.value, c.value]
        grads = torch.autograd.grad(score.sum(), [pixels, *seen])
    keep = torch.tensor([[1.0, 0, 1, 0, 0, 1, 1]]).repeat(len(cases), 1).requires_grad_()
    soft = model.score_text(keep, cases, "embedding")
    grads += torch.autograd.grad(soft.sum(), keep)
    texts = [model.score_text(keep, cases, removal) for removal in REMOVALS if removal != "mask"]
    said = [list(text.encode().ljust(99)) for text in model.write(pixels.detach(), cases)]
    rest = [model.scores(pixels, cases), model.logits(pixels, cases), model.features(pixels, cases)]
    return [score, *seen, *grads, *texts, *rest, torch.tensor(said)]


def test_neighbours_do_not_matter(model, cases) -> None:
    whole = everything(model, cases)
    for size in (1, 3):
        model.memo.clear()
        parts = [everything(model, cases[i : i + size]) for i in range(0, len(cases), size)]
        for k, value in enumerate(whole):
            assert torch.equal(torch.cat([part[k] for part in parts]), value), (size, k)
    model.memo.clear()
    back = everything(model, cases[::-1])
    assert all(torch.equal(b.flip(0), w) for b, w in zip(back, whole, strict=True))


def test_above_after_upto_is_the_score(model, cases) -> None:
    score = model.score(model.stack(cases), cases)
    for site in ("image.conv 0", "image.conv 1", "image.conv 2", "text.embed 0"):
        activation = model.upto(site, model.stack(cases), cases)
        assert torch.equal(model.above(site, activation, cases), score), site
    assert model.upto("text.embed 0", model.stack(cases), cases).shape == (len(cases), LENGTH, 4)
    assert model.sites == {"image.conv": 3, "text.embed": 1, "cross.attention": 1}
    with pytest.raises(Unsuited, match=r"cross\.attention 0"):
        model.upto("cross.attention 0", model.stack(cases), cases)
    assert torch.equal(model.speak(model.looked(cases), cases), model.logits(model.stack(cases), cases))


def test_scores_are_of_the_rivals(model, cases) -> None:
    pixels = model.stack(cases)
    found = model.scores(pixels, cases)
    assert torch.equal(found[:, 0], model.score(pixels, cases))
    for n, case in enumerate(cases):
        assert case.choices[0] == case.tokens[case.target + 1]
        assert {WORDS["dog"], WORDS["cat"], WORDS["ball"]} == set(case.choices)
        chances = torch.log_softmax(model.logits(pixels, cases)[n], 0)
        assert torch.allclose(found[n], chances[list(case.choices)])
    with pytest.raises(Refused, match="no rival words"):
        model.scores(pixels, [replace(case, choices=()) for case in cases])


# ---------------------------------------------------------------- attention


def test_attention_is_shown_up_to_the_target(model, cases) -> None:
    with torch.no_grad(), model.watch("cross.attention 0") as seen:
        model.score(model.stack(cases), cases)
    assert seen.value.shape == (len(cases), LENGTH, model.net.heads, 16)
    for case, value in zip(cases, seen.value, strict=True):
        spoken = case.target + 1
        assert torch.allclose(value[:spoken].sum(-1), torch.ones(spoken, model.net.heads))
        assert (value[spoken:] == 0).all()
    assert model.grid(seen.value[0, 0, 0]).shape == (4, 4)


def test_gradient_of_attention_is_the_slope_of_the_score(model, cases) -> None:
    case = max(cases, key=lambda c: c.target)
    with model.watch("cross.attention 0") as seen:
        score = model.score(case.pixels[None], [case])
        (slope,) = torch.autograd.grad(score.sum(), seen.value)
    net = model.net.double()
    try:
        cells = net.look(net.encoder(case.pixels[None].double()))
        for step, head, cell in ((0, 0, 3), (case.target, model.net.heads - 1, 7)):
            ends = []
            for by in (-1e-5, 1e-5):
                state = net.start(cells.whole)
                for t in range(case.target + 1):
                    shift = torch.zeros(1, net.heads, 16, dtype=torch.float64)
                    shift[0, head, cell] = by * (t == step)
                    word = net.embedding(case.tokens[t : t + 1])
                    state, _ = net.advance(state, cells, word, shift)
                ends.append(torch.log_softmax(net.say(net.mix(state))[0], 0)[case.tokens[case.target + 1]])
            expected = float(ends[1] - ends[0]) / 2e-5
            # what was attended to earlier is remembered by the second LSTM alone
            assert (abs(expected) > 1e-4) == (step == case.target or model.name == "adaptive")
            assert float(slope[0, step, head, cell]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    finally:
        model.net.float()


# ---------------------------------------------------------------- text


def test_nothing_removed_is_the_score(model, cases) -> None:
    keep = torch.ones(len(cases), LENGTH)
    for removal in set(REMOVALS) - {"mask"}:
        assert torch.equal(model.score_text(keep, cases, removal), model.score(model.stack(cases), cases))


def test_removals_are_what_they_say(model, cases) -> None:
    case = cases[0]  # <start> a red DOG with the ball
    keep = torch.tensor([[0.0, 1, 0, 0, 1, 1, 0]])  # <start> stays; what is said later cannot matter

    def scored(tokens: list[int], target: int) -> Tensor:
        other = replace(case, id="other", tokens=torch.tensor(tokens), target=target)
        return model.score(case.pixels[None], [other])

    start, a, dog = WORDS["<start>"], WORDS["a"], WORDS["dog"]
    assert case.tokens[:4].tolist() == [start, a, WORDS["red"], dog]
    expected = {
        "delete": scored([start, a, dog], 1),
        "pad": scored([start, a, WORDS["<pad>"], dog], 2),
        "unknown": scored([start, a, WORDS["<unk>"], dog], 2),
    }
    for removal, score in expected.items():
        assert torch.equal(model.score_text(keep, [case], removal), score), removal
    assert len({float(s) for s in expected.values()}) == 3
    with pytest.raises(Unsuited, match="no mask token; take pad"):
        model.score_text(keep, [case], "mask")
    model.words.mask = WORDS["ball"]
    try:
        assert torch.equal(model.score_text(keep, [case], "mask"), scored([start, a, WORDS["ball"], dog], 2))
    finally:
        model.words.mask = None
    with pytest.raises(ValueError, match="found 'attention', accepted are delete"):
        model.score_text(keep, [case], "attention")


def test_soft_removal_scales_the_embedding(model, cases) -> None:
    case = cases[0]
    keep = torch.tensor([[0.3, 0.6, 0.2, 0.5]]).requires_grad_()
    score = model.score_text(keep, [case], "embedding")
    (slope,) = torch.autograd.grad(score.sum(), keep)
    words = model.upto("text.embed 0", case.pixels[None], [case])
    gain = torch.tensor([1.0, 0.6, 0.2, 0.5, 1, 1, 1])
    assert torch.allclose(model.above("text.embed 0", words * gain[:, None], [case]), score)
    assert slope[0, 1].abs() > 0
    assert slope[0, 0] == 0  # <start> is never removed
    assert slope[0, 3] == 0  # the target itself is not read


# ---------------------------------------------------------------- asking


def test_caption_policy_asks_one_case_an_object_word() -> None:
    model = model_of("multi_head")
    sample = sample_of(0, ("no", "A zebra, dog with the dogs, the cat"), ("dog", "dog", "cat"))
    (found,) = model.ask([sample], "caption 1")
    assert [case.about for case in found] == ["dog", "dog"]  # the model does not know "zebra"
    assert [case.target for case in found] == [2, 5]
    assert [case.id for case in found] == ["s0.c1.w2.dog", "s0.c1.w5.dog"]
    assert found[0].spoken == ("", "a", "zebra", "dog", "with", "the", "dogs")
    assert found[0].words == (-1, 0, 1, 2, 3, 4, 5)
    said = ("<start>", "a", "<unk>", "dog", "with", "the", "dogs")
    assert found[0].tokens.tolist() == [WORDS[w] for w in said]
    assert found[0].evidence.shape == (2, SIDE, SIDE)
    assert found[1].choices[0] == WORDS["dogs"]
    assert WORDS["dog"] not in found[1].choices


def test_a_hallucinated_word_has_no_planes_and_an_unannotated_image_no_evidence() -> None:
    model = model_of("adaptive")
    (found,) = model.ask([sample_of(0, ("the cat",), ("dog",))], "caption 0")
    assert found[0].evidence.shape == (0, SIDE, SIDE)
    assert not found[0].mask.any()
    (found,) = model.ask([sample_of(0, ("the cat",), ())], "caption 0")
    assert found[0].evidence is None


def test_a_whole_reference_is_one_case_and_nothing_is_written(monkeypatch) -> None:
    model = model_of("adaptive")
    monkeypatch.setattr(Captioner, "_write", lambda *_: pytest.fail("a caption was written"))
    told = sample_of(0, ("the sky", "a dog with the cat"), ("dog",))
    ((first,),) = model.ask([told], "reference 0")
    ((second,),) = model.ask([told], "reference 1")
    assert first.spoken[1:] == ("the", "sky")  # no object word in it
    assert second.spoken[1:] == ("a", "dog", "with", "the", "cat")
    assert first.references == told.captions
    assert first.id != second.id
    with pytest.raises(Refused, match="there is no caption 2"):
        model.ask([told], "reference 2")


def test_a_name_of_two_words_is_meant_where_no_shorter_one_fits() -> None:
    model = model_of("adaptive")
    (found,) = model.ask([sample_of(0, ("a hot dog",), ("hot dog",))], "caption 0")
    assert [case.about for case in found] == ["hot dog", "dog"]
    assert [len(case.evidence) for case in found] == [1, 0]
    known = replace(model, objects=("hot dog",))
    (found,) = known.ask([sample_of(0, ("a dog",), ("hot dog",))], "caption 0")
    assert [(case.about, len(case.evidence)) for case in found] == [("hot dog", 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_said_objects_are_what_the_model_writes(kind: str) -> None:
    model, samples = model_of(kind), [sample_of(i) for i in range(5)]
    with torch.no_grad():
        model.net.output.bias[[WORDS[w] for w in ("dog", "dogs", "cat", "ball")]] += 5.0
    asked = model.ask(samples, "said objects")
    pictures = torch.stack([model.frame.image(s.read()) for s in samples])
    captions = model.write(
        pictures, [Case(s.id, s.id, "", p, 0) for s, p in zip(samples, pictures, strict=True)]
    )
    assert sum(map(len, asked)) > 0
    for found, caption in zip(asked, captions, strict=True):
        objects = [
            t for t, word in enumerate(caption.split()) if word in ("dog", "dogs", "cat", "ball", "hot")
        ]
        assert [case.target for case in found] == objects
        assert all(list(case.spoken[1:]) == caption.split() for case in found)
    assert model.ask([], "said objects") == []


def test_asking_says_what_is_wrong() -> None:
    model = model_of("adaptive")
    with pytest.raises(Refused, match=r"targets\.captioner: found 'label', accepted are 'said objects'"):
        model.ask([sample_of(0)], "label")
    with pytest.raises(Refused, match="s0 has 1 captions: there is no caption 1"):
        model.ask([sample_of(0, ("a dog",))], "caption 1")
    (case, *_) = cases_of(model)
    with pytest.raises(Refused, match="target 6 is no word of its caption, accepted are 0 to 5"):
        model.score(case.pixels[None], [replace(case, target=6)])
    with pytest.raises(Refused, match="has no caption"):
        model.score(case.pixels[None], [replace(case, tokens=None)])
    with pytest.raises(Refused, match="a caption of 9 tokens, it reads 7 at most"):
        model.score(case.pixels[None], [replace(case, tokens=torch.full((9,), 5))])


# ---------------------------------------------------------------- the nets and their folder


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_for_training_only(kind: str) -> None:
    net, image, ids = net_of(kind), torch.randn(2, 3, SIDE, SIDE), torch.tensor([[2, 4, 5], [2, 5, 8]])
    assert torch.equal(net(image, ids), net(image, ids))
    net.train()
    net.encoder.eval()
    assert not torch.equal(net(image, ids), net(image, ids))


def test_the_query_can_go_along_cells_or_features() -> None:
    config = config_of("adaptive")
    one = net_of("adaptive")
    config["decoder"]["query_along"] = "features"
    other = build(config).eval()
    other.load_state_dict(one.state_dict())
    image, ids = torch.randn(1, 3, SIDE, SIDE), torch.tensor([[2, 4]])
    cells = one.look(one.encoder(image))
    h = torch.randn(1, SIZES["hidden"])
    query, w = one.query(h)[0], one.score.weight[0]
    keys = cells.keys[0]
    along_cells = torch.stack([(w * torch.tanh(keys[p] + query[p])).sum() for p in range(16)])
    along_features = torch.stack([(w * torch.tanh(keys[p] + query)).sum() for p in range(16)])
    assert torch.allclose(one.attend(h, h, cells.keys)[0][0, 0], along_cells.softmax(0), atol=1e-6)
    assert torch.allclose(other.attend(h, h, cells.keys)[0][0, 0], along_features.softmax(0), atol=1e-6)
    assert not torch.allclose(one(image, ids), other(image, ids))
    with pytest.raises(Refused, match="query_along: found 'rows', accepted are 'cells', 'features'"):
        build({**config, "decoder": {**config["decoder"], "query_along": "rows"}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame = Frame(SIDE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    net = net_of("adaptive")
    save(tmp_path, net, config=config_of("adaptive"), words=WORDS, frame=frame, card={"cider": 1.0})
    return tmp_path


def test_a_saved_captioner_comes_back(folder: Path) -> None:
    model = OwnCaptioner(str(folder), beam=2).load("mine")
    before = model_of("adaptive", beam=2)
    assert model.frame == Frame(SIDE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (model.name, model.card, model.objects, model.length, model.beam) == (
        "mine",
        {"cider": 1.0},
        OBJECTS,
        LENGTH,
        2,
    )
    assert model.words.ids == WORDS
    cases = cases_of(model)
    assert torch.equal(model.score(model.stack(cases), cases), before.score(model.stack(cases), cases))
    before.frame = model.frame
    assert model.hash == before.hash
    assert model.hash != OwnCaptioner(str(folder), beam=3).load("mine").hash


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_broken_folder_is_refused_by_name(folder: Path) -> None:
    load = OwnCaptioner(str(folder)).load
    config = folder / "config.json"
    edit(config, architecture="adaptiv")
    with pytest.raises(Refused, match="no captioner 'adaptiv'; did you mean 'adaptive'"):
        load("mine")
    edit(config, architecture="adaptive", decoder={**config_of("adaptive")["decoder"], "hidden": 32})
    with pytest.raises(Refused, match=r"model\.safetensors: .*size mismatch"):
        load("mine")
    edit(config, decoder={"hiden": 3})
    with pytest.raises(Refused, match=r"config\.json: .*hiden"):
        load("mine")
    config.write_text("{")
    with pytest.raises(Refused, match=r"config\.json cannot be read"):
        load("mine")
    config.unlink()
    with pytest.raises(Refused, match=r"has no config\.json; a captioner's folder has"):
        load("mine")


def test_published_sizes_have_the_published_shapes() -> None:
    encoder = {"kind": "vgg", "channels": [64, 128, 256, 512, 512], "convolutions": [2, 2, 3, 3, 3]}
    with torch.device("meta"):
        net = build(
            {
                "architecture": "adaptive",
                "encoder": encoder,
                "decoder": {"vocabulary": 11027, "channels": 512, "cells": 196},
            }
        )
        logits = net(torch.empty(1, 3, 224, 224), torch.zeros(1, 2, dtype=torch.long))
    assert logits.shape == (1, 2, 11027)
    assert math.prod(net.visual_lstm.weight_ih.shape) == 4 * 512 * (512 + 2 * 512)
