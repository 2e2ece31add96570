"""The three tasks, tiny: they learn, they write what the loaders open, their figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heatproof.contract import Refused
from heatproof.scenery import KINDS, Knobs, compose
from heatproof.training import pictures, train
from heatproof.training.contrast import _recall, _trade_colours, _trade_places
from heatproof.training.recipe import Data, read_recipe
from heatproof.training.train import open_task

CNN = """
task = "classify"
[data]
sample = 32
[settings]
epochs = 2
batch = 16
[net]
class = "ResNetForImageClassification"
layer_type = "basic"
embedding_size = 4
hidden_sizes = [4, 8]
depths = [1, 1]
"""
VIT = """
task = "classify"
[data]
sample = 32
[settings]
epochs = 1
polish = 1
batch = 16
dense = 0.5
[net]
class = "ViTForImageClassification"
image_size = 112
patch_size = 16
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
"""
CLIP = """
task = "contrast"
[data]
sample = 32
[settings]
epochs = 1
batch = 16
dense = 0.5
[net]
projection_dim = 8
[net.vision_config]
image_size = 112
patch_size = 16
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[net.text_config]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
max_position_embeddings = 20
"""
CAPTION = """
task = "caption"
start = "cnn"
[data]
sample = 32
partner = 0.9
[settings]
epochs = 1
batch = 16
[net]
architecture = "multi_head"
length = 18
embed = 8
hidden = 8
heads = 2
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder of tiny recipes."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in {"cnn": CNN, "vit": VIT, "clip": CLIP, "mh": CAPTION}.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Judging draws thousands of scenes: here a few."""
    whole = pictures.paint

    def paint(data, quiet=False):
        return whole(Data(**{**data.__dict__, "sample": min(data.sample, 200)}), True)

    patch = pytest.MonkeyPatch()
    patch.setattr(pictures, "paint", paint)
    yield
    patch.undo()


@pytest.mark.parametrize("name", ["cnn", "vit", "clip"])
def test_trained_written_and_opened(shelf, few, name):
    import transformers

    out = shelf / "weights" / name
    card = train(shelf / f"{name}.toml", out, quiet=True)
    assert json.loads((out / "card.json").read_text()) == card
    assert card["command"] == f"heatproof train {name}"
    assert len(card["sha256"]) == 64
    assert "0." in card["bad_at"]
    assert not list(out.glob("checkpoint*"))
    auto = transformers.CLIPModel if name == "clip" else transformers.AutoModelForImageClassification
    net = auto.from_pretrained(out).eval()
    task = open_task(read_recipe(shelf / f"{name}.toml"))
    task.net.load_state_dict(net.state_dict())
    if name == "clip":
        words = json.loads((out / "words.json").read_text())
        assert net.config.text_config.eos_token_id == words["<eos>"] != 2
        assert net.config.text_config.vocab_size == len(words)
    else:
        assert [net.config.id2label[k] for k in range(10)] == list(KINDS)
        seen = pictures.paint(Data(sample=50, split="test"))
        with torch.inference_mode():
            guess = net(pictures.normalise(seen.pixels)).logits.argmax(1).tolist()
        right = [KINDS[g] == label for g, label in zip(guess, seen.labels, strict=True)]
        assert right == task._right(seen)
        assert 0 <= card["figures"]["accuracy"] <= 1


def test_the_captioner_starts_from_the_trunk(shelf, few):
    from heatproof.models.own_captioner import OwnCaptioner

    if not (shelf / "weights" / "cnn").exists():
        train(shelf / "cnn.toml", shelf / "weights" / "cnn", quiet=True)
    import transformers

    cnn = transformers.ResNetForImageClassification.from_pretrained(shelf / "weights" / "cnn").eval()
    task = open_task(read_recipe(shelf / "mh.toml"))
    task.net.eval()
    pixels = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        assert torch.allclose(task.net.encoder(pixels), cnn.resnet(pixels).last_hidden_state, atol=1e-6)
    card = train(shelf / "mh.toml", shelf / "weights" / "mh", quiet=True)
    assert set(card["figures"]["partner_absent"]) == {
        "cider_d", "hallucinated", "images_with_absent_partner", "right_main", "right_place",
    }  # fmt: skip
    assert OwnCaptioner(str(shelf / "weights" / "mh")).load("mh").family == "captioner"


def test_a_captioner_without_its_trunk_is_refused(shelf, tmp_path):
    (tmp_path / "mh.toml").write_text(CAPTION)
    with pytest.raises(Refused, match="type: heatproof train cnn"):
        open_task(read_recipe(tmp_path / "mh.toml"))


def test_the_captioners_loss_is_its_teacher_forced_entropy(shelf, few):
    if not (shelf / "weights" / "cnn").exists():
        train(shelf / "cnn.toml", shelf / "weights" / "cnn", quiet=True)
    task = open_task(read_recipe(shelf / "mh.toml"))
    seen = pictures.paint(Data(sample=4))
    # one caption an image, mirrored alike: whatever is drawn, the pair is the same
    task.learn(seen, quiet=True)
    task.texts = task.texts[:, 1:2].repeat(1, 5, 1)  # no word about sides
    task.pixels = seen.pixels // 2 + seen.pixels.flip(-1) // 2
    object.__setattr__(task.recipe, "settings", read_recipe(shelf / "mh.toml").settings.__class__(shift=0))
    task.net.eval()
    with torch.no_grad():
        found = task.loss(torch.arange(4), torch.Generator().manual_seed(0))
        texts = task.texts[:, 0]
        logits = task.net(pictures.normalise(task.pixels), texts[:, :-1])
        truth = logits.log_softmax(-1).gather(2, texts[:, 1:, None]).squeeze(2)
        real = texts[:, 1:] != task.words.pad
    assert found.item() == pytest.approx(-truth[real].mean().item(), rel=1e-5)


def test_hallucinations_are_counted(shelf, few, monkeypatch):
    if not (shelf / "weights" / "cnn").exists():
        train(shelf / "cnn.toml", shelf / "weights" / "cnn", quiet=True)
    task = open_task(read_recipe(shelf / "mh.toml"))
    scenes = tuple(compose(Knobs(partner=0.0, clutter=1), "halluc", i) for i in range(3))
    seen = pictures.Pictures(torch.zeros(3, 3, 112, 112, dtype=torch.uint8), scenes)
    from heatproof.scenery import PARTNERS
    from heatproof.scenery.words import PLACES

    mains = [scene.things[0].kind for scene in scenes]
    others = [scene.things[1].kind for scene in scenes]
    place = PLACES[scenes[0].background]
    said = [
        f"a {scenes[0].things[0].colour} {mains[0]} and a {others[0]} {place}",
        f"a {scenes[1].things[0].colour} {mains[1]} and a {PARTNERS[mains[1]]} {place}",
        "nothing",
    ]
    monkeypatch.setattr(task, "write", lambda _: said)
    found = task._figures(seen)
    assert found["hallucinated"] == 0.25
    assert found["images_with_absent_partner"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["right_place"] == (1.0 if scenes[1].background == scenes[0].background else 0.5)
    assert found["right_main"] == pytest.approx(2 / 3, abs=1e-4)


def test_recall_against_a_loop():
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(20, 4), dim=1)
    texts = torch.nn.functional.normalize(images + 0.8 * torch.randn(20, 4), dim=1)
    ids = torch.arange(20)[:, None]
    ids[7] = ids[3]  # the same sentence twice: either is right
    to_text = to_image = 0
    for k in range(20):
        group = range(10 * (k // 10), 10 * (k // 10) + 10)
        best = max(group, key=lambda j: float(images[k] @ texts[j]))
        to_text += int(ids[best] == ids[k])
        to_image += max(group, key=lambda j: float(images[j] @ texts[k])) == k
    assert _recall(images, texts, ids, among=10) == pytest.approx((to_text / 20, to_image / 20))
    assert 0 < to_text < 20


def test_traded_scenes_say_the_opposite():
    scene = next(s for i in range(50) if len((s := compose(Knobs(), "trade", i)).things) > 1)
    main, other = scene.things[:2]
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    told, traded = scene.captions()[0], _trade_places(scene).captions()[0]
    (word,) = [w for w in opposite if f" {w} " in told]
    assert traded == told.replace(f" {word} ", f" {opposite[word]} ")
    assert f"{other.colour} {main.kind}" in _trade_colours(scene).captions()[1]
    assert f"{main.colour} {other.kind}" in _trade_colours(scene).captions()[1]
