"""The demo keeps to its budget, counted by a hook of torch and not by the house's own meter."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from heatproof import spec
from heatproof.bench import Bench, Job
from heatproof.store import Store

ROOT = Path(__file__).resolve().parents[1]
BUDGET = {"classifier": 500, "dual": 800, "captioner": 500}  # whole forwards of a case's image
MODELS = '[{ use = "NAME", rows = 1 }]'  # one row at a time: nothing is padded, so that a hook counts rows


def counted(net, family):
    """The module that every scored image passes exactly once."""
    if family == "dual":
        return net.visual_projection
    return next(m for m in net.modules() if type(m).__name__ == "ResNetEmbeddings")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "small_clip", "small_captioner"])
def test_forwards_of_a_case(name, tmp_path):
    path = tmp_path / "store.sqlite"
    store = Store(path, write=True)
    asked = spec.read("demo", ROOT, sets=["models=" + MODELS.replace("NAME", name)])
    bench = Bench(asked, path, limit=2)
    for job in bench.fits():
        store.add(bench.do(job).news)
    model, _ = bench.model(0)
    rows = Counter()
    # randomised and LRP twins are deep copies of the net, this hook with it
    handle = counted(model.net, model.family).register_forward_hook(
        lambda module, args, out: rows.update({"forward": len(out)})
    )
    try:
        answer = bench.do(Job(0, 0, 2))
    finally:
        handle.remove()
    assert not answer.failures
    assert answer.cases == 2
    each = rows["forward"] / answer.cases
    assert 100 < each <= BUDGET[model.family]


def stored(folder):
    """How many scores the working store holds."""
    path = folder / ".heatproof" / "demo.sqlite"
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path)) as db:
            return db.execute("SELECT count(*) FROM scores").fetchone()[0]
    except sqlite3.OperationalError:  # the table is being made
        return 0


@pytest.mark.slow
def test_killed_three_times_the_table_is_the_undisturbed_one(tmp_path):
    """By SIGKILL, the whole process group at once, as an out-of-memory killer would; a chunk is one image."""
    command = Path(sys.executable).with_name("heatproof")

    def start(folder, workers):
        return subprocess.Popen(
            [command, "run", "demo", "--limit", "4", "--set", "chunk=1", "--workers", str(workers)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        (folder / "benchmarks").mkdir(parents=True)
        shutil.copy(ROOT / "benchmarks" / "demo.toml", folder / "benchmarks")
    kept = [0]
    for workers in (1, 2, 1):
        work = start(killed, workers)
        while stored(killed) <= kept[-1] and work.poll() is None:
            time.sleep(0.02)
        assert work.poll() is None, work.communicate()[1].decode()
        os.killpg(work.pid, signal.SIGKILL)
        work.communicate()
        kept.append(stored(killed))
    assert kept == sorted(set(kept))
    assert not (killed / ".heatproof" / "demo.csv").exists()
    for folder in (killed, whole):
        last = start(folder, 2)
        _, said = last.communicate()
        assert last.returncode == 0, said.decode()
    assert kept[-1] < stored(whole) == stored(killed)
    for name in ("demo.csv", "demo.curves.csv"):
        assert (killed / ".heatproof" / name).read_bytes() == (whole / ".heatproof" / name).read_bytes()
