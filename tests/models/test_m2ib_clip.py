"""M2IB's wrapper of CLIP against a slow twin: one unpadded caption, no mask, the last token, projected twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from heatproof import seeds, shelf
from heatproof.contract import Case, Refused
from heatproof.geometry import Frame
from heatproof.models.hf_clip import HfClip, clip
from heatproof.models.m2ib_clip import M2ibClip, wrapped
from heatproof.models.words import WordList

ROOT = Path(__file__).resolve().parents[2]
IDS = {w: k for k, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *"a red ball on blue box".split()])}
TEXTS = ["a red ball", "blue box on a red ball", "red"]
QUIRKS = [(True, True), (True, False), (False, True)]


def true(width: int = 8) -> Any:
    tower = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
    tower["initializer_range"] = 0.5
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(IDS), "max_position_embeddings": 12},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=width,
    )
    with seeds.forked("m2ib clip"):
        return clip("true", CLIPModel(config), WordList(IDS), frame=Frame(16))


def cases(model: Any) -> list[Case]:
    found = []
    for k, text in enumerate(TEXTS):
        ids, words, spoken = model.tokenizer(text, 12)
        pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(k))
        more = {"tokens": torch.tensor(ids), "words": tuple(words), "spoken": tuple(spoken)}
        found.append(Case(f"c{k}", f"s{k}", text, pixels, text, **more))
    return found


def slow(net: Any, ids: torch.Tensor, no_mask: bool, twice: bool) -> torch.Tensor:
    """One caption, block by block, attention by its formula."""
    text = net.text_model
    x = text.embeddings.token_embedding(ids) + text.embeddings.position_embedding.weight[: len(ids)]
    for block in text.encoder.layers:
        attention, y = block.self_attn, block.layer_norm1(x)
        heads = []
        for h in range(attention.num_heads):
            part = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
            q, k, v = (f(y)[:, part] for f in (attention.q_proj, attention.k_proj, attention.v_proj))
            logits = q @ k.T / attention.head_dim**0.5
            if not no_mask:
                logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
            heads.append(logits.softmax(1) @ v)
        x = x + attention.out_proj(torch.cat(heads, 1))
        x = x + block.mlp(block.layer_norm2(x))
    found = net.text_projection(text.final_layer_norm(x)[-1])
    return net.text_projection(found) if twice else found


@pytest.mark.parametrize(("no_mask", "twice"), QUIRKS)
def test_the_slow_twin_of_each_quirk(no_mask: bool, twice: bool) -> None:
    model = wrapped(true(), no_causal_mask=no_mask, projected_twice=twice)
    asked = cases(model)
    with torch.no_grad():
        expected = torch.stack([slow(model.net, case.tokens, no_mask, twice) for case in asked])
        plain = true().embed_text(asked)
        found = model.embed_text(asked)
        images = model.embed(model.stack(asked), asked)
    print(f"off by at most {float((found - expected).abs().max()):.1e}")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)
    cosine = torch.nn.functional.cosine_similarity(images, expected)
    assert torch.allclose(model.clean(asked), cosine, atol=1e-5)
    site = model.site("text.block", 0)
    with torch.no_grad():
        lower = model.upto(site, model.stack(asked), asked)
        assert torch.allclose(model.above(site, lower, asked), cosine, atol=1e-5)


def test_padding_is_seen_by_nobody_and_a_removed_token_neither() -> None:
    model = wrapped(true())
    asked = cases(model)
    long = torch.cat([torch.stack([model.embed_text([case])[0]]) for case in asked])
    assert torch.equal(long, model.embed_text(asked))
    (case,) = asked[:1]
    keep = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]])
    changed = true().tokenizer("a blue ball", 12)[0]
    other = Case("o", "s", "", case.pixels, "", tokens=torch.tensor(changed), words=case.words)
    # what nobody sees may be anything
    assert torch.allclose(model.score_text(keep, [case]), model.score_text(keep, [other]), atol=1e-6)


def test_m2ib_explains_it() -> None:
    model = wrapped(true())
    made = shelf.find("explainers", "m2ib", shelf.Place(ROOT, ROOT), "test")(steps=3, repeats=2)
    asked = cases(model)
    for case, told in zip(asked, made.explain(model, asked), strict=True):
        assert told.text.shape == case.tokens.shape
        assert told.text.isfinite().all()
        assert told.image.isfinite().all()


def test_every_quirk_has_a_hash_of_its_own() -> None:
    found = {wrapped(true(), no_causal_mask=a, projected_twice=b).hash for a, b in [*QUIRKS, (False, False)]}
    assert len(found) == 4
    assert true().hash in found


def test_the_default_is_the_true_clip_and_as_released_turns_both_on(tiny: dict[str, Path]) -> None:
    folder = str(tiny["clip"])
    plain = HfClip(folder).load("c")
    assert M2ibClip(folder).load("c").hash == plain.hash
    with pytest.raises(Refused, match=r"projected_twice: found a projection of \[8, 16\]"):
        M2ibClip(folder, as_released=True).load("c")
    assert M2ibClip(folder, no_causal_mask=True).load("c").hash != plain.hash


def test_a_projection_that_is_not_square_is_refused() -> None:
    with pytest.raises(Refused, match="accepted is a square one"):
        wrapped(true(6))
    wrapped(true(6), projected_twice=False)
