"""Maps from elsewhere go through every metric like any other; what is wrong with one is named."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from heatproof import Refused, Trial, Unsuited, shelf
from heatproof.metrics.randomisation import Randomisation
from heatproof.metrics.robustness import Sensitivity
from heatproof.records import read_records
from heatproof.runner import Order, run

Precomputed = shelf.find("explainers", "precomputed", shelf.Place(shelf.house(), shelf.house()), "tests")


def test_arrays_and_pictures_come_back_as_they_are(tmp_path, families):
    model, (first, second, third, *_) = families["clip"]
    chance = np.random.default_rng(0)
    signed, unpooled = chance.normal(size=(3, 5)).astype(np.float32), chance.normal(size=(4, 2, 2))
    words = chance.normal(size=len(first.tokens))
    np.save(tmp_path / f"{first.id}.npy", signed)
    np.save(tmp_path / f"{first.id}.text.npy", words)
    np.save(tmp_path / f"{second.id}.npy", unpooled)
    (tmp_path / model.name).mkdir()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(
        tmp_path / model.name / f"{third.id}.png"
    )
    np.save(tmp_path / f"{third.id}.npy", signed)  # the model's own folder goes before
    answers = Precomputed(str(tmp_path)).explain(model, [first, second, third])
    assert np.array_equal(answers[0].image.numpy(), signed)
    assert np.array_equal(answers[0].text.numpy(), words.astype(np.float32))
    assert np.array_equal(answers[1].image.numpy(), unpooled.astype(np.float32))
    assert answers[1].text is None
    assert answers[2].image.tolist() == np.arange(12).reshape(3, 4).tolist()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (None, "no map of case"),
        (np.zeros(4), r"found shape \[4\], accepted are \[h, w\]"),
        (np.zeros((999, 2)), r"found shape \[999, 2\]"),
        (np.array([[1.0, np.nan]]), "1 of 2 values are NaN or infinite"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, families, array, said):
    model, (case, *_) = families["resnet"]
    if array is not None:
        np.save(tmp_path / f"{case.id}.npy", array)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        Precomputed(str(tmp_path)).explain(model, [case])
    assert f"{case.id}.npy" in str(error.value)


def test_text_of_another_length_and_a_missing_folder(tmp_path, families):
    model, (case, *_) = families["clip"]
    np.save(tmp_path / f"{case.id}.text.npy", np.zeros(99))
    with pytest.raises(ValueError, match=rf"found shape \[99\], accepted is \[{len(case.tokens)}\]"):
        Precomputed(str(tmp_path)).explain(model, [case])
    with pytest.raises(Refused, match="no folder"):
        Precomputed(str(tmp_path / "nowhere"))


def test_it_cannot_be_asked_again_of_what_it_has_no_map_of(tmp_path, families):
    """A randomised twin would get the very map back, and the sanity check would say 1."""
    model, (case, *_) = families["resnet"]
    np.save(tmp_path / f"{case.id}.npy", np.eye(4))
    made = Precomputed(str(tmp_path))
    answers = made.explain(model, [case])
    with pytest.raises(Unsuited, match="cannot be asked again"):
        Randomisation().measure([Trial(model, case, made, answers[0])])
    with pytest.raises(Unsuited, match="cannot be asked again"):
        Sensitivity().measure([Trial(model, case, made, answers[0])])


def test_the_files_bytes_are_part_of_the_settings_and_the_place_is_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.ones(3))
    one, other = (Precomputed(str(tmp_path / name)).digest for name in ("a", "b"))
    assert one == other
    np.save(tmp_path / "b" / "x.npy", np.zeros(3))
    assert Precomputed(str(tmp_path / "b")).digest != one


def test_out_to_a_rival_and_back(world, tmp_path, monkeypatch):
    """export-cases, a rival that copies `bright`'s formula, and the same scores for both."""
    from heatproof.handing import export_cases

    monkeypatch.chdir(world)
    out, maps = tmp_path / "out", tmp_path / "maps"
    export_cases(Order("toy", cwd=world, limit=3), out)
    told = [json.loads(path.read_text()) for path in sorted(out.glob("*/cases.json"))]
    assert told
    for model in told:
        (maps / model["model"]).mkdir(parents=True)
        for entry in model["cases"]:
            pixels = np.load(out / model["model"] / f"{entry['case']}.npy")
            assert list(pixels.shape) == entry["shape"]
            np.save(maps / model["model"] / f"{entry['case']}.npy", pixels.sum(0))
    toml = world / "benchmarks" / "toy.toml"
    text = toml.read_text()
    start = text.index("explainers = [") + len("explainers = [")
    rival = '\n  { use = "precomputed", folder = "{maps}", as = "rival" },'
    toml.write_text(text[:start] + rival + text[start:] + f'\n[data]\nmaps = "{maps.as_posix()}"\n')
    result = run(Order("toy", cwd=world, limit=3))
    assert not result.run["failures"]
    rows = [
        r for r in read_records(result.folder / "toy.csv") if r.explainer == "rival" and r.status == "value"
    ]
    assert rows
    (part,) = [p for p in result.run["explainers"] if p["name"] == "rival"]
    assert part["settings"]["folder"] == "{maps}"
    assert os.fspath(tmp_path) not in json.dumps({**result.run, "spec": ""})
    one = next(maps.rglob("*.npy"))
    one.unlink()
    result = run(Order("toy", cwd=world, limit=3))
    assert result.run["failures"]
    assert all(one.stem in f["error"] for f in result.run["failures"])
