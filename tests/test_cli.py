"""Every command once, as typed: what it prints, where it writes, how it exits."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import heatproof
from heatproof import cli, shelf
from heatproof.progress import Silent
from heatproof.records import read_records, write_records
from heatproof.runner import Order, run

NO_TORCH = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "captum"}:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Wall())
from heatproof.cli import main
main()
"""
SHELVES = ("explainers", "metrics", "models", "datasets", "benchmarks", "recipes")


@pytest.fixture
def home(world: Path, tiny: dict[str, Path], monkeypatch) -> Path:
    """A world of one model, to be quick."""
    toml = world / "benchmarks" / "toy.toml"
    text = toml.read_text()
    first, last = text.index('  { use = "hf_classifier", name'), text.index("]\nexplainers")
    only = f'  {{ use = "hf_classifier", name = "{tiny["resnet"]}", as = "cnn" }},\n'
    toml.write_text(text[:first] + only + text[last:])
    monkeypatch.chdir(world)
    return world


@pytest.fixture
def type_(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """``type_("run", "toy")``: what the console script does in this process: exit code, stdout, stderr."""

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heatproof", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return typed


def test_run_prints_the_table_and_the_paths_of_what_it_wrote(home, type_):
    code, out, err = type_("run", "toy", "--workers", "1", "--limit", "4", "--set", "seed=5")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for name in ("bright", "dark", "noise"):
        assert any(name in line for line in lines)
    written = [line for line in lines if line.startswith("reports/toy/")]
    assert {
        "reports/toy/index.html",
        "reports/toy/table.md",
        "reports/toy/table.csv",
        "reports/toy/table.tex",
    } <= set(written)
    assert {Path(line).suffix for line in written} >= {".png", ".svg"}
    assert all((home / line).stat().st_size for line in written)
    told = json.loads((home / ".heatproof" / "toy.run.json").read_text())
    assert (told["seed"], told["dataset"]["samples"]) == (5, 4)
    assert told["changes"] == {"set": ["seed=5"], "limit": 4}


def test_plan_starts_nothing(home, type_):
    code, out, _ = type_("run", "toy", "--plan", "--workers", "1")
    assert code == 0
    assert "6 images, 1 models, 3 explainers and controls, 1 metrics" in out
    assert "in all about 6 cases, 18 forwards" in out
    assert "nothing was stored" in out
    assert not (home / ".heatproof").exists()


def test_plan_says_what_is_missing(home, type_, tiny):
    toml = home / "benchmarks" / "toy.toml"
    toml.write_text(toml.read_text().replace(str(tiny["resnet"]), "nobody/nothing"))
    code, out, _ = type_("run", "toy", "--plan")
    assert code == 0
    assert out.startswith("cannot run yet: model 'nobody/nothing'")


def test_report_is_drawn_again_without_torch(home, type_):
    run(Order("toy", cwd=home), Silent)
    done = subprocess.run(
        [sys.executable, "-P", "-c", NO_TORCH, "report", "toy"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("drawn from .heatproof/toy.csv")
    assert (home / "reports" / "toy" / "index.html").stat().st_size > 10_000
    (home / "benchmarks" / "toy.toml").unlink()  # results may outlive their spec
    assert type_("report", "toy")[0] == 0


def test_report_of_what_was_never_run_says_what_to_type(home, type_):
    assert type_("report", "toy")[::2] == (
        2,
        "heatproof: there is no result of toy yet. Type: heatproof run toy\n",
    )
    code, _, err = type_("report", "toi")
    assert code == 2
    assert "no benchmark 'toi'; did you mean 'toy'?" in err


def test_cells_of_the_frozen_keys_are_not_computed_again_unless_told(home, type_):
    assert type_("regress", "toy", "--workers", "1", "--freeze", "--reason", "first")[0] == 0
    ran = json.loads((home / ".heatproof" / "toy.run.json").read_text())["forwards"]
    shutil.rmtree(home / ".heatproof")
    code, out, _ = type_("regress", "toy", "--workers", "1")
    assert (code, "0 failed, 0 told" in out) == (0, True)
    again = json.loads((home / ".heatproof" / "toy.run.json").read_text())["forwards"]
    assert again < ran / 2  # what is left: the maps of the one case that the report shows
    for end in (".csv", ".curves.csv"):
        assert (home / ".heatproof" / f"toy{end}").read_bytes() == (
            home / "results" / f"toy{end}"
        ).read_bytes()
    rows = read_records(home / "results" / "toy.csv")
    first = next(r for r in rows if r.value is not None)
    changed = [dataclasses.replace(r, value=r.value + 1e-3) if r == first else r for r in rows]
    write_records(home / "results" / "toy.csv", changed)
    code, out, _ = type_("regress", "toy", "--workers", "1", "--fresh")
    assert code == 1
    assert "same key, another number: not deterministic" in out


def test_regress_freezes_agrees_and_fails_where_a_score_moved(home, type_):
    code, _, err = type_("regress", "toy", "--workers", "1")
    assert code == 2
    assert 'Type: heatproof regress toy --freeze --reason "first"' in err
    code, out, _ = type_("regress", "toy", "--workers", "1", "--freeze", "--reason", "first")
    assert code == 0
    assert out.split() == [
        f"results/toy{part}" for part in (".csv", ".curves.csv", ".strip.npz", ".run.json")
    ]
    assert type_("regress", "toy", "--workers", "1")[0] == 0
    code, out, _ = type_("regress", "toy", "--workers", "1", "--set", "explainers.bright.gain=-1.0")
    assert code == 1
    assert "bright" in out
    assert "inside.mass" in out
    code, _, err = type_("regress", "toy", "--freeze")
    assert code == 2
    assert "--freeze needs --reason" in err


@pytest.mark.parametrize("what", SHELVES)
def test_list_names_everything_on_a_shelf_in_a_line(home, type_, what):
    code, out, _ = type_("list", what)
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert len(names) == len(set(names))
    place = shelf.Place(home, home)
    if what in ("benchmarks", "recipes"):
        assert set(names) == set(getattr(place, what)())
    else:
        files = place.files(what)
        assert {name.partition(":")[0] for name in names} == {
            *files,
            *(place.trained() if what == "models" else ()),
        }
    assert all(line.endswith("]") for line in out.splitlines())


def test_list_tells_settings_and_source(home, type_):
    _, out, _ = type_("list", "explainers")
    assert (
        "bright                       (gain = 1.0)  The mean of the colours.  [explainers/bright.py]\n" in out
    )
    assert "[heatproof/explainers/gradcam.py]" in out


def test_show_draws_each_explainers_map_of_one_case(home, type_):
    code, out, _ = type_("show", "toy")
    assert code == 0
    assert out.startswith("cnn: s0.ball s1.star")
    code, out, _ = type_("show", "toy", "s1.star")
    assert code == 0
    picture = np.asarray(Image.open(home / out.split()[0]))
    assert out.split()[0] == "reports/toy/cases/cnn.s1.star.png" or Path(out.split()[0]).is_absolute()
    assert picture.std() > 10
    code, _, err = type_("show", "toy", "s1.stars")
    assert code == 2
    assert "no case 's1.stars'; did you mean 's1.star'?" in err


def test_doctor_finds_this_environment_in_order(home, type_):
    code, out, _ = type_("doctor")
    assert code == 0, out
    for name in ("torch", "transformers", "captum"):
        assert f"ok  {name} " in out


def test_doctor_says_what_to_type(home, type_, monkeypatch):
    import importlib.metadata
    import types

    from heatproof import doctor

    def version(name: str) -> str:
        if name == "captum":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)

    class Torn(types.ModuleType):
        def __getattr__(self, name: str) -> str:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", Torn("torchvision"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    (home / "benchmarks" / "far.toml").write_text('[data]\nfar = "nowhere"\n')
    (home / "cut").mkdir()
    (home / "cut" / "x.zip").write_bytes(b"no zip")
    (home / "benchmarks" / "torn.toml").write_text('[data]\ncut = "../cut"\n')
    code, out, _ = type_("doctor")
    assert code == 1
    assert "BAD captum is missing. Type: pip install -c constraints.txt captum" in out
    assert "operator torchvision::nms does not exist" in out
    assert "Type: pip uninstall torchvision" in out
    assert "data 'far' of far: not found. Type: heatproof run far --data far=DIR" in out
    assert "BAD data 'cut' of torn: x.zip cannot be opened as zip" in out


def test_export_writes_what_pycocotools_opens(home, type_):
    code, out, _ = type_("export", "scenes", "there", "--sample", "3")
    assert code == 0
    assert len(list((home / "there").rglob("*.png"))) == 3
    assert out


def test_train_of_an_unknown_recipe_names_the_nearest(home, type_):
    code, _, err = type_("train", "small_cn")
    assert code == 2
    assert "no recipe 'small_cn'; did you mean 'small_cnn'?" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "toi"), "no benchmark 'toi'; did you mean 'toy'?"),
        (("run", "toy", "--data", "x"), "--data x: found no '='; write NAME=DIR"),
        (("run", "toy", "--data", "x=y"), "no data of this benchmark 'x'"),
        (("run", "toy", "--set", "sed=1"), "no key of a spec 'sed'; did you mean 'seed'?"),
        (("run", "toy", "--stand-in"), "the spec has no [stand_in] table"),
        (("run", "toy", "--device", "tpu"), "--device tpu: accepted are cpu, cuda, cuda:1"),
        (("run", "toy", "--workers", "0"), "0 is not in the range"),
        (("list", "explainer"), "'explainer' is not one of"),
    ],
)
def test_wrong_words_exit_2(home, type_, words, said):
    code, _, err = type_(*words)
    assert code == 2
    assert said in err
    assert not (home / "reports").exists()


def test_version_and_help(type_):
    assert heatproof.__version__ in type_("--version")[1]
    _, out, _ = type_("-h")
    for command in ("run", "report", "regress", "list", "show", "train", "export", "doctor"):
        assert f"\n  {command} " in out


def test_stopping_by_hand_says_that_nothing_is_lost(home, type_, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("heatproof.runner.run", stop)
    code, _, err = type_("run", "toy")
    assert code == 130
    assert "the same command resumes" in err
