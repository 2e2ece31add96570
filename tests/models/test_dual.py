"""The dual encoder against transformers' CLIPModel, and what removing words does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heatproof import Object, Refused, Sample, Unsuited
from heatproof.metrics import spaces
from heatproof.models.dual import REMOVALS


@pytest.fixture(scope="module")
def library(tiny):
    """The same weights, never touched by the house."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(tiny["clip"], attn_implementation="eager").eval()


@pytest.fixture
def asked(families):
    model, cases = families["clip"]
    yield model, cases
    model.memo.clear()


def plain(model, net, cases, rows=None):
    """The cosine that the library's own forward gives, one case at a time."""
    found = []
    for case, ids in zip(cases, rows or [c.tokens for c in cases], strict=True):
        padded = torch.full((1, model.text_length), model.tokenizer.pad)
        padded[0, : len(ids)] = ids
        with torch.no_grad():
            out = net(
                input_ids=padded, pixel_values=case.pixels[None], attention_mask=torch.ones_like(padded)
            )
        found.append((out.image_embeds[0] * out.text_embeds[0]).sum())
    return torch.stack(found)


def test_score_is_the_cosine_of_the_library(asked, library):
    model, cases = asked
    score = model.score(model.stack(cases), cases)
    assert torch.allclose(score, plain(model, library, cases), atol=1e-6)
    assert torch.allclose(score, plain(model, model.net, cases), atol=1e-6)


def test_the_text_side_gives_the_same_score(asked):
    model, cases = asked
    longest = max(len(c.tokens) for c in cases)
    score = model.score(model.stack(cases), cases)
    for removal in set(REMOVALS) - {"mask"}:
        kept = model.score_text(torch.ones(8, longest), cases, removal)
        assert torch.allclose(kept, score, atol=1e-6), removal


def test_score_is_the_cosine_of_the_embeddings(asked):
    model, cases = asked
    images = F.normalize(model.embed(model.stack(cases), cases), dim=-1)
    texts = F.normalize(model.embed_text(cases), dim=-1)
    assert torch.allclose((images * texts).sum(-1), model.score(model.stack(cases), cases), atol=1e-6)


def test_a_mask_token_stands_where_the_vocabulary_has_one(asked, library, monkeypatch):
    model, cases = asked
    keep = torch.ones(8, max(len(c.tokens) for c in cases))
    keep[:, 1] = 0
    with pytest.raises(Unsuited, match="no mask token; take pad"):
        model.score_text(keep, cases, "mask")
    monkeypatch.setattr(model.tokenizer, "mask", 7)
    rows = [torch.cat([c.tokens[:1], torch.tensor([7]), c.tokens[2:]]) for c in cases]
    found = model.score_text(keep, cases, "mask")
    assert torch.allclose(found, plain(model, library, cases, rows), atol=1e-6)


def test_a_caption_that_may_not_be_published_goes_by_its_number(asked):
    model, _ = asked
    image = np.zeros((32, 32, 3), np.uint8)
    extras = {"captions": "unpublished"}
    samples = [Sample("a", lambda: image, captions=("a ball", "a star"), extras=e) for e in ({}, extras)]
    (told,), (kept,) = model.ask(samples, "caption 1")
    assert (told.about, kept.about) == ("a star", "caption 1")
    assert kept.target == told.target == "a star"


def test_zero_shot_prompts_are_the_choices(asked, library):
    model, _ = asked
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    sample = Sample("a", lambda: image, label="ball", objects=(Object("ball", (0, 0, 20, 20)),))
    policy = "label 'a photo of a {}': sky, ball, red grass"
    ((case,),) = model.ask([sample], policy)
    assert (case.target, case.about) == ("a photo of a ball", "ball")
    assert case.choices == ("a photo of a sky", "a photo of a ball", "a photo of a red grass")
    assert case.evidence.sum() > 0
    assert [w for w, m in zip(case.spoken, case.evidence_text, strict=True) if m] == ["ball"]
    found = model.scores(model.stack([case]), [case])[0]
    each = [model._worded(case, text) for text in case.choices]
    expected = plain(model, library, each)
    assert torch.allclose(found, expected, atol=1e-6)
    rest = max(float(expected[0]), float(expected[2]))
    margin = spaces.score("margin", model, model.stack([case]), [case])
    assert float(margin) == pytest.approx(float(expected[1]) - rest, abs=1e-6)
    right = spaces.score("accuracy", model, model.stack([case]), [case])
    assert float(right) == float(expected[1] > rest)
    spaces.check("accuracy", model, [case])
    with pytest.raises(Unsuited, match="no rivals, so there is no margin"):
        spaces.check("margin", model, [replace(case, choices=())])
    with pytest.raises(Refused, match=r"'ball', which is none of the policy's cat, bird"):
        model.ask([sample], "label 'a {}': cat, bird")
    with pytest.raises(Refused, match="label 'a photo of a"):
        model.ask([sample], "label 'a photo'")


@pytest.mark.parametrize("removal", ["delete", "pad", "unknown"])
def test_removed_words_are_gone_from_what_the_library_reads(asked, library, removal):
    model, cases = asked
    keep = torch.ones(8, len(cases[0].tokens))
    keep[:, 2] = 0
    rows = []
    for case in cases:
        ids = case.tokens.clone()
        if removal == "delete":
            ids = torch.cat([ids[:2], ids[3:]])
        else:
            ids[2] = model.tokenizer.pad if removal == "pad" else model.tokenizer.unknown
        rows.append(ids)
    found = model.score_text(keep, cases, removal)
    assert torch.allclose(found, plain(model, library, cases, rows), atol=1e-6)
    assert not torch.allclose(found, plain(model, library, cases), atol=1e-6)


def test_a_word_that_no_token_sees_cannot_matter(asked):
    """Removal "attention": exchanging the hidden word for another changes nothing, to the last bit."""
    model, cases = asked
    keep = torch.ones(8, len(cases[0].tokens))
    keep[:, 2] = 0
    other = []
    for case in cases:
        ids = case.tokens.clone()
        ids[2] = model.tokenizer.unknown
        other.append(replace(case, tokens=ids))
    hidden = model.score_text(keep, cases, "attention")
    assert torch.equal(model.score_text(keep, other, "attention"), hidden)
    assert not torch.equal(model.score_text(torch.ones_like(keep), other, "attention"), hidden)


def test_soft_removal_is_differentiable_in_keep(asked):
    model, cases = asked
    keep = torch.full((8, len(cases[0].tokens)), 0.9, requires_grad=True)
    (grad,) = torch.autograd.grad(model.score_text(keep, cases, "embedding").sum(), keep)
    step = torch.zeros_like(keep)
    step[:, 3] = 1e-2
    with torch.no_grad():
        moved = model.score_text(keep + step, cases, "embedding") - model.score_text(
            keep - step, cases, "embedding"
        )
    assert torch.allclose(moved / 2e-2, grad[:, 3], rtol=0.05, atol=1e-4)


def test_an_unknown_removal_is_refused(asked):
    model, cases = asked
    with pytest.raises(ValueError, match="removal: found 'gone', accepted are attention, pad"):
        model.score_text(torch.ones(1, 4), cases[:1], "gone")


def test_choices_are_other_captions(asked):
    model, cases = asked
    texts = ("a red ball on the grass", "blue sky")
    chosen = [replace(c, choices=texts) for c in cases]
    found = model.scores(model.stack(cases), chosen)
    for k, text in enumerate(texts):
        alone = [model._worded(replace(c, id=f"{c.id} {k}"), text) for c in cases]
        assert torch.allclose(found[:, k], model.score(model.stack(cases), alone), atol=1e-6)
    with pytest.raises(Refused, match="has no rival captions"):
        model.scores(model.stack(cases), cases)


def test_evidence_is_every_object_that_the_caption_names(asked):
    model, _ = asked
    image = np.zeros((32, 32, 3), np.uint8)
    things = tuple(Object(n, (0.0, 0.0, s, s)) for n, s in (("ball", 4.0), ("star", 8.0), ("sky", 16.0)))
    one = Sample("s", lambda: image, captions=("x", "Red balls next to a star."), objects=things)
    (case,) = model.ask([one], "caption 1")[0]
    assert case.spoken == ("", "red", "balls", "next", "to", "a", "star", "")
    assert case.words == (-1, 0, 1, 2, 3, 4, 5, -1)
    assert case.evidence_text.tolist() == [s in ("balls", "star") for s in case.spoken]
    assert case.named.tolist() == [[s == "balls", s == "star"] for s in case.spoken]
    assert [int(plane.sum()) for plane in case.evidence] == [16, 64]
    with pytest.raises(
        Refused, match=r"sample s has 2 captions: there is no caption 7 \(they count from 0\)"
    ):
        model.ask([one], "caption 7")
    with pytest.raises(Refused, match=r"targets.dual: found 'captions', accepted are 'caption 0'"):
        model.ask([one], "captions")


def test_a_caption_longer_than_the_model_reads_ends_with_its_end_token(asked):
    model, _ = asked
    image = np.zeros((32, 32, 3), np.uint8)
    one = Sample("s", lambda: image, captions=(" ".join(["ball"] * 40),))
    (case,) = model.ask([one], "caption 0")[0]
    assert len(case.tokens) == model.text_length
    assert case.tokens[-1] == model.tokenizer.eos


def test_text_sites_can_be_cut_and_watched(asked):
    model, cases = asked
    score = model.score_text(torch.ones(8, len(cases[0].tokens)), cases)
    for site in ("text.embed 0", "text.block 0", "text.block 1"):
        lower = model.upto(site, model.stack(cases), cases)
        assert torch.allclose(model.above(site, lower, cases), score, atol=1e-6)
    with model.watch("text.attention 2") as seen:
        model.score_text(torch.ones(8, len(cases[0].tokens)), cases)
    assert torch.allclose(seen.value.sum(-1), torch.ones(8, 2, model.text_length), atol=1e-6)
    assert (seen.value.triu(1) == 0).all()  # causal


def test_the_text_is_embedded_once_a_chunk(asked):
    model, cases = asked
    seen = []
    handle = model.net.text_model.encoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
    try:
        for _ in range(3):
            model.score(model.stack(cases), cases)
    finally:
        handle.remove()
    assert len(seen) == 1


def test_a_removed_word_that_reads_as_the_end_does_not_end_the_sentence(asked, monkeypatch):
    """CLIP pads with its end token: the same text, told as a case of its own or as a removal, has one score."""
    model, cases = asked
    monkeypatch.setattr(model.tokenizer, "pad", model.tokenizer.eos)
    case = cases[0]
    keep = torch.ones(1, len(case.tokens))
    keep[0, 1] = 0
    removed = model.score_text(keep, [case], "pad")
    tokens = case.tokens.clone()
    tokens[1] = model.tokenizer.eos
    told = replace(case, id="told", tokens=tokens)
    assert torch.allclose(model.score(model.stack([told]), [told]), removed, atol=1e-6)
    cut = model.score_text(keep * 0 + (torch.arange(len(case.tokens)) < 1), [case], "attention")
    assert not torch.allclose(
        removed, cut, atol=1e-3
    )  # it is not the empty sentence that it would be read as
