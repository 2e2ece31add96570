"""A benchmark's TOML is read strictly: what is wrong is named with file, field, what was found and what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from heatproof import Refused, spec


@pytest.fixture
def toml(world: Path) -> Path:
    return world / "benchmarks" / "toy.toml"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def test_a_spec_is_read_whole(world):
    read = spec.read("toy", world)
    assert (read.name, read.title, read.kind, read.seed, read.chunk) == ("toy", "Toy", "instrument", 3, 4)
    assert [p.name for p in read.models] == ["cnn", "vit", "clip", "captioner"]
    assert [(p.name, p.role) for p in read.explainers] == [
        ("bright", "method"),
        ("dark", "method"),
        ("noise", "control"),
    ]
    assert read.explainers[1].settings == {"gain": -1.0}
    assert read.explainers[1].summary == "The mean of the colours."
    assert read.targets == {"classifier": "label", "dual": "caption 0", "captioner": "caption 0"}
    assert read.headline == ("inside.mass",)
    assert read.tolerances == {"inside.mass": 0.01}
    assert read.workspace == world
    assert read.dataset.made.count == 6


WRONG = {
    "unknown key": ('title = "Toy"', 'titel = "Toy"', r"toy.toml: no key 'titel'; did you mean 'title'\?"),
    "missing key": ('dataset = "squares"\n', "", r"toy.toml: `dataset` is missing; see benchmarks/demo.toml"),
    "malformed": ("seed = 3", "seed = ", r"toy.toml: not valid TOML: .*line 3"),
    "wrong type": ("seed = 3", 'seed = "three"', r"toy.toml: seed: found 'three', accepted is int"),
    "bool for int": ("chunk = 4", "chunk = true", r"toy.toml: chunk: found True, accepted is int"),
    "table for list": ('metrics = ["inside"]', "metrics = { a = 1 }", r"toy.toml: metrics: found .*accepted is list"),
    "no chunk": ("chunk = 4", "chunk = 0", r"toy.toml: chunk: found 0, accepted is 1 or more"),
    "kind": ('"instrument"', '"instruments"', r"toy.toml: kind: no kind 'instruments'; did you mean 'instrument'"),
    "family": ("[targets]", "[targets]\nclasifier = 'label'", r"toy.toml: targets: no family 'clasifier'; did you mean 'cl"),
    "explainer": ('["bright",', '["brigth",', r"toy.toml: explainers: no explainer 'brigth'; did you mean 'bright'"),
    "metric": ('["inside"]', '["insides"]', r"toy.toml: metrics: no metric 'insides'; did you mean 'inside'"),
    "dataset": ('"squares"', '"square"', r"toy.toml: dataset: no dataset 'square'; did you mean 'squares'"),
    "control": ('["noise"]', '["nois"]', r"toy.toml: controls: no explainer 'nois'; did you mean 'noise'"),
    "model": ('"hf_clip"', '"hf_clp"', r"toy.toml: models: no model 'hf_clp'; did you mean 'hf_clip'"),
    "setting": ("gain = -1.0", "gian = -1.0", r"toy.toml: explainers: dark: no setting 'gian'; did you mean 'gain'"),
    "setting's type": ("gain = -1.0", 'gain = "low"', r"toy.toml: explainers: dark.gain: found 'low', accepted is float"),
    "data's setting": ('"squares"', '{ use = "squares", count = 1.5 }', r"dataset: squares.count: found 1.5, accepted is int"),
    "no use": ('["inside"]', "[{ power = 2.0 }]", r"toy.toml: metrics: found \{'power': 2.0\}, accepted is \"name\" or"),
    "number": ('["inside"]', "[3]", r"toy.toml: metrics: found 3, accepted is \"name\""),
    "twice": ('["bright",', '["dark",', r"no explainer 'dark'"),
    "same name": ('["bright",', '["bright", "bright",', r"toy.toml: explainers: 'bright' stands twice; .*as = \"...\""),
    "same model": ('as = "vit"', 'as = "cnn"', r"toy.toml: models: 'cnn' stands twice"),
    "headline": ('["inside.mass"]', '["inside.mas"]', r"toy.toml: headline or tolerances: no column 'inside.mas'; did you mean 'inside.mass'"),
    "tolerance": ('"inside.mass" = ', '"inside.max" = ', r"no column 'inside.max'; did you mean 'inside.mass'.*inside.blank, inside.mass"),
    "tolerance's type": ('"inside.mass" = 0.01', '"inside.mass" = "small"', r"toy.toml: tolerances: inside.mass: found 'small', accepted is float"),
    "title's type": ('title = "Toy"', "title = 3", r"toy.toml: title: found 3, accepted is str"),
    "headline's type": ('["inside.mass"]', "[3]", r"toy.toml: headline: found 3, accepted is str"),
    "control's form": ('["noise"]', "[3]", r"toy.toml: controls: found 3, accepted is \"name\""),
    "folder": ('["noise"]', '["noise"]\nfit = "{mine}"', r"toy.toml: fit: no folder of \[data\] 'mine'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(world, toml, name):
    old, new, said = WRONG[name]
    edit(toml, old, new)
    with pytest.raises(Refused, match=said) as refused:
        spec.read("toy", world)
    assert "\n" not in str(refused.value)


def test_a_setting_out_of_range_keeps_the_parts_own_words(world, toml):
    text = (world / "metrics" / "inside.py").read_text()
    check = "    def __post_init__(self):\n        if self.power <= 0:\n            raise ValueError('power: found 0, accepted is above 0')\n\n"
    (world / "metrics" / "inside.py").write_text(text.replace("    def measure", check + "    def measure"))
    edit(toml, '["inside"]', '[{ use = "inside", power = 0 }]')
    with pytest.raises(Refused, match=r"toy.toml: metrics: inside: power: found 0, accepted is above 0"):
        spec.read("toy", world)


# ---------------------------------------------------------------- names, paths and workspaces


def test_unknown_benchmark(world):
    with pytest.raises(
        Refused, match=r"no benchmark 'toi'; did you mean 'toy'\? There are: .*A path works too"
    ):
        spec.read("toi", world)
    with pytest.raises(Refused, match=r"x.toml: there is no such file"):
        spec.read("x.toml", world)


def test_a_metric_that_removes_pixels_and_names_no_baseline_is_run_on_three(world, toml):
    edit(toml, '["inside"]', '["inside", "deletion", { use = "deletion", baseline = "noise", as = "noisy" }]')
    read = spec.read("toy", world)
    found = [(m.name, m.settings.get("baseline")) for m in read.metrics]
    assert found == [
        ("inside", None),
        ("deletion", "mean"),
        ("deletion-blur", "blur"),
        ("deletion-inpaint", "inpaint"),
        ("noisy", "noise"),
    ]
    named = spec.read("toy", world, sets=["metrics.deletion.baseline=black"])
    assert [m.name for m in named.metrics] == ["inside", "deletion", "noisy"]


def test_modes_show_a_known_bug_beside_its_correction(world, toml):
    edit(toml, '["inside"]', '["inside", "correctness"]')
    assert [m.name for m in spec.read("toy", world).metrics] == ["inside", "correctness"]
    both = spec.read("toy", world, sets=['modes=["corrected", "as_released"]']).metrics
    assert [(m.name, m.settings.get("as_released")) for m in both] == [
        ("inside", None),
        ("correctness", False),
        ("correctness (as released)", True),
    ]
    (_, alone) = spec.read("toy", world, sets=['modes=["as_released"]']).metrics
    assert (alone.name, alone.made.as_released) == ("correctness (as released)", True)
    with pytest.raises(Refused, match=r"modes: no mode 'released'; did you mean 'as_released'"):
        spec.read("toy", world, sets=['modes=["released"]'])


def test_a_path_brings_its_own_workspace(world, tmp_path_factory):
    read = spec.read(str(world / "benchmarks" / "toy.toml"), tmp_path_factory.mktemp("elsewhere"))
    assert (read.name, read.workspace) == ("toy", world)
    (world / "benchmarks" / "papers").mkdir()
    (world / "benchmarks" / "toy.toml").rename(world / "benchmarks" / "papers" / "toy.toml")
    assert spec.read("papers/toy", world).name == "papers/toy"


def test_a_spec_outside_a_shelf_works_in_its_own_folder(world):
    (world / "mine.toml").write_text((world / "benchmarks" / "toy.toml").read_text())
    read = spec.read(str(world / "mine.toml"))
    assert (read.name, read.workspace) == ("mine", world)


def test_nothing_is_written_beside_the_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "heatproof"
    (package / "_house" / "benchmarks").mkdir(parents=True)
    (package / "_house" / "benchmarks" / "one.toml").write_text("")
    monkeypatch.setattr(spec.shelf, "PACKAGE", package)
    here = tmp_path / "here"
    here.mkdir()
    assert spec.shelf.locate("one", here) == ("one", package / "_house" / "benchmarks" / "one.toml", here)


# ---------------------------------------------------------------- the command line's changes


def test_set_changes_parts_keys_and_tables(world):
    read = spec.read(
        "toy",
        world,
        sets=[
            "explainers.dark.gain=-2",
            "metrics.inside.power=2.0",
            "seed=9",
            "title=Other",
            "dataset.count=3",
            "targets.dual=caption 1",
            "tolerances.inside.mass=0.5",
        ],
    )
    assert read.explainers[1].settings == {"gain": -2}
    assert read.metrics[0].settings == {"power": 2.0}
    assert (read.seed, read.title, read.dataset.made.count) == (9, "Other", 3)
    assert read.targets["dual"] == "caption 1"
    assert read.tolerances == {"inside.mass": 0.5}
    assert spec.read("toy", world).seed == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed", r"--set seed: found no '='; write for example metrics.deletion.steps=50"),
        ("sed=1", r"--set sed=1: no key of a spec 'sed'; did you mean 'seed'"),
        ("metrics.insid.power=2", r"no metric 'insid'; did you mean 'inside'"),
        ("metrics.inside=2", r"--set metrics.inside=2: write metrics.NAME.FIELD=VALUE"),
        ("metrics.inside.pwer=2", r"toy.toml: metrics: inside: no setting 'pwer'; did you mean 'power'"),
        ("metrics.inside.power=high", r"inside.power: found 'high', accepted is float"),
        ("seed=x", r"toy.toml: seed: found 'x', accepted is int"),
    ],
)
def test_wrong_set(world, change, said):
    with pytest.raises(Refused, match=said):
        spec.read("toy", world, sets=[change])


def test_folders_of_data_come_from_the_command_the_environment_or_the_spec(world, toml, monkeypatch):
    edit(toml, '["bright",', '[{ use = "bright", note = "{pictures}/x.zip" },')
    source = (world / "explainers" / "bright.py").read_text()
    (world / "explainers" / "bright.py").write_text(
        source.replace("gain: float = 1.0", 'gain: float = 1.0\n    note: str = ""')
    )
    edit(toml, "[targets]", '[data]\npictures = "../pictures"\n[targets]')

    def note(**settings):
        part = spec.read("toy", world, **settings).explainers[0]
        assert part.settings["note"] == "{pictures}/x.zip"  # no path of a machine in keys and run.json
        return part.made.note

    assert note() == str(world / "pictures" / "x.zip")
    monkeypatch.setenv("HEATPROOF_DATA_PICTURES", str(world / "env"))
    assert note() == str(world / "env" / "x.zip")
    assert note(data={"pictures": str(world / "typed")}) == str(world / "typed" / "x.zip")
    with pytest.raises(
        Refused, match=r"--data pictues: no data of this benchmark 'pictues'; did you mean 'pictures'"
    ):
        note(data={"pictues": "x"})
    assert spec.read("toy", world).explainers[0].entry["note"] == "{pictures}/x.zip"  # what run.json tells


def test_stand_in(world, toml):
    with pytest.raises(Refused, match=r"toy.toml: --stand-in, but the spec has no \[stand_in\] table"):
        spec.read("toy", world, stand_in=True)
    toml.write_text(toml.read_text() + '\n[stand_in]\ndataset = { use = "squares", count = 2 }\n')
    plain, stood = spec.read("toy", world), spec.read("toy", world, stand_in=True)
    assert (plain.dataset.made.count, plain.stand_in) == (6, False)
    assert (stood.dataset.made.count, stood.stand_in) == (2, True)


# ---------------------------------------------------------------- controls of other methods

OVER = '''"""Over."""

from dataclasses import dataclass

from heatproof.contract import Explainer, explain


@dataclass(frozen=True)
class Over:
    """Another method's own map."""

    of: Explainer

    def explain(self, model, cases):
        return explain(self.of, model, cases)
'''


def test_a_control_of_other_methods_makes_a_row_for_each(world, toml):
    (world / "explainers" / "over.py").write_text(OVER)
    edit(toml, '["noise"]', '["over", { use = "over", of = ["dark"], as = "under" }]')
    read = spec.read("toy", world)
    controls = [p for p in read.explainers if p.role == "control"]
    assert [p.name for p in controls] == ["over(bright)", "over(dark)", "under(dark)"]
    assert controls[1].made.of == read.explainers[1].made
    assert controls[1].settings == {"of": {"use": "Bright", "gain": -1.0}}
    edit(toml, 'of = ["dark"]', 'of = ["drak"]')
    with pytest.raises(Refused, match=r"under\(drak\).of: no explainer 'drak'; did you mean 'dark'"):
        spec.read("toy", world)
