"""OpenCLIP checkpoints in the Hugging Face layout: gelu, towers of unlike widths, an old end token, "!" as padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from heatproof import shelf
from heatproof.contract import Case
from heatproof.models.hf_clip import HfClip

LENGTH = 12
TEXTS = ["a red ball", "a dog!", "! a red dog on a ball !", "dog"]
ENDS = ["<|startoftext|>", "<|endoftext|>"]
# (the config's end token, the token that pads): as laion's checkpoints and their many copies have them
LAYOUTS = {
    "old, ! pads": (2, "!"),
    "old, the end pads": (2, ENDS[1]),
    "true, ! pads": (None, "!"),
    "true, the end pads": (None, ENDS[1]),
}


def tokenizer(pad: str) -> Any:
    """CLIP's: "!" is id 0, the two ends are the highest ids."""
    ids = {
        piece: k for k, piece in enumerate(["!", *"abdelgnor", "!</w>", *(f"{c}</w>" for c in "abdelgnor")])
    }
    merges = []
    for word in ("red", "ball", "dog", "on"):
        *start, end = word
        pieces = [*start, f"{end}</w>"]
        for k in range(1, len(pieces)):
            a, b = "".join(pieces[:k]), pieces[k]
            if a + b not in ids:
                ids[a + b] = len(ids)
                merges.append((a, b))
    for end in ENDS:
        ids[end] = len(ids)
    return hf.CLIPTokenizer(vocab=ids, merges=merges, pad_token=pad)


def folder(top: Path, end: int | None, pad: str) -> Path:
    tokens = tokenizer(pad)
    config = hf.CLIPConfig(
        text_config={
            "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 20,
            "hidden_act": "gelu", "vocab_size": len(tokens), "max_position_embeddings": LENGTH, "projection_dim": 10,
            "bos_token_id": 0 if end else tokens.bos_token_id, "eos_token_id": end or tokens.eos_token_id,
            "pad_token_id": 1 if end else tokens.pad_token_id, "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
            "hidden_act": "gelu", "image_size": 32, "patch_size": 8, "projection_dim": 10, "initializer_range": 0.3,
        },
        projection_dim=10,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = hf.CLIPModel(config)
        for value in net.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.2 * torch.randn(value.shape))
    net.save_pretrained(top)
    tokens.save_pretrained(top)
    frame = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (top / "preprocessor_config.json").write_text(json.dumps(frame))
    return top


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The house's model, the library's net, its tokenizer, and cases."""
    path = folder(tmp_path_factory.mktemp("open_clip"), *LAYOUTS[request.param])
    model = HfClip(str(path)).load("open")
    net = hf.CLIPModel.from_pretrained(path, attn_implementation="eager").eval()
    return model, net, hf.AutoTokenizer.from_pretrained(path), cases(model)


def cases(model: Any, texts: list[str] = TEXTS) -> list[Case]:

    found = []
    for k, text in enumerate(texts):
        ids, words, spoken = model.tokenizer(text, LENGTH)
        pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(k))
        told = {"tokens": torch.tensor(ids), "words": tuple(words), "spoken": tuple(spoken)}
        found.append(Case(f"{text} {k}", f"s{k}", text, pixels, text, **told))
    return found


def gap(found: Tensor, expected: Tensor) -> None:
    off = float((found - expected).abs().max())
    print(f"off by at most {off:.1e}")
    assert found.shape == expected.shape
    assert off < 1e-6


def theirs(net: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    """The library's own cosine of one image and one padded text."""
    with torch.no_grad():
        out = net(input_ids=ids, pixel_values=pixels[None])
    return (out.image_embeds * out.text_embeds).sum()


def test_score_is_the_librarys_on_what_its_tokenizer_pads(made):
    model, net, tokens, asked = made
    told = [tokens(t, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids for t in TEXTS]
    for case, ids in zip(asked, told, strict=True):
        assert model._padded([case.tokens]).tolist() == ids.tolist()
    expected = torch.stack([theirs(net, c.pixels, ids) for c, ids in zip(asked, told, strict=True)])
    assert float(expected.std()) > 0.02
    gap(model.score(model.stack(asked), asked), expected)
    gap(model.score_text(torch.ones(4, LENGTH), asked), expected)


def test_words_and_ends(made):
    model, _, tokens, asked = made
    assert model.tokenizer.eos == len(tokens) - 1
    assert [case.spoken for case in asked[:2]] == [("", "a", "red", "ball", ""), ("", "a", "dog", "!", "")]
    assert asked[2].words == (-1, *range(8), -1)
    assert all(case.tokens[-1] == model.tokenizer.eos for case in asked)


def test_padding_has_no_part_in_the_score(made):
    """Whatever stands behind the end, the same bits; and a word "!" in front of it is a word."""
    model, _, _, asked = made
    whole, true = model.clean(asked), model.tokenizer.pad
    try:
        for other in (0, 5, model.tokenizer.eos):
            model.memo.clear()
            model.tokenizer.pad = other
            assert torch.equal(model.clean(asked), whole)
            gap(model.score_text(torch.ones(4, LENGTH), asked), whole)
    finally:
        model.tokenizer.pad = true
        model.memo.clear()
    said, bare = cases(model, ["a dog !", "a dog"])
    pixels = model.stack([said, said])
    assert abs(float(model.score(pixels, [said, bare]).diff())) > 1e-4


@pytest.mark.parametrize("removal", ["pad", "unknown", "delete"])
def test_a_removed_word_leaves_the_end_where_it_is(made, removal):
    """A token put in a word's place may be the end token or the highest id: it is read as the text's own end all the same."""
    model, net, _, asked = made
    keep = torch.ones(4, LENGTH)
    keep[:, 1] = 0
    expected = []
    for case in asked:
        ids = [int(i) for i in case.tokens]
        put = {"pad": [model.tokenizer.pad], "unknown": [model.tokenizer.unknown], "delete": []}[removal]
        ids = [ids[0], *put, *ids[2:]]
        padded = torch.tensor([ids + [0] * (LENGTH - len(ids))])
        with torch.no_grad():
            text = net.text_model(input_ids=padded).last_hidden_state[0, len(ids) - 1]
            image = net.get_image_features(case.pixels[None]).pooler_output[0]
            expected.append(torch.cosine_similarity(net.text_projection(text), image, dim=0))
    gap(model.score_text(keep, asked, removal), torch.stack(expected))


def test_sites_compose_and_neighbours_change_nothing(made):
    model, _, _, asked = made
    pixels = model.stack(asked)
    model.memo.clear()
    with torch.no_grad():
        whole = model.score(pixels, asked)
        for kind in ("image.embed", "image.block", "text.embed", "text.block"):
            for site in {model.site(kind, 0), model.site(kind, -1)}:
                for brief in (False, True):
                    gap(model.above(site, model.upto(site, pixels, asked), asked, brief=brief), whole)
        for k, case in enumerate(asked):
            assert torch.equal(model.score(model.stack([case]), [case])[0], whole[k])
        assert torch.equal(model.score(pixels.flip(0), asked[::-1]).flip(0), whole)
    assert model.embed(pixels, asked).shape == model.embed_text(asked).shape == (4, 10)


@pytest.mark.parametrize(
    "name", ["attention", "rollout", "chefer", "legrad", "grad_eclip", "clip_surgery", "m2ib"]
)
def test_explainers_work_on_it(made, name):
    model, _, _, asked = made
    explainer = shelf.find("explainers", name, shelf.Place(shelf.house(), shelf.house()), "test")()
    for case, found in zip(asked, explainer.explain(model, asked), strict=True):
        assert found.image.shape == (4, 4)
        assert found.image.isfinite().all()
        assert found.text is None or found.text.shape == case.tokens.shape
