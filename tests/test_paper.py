"""The paper's table and figure: ours last, claims by the tests that are printed, cases drawn by a rule that is told."""

from __future__ import annotations

import dataclasses
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import spearmanr

from heatproof import detector, paper
from heatproof.cli import cli
from heatproof.errors import Refused
from heatproof.progress import Silent
from heatproof.records import Record
from heatproof.runner import Order, run
from heatproof.store import Store
from heatproof.summary import summarise

make = runpy.run_path(str(Path(__file__).with_name("synthetic.py")))["make"]


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(make(tmp_path_factory.mktemp("made"), noise=0.02))


def first(summary, name="deletion.srg"):
    block = summary.blocks[0]
    return block, next(c for c in block.columns if c.name == name)


def type_(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(w) for w in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


# ---------------------------------------------------------------- the table


def test_ours_is_last_and_marked_and_nothing_else_moves(summary):
    block, _ = first(summary)
    table = paper.own(summary, block, "gradcam")
    assert table.lines[-1].name == "gradcam (ours)"
    others = [line.name for line in table.lines[:-1]]
    assert others == [*(m for m in block.methods if m != "gradcam"), *others[len(block.methods) - 1 :]]
    assert len(table.lines) == len(block.methods) + len(block.controls)
    body = [row for row in paper.latex(summary, "gradcam").splitlines() if row.endswith(r"\\")]
    assert body[len(table.lines)].startswith("gradcam (ours) & ")


def test_bold_stands_where_the_best_value_is_and_the_caption_tells_counts_and_claim(summary):
    text = paper.latex(summary, "attention")
    block, column = first(summary)
    row = next(line for line in text.splitlines() if line.startswith(f"{column.leader} &"))
    assert rf"\textbf{{{column.text(column.cells[column.leader].value)}}}" in row
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    assert f"{block.images} images, {block.cases} cases; instrument: " in caption
    assert f"deletion.srg: attention is significantly worse than {column.leader}" in caption
    assert text.splitlines()[0].startswith("% Synthetic: maps with a known truth; 24 images, ")
    assert text.count(r"\begin{table}") == len(summary.blocks) == 2


@pytest.mark.parametrize("name", ["lrp", "gradcam", "attention", "ig-16"])
def test_a_claim_is_never_rosier_than_the_column(summary, name):
    for block in summary.blocks:
        for column, said in zip(block.columns, paper.claims(block, name), strict=False):
            worse = f"significantly worse than {column.leader}" in said and "not significantly" not in said
            assert worse == (name != column.leader and column.behind(name))
            assert ("has the best value" in said.split(",")[0] or "better than every" in said) == (
                name == column.leader
            )
            assert ("nothing is claimed" in said) == bool(column.suspect or detector.faults(column))


def test_where_a_control_does_as_well_nothing_is_claimed(tmp_path):
    made = make(tmp_path, controls={"random": 0.41, "centre": 0.1}, noise=0.2)
    block, column = first(summarise(made))
    assert column.suspect
    said = paper.claims(block, str(column.leader))[0]
    assert "nothing is claimed, because random never saw the model" in said
    dash = make(tmp_path / "dash", unsuited=(("small_cnn", "attention"),))
    assert "attention has no value: " in paper.claims(summarise(dash).blocks[0], "attention")[0]


def test_a_name_that_is_no_method_is_refused(summary):
    with pytest.raises(Refused, match="no method 'gradcm'; did you mean 'gradcam'"):
        paper.latex(summary, "gradcm")
    with pytest.raises(Refused, match="no method 'random'"):
        paper.terminal(summary, "random")


# ---------------------------------------------------------------- the cases


def values(summary, block, column) -> dict[str, dict[str, float]]:
    """A slow twin: each case's values of the methods."""
    out: dict[str, dict[str, float]] = {}
    for r in summary.result.records:
        if (
            (r.model, r.column) == (block.model, column.name)
            and r.explainer in block.methods
            and not r.replicate
        ):
            out.setdefault(r.case, {})[r.explainer] = r.value
    return out


def drawn(summary, rows, whose="lrp", name="deletion.srg", seed=0):
    block, column = first(summary, name)
    return paper.picks(summary.result.records, block, column, paper.asked(rows), whose, seed)


def test_disagree_are_the_lowest_rank_correlations_with_the_column(summary):
    block, column = first(summary)
    names = list(block.methods)
    mean = [column.cells[n].value for n in names]
    rho = {c: spearmanr([v[n] for n in names], mean)[0] for c, v in values(summary, block, column).items()}
    wanted = sorted(rho, key=lambda c: (round(rho[c], 12), c))[:5]
    found = drawn(summary, "disagree:5")
    assert [p.case for p in found] == wanted
    assert {p.rule for p in found} == {"disagree"}
    largest = max(abs(rho[p.case] - paper._agreement(column, p)) for p in found)
    print(f"largest deviation from scipy's spearmanr: {largest:.1e}")
    assert largest < 1e-11


@pytest.mark.parametrize(("name", "sign"), [("deletion.srg", 1), ("deletion.deletion", -1)])
def test_worst_is_the_worst_value_in_the_direction_of_the_column(summary, name, sign):
    block, column = first(summary, name)
    told = values(summary, block, column)
    wanted = sorted(told, key=lambda c: (sign * told[c]["ig-16"], c))[:3]
    assert [p.case for p in drawn(summary, "worst:3", "ig-16", name)] == wanted


def test_random_is_seeded_and_no_case_is_drawn_twice(summary):
    block, column = first(summary)
    one = [p.case for p in drawn(summary, "random:4")]
    assert one == [p.case for p in drawn(summary, "random:4")]
    assert one != [p.case for p in drawn(summary, "random:4", seed=1)]
    shuffled = [dataclasses.replace(r) for r in reversed(summary.result.records)]
    again = paper.picks(shuffled, block, column, [("random", 4)], "lrp", 0)
    assert [p.case for p in again] == one
    every = drawn(summary, f"worst:10,random:20,disagree:{block.cases - 30}")
    assert len({p.case for p in every}) == len(every) == block.cases
    with pytest.raises(Refused, match="--rows worst:1: 0 cases are left"):
        drawn(summary, f"random:{block.cases},worst:1")


def test_a_case_without_a_value_is_drawn_by_no_rule_that_reads_it(summary):
    block, column = first(summary)
    lone = Record(
        "b", block.model, "", 0, "lrp", "method", "s", "lone", "", "deletion", "srg", -9.0, status="value"
    )
    records = [*summary.result.records, lone]
    rows = [("disagree", block.cases)]
    found = paper.picks(records, block, column, rows, "lrp", 0)
    assert "lone" not in {p.case for p in found}  # one method has no ranks
    assert paper.picks(records, block, column, [("worst", 1)], "lrp", 0)[0].case == "lone"
    worst = paper.picks(records, block, column, [("worst", block.cases)], "rise-128", 0)
    assert "lone" not in {p.case for p in worst}


@pytest.mark.parametrize("text", ["random", "random:0", "random:x", "best:2", "", "random:1;worst:1"])
def test_rows_that_cannot_be_meant_are_refused(text):
    with pytest.raises(Refused, match="--rows"):
        paper.asked(text)


# ---------------------------------------------------------------- both as typed

NO_TORCH = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "captum"}:
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
from heatproof.cli import main
main()
"""


@pytest.fixture
def home(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world that was run."""
    spec = world / "benchmarks" / "toy.toml"
    text = spec.read_text()
    text = re.sub(r"  \{ use = .* as = \"(vit|captioner)\" \},\n", "", text)
    spec.write_text(text.replace('explainers = ["bright",', 'explainers = ["bright", "gradcam",'))
    monkeypatch.chdir(world)
    run(Order("toy", cwd=world), Silent)
    return world


def test_table_needs_no_torch(home):
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            NO_TORCH,
            "table",
            "toy",
            "--ours",
            "bright",
            "--latex",
            "paper/ours.tex",
        ],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bright (ours)" in done.stdout
    assert done.stdout.splitlines()[-1] == "paper/ours.tex"
    assert "bright (ours) & " in (home / "paper" / "ours.tex").read_text()


def test_figure_draws_stored_maps_by_the_printed_rule(home, monkeypatch):
    rows = ("--rows", "random:2,disagree:1,worst:1", "--ours", "bright")
    kept: list[object] = []
    monkeypatch.setattr(Store, "add", lambda self, news: kept.append(news))
    code, out = type_("figure", "toy", *rows, "--out", "f.png")
    assert code == 0, out
    assert not kept  # every map came from the store, under the keys that the run had used
    rule, *cases, path = out.splitlines()
    assert path == "f.png"
    assert "cnn, inside.mass ↑" in rule
    assert "random: 2 drawn by chance (seed 3)" in rule
    assert "worst: 1 with the worst value of bright" in rule
    assert [c.split()[0] for c in cases] == ["random", "random", "disagree", "worst"]
    picture = np.asarray(Image.open(home / "f.png"))
    assert picture.std() > 10
    before = (home / "f.png").read_bytes()
    type_("figure", "toy", *rows, "--out", "f.png")
    assert (home / "f.png").read_bytes() == before
    assert type_("figure", "toy", *rows, "--out", "f.pdf")[0] == 0
    assert (home / "f.pdf").read_bytes().startswith(b"%PDF")


def test_figure_asks_for_what_the_store_has_lost_and_keeps_it(home):
    path = home / ".heatproof" / "toy.sqlite"
    rows = ("--rows", "random:1", "--model", "clip", "--column", "inside.mass", "--out")
    assert type_("figure", "toy", *rows, "a.png")[0] == 0
    store = Store(path, write=True)
    store.db.execute("DELETE FROM maps")
    assert type_("figure", "toy", *rows, "b.png")[0] == 0
    assert (home / "a.png").read_bytes() == (home / "b.png").read_bytes()
    assert store.db.execute("SELECT count(*) FROM maps").fetchone() == (3,)  # bright, gradcam, dark
    store.close()


def test_figure_of_what_is_no_longer_what_was_measured_is_refused(home):
    rows = ("--rows", "random:1", "--out", "f.png")
    code, out = type_("figure", "toy", *rows, "--ours", "nobody")
    assert (code, "no method 'nobody'" in out) == (2, True)
    assert type_("figure", "toy", *rows, "--model", "vit")[0] == 2
    assert type_("figure", "toy", *rows, "--column", "inside.mas")[0] == 2
    assert type_("figure", "toy", "--rows", "random:1", "--out", "f.jpg")[0] == 2
    code, out = type_("figure", "toy", *rows, "--set", "explainers.dark.gain=-2.0")
    assert code == 2
    assert "explainer 'dark' changed since the table was made: type heatproof run toy first" in out
    assert not (home / "f.png").exists()
