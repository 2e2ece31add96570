"""Training a captioner on photographs: a small Flickr8k of coloured squares, an untrained trunk; and the loss against a loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from heatproof.captions.cider import cider_d
from heatproof.contract import Refused
from heatproof.models.own_captioner import OwnCaptioner
from heatproof.training import describe, epochs, train
from heatproof.training.recipe import Settings, read_recipe
from heatproof.training.train import open_task


@pytest.fixture(scope="module")
def written(recipe):
    out = recipe.parent / "weights" / recipe.stem
    return out, train(recipe, out, quiet=True)


def test_written_without_the_trunk_and_with_its_curve(folder, written):
    out, card = written
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json", "config.json", "model.safetensors", "preprocessor_config.json", "words.json",
    ]  # fmt: skip
    assert json.loads((out / "card.json").read_text()) == card
    assert not [name for name in load_file(out / "model.safetensors") if "encoder" in name]
    curve = card["figures"]["curve"]
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert curve[-1]["loss"] < curve[0]["loss"]
    figures = [row["figure"] for row in curve]
    assert [row["rate"] for row in curve] == [
        pytest.approx(epochs.rate_after(figures[:k], Settings(rate=1e-2, patience=1)), rel=1e-3)
        for k in range(3)
    ]
    assert card["figures"]["images"] == 6
    assert "non-commercial" in card["licence"]
    assert "different captions" in card["bad_at"]


def test_the_opened_model_writes_and_scores_as_was_judged(folder, recipe, written):
    """Captions, and the card's figure, from the contract's own verbs on the photographs of the split "test"."""
    out, card = written
    model = OwnCaptioner(str(out), folder=str(folder)).load("small")
    assert model.objects == ("dog", "thing")
    task = open_task(read_recipe(recipe))
    samples = describe.photographs(task.recipe, "test")
    cases = [model.ask([sample], "caption 0")[0][0] for sample in samples]
    said = [
        " ".join(text) if not isinstance(text, str) else text
        for text in model.write(model.stack(cases), cases)
    ]
    told = [[describe.plain(text) for text in sample.captions] for sample in samples]
    scores = cider_d(said, told)
    assert round(sum(scores) / 6, 4) == card["figures"]["cider_d"]
    false = sum(
        word not in " ".join(t).split()
        for s, t in zip(said, told, strict=True)
        for word in {*s.split()} & {"dog", "thing"}
    )
    named = sum(len({*s.split()} & {"dog", "thing"}) for s in said)
    assert card["figures"]["untold"] == round(false / max(1, named), 4)


def test_the_loss_is_the_mean_over_the_words_said(recipe):
    """A loop over captions and words, without mirrors and dropout: what has ended is cut off, what is unknown left out."""
    told = read_recipe(recipe)
    task = open_task(replace(told, settings=replace(told.settings, texts=5)))
    task.learn(task.look(recipe.parent / "no.pt", quiet=True))
    (recipe.parent / "no.pt").unlink()
    task.views = torch.stack([task.views[0], task.views[0]])
    words = task.words
    assert words.unknown in task.texts
    task.texts = torch.where(task.texts == words.ids["left"], words.ids["dog"], task.texts)
    task.net.eval()
    rows = torch.tensor([5, 0, 3, 6])
    with torch.no_grad():
        found = task.loss(rows, torch.Generator().manual_seed(1))
    dice = torch.Generator().manual_seed(1)
    torch.rand(4, generator=dice)
    which = torch.rand(4, 5, generator=dice).argsort(1)
    total, count = 0.0, 0
    for n, row in enumerate(rows.tolist()):
        view = task.views[0, row].float()[None] / task.spread
        for k in which[n].tolist():
            ids = task.texts[row, k]
            with torch.no_grad():
                logits = task.net(view, ids[None])[0]  # the net's own forward; its encoder is nothing yet
            for t in range(len(ids) - 1):
                if ids[t + 1] not in (words.pad, words.unknown):
                    total -= float(torch.log_softmax(logits[t], 0)[ids[t + 1]])
                    count += 1
    assert count < 20 * 7
    assert float(found) == pytest.approx(total / count, abs=1e-5)


def test_the_views_spread_is_folded_into_the_first_projections(folder, recipe, tmp_path):
    task = open_task(read_recipe(recipe))
    task.learn(task.look(tmp_path / "views.pt", quiet=True))
    views = task.views[0, :8].float()
    assert task.spread == pytest.approx(math.sqrt(float(views.double().square().mean())), rel=1e-5)
    assert task.spread > 2
    task.net.eval()
    ids = task.texts[:2, 0]
    with torch.no_grad():
        before = task.net(views[:2] / task.spread, ids)
        task.save(tmp_path / "out")
        after = task.net(views[:2], ids)
    assert task.spread == 1.0
    assert torch.allclose(before, after, atol=5e-3)  # float16
    model = OwnCaptioner.__new__(OwnCaptioner)
    object.__setattr__(model, "name", str(tmp_path / "out"))
    net = describe.own_captioner.build(task.config)
    net.encoder = nn.Identity()
    net.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(net.eval()(views[:2], ids), after)


def test_killed_it_goes_on_after_the_last_whole_epoch(recipe, tmp_path, written, monkeypatch):
    calls, looks = [], []
    real, see = describe.Describe.loss, describe.both_ways

    def dying(self, rows, dice):
        calls.append(1)
        if len(calls) == 4:  # in the second epoch of two steps
            raise KeyboardInterrupt
        return real(self, rows, dice)

    monkeypatch.setattr(describe.Describe, "loss", dying)
    monkeypatch.setattr(describe, "both_ways", lambda *told: looks.append(1) or see(*told))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "views.pt").is_file()
    card = train(recipe, tmp_path / "out", quiet=True)
    assert (len(calls), len(looks)) == (4 + 4, 1)
    assert card["sha256"] == written[1]["sha256"]
    assert card["figures"]["curve"] == written[1]["figures"]["curve"]
    assert not list((tmp_path / "out").glob("*.pt"))


class Scripted:
    """A task of one weight whose figure after each epoch is told."""

    def __init__(self, recipe, figures, slopes=(100.0,)) -> None:
        self.recipe, self.figures, self.slopes, self.steps = recipe, list(figures), slopes, 0
        self.net, self.trunk = nn.Module(), None
        self.net.output = nn.Linear(1, 1, bias=False)
        self.weights: list[float] = []

    def loss(self, rows, dice):
        self.steps += 1
        return self.slopes[(self.steps - 1) % len(self.slopes)] * self.net.output.weight.sum()

    def progress(self) -> float:
        self.weights.append(self.net.output.weight.item())
        return self.figures[len(self.weights) - 1]


def scripted(recipe: Path, figures, **settings) -> tuple[Scripted, Settings]:
    told = read_recipe(recipe)
    how = replace(told.settings, epochs=len(figures), batch=4, **settings)
    return Scripted(replace(told, settings=how), figures), how


def test_the_best_epochs_weights_stay_and_the_rate_falls(recipe, tmp_path):
    task, _ = scripted(recipe, [0.1, 0.4, 0.4, 0.3, 0.2, 0.1], rate=0.01, patience=2)
    epochs.fit(task, tmp_path / "one.pt", quiet=True)
    curve = task.curve
    assert task.net.output.weight.item() == task.weights[1]
    assert [row["rate"] for row in curve] == [0.01, 0.01, 0.01, 0.01, 0.008, 0.008]
    # a steady gradient: Adam goes one rate a step, two steps an epoch, whatever the size (clamped to 0.1)
    for k in range(1, 6):
        assert task.weights[k - 1] - task.weights[k] == pytest.approx(2 * curve[k]["rate"], rel=1e-4)


def test_adam_and_the_clamp_against_a_loop(recipe, tmp_path):
    """Kingma and Ba's steps with betas 0.8 and 0.999, of slopes that are 0.1 at most."""
    task, _ = scripted(recipe, [0.1, 0.2, 0.3], rate=0.01, patience=1)
    task.slopes = (100.0, -0.3, 0.05)
    weight = start = task.net.output.weight.item()
    epochs.fit(task, tmp_path / "one.pt", quiet=True)
    m = v = 0.0
    for k in range(1, 7):
        slope = (0.1, -0.1, 0.05)[(k - 1) % 3]
        m, v = 0.8 * m + 0.2 * slope, 0.999 * v + 0.001 * slope**2
        weight -= 0.01 * m / (1 - 0.8**k) / (math.sqrt(v / (1 - 0.999**k)) + 1e-8)
    assert weight != pytest.approx(start, abs=1e-3)
    assert task.net.output.weight.item() == pytest.approx(weight, abs=1e-6)


def test_without_patience_the_rate_is_the_loops(recipe, tmp_path):
    task, how = scripted(recipe, [0.1, 0.2, 0.3], rate=0.01, patience=0)
    epochs.fit(task, tmp_path / "one.pt", quiet=True)
    curve = task.curve
    last = [0.01 * epochs.schedule(2 * k + 1, 6, how) for k in range(3)]
    assert [row["rate"] for row in curve] == pytest.approx(last, rel=1e-3)
    assert curve[2]["rate"] < curve[1]["rate"]


def test_the_rate_has_a_floor_and_a_checkpoint_its_recipe(recipe, tmp_path):
    assert epochs.rate_after([1.0] + [0.0] * 99, Settings(rate=1e-3, patience=1)) == epochs.FLOOR
    task, _ = scripted(recipe, [0.1], rate=0.01, patience=1)
    epochs.fit(task, tmp_path / "one.pt", quiet=True)
    other, _ = scripted(recipe, [0.1], rate=0.02, patience=1)
    with pytest.raises(Refused, match="belongs to another version of the recipe"):
        epochs.fit(other, tmp_path / "one.pt", quiet=True)


def test_bfloat16_moves_the_loss_a_little(recipe, tmp_path):
    task = open_task(read_recipe(recipe))
    task.learn(task.look(tmp_path / "views.pt", quiet=True))
    task.net.eval()
    found = []
    for on in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=on):
            found.append(float(task.loss(torch.arange(4), torch.Generator().manual_seed(0))))
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_wrong_recipes_are_refused(recipe):
    told = read_recipe(recipe)
    with pytest.raises(Refused, match="no encoder 'squezenet'; did you mean 'squeezenet'"):
        open_task(replace(told, net={**told.net, "encoder": "squezenet"}))
    with pytest.raises(Refused, match="name the data folder"):
        open_task(replace(told, net={**told.net, "encoder": "vgg16"}))
    with pytest.raises(Refused, match="hiden"):
        open_task(replace(told, net={**told.net, "hiden": 3}))
