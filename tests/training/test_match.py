"""Training on photographs: a small Flickr8k of coloured squares, an untrained trunk; and the figures against loops."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from heatproof.contract import Refused
from heatproof.models import imagenet, mobilenet_clip
from heatproof.training import match, train
from heatproof.training.recipe import Photographs, Settings, read_recipe
from heatproof.training.train import open_task
from heatproof.training.views import vocabulary
from heatproof.training.vocabulary import encode

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250), "white": (250, 250, 250)}
RECIPE = """
title = "Small"
task = "match"
[data]
sample = 8
folder = "FOLDER"
dataset = { use = "flickr8k", images = "{data}/{split}.zip", text = "{data}", split = "{split}" }
[settings]
epochs = 2
batch = 4
texts = 2
hidden = 0.5
dropout = 0.1
unknown = 0.1
checkpoint = 1
[net]
projection_dim = 8
[net.vision_config]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 16
[net.text_config]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
max_position_embeddings = 10
"""


@pytest.fixture(scope="module", autouse=True)
def eyes():
    """An untrained trunk in the place of the one that is not shipped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = imagenet.MobileNetV2Net().features.eval().requires_grad_(False)
    features.to(memory_format=torch.channels_last)  # as every model of the house has it
    patch = pytest.MonkeyPatch()
    patch.setattr(mobilenet_clip, "trunk", lambda folder, name: features)
    yield features
    patch.undo()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    lines = []
    for split, count in (("train", 8), ("test", 6)):
        names = []
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as pack:
            for k in range(count):
                name, colour = f"{split}{k}.jpg", list(COLOURS)[k % 4]
                pixels = np.full((224, 224, 3), 120, np.uint8)
                pixels[20 * (k // 4) : 150, :90] = COLOURS[colour]
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "PNG")
                pack.writestr(name, out.getvalue())
                names.append(name)
                said = (
                    f"A {colour} dog",
                    f"the {colour} thing on the left",
                    f"{colour}",
                    "a dog runs",
                    "the dog jumps",
                )
                lines += [f"{name}#{i}\t{text} ." for i, text in enumerate(said)]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    path = folder / "recipes" / "small.toml"
    path.parent.mkdir()
    path.write_text(RECIPE.replace("FOLDER", folder.as_posix()))
    return path


@pytest.fixture(scope="module")
def written(recipe):
    out = recipe.parent / "weights" / "small"
    return out, train(recipe, out, quiet=True)


def test_written_without_the_trunk_and_opened(written):
    from heatproof.models.mobilenet_clip import MobileNetClip

    out, card = written
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json", "config.json", "model.safetensors", "preprocessor_config.json", "words.json",
    ]  # fmt: skip
    assert json.loads((out / "card.json").read_text()) == card
    assert not [name for name in load_file(out / "model.safetensors") if "trunk" in name]
    assert card["figures"]["images"] == 6
    assert card["figures"]["recall_at_1"] == card["figures"]["image_to_text"]["1"]
    assert "non-commercial" in card["licence"]
    assert "colour and word order" in card["bad_at"]
    model = MobileNetClip(str(out)).load("small")
    assert (model.family, model.sites["image.block"], dict(model.card)) == ("dual", 1, card)
    assert model.net.config.text_config.vocab_size == len(json.loads((out / "words.json").read_text()))


def test_the_opened_model_embeds_as_training_did(recipe, written):
    from heatproof.models.mobilenet_clip import MobileNetClip

    model = MobileNetClip(str(written[0])).load("small")
    task = open_task(read_recipe(recipe))
    task.net.load_state_dict(load_file(written[0] / "model.safetensors"))
    task.net.eval()
    samples = task.photographs("test")
    cases = [case for asked in model.ask(samples, "caption 1") for case in asked]
    with torch.no_grad():
        seen = task.eyes[: match.KEPT](match.pixels_of(samples)).flatten(2).transpose(1, 2)
        images = task._image(seen)
        texts = task._text(encode(task.words, [s.captions[1] for s in samples], task.length))
        assert torch.allclose(model.clean(cases), (images * texts).sum(1), atol=1e-5)


def test_killed_it_goes_on_and_looks_but_once(recipe, tmp_path, written, monkeypatch):
    calls, looks = [], []
    real, views = match.Match.loss, match.Match._views

    def dying(self, rows, dice):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, rows, dice)

    monkeypatch.setattr(match.Match, "loss", dying)
    monkeypatch.setattr(match.Match, "_views", lambda *told: looks.append(1) or views(*told))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "views.pt").is_file()
    card = train(recipe, tmp_path / "out", quiet=True)
    assert (len(calls), len(looks)) == (5, 1)
    assert card["sha256"] == written[1]["sha256"]
    assert not list((tmp_path / "out").glob("*.pt"))


def test_views_of_other_photographs_are_not_taken(recipe, tmp_path):
    task = open_task(read_recipe(recipe))
    whole = task.look(tmp_path / "views.pt", quiet=True)
    task.seen = task.seen[:5]
    assert task.look(tmp_path / "views.pt", quiet=True).shape == (2, 5, 320, 7, 7)
    assert whole.dtype == torch.float16
    mirrored = match.pixels_of(task.seen).flip(-1)
    with torch.no_grad():
        expected = task.eyes[: match.KEPT](mirrored)
    assert torch.allclose(whole[1, :5].float(), expected, rtol=2e-3, atol=1e-3)


def test_the_loss_is_the_mean_of_both_entropies(recipe):
    """Nothing hidden or dropped: a loop over pairs; whatever was flipped, the mirror image is made the same."""
    told = read_recipe(recipe)
    task = open_task(replace(told, settings=Settings(texts=5, smooth=0.0)))
    views = task._views(task.seen, True)
    task.learn(torch.stack([views[0], views[0]]))
    task.texts = torch.where(task.texts == task.words.ids["left"], task.words.ids["dog"], task.texts)
    task.net.eval()
    rows = torch.arange(4)
    with torch.no_grad():
        found = task.loss(rows, torch.Generator().manual_seed(1))
        images = task._image(views[0, :4].flatten(2).transpose(1, 2).float())
        texts = task._text(task.texts[:4].flatten(0, 1)).view(4, 5, -1)
    # the five captions come in an order of their own for each photograph
    scale = math.exp(float(task.net.logit_scale.detach()))
    which = torch.rand(4, 5, generator=_after(4, 49)).argsort(1)
    total = 0.0
    for k in range(5):
        said = torch.stack([texts[n, which[n, k]] for n in range(4)])
        for a, b in ((images, said), (said, images)):
            for n in range(4):
                row = scale * (a[n] @ b.T)
                total += float(torch.logsumexp(row, 0) - row[n]) / 40
    assert float(found) == pytest.approx(total, abs=1e-5)


def _after(rows: int, cells: int) -> torch.Generator:
    """The loss's dice once flips and cells are drawn."""
    dice = torch.Generator().manual_seed(1)
    torch.rand(rows, generator=dice)
    torch.rand((rows, cells), generator=dice)
    return dice


def test_hidden_cells_are_no_part_of_the_image(recipe):
    task = open_task(read_recipe(recipe))
    views = torch.rand(2, 49, 320)
    some = torch.tensor([[3, 10, 48], [0, 1, 2]])
    kept = views.gather(1, some[..., None].expand(-1, -1, 320))
    task.net.eval()
    with torch.no_grad():
        one = task._image(kept, some)
        assert not torch.allclose(one, task._image(kept, some.flip(0)))
        assert torch.allclose(
            task._image(views, torch.arange(49).expand(2, -1)), task._image(views), atol=1e-6
        )


def test_recall_against_a_loop():
    torch.manual_seed(0)
    images = F.normalize(torch.randn(12, 4), dim=1)
    texts = F.normalize(images[:, None] + 0.9 * torch.randn(12, 3, 4), dim=2)
    like = [[[float(images[i] @ texts[j, k]) for k in range(3)] for j in range(12)] for i in range(12)]
    to_text, to_image = [], []
    for at in (1, 5, 10):
        hits = 0
        for i in range(12):
            best = sorted(((like[i][j][k], j) for j in range(12) for k in range(3)), reverse=True)[:at]
            hits += any(j == i for _, j in best)
        to_text.append(round(hits / 12, 4))
        hits = 0
        for j in range(12):
            for k in range(3):
                best = sorted(((like[i][j][k], i) for i in range(12)), reverse=True)[:at]
                hits += any(i == j for _, i in best)
        to_image.append(round(hits / 36, 4))
    found = match.recall(images, texts)
    assert found == (pytest.approx(to_text, abs=1e-4), pytest.approx(to_image, abs=1e-4))
    assert 0 < to_text[0] < 1
    blind = torch.ones(12, 4) / 2
    assert match.recall(blind, blind[:, None].expand(-1, 3, -1), (1, 5)) == ([0.0, 0.0], [0.0, 0.0])


def test_tricks_and_words():
    assert match.recoloured("A black dog on white snow .", "x") == "a white dog on red snow ."
    told = match.shuffled("a dog runs over the grass", "x")
    assert sorted(told.split()) == sorted(["a", "dog", "runs", "over", "the", "grass"])
    assert (
        told
        == match.shuffled("a dog runs over the grass", "x")
        != match.shuffled("a dog runs over the grass", "y")
    )
    words = vocabulary(["A dog!", "a dog", "a Dog", "a dog, a cat"], 4)
    assert list(words.ids)[4:] == ["a", "dog", "left", "right"]


def test_wrong_data_is_refused(recipe, tmp_path):
    told = read_recipe(recipe)
    assert isinstance(told.data, Photographs)
    with pytest.raises(Refused, match="no dataset 'flickr9k'; did you mean 'flickr8k'"):
        open_task(replace(told, data=replace(told.data, dataset={"use": "flickr9k"})))
    path = tmp_path / "bad.toml"
    path.write_text('task = "match"\n[data]\nclutter = 3\n')
    with pytest.raises(Refused, match=r"\[data\]: no key 'clutter'"):
        read_recipe(path)
    task = open_task(told)
    with pytest.raises(Refused, match="fewer than 5 captions"):
        task._read([replace(task.seen[0], captions=("one",))])
