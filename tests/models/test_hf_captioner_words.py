"""Words of Hugging Face captioners: taken away, asked about, written; folders, prompts and a whole run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from torch import Tensor

from heatproof import Refused, Unsuited, shelf
from heatproof.cli import cli
from heatproof.contract import Explanation, Trial
from heatproof.metrics.patch_ablation import PatchAblation, _reread
from heatproof.models.hf_captioner import COCO, HfCaptioner
from heatproof.records import read_result

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


# ---------------------------------------------------------------- words taken away


def test_deleted_words_are_a_shorter_text_tokenised_again(both):
    model, net, cases = both
    for case in cases:
        words = sorted({w for w in case.words[1 : case.target + 1]})[:1]  # the first word of all goes
        kept = [0.0 if w in words else 1.0 for w in case.words]
        told = [s for s, w in zip(case.spoken, case.words, strict=True) if s and w not in words]
        left = [s for s in told if told.index(s) < told.index(case.spoken[case.target + 1])]
        text = " ".join([*left]).replace(" ,", ",")
        lead = " " if (model.prompt or words) and left else ""
        ids = [model.words.bos, *model.words.inner(lead + text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            expected = forced(model, net, case.pixels, ids, said(case))
            found = model.score_text(torch.tensor([kept]), [case], "delete")[0]
        gap(found, expected)
        assert abs(found - model.clean([case])[0]) > 1e-4


@pytest.mark.parametrize("removal", ["pad", "unknown", "embedding"])
def test_each_other_removal_has_a_slow_twin(removal, both):
    model, net, cases = both
    keep = torch.ones(9, LENGTH)
    keep[:, 1], keep[:, 0] = 0.0, 0.0  # the start stays, whatever is asked
    expected = []
    for case in cases:
        ids = case.tokens[: case.target + 1].clone()
        hooks = []
        if removal == "embedding":

            def silence(_: Any, __: Any, out: Tensor, size: int = len(ids) + len(said(case))) -> Tensor:
                return torch.cat(
                    [out[:, : 1 - size], 0 * out[:, [1 - size]], out[:, 2 - size :][:, : size - 2]], 1
                )

            hooks.append(embedding(net).register_forward_hook(silence))
        else:
            ids[1] = getattr(model.words, removal)
        with torch.no_grad():
            expected.append(forced(model, net, case.pixels, ids.tolist(), said(case)))
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        found = model.score_text(keep, cases, removal)
    gap(found, torch.stack(expected))
    assert (found - model.clean(cases)).abs().min() > 1e-5
    with pytest.raises(Unsuited, match="no mask token"):
        model.score_text(keep, cases, "mask")
    soft = torch.full((9, LENGTH), 0.7, requires_grad=True)
    (grads,) = torch.autograd.grad(model.score_text(soft, cases, "embedding").sum(), soft)
    for case, grad in zip(cases, grads, strict=True):
        assert (grad[1 : case.target + 1] != 0).all()
        assert (grad[case.target + 1 :] == 0).all()
        assert grad[0] == 0


# ---------------------------------------------------------------- asking and writing


def test_a_greedy_caption_is_the_librarys(both):
    model, net, cases = both
    pixels = model.stack([cases[0], cases[3]])
    for k in range(2):
        ids = [model.words.bos]
        with torch.no_grad():
            while len(ids) < LENGTH and ids[1:][-1:] != [model.words.eos]:
                ids.append(int(NETS.plain(model, net, pixels[k : k + 1], ids)[0, -1].argmax()))
        greedy = dataclasses.replace(model, beam=1)
        assert greedy._write(pixels[k : k + 1], cases[k : k + 1])[0] == greedy._fitting(
            model.words.text(ids[1:])
        )
        made_by = net.generate(
            **generated(model, net, pixels[k : k + 1]),
            max_new_tokens=LENGTH - 1,
            do_sample=False,
            num_beams=1,
        )
        new = made_by[0].tolist()[-(len(ids) - 1) :]
        assert model.words.text(new)[: len(model.words.text(ids[1:]))] == model.words.text(ids[1:])


def slow_beams(model: Any, net: Any, pixels: Tensor, width: int) -> list[int]:
    """The likeliest caption's ids of a search in plain lists: who ends retires, and the search narrows."""
    beams: list[tuple[float, list[int]]] = [(0.0, [model.words.bos])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(LENGTH):
        grown = []
        for total, ids in beams:
            chances = NETS.plain(model, net, pixels, ids)[0, -1].log_softmax(0).tolist()
            grown += [(total + chance, [*ids, token]) for token, chance in enumerate(chances)]
        best = sorted(grown, reverse=True)[: width - len(ended)]
        ended += [(t, ids) for t, ids in best if ids[-1] == model.words.eos]
        beams = [(t, ids) for t, ids in best if ids[-1] != model.words.eos]
        if not beams:
            break
    return [i for i in max(ended or beams)[1][1:] if i != model.words.eos][: LENGTH - 1]


def test_beams_are_those_of_a_slow_search(both):
    model, net, cases = both
    pixels = cases[0].pixels[None]
    with torch.no_grad():
        expected, greedy = (slow_beams(model, net, pixels, width) for width in (3, 1))
        (found,) = model._run("write", pixels, cases[:1], {}).tolist()
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {model.words.pad}
    assert expected != greedy


def generated(model: Any, net: Any, pixels: Tensor) -> dict[str, Any]:
    if "Llava" not in type(net).__name__:
        return {"pixel_values": pixels}
    ids = [*model.prompt, model.words.bos]
    at = ids.index(net.config.image_token_id)
    ids[at : at + 1] = [net.config.image_token_id] * 16
    return {"pixel_values": pixels, "input_ids": torch.tensor([ids])}


def test_tokens_words_and_what_is_spoken(made):
    model, _ = made["blip"]
    (first, *_), (second, *_) = model.ask(NETS.samples(2), "caption 1")
    pieces = model.words.inner.convert_ids_to_tokens(first.tokens.tolist())
    assert pieces == "[DEC] the snow ##board , next to a red ##ball !".split()
    assert first.words == (-1, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7)
    assert first.spoken == ("", "the", "snowboard", "", ",", "next", "to", "a", "redball", "", "!")
    assert [c.about for c in model.ask(NETS.samples(1), "caption 1")[0]] == ["snowboard", "redball"]
    assert (first.target, second.about) == (1, "snowboard")
    assert first.evidence.shape == (1, 32, 32)
    llava, _ = made["llava"]
    (case, *_) = llava.ask(NETS.samples(1), "caption 1")[0]
    assert llava.words.inner.decode(case.tokens[1:]) == " The snowboard, next to a redball!"[: len(
        llava.words.inner.decode(case.tokens[1:])
    )]  # fmt: skip
    assert case.spoken[1] == "the"


def test_what_the_model_says_is_asked_about(both):
    model, _, _ = both
    for (case,) in model.ask(NETS.samples(2), "written"):
        told = [word for word in case.spoken if word]
        assert told == [w.lower() for w in model.write(case.pixels[None], [case])[0].split()]
    names = sorted({w for w in told if w.isalnum()}) or ["ball"]
    listed = model.ask(NETS.samples(2), f"said words '{', '.join(names)}'")
    for case in [c for some in listed for c in some]:
        assert case.spoken[case.target + 1] == case.about
    assert len(model.ask(NETS.samples(2), "first said object")) == 2
    assert HfCaptioner("x").objects == ()
    assert len(set(COCO)) == 80


def test_another_caption_is_read_by_its_words(both):
    model, net, cases = both
    case = next(c for c in cases if c.about == "redball")
    again = _reread(model, case, [w for w in case.spoken if w])
    assert len(again.tokens) == 1 + sum(bool(w) for w in case.spoken)
    told = [w for w in case.spoken if w]
    ids = [i for k, w in enumerate(told) for i in model.words.pieces(w, first=k == 0)]
    at = sum(len(model.words.pieces(w, first=k == 0)) for k, w in enumerate(told[: told.index("redball")]))
    word = model.words.pieces("redball", first=False)
    expected = forced(model, net, case.pixels, [model.words.bos, *ids[:at]], [*word])
    gap(model.clean([again])[0], expected)


def test_patches_taken_away_change_what_is_written_and_said(both):
    model, _, cases = both
    heats = [Explanation(image=torch.randn(4, 4, generator=torch.Generator().manual_seed(2))) for _ in cases]
    trials = [Trial(model, c, None, h) for c, h in zip(cases, heats, strict=True)]
    for case, score in zip(cases, PatchAblation(side=8, patches=6).measure(trials), strict=True):
        assert score.values["forced_drop"].defined == (case.target >= 1)


# ---------------------------------------------------------------- folders and specs


def test_what_does_not_fit_is_refused(made, tiny, tmp_path):
    llava, blip = (Path(NETS.folder(kind, tmp_path / kind)) for kind in ("llava", "blip"))
    with pytest.raises(Refused, match="prompt: found '', accepted is a text that has <image> once"):
        HfCaptioner(str(llava)).load("l")
    with pytest.raises(Refused, match="length: found 200, accepted are 3 to 127"):
        HfCaptioner(str(blip), length=200).load("b")
    with pytest.raises(Refused, match="cannot be loaded"):
        HfCaptioner(str(tiny["vit"])).load("v")
    text = (blip / "preprocessor_config.json").read_text()
    (blip / "preprocessor_config.json").write_text(text.replace("32", "48"))
    with pytest.raises(Refused, match="its images are 48 px, the net reads 32"):
        HfCaptioner(str(blip)).load("b")
    assert shelf.find("models", "hf_captioner", shelf.Place(tmp_path, tmp_path), "test") is HfCaptioner


def test_a_prompt_goes_before_the_caption(tmp_path):
    folder = NETS.folder("blip", tmp_path)
    model = HfCaptioner(str(folder), prompt="a blue", objects=NETS.OBJECTS, length=LENGTH).load("b")
    net = model.twin(lambda net: None, "same").net
    cases = NETS.cases(model)
    assert model.prompt == (5, 6)
    assert model.words.bos == 8  # "blue"
    with torch.no_grad():
        gap(model.score(model.stack(cases), cases), twins(model, net, cases))


def test_a_llava_with_other_eyes_and_another_tongue(tmp_path):
    tokenizer = NETS.byte_pairs("</s>", ("<image>",))
    size = {**NETS.TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "pad_token_id": 1}
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**NETS.EYES, vision_use_head=False),
        text_config=hf.Qwen2Config(**size, num_key_value_heads=2, bos_token_id=0, eos_token_id=0),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = hf.LlavaForConditionalGeneration(config).eval()
        for value in net.parameters():
            value.data.add_(0.25 * torch.randn(value.shape))
    net.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    frame = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(frame))
    model = HfCaptioner(str(tmp_path), objects=NETS.OBJECTS, prompt=NETS.PROMPT, length=LENGTH).load("s")
    cases = NETS.cases(model)
    assert model.sites["image.block"] == 2
    assert model.extra_tokens == 0
    with torch.no_grad(), model.watch("cross.attention 1") as seen:
        gap(model.score(model.stack(cases), cases), twins(model, net, cases))
    assert seen.value.shape == (9, LENGTH, 2, 16)


SPEC = """title = "Words"
kind = "instrument"
dataset = {{ use = "scenes", split = "test", sample = 2 }}
headline = ["correctness.inside_0"]
chunk = 2
models = [
{models}
]
explainers = [
  "attention", "gradcam",
  {{ use = "captum_suite:IntegratedGradients", steps = 2, text = true, as = "ig" }},
]
metrics = [
  "hallucination", "correctness",
  {{ use = "prefix_ablation", count = 1, least = 1 }},
  {{ use = "patch_ablation", patches = 4 }},
]
controls = ["random"]
[targets]
captioner = "caption 0"
"""


def test_a_spec_runs_from_end_to_end(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    lines = []
    for kind in ("blip", "vit_gpt2", "llava"):
        path = NETS.folder(kind, tmp_path / "nets" / kind)
        prompt = f', prompt = "{NETS.PROMPT}"' if kind == "llava" else ""
        objects = 'objects = ["key", "mushroom", "fish", "tree"], length = 60, beam = 1'
        lines.append(f'  {{ use = "hf_captioner", name = "{path}", {objects}{prompt}, as = "{kind}" }},')
    (tmp_path / "benchmarks" / "words.toml").write_text(SPEC.format(models="\n".join(lines)))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["run", "words"])
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / ".heatproof", "words")
    assert not result.run["failures"]
    for kind in ("blip", "vit_gpt2", "llava"):
        told = {
            r.metric
            for r in result.records
            if r.model == kind and r.status == "value" and r.explainer == "ig"
        }
        assert told == {"hallucination", "correctness", "prefix_ablation", "patch_ablation"}
