"""The mutation test of law 8: change one thing, and exactly the keys above it change, and only they are computed again."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from heatproof import keys, shelf
from heatproof.progress import Silent
from heatproof.runner import Order, run

Cell = tuple[str, str, str]  # model, explainer, sample

PARTNER = '''"""Partner: the pixels of another image."""

from dataclasses import dataclass

from heatproof import Explanation


@dataclass(frozen=True)
class Partner:
    """The pixels of another image."""

    needs_other = True

    def explain(self, model, cases):
        return [Explanation(image=case.other().pixels.mean(0)) for case in cases]
'''

WRAPPED = '''"""An adapter of the workspace's own."""

from dataclasses import dataclass

from heatproof.models.hf_classifier import HfClassifier


@dataclass(frozen=True)
class Wrapped:
    """A Hugging Face classifier."""

    name: str

    def load(self, name, device="cpu"):
        return HfClassifier(self.name).load(name, device)
'''

SPEC = """title = "Toy"
seed = 3
chunk = 2
dataset = { use = "squares", count = 3 }
models = [
  { use = "wrapped", name = "weights/resnet", as = "cnn" },
  { use = "hf_clip", name = "weights/clip", as = "clip" },
]
explainers = [{ use = "bright", gain = 2.0 }, "noise"]
controls = ["partner"]
metrics = ["inside", { use = "inside", power = 2.0, as = "squared" }]
headline = ["inside.mass"]
[tolerances]
"inside.mass" = 0.01
"""


@pytest.fixture
def home(world: Path, tiny: dict[str, Path], monkeypatch) -> Path:
    """A workspace that holds all it needs, so that a copy of it can be changed."""
    monkeypatch.chdir(world)
    (world / "explainers" / "partner.py").write_text(PARTNER)
    bright = (world / "explainers" / "bright.py").read_text()
    (world / "explainers" / "bright.py").write_text(
        bright.replace("from heatproof", "import toytools\nfrom heatproof")
    )
    (world / "explainers" / "toytools.py").write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(world / "explainers")
    (world / "models").mkdir()
    (world / "models" / "wrapped.py").write_text(WRAPPED)
    for name in ("resnet", "clip"):
        shutil.copytree(tiny[name], world / "weights" / name)
    (world / "benchmarks" / "toy.toml").write_text(SPEC)
    return world


@dataclass
class Seen:
    """What a run left: the key of each cell and metric, and how many maps and scores its store holds."""

    keys: dict[tuple[Cell, str], str]
    maps: int
    scores: int


def measured(folder: Path, monkeypatch, **order) -> Seen:
    monkeypatch.chdir(folder)
    result = run(Order("toy", cwd=folder, **order), Silent)
    assert not result.run["failures"]
    found = {((r.model, r.explainer, r.sample), r.metric): r.key for r in result.records}
    with closing(sqlite3.connect(folder / ".heatproof" / "toy.sqlite")) as db:
        counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("maps", "scores")]
    return Seen(found, *counts)


def edit(path: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / path).read_text()
        assert text.count(old) == count, (path, old)
        (folder / path).write_text(text.replace(old, new))

    return change


def nudge_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "weights" / "resnet" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(name for name, t in tensors.items() if t.is_floating_point())[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def everything(cell: Cell, metric: str) -> bool:
    return True


def nothing(cell: Cell, metric: str) -> bool:
    return False


def of_sample_1(cell: Cell, metric: str) -> bool:
    """Its own cells, and the one whose partner it is."""
    return cell[2] == "s1" or (cell[1] == "partner" and cell[2] == "s2")  # the round of images by this seed


SPEC_FILE, DATA_FILE = "benchmarks/toy.toml", "datasets/squares.py"
MUTATIONS: dict[str, tuple[Callable[[Path], None], Callable[[Cell, str], bool]]] = {
    "a weight": (nudge_a_weight, lambda cell, metric: cell[0] == "cnn"),
    "the adapter's source": (
        edit("models/wrapped.py", "workspace's own", "workspace's very own"),
        lambda cell, metric: cell[0] == "cnn",
    ),
    "a pixel": (
        edit(DATA_FILE, "    return image\n", "    image[5, 5, 0] ^= i == 1\n    return image\n"),
        of_sample_1,
    ),
    "a mask bit": (
        edit(DATA_FILE, "        name = (", "        mask[0, 0] = i == 1\n        name = ("),
        of_sample_1,
    ),
    "a caption": (
        edit(DATA_FILE, "on the grass", "on the {'sky' if i == 1 else 'grass'}"),
        of_sample_1,
    ),
    "a target": (
        edit(
            DATA_FILE,
            "partial(_draw, i, mask), name,",
            "partial(_draw, i, mask), 'ball' if i == 1 else name,",
        ),
        of_sample_1,
    ),
    "an explainer's settings": (
        edit(SPEC_FILE, "gain = 2.0", "gain = 3.0"),
        lambda cell, metric: cell[1] == "bright",
    ),
    "an explainer's source": (
        edit("explainers/bright.py", "* self.gain", "* self.gain * 1"),
        lambda cell, metric: cell[1] == "bright",
    ),
    "a local module that an explainer imports": (
        edit("explainers/toytools.py", "FACTOR = 1", "FACTOR = 2"),
        lambda cell, metric: cell[1] == "bright",
    ),
    "a metric's settings": (
        edit(SPEC_FILE, "power = 2.0", "power = 3.0"),
        lambda cell, metric: metric == "squared",
    ),
    "a metric's source": (
        edit("metrics/inside.py", "no positive heat", "no heat above zero"),
        everything,
    ),
    "the seed": (edit(SPEC_FILE, "seed = 3", "seed = 4"), everything),
    "the target policy": (
        edit(SPEC_FILE, "[tolerances]", '[targets]\nclassifier = "objects"\n[tolerances]'),
        lambda cell, metric: cell[0] == "cnn",
    ),
    "the title, the chunks, the tolerances": (
        lambda folder: [
            edit(SPEC_FILE, *pair)(folder)
            for pair in (
                ('"Toy"', '"Other"'),
                ("chunk = 2", "chunk = 3"),
                ("0.01", "0.5"),
                ("seed", "# ?\nseed"),
            )
        ],
        nothing,
    ),
    "the order of models and explainers": (
        edit(SPEC_FILE, '{ use = "bright", gain = 2.0 }, "noise"', '"noise", { use = "bright", gain = 2.0 }'),
        nothing,
    ),
    "a docstring": (
        edit("explainers/noise.py", '"""Noise:', '"""Noise :', 1),
        lambda c, m: c[1] == "noise",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_change_moves_exactly_the_keys_above_it(home, tmp_path_factory, monkeypatch, name):
    change, moved = MUTATIONS[name]
    before = measured(home, monkeypatch)
    assert len(before.keys) == 2 * 3 * 3 * 2  # models, samples, explainers, metrics
    assert len(set(before.keys.values())) == len(before.keys)
    other = tmp_path_factory.mktemp("changed") / "home"
    shutil.copytree(home, other)
    change(other)
    after = measured(other, monkeypatch)
    assert after.keys.keys() == before.keys.keys()
    changed = {place for place in before.keys if after.keys[place] != before.keys[place]}
    expected = {place for place in before.keys if moved(*place)}
    assert changed == expected
    # ... and only they were computed again: the copy came with the store of the first run
    assert after.scores - before.scores == len(expected)
    only_scores = name.startswith("a metric's")
    cells = set() if only_scores else {cell for cell, _ in expected}
    assert after.maps - before.maps == len(cells)


def test_workers_limit_and_place_are_no_part_of_a_key(home, monkeypatch):
    before = measured(home, monkeypatch)
    limited = measured(home, monkeypatch, limit=2)
    # `partner` of the last sample looks at another image where there are fewer
    same = {k: v for k, v in limited.keys.items() if k[0][1] != "partner"}
    assert same.items() <= before.keys.items()


def test_a_renamed_explainer_keeps_its_keys(home, tmp_path_factory, monkeypatch):
    before = measured(home, monkeypatch)
    edit(SPEC_FILE, "gain = 2.0", 'gain = 2.0, as = "renamed"')(home)
    after = measured(home, monkeypatch)
    assert {(m, c, metric): v for ((m, e, c), metric), v in before.keys.items() if e == "bright"} == {
        (m, c, metric): v for ((m, e, c), metric), v in after.keys.items() if e == "renamed"
    }
    assert (after.maps, after.scores) == (before.maps, before.scores)


# ---------------------------------------------------------------- what a run here cannot change


@pytest.fixture
def model_key(families, home):
    from heatproof import spec

    part = spec.read("toy", home).models[1]
    model, _ = families["clip"]
    return lambda device="cpu": keys.model_key(part, model, device)


def test_the_device_kind_counts_and_its_number_does_not(model_key):
    assert model_key("cpu") != model_key("cuda")
    assert model_key("cuda:0") == model_key("cuda:1")


def test_the_torch_version_counts(model_key, monkeypatch):
    before = model_key()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert model_key() != before


def test_the_version_of_transformers_counts_in_the_key_and_not_in_the_models_hash(
    model_key, monkeypatch, families
):
    before = model_key()
    monkeypatch.setattr(keys, "version", lambda package: "9.9.9")
    assert model_key() != before
    model, _ = families["clip"]
    twin = model.twin(lambda net: setattr(net.config, "transformers_version", "9.9.9"), "newer")
    assert twin.hash == model.hash
    assert model.twin(lambda net: setattr(net.config, "projection_dim", 9), "other").hash != model.hash


def test_the_processor_kind_counts(model_key, monkeypatch):
    before = model_key()
    monkeypatch.setattr("platform.machine", lambda: "riscv128")
    assert model_key() != before


def test_the_case_key_holds_every_tensor_and_field(families):
    import dataclasses

    _, cases = families["clip"]
    case = dataclasses.replace(
        cases[0], ignore=torch.zeros(2, 2, dtype=torch.bool), evidence_text=torch.zeros(3, dtype=torch.bool),
        named=torch.zeros(3, 1, dtype=torch.bool),
    )  # fmt: skip
    changes = {
        "id": "x", "sample": "x", "about": "x", "target": "x", "choices": ("x",), "seed": 9, "words": (9,),
        "references": ("x",), "things": ("x",),
        **{
            name: torch.cat([getattr(case, name).flatten(), torch.ones(1).to(getattr(case, name).dtype)])
            for name in ("pixels", "tokens", "evidence", "boxes", "ignore", "evidence_text", "named")
        },
    }  # fmt: skip
    base = keys.case_key("m", case, "d", "p")
    found = {keys.case_key("m", dataclasses.replace(case, **{k: v}), "d", "p") for k, v in changes.items()}
    found |= {
        keys.case_key("n", case, "d", "p"),
        keys.case_key("m", case, "e", "p"),
        keys.case_key("m", case, "d", "q"),
    }
    assert base not in found
    assert len(found) == len(changes) + 3
    # what is not part of the question: whose cost it is, the shown words, how much the crop cut away
    free = dataclasses.replace(case, charge="x", spoken=("x",), cut=0.5, other=None)
    assert keys.case_key("m", free, "d", "p") == base


def test_a_fit_depends_on_every_sample_of_its_split(home):
    from heatproof import spec

    part = spec.read("toy", home).explainers[0]
    base = keys.fit_key("m", part, ["a", "b"], 0)
    assert (
        len(
            {
                base,
                *(
                    keys.fit_key(*x)
                    for x in (("n", part, ["a", "b"], 0), ("m", part, ["a"], 0), ("m", part, ["a", "b"], 1))
                ),
            }
        )
        == 4
    )
    assert keys.map_key("c", part, base) != keys.map_key("c", part, "")
    assert keys.map_key("c", part, "", "other") != keys.map_key("c", part, "")


def test_a_nested_explainers_source_and_settings_are_in_the_key(home, tmp_path_factory):
    from heatproof import spec

    found = []
    for gain, comment in ((1.0, ""), (2.0, ""), (1.0, "# changed\n")):
        other = tmp_path_factory.mktemp("nested") / "home"
        shutil.copytree(home, other)
        over = "from dataclasses import dataclass\nfrom heatproof.contract import Explainer\n\n\n@dataclass(frozen=True)\nclass Over:\n    of: Explainer\n\n    def explain(self, model, cases):\n        return self.of.explain(model, cases)\n"
        (other / "explainers" / "over.py").write_text(over)
        (other / "explainers" / "bright.py").write_text(
            (other / "explainers" / "bright.py").read_text() + comment
        )
        edit(SPEC_FILE, "gain = 2.0", f"gain = {gain}")(other)
        edit(SPEC_FILE, '["partner"]', '[{ use = "over", of = "bright" }]')(other)
        found.append(keys.map_key("c", spec.read("toy", other).explainers[-1]))
    assert len(set(found)) == 3


def test_sources_are_of_the_files_on_disk(home):
    assert shelf.source(home / "explainers" / "bright.py") != shelf.source(home / "explainers" / "noise.py")


def test_a_metric_that_looks_at_another_image_has_it_in_its_key(home, tmp_path_factory, monkeypatch):
    """On the marginal baseline a score is of two images: a pixel of either moves it, and of no third."""
    metrics = '{ use = "deletion", steps = 2, baseline = "marginal", as = "squared" }'
    edit(SPEC_FILE, '{ use = "inside", power = 2.0, as = "squared" }', metrics)(home)
    before = measured(home, monkeypatch)
    other = tmp_path_factory.mktemp("marginal") / "home"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns(".heatproof"))
    MUTATIONS["a pixel"][0](other)
    after = measured(other, monkeypatch)
    moved = {place for place in before.keys if before.keys[place] != after.keys[place]}
    marginal = {(cell[1:], metric) for cell, metric in moved if metric == "squared"}
    assert {sample for (_, sample), _ in marginal} == {"s1", "s2"}  # its own, and whose partner it is
    assert {sample for (_, e, sample), metric in moved if metric == "inside" and e != "partner"} == {"s1"}
