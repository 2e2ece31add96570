"""Hugging Face captioners against transformers' own forward, the laws, and the shelf of explainers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heatproof import Refused, Unsuited, checks, shelf
from heatproof.metrics.random_logit import asked_of

NETS = shelf.load(Path(__file__).with_name("captioner_nets_hf.py"))
HOUSE = shelf.load(Path(__file__).parents[1] / "house" / "test_explainers.py")
LENGTH = NETS.LENGTH
gap, said, forced, twins, embedding = NETS.gap, NETS.said, NETS.forced, NETS.twins, NETS.embedding


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return NETS.models(tmp_path_factory.mktemp("captioners"))


@pytest.fixture(params=NETS.KINDS)
def both(request: Any, made: Any) -> Any:
    """The house's model, the library's net, nine cases."""
    model, net = made[request.param]
    yield model, net, NETS.cases(model)
    model.memo.clear()


# ---------------------------------------------------------------- the score


def test_score_is_the_sum_of_the_librarys_log_probabilities(both):
    model, net, cases = both
    lengths = {len(said(case)) for case in cases}
    assert {1, 2} <= lengths or {1, 3} <= lengths
    with torch.no_grad():
        expected = twins(model, net, cases)
        assert float(expected.std()) > 0.5
        gap(model.score(model.stack(cases), cases), expected)
        gap(model.score_text(torch.ones(9, LENGTH), cases), expected)
        gap(model.clean(cases), expected)
        # the net that the house works with still answers as the library's
        gap(twins(model, model.net, cases), expected)


def test_gradients_at_pixels_and_words_are_the_librarys(both):
    model, net, cases = both
    held: dict[str, Any] = {}
    for case in (cases[0], cases[-1]):
        pixels = case.pixels.clone().requires_grad_()

        def keep(_: Any, __: Any, out: Tensor) -> Tensor:
            held["words"] = out.detach().clone().requires_grad_()
            return held["words"] * 1  # BLIP adds to it in place

        hook = embedding(net).register_forward_hook(keep)
        before, word = case.tokens[: case.target + 1].tolist(), said(case)
        score = forced(model, net, pixels, before, word)
        hook.remove()
        image, words = torch.autograd.grad(score, [pixels, held["words"]])
        x = case.pixels[None].clone().requires_grad_()
        with model.watch("text.embed 0") as read:
            grads = torch.autograd.grad(model.score(x, [case]).sum(), [x, read.value])
        assert image.abs().max() > 1e-3
        gap(grads[0][0], image, 1e-5)
        read_ = len(before) + len(word)
        gap(grads[1][0, :read_], words[0, -read_:], 1e-5)
        assert (grads[1][0, read_ - 1 :] == 0).all()  # the word's last token and padding are read by nobody


def test_rival_words_are_scored_as_if_they_stood_there(both):
    model, net, cases = both
    case = next(c for c in cases if c.about == "snowboard")
    scores = model.scores(model.stack([case, cases[0]]), [case, cases[0]])
    assert scores.shape == (2, 4)
    blank = case.target > 0 or bool(model.prompt)
    rivals = [w for w in NETS.OBJECTS if w != "snowboard"]
    for k, word in enumerate(rivals, 1):
        spelled = model.words.inner(f"a {word}" if blank else word, add_special_tokens=False)["input_ids"]
        spelled = spelled[len(model.words.inner("a", add_special_tokens=False)["input_ids"]) * blank :]
        expected = forced(model, net, case.pixels, case.tokens[: case.target + 1].tolist(), spelled)
        gap(scores[0, k], expected)
        other = asked_of(case, case.choices[k], model)
        assert torch.equal(
            model.score(model.stack([case]), [other])[0], model.scores(model.stack([case]), [case])[0, k]
        )
    gap(scores[:, 0], model.clean([case, cases[0]]))
    with pytest.raises(Refused, match="no rival words"):
        model.scores(model.stack([case]), [dataclasses.replace(case, choices=())])


# ---------------------------------------------------------------- sites


def test_sites_compose_to_the_score(both):
    model, _, cases = both
    assert dict(model.sites) == {
        "image.embed": 1, "image.block": 2, "text.embed": 1, "image.attention": 2, "cross.attention": 2,
    }  # fmt: skip
    pixels = model.stack(cases)
    with torch.no_grad():
        whole = model.score(pixels, cases)
        for site in ("image.embed 0", "image.block 0", "image.block 1", "image.last", "text.embed 0"):
            gap(model.above(site, model.upto(site, pixels, cases), cases), whole)
    lit = pixels[:1].clone()
    lit[:, :, 8:16, 16:24] += 1
    a, b = (model.grid(model.upto("image.embed 0", x, cases[:1])[0]) for x in (pixels[:1], lit))
    assert [tuple(p) for p in (a != b).any(0).nonzero().tolist()] == [(1, 2)]


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_over_the_image_is_the_librarys(layer, both):
    model, net, cases = both
    with model.watch(f"cross.attention {layer}") as seen, model.watch("image.attention 1") as eyes:
        score = model.score(model.stack(cases), cases)
        (grads,) = torch.autograd.grad(score.sum(), seen.value)
    heads, cells = 2, 16 if "Llava" in type(net).__name__ else 17
    assert seen.value.shape == (9, LENGTH, heads, cells)
    assert eyes.value.shape == (9, 2, 17, 17)
    for case, value, grad in zip(cases, seen.value.detach(), grads, strict=True):
        read = case.tokens[: case.target + len(said(case))].tolist()  # all but the word's last token
        with torch.no_grad():
            theirs = library_attention(model, net, case.pixels, read, layer)
        gap(value[: len(read)], theirs)
        assert (value[len(read) :] == 0).all()
        assert (grad[case.target].abs() > 0).any()
        assert model.grid(value[case.target].mean(0)).shape == (4, 4)


def library_attention(model: Any, net: Any, pixels: Tensor, read: list[int], layer: int) -> Tensor:
    """[T, heads, cells]: what the library tells of its own attention."""
    told: dict[str, Any] = {}
    decoder = net.text_decoder if hasattr(net, "text_decoder") else getattr(net, "decoder", None)
    if decoder is None:
        hook = net.model.language_model.layers[layer].self_attn.register_forward_hook(
            lambda _, __, out: told.update(a=out[1])
        )
        NETS.plain(model, net, pixels[None], read)
        at = model.prompt.index(net.config.image_token_id)
        found = told["a"][0, :, -len(read) :, at : at + 16]
    else:
        name = "crossattention.self" if "bert" in dict(decoder.named_children()) else "crossattention"
        module = next(m for n, m in decoder.named_modules() if n.endswith(f".{layer}.{name}"))
        hook = module.register_forward_hook(lambda _, __, out: told.update(a=out[1]))
        NETS.plain(model, net, pixels[None], read)
        found = told["a"][0]
    hook.remove()
    return found.transpose(0, 1)


# ---------------------------------------------------------------- the laws


def test_neighbours_change_nothing(both):
    model, _, cases = both
    keep = (torch.rand(9, LENGTH, generator=torch.Generator().manual_seed(3)) > 0.4).float()

    def answers(rows: list[int]) -> list[Any]:
        model.memo.clear()
        some, kept = [cases[i] for i in rows], keep[rows]
        pixels = model.stack(some)
        with torch.no_grad():
            told = [model.score(pixels, some), model.scores(pixels, some)]
            return [*told, *(model.score_text(kept, some, r) for r in ("delete", "unknown", "embedding"))]

    whole = answers([*range(9)])
    for cut in ([[k] for k in range(9)], [[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[*range(8, -1, -1)]]):
        order = torch.tensor([k for some in cut for k in some])
        for found, expected in zip(zip(*map(answers, cut), strict=True), whole, strict=True):
            assert torch.equal(torch.cat(found), expected[order]), cut
    written = model.write(model.stack(cases), cases)
    assert written == [model.write(c.pixels[None], [c])[0] for c in cases]
    assert written[::-1] == model.write(model.stack(cases[::-1]), cases[::-1])


@pytest.mark.parametrize("both", ["blip", "vit_gpt2", "llava"], indirect=True)  # BERT is read as GPT-2 is
@pytest.mark.parametrize("use", HOUSE.USES)
def test_every_explainer_suits_it_or_says_why_not(use, both):
    model, _, cases = both
    partners = [*cases[1:8], cases[0]]
    asked = [dataclasses.replace(c, other=lambda p=p: p) for c, p in zip(cases[:8], partners, strict=True)]
    HOUSE.test_suits_the_model_or_says_why_not_and_keeps_every_promise(use, "x", {"x": (model, asked)})


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("lrp", "LRP knows"),
        ("chefer", "cross-attention"),
        ("rollout", "cross-attention"),
        ("legrad", "each of them"),
    ],
)
def test_what_is_not_defined_is_unsuited_by_name(use, why, both):
    model, _, cases = both
    with pytest.raises(Unsuited, match=why):
        HOUSE.make(use).explain(model, cases)


def test_a_layer_of_attention_is_the_one_that_is_watched(both):
    model, _, cases = both
    with torch.no_grad(), model.watch("cross.attention 0") as low:
        model.score(model.stack(cases), cases)
    found = shelf.find("explainers", "attention", HOUSE.PLACE, "test")(layer=0).explain(model, cases)
    for case, value, told in zip(cases, low.value, found, strict=True):
        assert torch.equal(told.image.flatten(), value[case.target].mean(0)[-16:])


def test_a_twin_is_another_and_the_model_is_left_as_found(both):
    model, _, cases = both
    before, clean = checks.condition(model.net), model.clean(cases)
    twin = model.twin(lambda net: [p.data.mul_(1.1) for p in net.parameters()], "louder")
    assert twin.hash != model.hash
    assert not torch.allclose(twin.clean(cases), clean, atol=1e-2)
    with pytest.raises(ValueError, match="one case a row"), model.watch("cross.attention 1"):
        model.score(model.stack(cases), cases[:3])
    assert checks.condition(model.net) == before
    assert not model._watches
    assert torch.equal(model.score(model.stack(cases), cases), clean)
