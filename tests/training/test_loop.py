"""Training: killed and resumed gives the very weights of an undisturbed run; recipes are read strictly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from heatproof.contract import Refused
from heatproof.training.loop import fit, schedule
from heatproof.training.recipe import Data, Recipe, Settings, read_recipe

COUNT = 40
RECIPE = Recipe("tiny", "classify", settings=Settings(epochs=5, batch=8, rate=0.01, checkpoint=4))


def learner():
    """A net with everything that must survive: batch statistics, dropout, augmentation noise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))
    pixels = torch.randn(COUNT, 6)
    labels = (pixels[:, 0] > 0).long() + (pixels[:, 1] > 0)

    def loss(rows, dice):
        noisy = pixels[rows] + 0.1 * torch.randn(len(rows), 6, generator=dice)
        return nn.functional.cross_entropy(net(noisy), labels[rows])

    return net, loss


def run(checkpoint: Path, die_at: int | None = None, recipe: Recipe = RECIPE) -> dict[str, torch.Tensor]:
    net, loss = learner()
    calls = 0

    def dying(rows, dice):
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(rows, dice)

    fit(net, dying, COUNT, recipe, checkpoint, quiet=True)
    return net.state_dict()


def test_killed_twice_gives_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole.pt")
    checkpoint = tmp_path / "killed.pt"
    for die_at in (7, 11):
        call = f"run_path({__file__!r})['run'](Path({str(checkpoint)!r}), {die_at})"
        line = f"from pathlib import Path; from runpy import run_path; {call}"
        child = subprocess.run([sys.executable, "-c", line], check=False)
        assert child.returncode == -signal.SIGKILL
        assert checkpoint.exists()
    assert torch.load(checkpoint, weights_only=True)["step"] == 12  # 4 + the steps 4 .. 13
    resumed = run(checkpoint)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    again = run(checkpoint, die_at=1)  # all is done: not one step is taken
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    checkpoint = tmp_path / "one.pt"
    net, loss = learner()

    def stop(rows, dice, calls=[]):  # noqa: B006 - counts over the calls on purpose
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(rows, dice)

    with pytest.raises(KeyboardInterrupt):
        fit(net, stop, COUNT, RECIPE, checkpoint, quiet=True)
    other = Recipe("tiny", "classify", seed=1, settings=RECIPE.settings)
    with pytest.raises(Refused, match="another version of the recipe"):
        run(checkpoint, recipe=other)


def test_training_learns_and_the_seed_matters(tmp_path):
    losses = []
    net, loss = learner()

    def watched(rows, dice):
        value = loss(rows, dice)
        losses.append(value.item())
        return value

    fit(net, watched, COUNT, Recipe("tiny", "classify", settings=Settings(epochs=60, batch=8, rate=0.03)),
        tmp_path / "c.pt", quiet=True)  # fmt: skip
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    one = run(tmp_path / "a.pt")
    other = run(tmp_path / "b.pt", recipe=Recipe("tiny", "classify", seed=1, settings=RECIPE.settings))
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_a_loss_that_is_no_number_stops(tmp_path):
    net, loss = learner()
    with pytest.raises(FloatingPointError, match="tiny: the loss is nan at step 0"):
        fit(net, lambda rows, dice: loss(rows, dice) * float("nan"), COUNT, RECIPE, tmp_path / "c.pt",
            quiet=True)  # fmt: skip


def test_a_trunk_learns_at_its_own_rate(tmp_path):
    net, loss = learner()
    before = net[0].weight.clone()
    fit(net, loss, COUNT, Recipe("tiny", "classify", settings=Settings(epochs=1, batch=8, trunk_rate=0.0)),
        tmp_path / "c.pt", trunk=net[0], quiet=True)  # fmt: skip
    assert torch.equal(net[0].weight, before)
    assert not torch.equal(net[4].weight, learner()[0][4].weight)


def test_the_rate_rises_and_falls():
    once = [schedule(k, 20, Settings(warmup=0.2)) for k in range(20)]
    assert once[:4] == [0.25, 0.5, 0.75, 1.0]
    assert once[4] == 1.0
    assert all(a > b for a, b in pairwise(once[4:]))
    assert once[-1] < 0.02
    assert once[12] == pytest.approx(0.5)


def test_recipes_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'task = "classify"\nseed = 3\n[data]\nsample = 9\npartner = 0.5\n[net]\nclass = "X"\n[reached]\na = 1\n'
    )
    recipe = read_recipe(path)
    assert (recipe.name, recipe.seed, recipe.data) == ("mine", 3, Data(sample=9, partner=0.5))
    assert recipe.net == {"class": "X"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('task = "classify"\nsede = 1', "no key 'sede'; did you mean 'seed'"),
        ('task = "classify"\n[data]\nsampel = 1', r"\[data\]: no key 'sampel'; did you mean 'sample'"),
        ('task = "classify"\n[settings]\nlr = 1', r"\[settings\]: no key 'lr'"),
        ('task = "dream"', "task is 'dream'; accepted are classify, contrast, caption"),
        ("seed = 1", "task"),
        ("task = ", "not valid TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, text, told):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(Refused, match=told):
        read_recipe(path)


def test_a_recipe_that_is_not_there(tmp_path):
    (tmp_path / "small_cnn.toml").write_text("")
    with pytest.raises(Refused, match="no recipe 'smal_cnn'; did you mean 'small_cnn'"):
        read_recipe(tmp_path / "smal_cnn.toml")
