"""Nothing lost (law 9) and nothing broken (law 5): kills, raising parts, broken promises, bad files, a full disk.

Every fault of the user's making is one line and exit code 2, and leaves nothing half-written.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from heatproof import cli, records
from heatproof.progress import Silent
from heatproof.runner import Order, run

LONG = 400  # seconds: far more than any of this takes, even on a machine that is busy with other things
MAIN = [sys.executable, "-P", "-c", "from heatproof.cli import main; main()"]
SLOW = '''"""Slow: one map a fifth of a second."""

import time
from dataclasses import dataclass

from heatproof import Explanation


@dataclass(frozen=True)
class Slow:
    """The pixels, slowly."""

    def explain(self, model, cases):
        time.sleep(0.2 * len(cases))
        return [Explanation(image=case.pixels.mean(0)) for case in cases]
'''


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


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


def explain_with(home: Path, body: str) -> Path:
    """Replace what ``bright`` gives by another expression or more lines."""
    path = home / "explainers" / "bright.py"
    plain = "return [Explanation(image=case.pixels.mean(0) * self.gain) for case in cases]"
    replace(path, plain, body.replace("\n", "\n        ").replace("PLAIN", plain))
    return path


# ---------------------------------------------------------------- kill -9


def started(home: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*MAIN, "run", "toy", *words],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def stored(home: Path) -> int:
    path = home / ".heatproof" / "toy.sqlite"
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path)) as db:
            return int(db.execute("SELECT count(*) FROM scores").fetchone()[0])
    except sqlite3.OperationalError:  # the table is being made
        return 0


@pytest.mark.slow
def test_killed_three_times_the_final_table_is_the_undisturbed_one(home):
    """By SIGKILL, alone and with workers, the whole process group at once as an out-of-memory killer would."""
    (home / "explainers" / "slow.py").write_text(SLOW)
    replace(home / "benchmarks" / "toy.toml", '["bright",', '["slow", "bright",')
    replace(home / "benchmarks" / "toy.toml", "chunk = 4", "chunk = 1")
    replace(home / "benchmarks" / "toy.toml", '"squares"', '{ use = "squares", count = 14 }')
    run(Order("toy", cwd=home), Silent)
    whole = [(home / ".heatproof" / name).read_bytes() for name in ("toy.csv", "toy.curves.csv")]
    for file in (home / ".heatproof").iterdir():
        file.unlink()
    kept = [0]
    for workers in (1, 2, 1):
        work = started(home, "--workers", str(workers))
        deadline = time.monotonic() + LONG
        while stored(home) <= kept[-1] and work.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert work.poll() is None, work.communicate()
        os.killpg(work.pid, signal.SIGKILL)
        work.communicate()
        kept.append(stored(home))
        assert not (home / ".heatproof" / "toy.csv").exists()
    assert 0 < kept[1] < kept[2] < kept[3] < 14 * 4
    last = started(home, "--workers", "1")
    out, err = last.communicate(timeout=LONG)
    assert last.returncode == 0, err.decode()
    assert b"reports/toy/index.html" in out
    assert [(home / ".heatproof" / name).read_bytes() for name in ("toy.csv", "toy.curves.csv")] == whole


@pytest.mark.slow
def test_workers_end_with_the_process_that_asked_them(home):
    """A killed run leaves no orphan at work."""
    tell = "(Path(__file__).parent / f'pid-{os.getpid()}').touch()"
    (home / "explainers" / "slow.py").write_text(
        SLOW.replace("import time\n", "import os\nimport time\nfrom pathlib import Path\n").replace(
            "time.sleep", f"{tell}\n        time.sleep"
        )
    )
    replace(home / "benchmarks" / "toy.toml", '["bright",', '["slow",')
    work = started(home, "--workers", "2")
    deadline = time.monotonic() + LONG
    pids: set[int] = set()
    while not pids and work.poll() is None and time.monotonic() < deadline:
        pids = {int(p.name[4:]) for p in (home / "explainers").glob("pid-*")}
        time.sleep(0.05)
    assert pids
    assert work.pid not in pids
    os.kill(work.pid, signal.SIGKILL)  # the asking process alone
    work.communicate(timeout=LONG)  # ends when nobody is left who could write to it
    assert not [p for p in pids if _alive(p)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- parts that raise


def test_one_case_that_raises_is_recorded_and_the_run_goes_on(home, type_):
    explain_with(home, "if any(c.sample == 's2' for c in cases):\n    raise KeyError('a hole')\nPLAIN")
    code, out, err = type_("run", "toy", "--workers", "1")
    assert code == 1
    assert "2 failed; the first: cnn / bright / s2.ball: KeyError: 'a hole'" in err
    assert "reports/toy/index.html" in out
    result = records.read_result(home / ".heatproof", "toy")
    lost = [r for r in result.records if r.status == "failed"]
    assert {(r.explainer, r.case, r.column) for r in lost} == {
        (e, "s2.ball", c) for e in ("bright", "dark") for c in ("inside.mass", "inside.blank")
    }
    assert all(r.value is None and r.reason == "KeyError: 'a hole'" and not r.key for r in lost)
    assert len([r for r in result.records if r.value is not None]) == (3 * 6 - 2) * 2
    (failure, _) = result.run["failures"]
    assert "raise KeyError('a hole')" in failure["traceback"]
    assert failure["traceback"].count("Traceback") == 1
    # mended, the same command fills the holes
    replace(home / "explainers" / "bright.py", "'s2'", "'none'")
    mended = subprocess.run(
        [*MAIN, "run", "toy", "--workers", "1"], cwd=home, capture_output=True, check=False
    )
    assert mended.returncode == 0, mended.stderr


def test_a_metric_that_raises_on_one_case_is_recorded_for_itself_alone(home):
    path = home / "metrics" / "inside.py"
    replace(
        path,
        "        blank =",
        "        if any(t.case.sample == 's3' for t in trials):\n            raise ZeroDivisionError\n        blank =",
    )
    result = run(Order("toy", cwd=home), Silent)
    assert {(f["explainer"], f["metric"], f["case"]) for f in result.run["failures"]} == {
        (e, "inside", "s3.star") for e in ("bright", "dark", "noise")
    }
    assert {r.sample for r in result.records if r.status == "failed"} == {"s3"}


def test_out_of_memory_is_asked_again_by_halves(home, capsys):
    explain_with(home, "print(len(cases))\nif len(cases) > 1:\n    raise torch.OutOfMemoryError\nPLAIN")
    replace(home / "explainers" / "bright.py", "from heatproof", "import torch\nfrom heatproof")
    result = run(Order("toy", cwd=home, sets=("chunk=6",)), Silent)
    assert result.run["failures"] == []
    assert capsys.readouterr().out.split() == 2 * "6 3 2 1 1 1 3 2 1 1 1".split()  # bright and dark


def test_the_run_exits_1_also_with_workers(home):
    explain_with(home, "raise RuntimeError('always')")
    done = subprocess.run(
        [*MAIN, "run", "toy", "--workers", "2", "--limit", "2"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "4 failed; the first: cnn / bright / s0.ball: RuntimeError: always" in done.stderr


def test_the_model_is_left_as_found_after_a_part_raised(home):
    """Law 5, seen from the next part: a watch that an exception flew out of does not stay."""
    explain_with(
        home,
        "with model.watch(model.site('image.conv')) as seen:\n    model.score(model.stack(cases), cases)\n    raise RuntimeError",
    )
    result = run(Order("toy", cwd=home), Silent)
    assert {f["error"] for f in result.run["failures"]} == {"RuntimeError: "}
    assert len([r for r in result.records if r.explainer == "noise" and r.value is not None]) == 12


# ---------------------------------------------------------------- broken promises

BROKEN = {
    "too few": ("return []", r"bright.py: Bright.explain gave 0 explanations for 4 cases: one a case is needed"),
    "wrong size": (
        "return [Explanation(image=torch.zeros(64, 64)) for case in cases]",
        r"bright.py: Bright.explain: image has shape \[64, 64\], larger than the case's \[3, 32, 32\]",
    ),
    "wrong shape": (
        "return [Explanation(image=torch.zeros(9)) for case in cases]",
        r"bright.py: Bright.explain: image has shape \[9\], accepted is \[h, w\] or \[C, h, w\]",
    ),
    "a list": (
        "return [Explanation(image=[[0.0]]) for case in cases]",
        r"bright.py: Bright.explain: image is a list, accepted is a tensor",
    ),
    "text without text": (
        "return [Explanation(text=torch.zeros(3)) for case in cases]",
        r"bright.py: Bright.explain: text has shape \[3\], accepted is \[0\], one a token",
    ),
    "edits the image": (
        "for case in cases:\n    case.pixels[:, 0] = 0\nPLAIN",
        r"bright.py: Bright.explain edits case s0.ball's pixels in place: work on a clone",
    ),
    "bare tensors": (
        "return [case.pixels for case in cases]",
        r"bright.py: Bright.explain gave Tensor, accepted is heatproof.Explanation",
    ),
    "nothing": ("return None", r"bright.py: Bright.explain gave None, accepted is a list of explanations"),
    "trains the model": (
        "model.net.train()\nPLAIN",
        r"bright.py: Bright leaves the model changed: train or eval mode; put it back",
    ),
    "edits a weight": (
        "next(model.net.parameters()).data.add_(1)\nPLAIN",
        r"bright.py: Bright leaves the model changed: weights; put it back also",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_one_line_that_names_the_file(home, type_, name):
    body, said = BROKEN[name]
    explain_with(home, body)
    replace(home / "explainers" / "bright.py", "from heatproof", "import torch\nfrom heatproof")
    _refused(home, type_, said)


def _refused(home: Path, type_: Callable[..., tuple[int, str, str]], said: str) -> None:
    import re

    code, out, err = type_("run", "toy", "--workers", "1")
    assert code == 2, (out, err)
    assert re.search(said, err), err
    assert err.startswith("heatproof: ")
    assert err.count("\n") == 1
    assert not list(home.rglob("toy.csv"))
    assert not (home / "reports").exists()
    assert not [p for p in home.rglob(".*.csv.*")]


def test_a_metric_that_forgets_a_trial(home, type_):
    replace(home / "metrics" / "inside.py", "return scores", "return scores[1:]")
    _refused(home, type_, r"inside.py: Inside.measure gave 3 scores for 4 trials")


def test_a_metric_that_gives_what_it_did_not_declare(home, type_):
    replace(home / "metrics" / "inside.py", '{"mass":', '{"mas":')
    _refused(home, type_, r"inside.py: Inside.measure gave 'mas'; `measures` declares blank, mass")


# ---------------------------------------------------------------- bad files


def test_a_missing_image_is_named(home, type_):
    replace(
        home / "datasets" / "squares.py",
        "    return image\n",
        "    open('pictures/gone.png')\n    return image\n",
    )
    _refused(home, type_, r"sample s0: its image cannot be read: .*No such file.*pictures/gone.png")


def test_a_truncated_image_is_named(home, type_):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(home / "cut.jpg")
    (home / "cut.jpg").write_bytes((home / "cut.jpg").read_bytes()[:300])
    replace(
        home / "datasets" / "squares.py",
        "    return image\n",
        "    from PIL import Image\n    return np.asarray(Image.open('cut.jpg').convert('RGB')) if i == 1 else image\n",
    )
    _refused(home, type_, r"sample s1: its image cannot be read: .*[Tt]runcated")


def test_samples_of_one_name_are_refused(home, type_):
    replace(home / "datasets" / "squares.py", 'Sample(f"s{i}"', 'Sample(f"s{i // 2}"')
    _refused(home, type_, r"data set squares: 3 samples share an id")


def test_a_checkpoint_of_the_wrong_shape_is_named(home, tiny, type_):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny["resnet"], home / "bent")
    tensors = load_file(home / "bent" / "model.safetensors")
    name = next(n for n, t in tensors.items() if t.ndim == 4)
    tensors[name] = tensors[name][:, :1].contiguous()
    save_file(tensors, home / "bent" / "model.safetensors", metadata={"format": "pt"})
    replace(home / "benchmarks" / "toy.toml", str(tiny["resnet"]), str(home / "bent"))
    _refused(
        home,
        type_,
        r"model '.*bent': the weights do not fit: .* is \[4, 1, 7, 7\], the net wants \[4, 3, 7, 7\]",
    )


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(home, tiny, type_):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny["resnet"], home / "bent")
    tensors = load_file(home / "bent" / "model.safetensors")
    tensors = {n: t for n, t in tensors.items() if not n.startswith("classifier")}
    save_file(tensors, home / "bent" / "model.safetensors", metadata={"format": "pt"})
    replace(home / "benchmarks" / "toy.toml", str(tiny["resnet"]), str(home / "bent"))
    _refused(
        home, type_, r"the weights do not fit: classifier.1.bias is missing; classifier.1.weight is missing"
    )


def test_a_truncated_checkpoint_is_named(home, tiny, type_):
    import shutil

    shutil.copytree(tiny["resnet"], home / "bent")
    weights = home / "bent" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    replace(home / "benchmarks" / "toy.toml", str(tiny["resnet"]), str(home / "bent"))
    _refused(home, type_, r"model '.*bent': the folder cannot be loaded")


def test_a_model_that_is_nowhere_is_named(home, tiny, type_):
    replace(home / "benchmarks" / "toy.toml", str(tiny["resnet"]), "nobody/nothing")
    _refused(
        home,
        type_,
        r"model 'nobody/nothing': the hub name \(no folder of this name is here\) cannot be loaded",
    )


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_while_storing_keeps_what_was_finished(home, type_, monkeypatch):
    from heatproof.store import Store

    add, calls = Store.add, []

    def small(self: Store, news: object) -> None:
        calls.append(news)
        if len(calls) == 2:
            (pages,) = self.db.execute("PRAGMA page_count").fetchone()
            self.db.execute(f"PRAGMA max_page_count = {pages}")
        add(self, news)

    monkeypatch.setattr(Store, "add", small)
    _refused(
        home,
        type_,
        r"toy.sqlite: cannot be written \(database or disk is full\); what was finished before is kept",
    )
    assert stored(home) == 4 * 3
    monkeypatch.setattr(Store, "add", add)
    code, _, _ = type_("run", "toy", "--workers", "1")
    assert code == 0
    assert stored(home) == 6 * 3


def test_a_full_disk_while_writing_the_table_leaves_no_half_of_it(home, type_, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    _refused(home, type_, r"No space left on device: '.*toy")
    monkeypatch.undo()


def test_what_was_there_stays_where_a_new_run_is_refused(home, type_):
    run(Order("toy", cwd=home), Silent)
    before = {p: p.read_bytes() for p in (home / ".heatproof").glob("toy.*") if "sqlite" not in p.name}
    (home / "explainers" / "wrong.py").write_text(
        SLOW.replace("[Explanation(image=case.pixels.mean(0)) for case in cases]", "[]")
    )
    replace(home / "benchmarks" / "toy.toml", '["bright",', '["wrong", "bright",')
    code, _, _ = type_("run", "toy", "--workers", "1")
    assert code == 2
    assert {p: p.read_bytes() for p in before} == before
    assert json.loads((home / ".heatproof" / "toy.run.json").read_text())["failures"] == []


def test_a_model_changed_by_a_part_that_raised_is_not_used_any_further(home, type_):
    explain_with(home, "model.net.requires_grad_(True)\nraise RuntimeError('on the way')")
    _refused(home, type_, r"bright.py: Bright leaves the model changed: gradients")
