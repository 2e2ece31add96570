"""The benchmarks of Sun et al. 2022: read in full, ask what the paper asks, and run on their stand-ins without a verdict."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from heatproof import shelf, spec
from heatproof.captions.stop_words import STOP_WORDS
from heatproof.metrics.object_words import FLICKR
from heatproof.progress import Silent
from heatproof.runner import Order, run
from heatproof.summary import summarise
from heatproof.words import published

PAPERS = [
    f"papers/lrp_captioning_{what}" for what in ("localization", "ablation", "stop_words", "hallucination")
]
TUNED = ["papers/lrp_captioning_fine_tuning", "fine_tuning_scenes"]
BUGGY = {
    "lrp",
    "gradient",
    "gradcam",
    "guided-backprop",
    "guided-gradcam",
}  # as released, beside what they should be
METHODS = {"attention"} | BUGGY | {f"{name} (as released)" for name in BUGGY}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """The specs as they are, where results may be written; none of the folders of [data] is there."""
    folder = tmp_path_factory.mktemp("sun")
    (folder / "benchmarks" / "papers").mkdir(parents=True)
    for name in (*PAPERS, *TUNED):
        shutil.copy(shelf.house() / "benchmarks" / f"{name}.toml", folder / "benchmarks" / f"{name}.toml")
    return folder


def asked_words(policy: str) -> list[str]:
    return policy.removeprefix("said words '").removesuffix("'").split(", ")


@pytest.mark.parametrize("name", [*PAPERS, *TUNED])
@pytest.mark.parametrize("stand_in", [False, True])
def test_every_one_is_read_in_full(workspace, name, stand_in):
    asked = spec.read(name, workspace, stand_in=stand_in)
    assert asked.headline
    assert {"random"} <= {p.name for p in asked.explainers if p.role == "control"}
    columns = {f"{m.name}.{v.name}" for m in asked.metrics for v in m.made.measures}
    for table in asked.published:
        assert {"source", "whose", "compare"} <= set(table)
        assert set(table["columns"]) <= columns
        assert all(len(numbers) == len(table["columns"]) for numbers in table["rows"].values())
    if stand_in:  # nothing that is not in the house
        folders = shelf.read_toml(asked.path)["data"]
        parts = [asked.dataset, *asked.models, *asked.metrics, *([asked.fit] if asked.fit else [])]
        assert not [p.name for p in parts if any(f"{{{folder}}}" in str(p.entry) for folder in folders)]


@pytest.mark.parametrize("name", PAPERS)
def test_a_replay_asks_the_authors_captioners_with_the_papers_explainers(workspace, name):
    asked = spec.read(name, workspace, data={"released": str(workspace / "theirs")})
    assert asked.kind == "replay"
    assert [m.name for m in asked.models] == ["ada-lstm", "mh-fc", "flickr8k_captioner"]
    for part in asked.models[:2]:
        assert Path(part.made.name).parent == Path(part.made.wordmap).parent == workspace / "theirs"
        assert (part.made.beam, part.made.strip_endings) == (1 if "hallucination" in name else 3, True)
    methods = {p.name: p.made for p in asked.explainers if p.role == "method"}
    assert set(methods) == METHODS - (
        {"attention"} if "stop_words" in name else set()
    )  # it has no relevance of words
    assert (methods["lrp"].composite, methods["lrp"].decoder_epsilon) == ("alpha1beta0", 0.01)
    assert not asked.published  # no figure of the paper is known


def test_what_is_asked_is_what_the_authors_ask(workspace):
    local, ablation, stops, made_up = (spec.read(name, workspace) for name in PAPERS)
    signs = {m.name: (m.made.sign, m.made.as_released) for m in local.metrics}
    assert signs == {
        "correctness": ("positive", False), "correctness (as released)": ("positive", True),
        "correctness-neg": ("negative", False), "correctness-neg (as released)": ("negative", True),
    }  # fmt: skip
    patches, prefix = (m.made for m in ablation.metrics)
    assert (patches.side, patches.patches, patches.least) == (8, 20, 1)
    for made in (prefix, stops.metrics[0].made):
        assert (made.count, made.least, made.removal) == (3, 6, "delete")
    objects = asked_words(ablation.targets["captioner"])
    assert len(objects) == len(set(objects)) == 101
    assert {"phone", "jetliner", "baby", "table"} <= set(objects)
    assert sorted(asked_words(stops.targets["captioner"])) == sorted(STOP_WORDS)
    assert asked_words(made_up.targets["captioner"]) == list(FLICKR)
    assert [m.made.truth for m in made_up.metrics] == ["references"] * 3


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (TUNED[0], ["cross-entropy", "lrp-inference"]),
        (TUNED[1], ["cross-entropy", "lrp-inference", "cider", "lrp-cider"]),
    ],
)
def test_the_tuned_ones_stand_in_three_replicates_beside_the_one_before(workspace, name, kinds):
    asked = spec.read(name, workspace, data={"tuned": str(workspace / "tuned")})
    found: dict[str, list[tuple[int, str]]] = {}
    for part in asked.models:
        found.setdefault(part.name, []).append((part.replicate, Path(part.made.name).name))
    before = [label for label, parts in found.items() if len(parts) == 1]
    assert [label.rpartition(" ")[2] for label in before] == ["before"] * (
        len(asked.models) // (3 * len(kinds))
    )
    for label in before:
        ((_, start),) = found.pop(label)
        for kind in kinds:
            parts = found.pop(label.replace("before", kind))
            assert parts == [(k, f"{start}_{kind.replace('-', '_')}_{k}") for k in range(3)]
    assert not found
    assert {str(Path(p.made.name).parent) for p in asked.models if p.use == "own_captioner"} == {
        str(workspace / "tuned")
    }


def test_the_published_figures_are_those_of_comments_and_file_names(workspace):
    asked = spec.read(TUNED[0], workspace)
    assert asked.kind == "photographs"  # of other captioners on other data: no replay, no verdict
    pairs = [list(t["rows"].values()) for t in asked.published if t["columns"] == ["object_words.map"]]
    assert pairs == [[[0.5160], [0.5306]], [[0.5579], [0.5580]], [[0.6353], [0.6458]], [[0.6413], [0.6419]]]
    (names,) = (t for t in asked.published if t["columns"] == ["caption_quality.cider_d"])
    assert [n for (n,) in names["rows"].values()] == [0.5414, 0.5212, 1.0445, 1.1183, 1.0586]
    assert all("not the paper's tables" in t["source"] for t in asked.published)


def test_localization_runs_on_its_stand_in(workspace):
    sets = ('models=["small_captioner"]', 'controls=["random"]')
    found = run(Order(PAPERS[0], stand_in=True, limit=2, sets=sets, cwd=workspace), Silent)
    assert not found.run["failures"]
    values = [r for r in found.records if r.status == "value"]
    assert {r.explainer for r in values} == {*METHODS, "random"}
    assert {r.metric.partition(" ")[0] for r in values} == {"correctness", "correctness-neg"}
    assert all(0 <= r.value <= 1 for r in values)
    # attention and Grad-CAM have no negative part to be anywhere
    negative = {r.explainer for r in values if r.metric == "correctness-neg"}
    assert {name.partition(" (")[0] for name in negative} == {
        "lrp",
        "gradient",
        "guided-backprop",
        "guided-gradcam",
    }
    assert not published(summarise(found), summarise(found).blocks[0])


def test_fine_tuning_runs_on_its_stand_in(workspace):
    sets = ('models=["small_captioner"]',)
    found = run(Order(TUNED[0], stand_in=True, limit=2, sets=sets, cwd=workspace), Silent)
    assert not found.run["failures"]
    of_model = [r for r in found.records if r.role == "model"]
    values = {f"{r.metric}.{r.name}" for r in of_model if r.status == "value" and math.isfinite(r.value)}
    asked = spec.read(TUNED[0], workspace, stand_in=True)
    assert set(asked.headline) | {"object_words.map", "object_words (as released).map"} <= values
    summary = summarise(found)
    shown = published(summary, summary.blocks[0])
    assert len(shown) == 4 * 2 + 5
    assert {row.verdict for row in shown} == {"not checked: a stand-in"}
