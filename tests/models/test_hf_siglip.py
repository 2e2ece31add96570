"""SigLIP and SigLIP 2 against transformers' own forward, the laws, and what removing words does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Refused, shelf
from heatproof.metrics import spaces
from heatproof.models.hf_clip import HfClip
from heatproof.models.hf_siglip import HfSiglip
from heatproof.models.words import HuggingFaceTokens, open_tokens

NETS = shelf.load(Path(__file__).with_name("siglip_nets.py"))
LENGTH, SIZE, PATCH = NETS.LENGTH, NETS.SIZE, NETS.PATCH


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return NETS.models(tmp_path_factory.mktemp("siglips"))


@pytest.fixture(params=NETS.KINDS)
def both(request: Any, made: Any) -> Any:
    """The house's model, the library's net, five cases."""
    model, net = made[request.param]
    yield model, net, NETS.cases(model)
    model.memo.clear()


def gap(found: Tensor, expected: Tensor, most: float = 1e-5) -> None:
    off = float((found - expected).abs().max())
    print(f"off by at most {off:.1e}")
    assert found.shape == expected.shape
    assert off < min(most, 1e-3 * float(expected.abs().max()))


# ---------------------------------------------------------------- the score


def test_score_is_the_librarys_cosine_and_probability_its_sigmoid(both):
    model, net, cases = both
    with torch.no_grad():
        outs = [NETS.plain(net, case.pixels, NETS.padded(case.tokens)) for case in cases]
    cosines = torch.stack([(out.image_embeds * out.text_embeds).sum() for out in outs])
    assert float(cosines.std()) > 0.02
    score = model.score(model.stack(cases), cases)
    gap(score, cosines)
    gap(model.score_text(torch.ones(5, LENGTH), cases), cosines)
    logits = torch.cat([out.logits_per_image[0] for out in outs])
    spaces.check("probability", model, cases)
    gap(spaces.score("probability", model, model.stack(cases), cases), logits.sigmoid())
    gap(spaces.clean("probability", model, cases), logits.sigmoid())
    gap(F.normalize(model.embed(model.stack(cases), cases), dim=1), torch.cat([o.image_embeds for o in outs]))
    gap(F.normalize(model.embed_text(cases), dim=1), torch.cat([o.text_embeds for o in outs]))
    # the net that the house works with still answers as the library's
    own = NETS.plain(model.net, cases[0].pixels, NETS.padded(cases[0].tokens))
    gap(own.logits_per_image, outs[0].logits_per_image)


def test_a_probability_is_of_the_pair_and_no_softmax(both):
    model, _, _ = both
    choices = ("a red ball", "blue box")
    asked = [c for c in NETS.cases(model, choices) if c.target in choices]
    rivals = model.scores(model.stack(asked), asked)
    assert rivals.shape == (2, 2)
    gap(rivals.diagonal(), model.clean(asked))
    told = spaces.score("probability", model, model.stack(asked), asked)
    gap(told, torch.sigmoid(rivals.diagonal() * torch.tensor(1.5).exp() - 1))
    assert not torch.allclose(told, rivals.softmax(1).diagonal(), atol=1e-2)


def test_a_clip_still_has_no_probability(families):
    model, cases = families["clip"]
    with pytest.raises(Exception, match="no declared rule"):
        spaces.check("probability", model, cases)


# ---------------------------------------------------------------- sites


def test_sites_compose_to_the_score(both):
    model, _, cases = both
    assert dict(model.sites) == {
        "image.embed": 1, "image.block": 3, "text.embed": 1, "text.block": 2, "image.attention": 4, "text.attention": 3,
    }  # fmt: skip
    pixels = model.stack(cases)
    with torch.no_grad():
        whole = model.score(pixels, cases)
        sites = [
            f"{kind} {k}" for kind, n in model.sites.items() if "attention" not in kind for k in range(n)
        ]
        for site in [*sites, "image.last"]:
            lower = model.upto(site, pixels, cases)
            for brief in (False, True):
                gap(model.above(site, lower, cases, brief=brief), whole, 1e-6)
        assert torch.equal(
            model.upto("image.last", pixels, cases), model.upto("image.block 2", pixels, cases)
        )
    with pytest.raises(ValueError, match="all 12 have part"):
        model.above("text.block 0", model.upto("text.block 0", pixels, cases)[:, :5], cases)


def test_every_patch_reaches_the_score_from_the_last_block(both):
    model, _, cases = both
    with model.watch("image.block 2") as seen, model.watch("text.block 1") as said:
        score = model.score(model.stack(cases), cases)
        (grads,) = torch.autograd.grad(score.sum(), seen.value)
        score = model.score_text(torch.ones(5, LENGTH), cases)
        (texts,) = torch.autograd.grad(score.sum(), said.value)
    assert grads.shape == (5, 16, 16)
    assert (grads.abs().amax(2) > 1e-7).all()
    assert (texts.abs().amax(2) > 1e-7).all()  # padding too


def test_gradients_and_attention_are_the_librarys(both):
    model, net, cases = both
    case, held = cases[2], {}

    def keep(_: Any, inputs: Any, output: Any) -> None:
        output.retain_grad()
        held["block"] = output

    def pool(module: Any, inputs: Any) -> None:
        held["pool"] = module.attention(module.probe, inputs[0], inputs[0], average_attn_weights=False)[1]

    hooks = [
        net.vision_model.encoder.layers[1].register_forward_hook(keep),
        net.vision_model.head.register_forward_pre_hook(pool),
    ]
    pixels = case.pixels.clone().requires_grad_()
    out = NETS.plain(net, pixels, NETS.padded(case.tokens))
    (out.image_embeds * out.text_embeds).sum().backward()
    for hook in hooks:
        hook.remove()
    net.zero_grad()
    asked = case.pixels[None].clone().requires_grad_()
    with model.watch("image.block 1") as seen, model.watch("image.attention 3") as pooling:
        score = model.score(asked, [case])
        grads = torch.autograd.grad(score.sum(), [asked, seen.value, pooling.value])
    gap(grads[0][0], pixels.grad)
    gap(grads[1], held["block"].grad)
    gap(pooling.value.detach(), held["pool"].detach())
    assert pooling.value.shape == (1, 2, 1, 16)
    assert grads[2].abs().max() > 1e-6


def test_the_grid_has_no_class_token(both):
    model, _, cases = both
    pixels = model.stack(cases[:1])
    other = pixels.clone()
    other[:, :, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] += 1
    with torch.no_grad():
        a, b = (model.grid(model.upto("image.embed 0", x, cases[:1])[0]) for x in (pixels, other))
    assert a.shape == (16, 4, 4)
    assert [tuple(p) for p in (a != b).any(0).nonzero().tolist()] == [(1, 2)]


# ---------------------------------------------------------------- law 1, law 5


def test_neighbours_change_nothing(both):
    model, _, _ = both
    cases = NETS.cases(model, ("red", "blue box", "a cone"))
    keep = (torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(3)) > 0.4).float()
    for removal in ("attention", "delete", "embedding"):
        whole = answers(model, cases, keep, removal)
        for size in (1, 3):
            places = [range(k, min(k + size, 5)) for k in range(0, 5, size)]
            parts = [answers(model, [cases[i] for i in some], keep[list(some)], removal) for some in places]
            for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
                assert torch.equal(torch.cat(found), expected), (removal, size)
        for found, expected in zip(answers(model, cases[::-1], keep.flip(0), removal), whole, strict=True):
            assert torch.equal(found.flip(0), expected)


def answers(model: Any, cases: Any, keep: Tensor, removal: str) -> list[Tensor]:
    model.memo.clear()
    pixels = model.stack(cases)
    with torch.no_grad():
        return [
            model.score(pixels, cases),
            model.scores(pixels, cases),
            spaces.score("probability", model, pixels, cases),
            model.score_text(keep, cases, removal),
            model.embed(pixels, cases),
            model.embed_text(cases),
        ]


def test_a_twin_has_its_own_hash_scale_and_score(both):
    model, _, cases = both

    def edit(net: Any) -> None:
        net.logit_bias.data += 3
        net.vision_model.head.probe.data *= -1

    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    twin = model.twin(edit, "edited")
    assert twin.hash != model.hash
    assert twin.extra_tokens == 0
    score = model.clean(cases)
    assert not torch.allclose(twin.clean(cases), score, atol=1e-3)
    assert (twin.probability(score) > model.probability(score)).all()
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())


# ---------------------------------------------------------------- removals, by slow twins


def slow_text(net: Any, ids: Tensor, hidden: list[int], gain: Tensor) -> Tensor:
    """One padded text [LENGTH], block by block and head by head; nobody but itself sees a hidden place."""
    text = net.text_model
    x = text.embeddings.token_embedding(ids) * gain[:, None] + text.embeddings.position_embedding.weight
    for block in text.encoder.layers:
        attention, y = block.self_attn, block.layer_norm1(x)
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            q, k, v = (f(y)[:, part] for f in (attention.q_proj, attention.k_proj, attention.v_proj))
            logits = q @ k.T / 8**0.5
            for place in hidden:
                own = logits[place, place].clone()
                logits[:, place] = -torch.inf
                logits[place, place] = own
            heads.append(logits.softmax(1) @ v)
        x = x + attention.out_proj(torch.cat(heads, 1))
        x = x + block.mlp(block.layer_norm2(x))
    return text.head(text.final_layer_norm(x)[-1])


@pytest.mark.parametrize("removal", ["attention", "pad", "unknown", "delete", "zero", "embedding"])
def test_each_removal_has_a_slow_twin(both, removal):
    model, net, cases = both
    keep = torch.ones(5, LENGTH)
    keep[:, 1] = 0
    keep[2, 3:6] = 0
    keep[0, 5:] = 0  # behind the text: padding is never removed
    expected = []
    with torch.no_grad():
        for case, kept in zip(cases, keep, strict=True):
            n = len(case.tokens)
            gone = [k for k in range(n) if not kept[k]]
            ids, hidden, gain = case.tokens.clone(), [], torch.ones(LENGTH)
            if removal == "delete":
                ids = ids[[k for k in range(n) if k not in gone]]
            elif removal == "attention":
                hidden = gone
            elif removal == "embedding":
                gain[gone] = 0
            else:
                ids[gone] = {"pad": 0, "zero": 0, "unknown": 3}[removal]
            text = slow_text(net, NETS.padded(ids)[0], hidden, gain)
            image = NETS.plain(net, case.pixels, NETS.padded(case.tokens)).image_embeds[0]
            expected.append(F.cosine_similarity(text, image, dim=0))
        found = model.score_text(keep, cases, removal)
    gap(found, torch.stack(expected))
    assert (found - model.clean(cases)).abs().max() > 1e-3


def test_the_embedding_removal_is_differentiable_inside_the_text_alone(both):
    model, _, cases = both
    keep = torch.full((5, LENGTH), 0.7, requires_grad=True)
    (grads,) = torch.autograd.grad(model.score_text(keep, cases, "embedding").sum(), keep)
    for case, grad in zip(cases, grads, strict=True):
        assert (grad[: len(case.tokens)] != 0).all()
        assert (grad[len(case.tokens) :] == 0).all()


# ---------------------------------------------------------------- folders and tokens


def test_a_folder_is_read_as_its_processor_and_tokenizer_say(both, tmp_path):
    model, net, _ = both
    assert (model.frame.size, model.frame.mode, model.text_length) == (SIZE, "squash", LENGTH)
    assert model.tokenizer.mask is None
    assert len(model.tokenizer("a red ball on " * 9, LENGTH)[0]) == LENGTH
    for text in NETS.TEXTS:
        theirs = NETS.gemma()(text.lower(), padding="max_length", padding_side="right", max_length=LENGTH)
        ids = model.tokenizer(text, LENGTH)[0]
        assert (
            model._padded([torch.tensor(ids)])[0].tolist() == theirs["input_ids"][:LENGTH]
            or len(ids) == LENGTH
        )
    net.save_pretrained(tmp_path)
    with pytest.raises(Refused, match=r"tokenizer cannot be loaded: .*pip install sentencepiece protobuf"):
        open_tokens(str(tmp_path))


def test_a_spec_finds_it_and_a_clip_is_refused(tiny, tmp_path):
    place = shelf.Place(tmp_path, tmp_path)
    assert shelf.find("models", "hf_siglip", place, "test") is HfSiglip
    assert [f.name for f in dataclasses.fields(HfSiglip)] == ["name", "revision", "rows", "lower"]
    with pytest.raises(Refused, match="found CLIPModel, accepted are SiglipModel, Siglip2Model"):
        HfSiglip(str(tiny["clip"])).load("c")
    with pytest.raises(Refused, match="weights do not fit"):
        HfClip(str(NETS.folder("siglip", tmp_path / "s"))).load("c")


def test_words_of_sentence_pieces():
    told = HuggingFaceTokens(NETS.gemma(), lower=True)("A redball on a box.", LENGTH)
    assert told[1] == [0, 1, 1, 2, 3, 4, 4, -1]
    assert told[2] == ["a", "red", "ball", "on", "a", "box", "<unk>", ""]
    as_typed = HuggingFaceTokens(NETS.gemma())("A red", LENGTH)
    assert as_typed[0][0] == 3  # no capital has a piece


class Slow:
    """What SigLIP's own tokenizer shows of itself where only sentencepiece is there: ids, and pieces of them."""

    pieces = ("<pad>", "</s>", "<unk>", "\u2581a", "\u2581ba", "ll", "\u2581")
    bos_token_id, eos_token_id, pad_token_id, unk_token_id, mask_token_id = None, 1, 1, 2, None

    class Found(dict):
        is_fast = False

        def word_ids(self) -> None:
            raise ValueError("word_ids() is not available when using non-fast tokenizers")

    def __call__(self, text: str, **_: Any) -> Slow.Found:
        return self.Found(input_ids={"a ball": [3, 4, 5, 1], "a llll": [3, 6, 5, 5, 1]}[text])

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


def test_a_tokenizer_that_counts_no_words_and_has_no_beginning():
    tokens = HuggingFaceTokens(Slow())
    assert (tokens.bos, tokens.eos, tokens.pad, tokens.unknown) == (None, 1, 1, 2)
    assert tokens("a ball", 9) == ([3, 4, 5, 1], [0, 1, 1, -1], ["a", "ba", "ll", ""])
    assert tokens("a llll", 9)[1] == [0, 1, 1, 1, -1]
