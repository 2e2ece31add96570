"""Fine-tuning captioners: each loss against a loop over captions and words, the weights held fast, and the four recipes end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from heatproof.captions.cider import Frequencies, cider_d
from heatproof.cli import cli
from heatproof.contract import Refused
from heatproof.lrp.inference import readings
from heatproof.training import train
from heatproof.training.recipe import TUNED_BY, read_recipe
from heatproof.training.train import open_task

HOUSE = Path(__file__).resolve().parents[2]
TUNE = """
task = "tune"
seed = 0
start = "START"
[settings]
epochs = 2
batch = 4
texts = 2
rate = 1e-3
patience = 0
[tune]
by = "BY"
"""


@pytest.fixture(scope="module")
def trained(recipe) -> Path:
    """The folder of recipes, in which the captioner has its weights."""
    train(recipe, recipe.parent / "weights" / recipe.stem, quiet=True)
    return recipe


def written(trained: Path, by: str) -> Path:
    path = trained.parent / f"tune_{trained.stem}_{by}.toml"
    path.write_text(TUNE.replace("START", trained.stem).replace("BY", by))
    return path


def opened(trained: Path, by: str, tmp_path: Path, **tune):
    recipe = read_recipe(written(trained, by))
    task = open_task(replace(recipe, tune=replace(recipe.tune, **tune)))
    task.learn(task.look(tmp_path / "views.pt", quiet=True))
    task.net.eval()
    return task


def captions(task, rows: torch.Tensor, seed: int):
    """The features and texts that a loss with these dice reads."""
    return task.inner.batch(rows, torch.Generator().manual_seed(seed), task.recipe.settings.texts)


@pytest.mark.parametrize("by", ["cross_entropy", "lrp_inference"])
def test_the_loss_reads_each_caption_once_or_twice(trained, tmp_path, by):
    """The parity-held readings, one caption at a time, summed by hand; what is unknown is not learnt to be said."""
    task = opened(trained, by, tmp_path)
    rows = torch.tensor([5, 0, 3, 6])
    task.without = torch.tensor(
        [task.inner.words.pad]
    )  # so small a net predicts hardly anything but stop words
    with torch.no_grad():
        found = task.loss(rows, torch.Generator().manual_seed(1))
        features, texts = captions(task, rows, 1)
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        for feature, some in zip(features, texts, strict=True):
            for ids in some:
                ids = ids[ids != task.inner.words.pad]
                both = readings(task.net, feature[None], ids[None, :-1], task.without)
                for t, wanted in enumerate(ids[1:].tolist()):
                    if wanted != task.inner.words.unknown:
                        sums -= torch.stack([part[0, t].log_softmax(0)[wanted] for part in both]).double()
                        count += 1
    expected = sums[0] / count if by == "cross_entropy" else sums.sum() / count
    assert float(found) == pytest.approx(float(expected), abs=2e-5)
    assert abs(float(sums[0] - sums[1])) / count > 1e-4  # the readings are two


def test_stop_words_and_specials_are_read_once(trained, tmp_path):
    task = opened(trained, "lrp_inference", tmp_path)
    ids = task.inner.words.ids
    silent = set(task.without.tolist())
    assert {ids["the"], ids["a"], ids["<eos>"]} <= silent
    assert not {ids["dog"], ids["red"]} & silent


def test_the_released_losses_differ_in_the_adaptive_net_alone(trained, tmp_path):
    rows, found = torch.tensor([1, 2, 3, 4]), []
    for released in (False, True):
        task = opened(trained, "lrp_inference", tmp_path, released=released)
        with torch.no_grad():
            found.append(float(task.loss(rows, torch.Generator().manual_seed(2))))
        assert not getattr(task.net, "newest", False)
        assert task.net.dropout.p == (
            0.0 if released and trained.stem == "adaptive" else task.net.config.dropout
        )
    assert (found[0] != found[1]) == (trained.stem == "adaptive")


def test_the_control_has_no_quirks(trained, tmp_path):
    task = opened(trained, "cross_entropy", tmp_path, released=True)
    assert not task.quirky
    assert task.net.dropout.p == task.net.config.dropout


@pytest.mark.parametrize("by", ["cider", "lrp_cider"])
def test_rewards_against_a_loop(trained, tmp_path, by):
    """The same captions, drawn again; each one's gain and log-probability by itself."""
    task = opened(trained, by, tmp_path)
    task.net.dropout.p = 0.0
    if hasattr(task.net, "attention_dropout"):
        task.net.attention_dropout.p = 0.0
    words, rows, times = task.inner.words, torch.tensor([5, 0, 3, 6]), task.recipe.settings.texts
    dice = torch.Generator().manual_seed(3)
    found = task.loss(rows, dice)
    grads = torch.autograd.grad(found, task.net.output.weight)[0]

    dice = torch.Generator().manual_seed(3)
    features, told = task.inner.batch(rows, dice, 5)
    drawn, _, heard = task.write(features.repeat_interleave(times, 0), dice)
    greedy, _, _ = task.write(features, None)
    every = task.inner.texts.tolist()
    spell = lambda row: " ".join(str(i) for i in row if i not in (words.bos, words.pad))
    corpus = Frequencies.of([[spell(row) for row in some] for some in every])
    total, count = torch.zeros(()), 0
    for n, row in enumerate(drawn.tolist()):
        mine = [spell(text) for text in told[n // times].tolist()]
        gain = (
            cider_d([spell(row)], [mine], corpus)[0]
            - cider_d([spell(greedy[n // times].tolist())], [mine], corpus)[0]
        )
        said = [i for i, there in zip(row, heard[n].tolist(), strict=True) if there]
        ids = torch.tensor([[words.bos, *said[:-1]]])
        both = readings(task.net, features[n // times][None], ids, task.without)
        logits = (both.weighted if by == "lrp_cider" else both.plain)[0]
        for t, word in enumerate(said):
            total = total - gain * logits[t].log_softmax(0)[word]
            count += 1
    expected = total / count
    assert found.item() == pytest.approx(expected.item(), abs=2e-4)
    theirs = torch.autograd.grad(expected, task.net.output.weight)[0]
    assert (grads - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))
    assert float(theirs.abs().max()) > 1e-3
    assert any(words.eos in row for row in drawn.tolist())  # a caption's end is one of its words
    assert (greedy[:, 0] != words.pad).all()


def test_the_greedy_caption_is_the_search_of_one_beam(trained, tmp_path):
    task = opened(trained, "cider", tmp_path)
    features, _ = captions(task, torch.arange(8), 4)
    with torch.no_grad():
        greedy, _, _ = task.write(features, None)
    said = [" ".join(task.inner.words.text(row)) for row in greedy.tolist()]
    assert said == task.inner.write(features, 1)


@pytest.mark.parametrize("by", TUNED_BY)
def test_end_to_end(trained, tmp_path, by):
    path = written(trained, by)
    card = train(path, tmp_path / "a", quiet=True)
    again = train(path, tmp_path / "b", quiet=True)
    other = train(path, tmp_path / "c", quiet=True, seed=1)
    assert card["sha256"] == again["sha256"] != other["sha256"]
    assert (card["tune"]["by"], card["start"], other["seed"]) == (by, trained.stem, 1)
    assert [row["epoch"] for row in card["figures"]["curve"]] == [1, 2]
    before = load_file(trained.parent / "weights" / trained.stem / "model.safetensors")
    after = load_file(tmp_path / "a" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = max(float((before[k].float() - after[k].float()).abs().max()) for k in before)
    assert 1e-4 < moved < 0.1


def test_the_last_weights_stay(trained, tmp_path):
    """Whatever the judgement between: tuning and control have the same steps behind them."""
    task = opened(trained, "cross_entropy", tmp_path)
    from heatproof.training import epochs

    seen = []
    figures = iter([0.9, 0.1])

    def progress() -> float:
        seen.append(task.net.output.weight.detach().clone())
        return next(figures)

    task.progress = progress
    epochs.fit(task, tmp_path / "one.pt", quiet=True)
    assert torch.equal(task.net.output.weight, seen[-1])
    assert not torch.equal(seen[0], seen[1])


def test_rewards_make_rewarded_captions_likelier(trained, tmp_path):
    """Sixty steps on eight photographs: the mean CIDEr-D of what is drawn goes up."""
    task = opened(trained, "cider", tmp_path)
    optimiser = torch.optim.Adam(task.net.parameters(), lr=1e-2)

    def mean() -> float:
        task.net.eval()
        with torch.no_grad():
            features, told = task.inner.batch(torch.arange(8), torch.Generator().manual_seed(9), 5)
            drawn, _, _ = task.write(features.repeat_interleave(8, 0), torch.Generator().manual_seed(9))
        mine = [[task._spelt(row) for row in some] for some in told.tolist() for _ in range(8)]
        scores = cider_d([task._spelt(row) for row in drawn.tolist()], mine, task.corpus)
        return sum(scores) / len(scores)

    before = mean()
    for step in range(60):
        loss = task.loss(torch.arange(8), torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert mean() > 1.4 * before


def test_wrong_recipes_are_refused(trained):
    path = written(trained, "lrp_inferense")
    with pytest.raises(Refused, match="did you mean 'lrp_inference'"):
        read_recipe(path)
    path.write_text(path.read_text() + "[net]\nhidden = 3\n")
    with pytest.raises(Refused, match=r"\[net\] is its start's"):
        read_recipe(path)
    path = written(trained, "cider")
    with pytest.raises(Refused, match="recipe"):
        read_recipe(path, start="nobody")
    (trained.parent / "bare.toml").write_text(trained.read_text())
    with pytest.raises(Refused, match="holds no weights; type: heatproof train bare"):
        open_task(read_recipe(path, start="bare"))


@pytest.mark.parametrize("start", ["flickr8k_captioner", "small_captioner_mh"])
@pytest.mark.parametrize("by", TUNED_BY)
def test_the_shelfs_recipes_take_their_starts_data_and_net(by, start):
    recipe = read_recipe(HOUSE / "recipes" / f"tune_{by}.toml", start=start, seed=7)
    base = read_recipe(HOUSE / "recipes" / f"{start}.toml")
    assert (recipe.tune.by, recipe.data, recipe.net, recipe.seed) == (by, base.data, base.net, 7)
    assert (recipe.settings.batch, recipe.settings.dense) == (base.settings.batch, 0.0)
    control = read_recipe(
        HOUSE / "recipes" / ("tune_cider.toml" if "cider" in by else "tune_cross_entropy.toml"), start=start
    )
    assert recipe.settings == control.settings  # the comparison is fair


def test_seed_and_start_are_typed(trained, tmp_path, monkeypatch):
    """``heatproof train``, where the recipe names another start and another seed."""
    path = written(trained, "cross_entropy")
    path.write_text(path.read_text().replace(f'start = "{trained.stem}"', 'start = "nobody"'))
    monkeypatch.chdir(tmp_path)
    typed = ["train", str(path), "--start", trained.stem, "--seed", "3", "--out", "out"]
    found = CliRunner().invoke(cli, typed)
    assert found.exit_code == 0, found.output
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["start"], card["seed"]) == (trained.stem, 3)
    assert card["command"] == f"heatproof train {path.stem} --start {trained.stem} --seed 3"
