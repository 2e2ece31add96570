"""The README's transcripts are replayed as they stand, and its table is the frozen one."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- (replay|file): (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
COMMAND = Path(sys.executable).with_name("heatproof")


def blocks(kind: str) -> dict[str, str]:
    return {name: text for found, name, text in BLOCK.findall(README) if found == kind}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """An outsider's folder that holds the demo's spec alone."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "benchmarks").mkdir()
    (folder / "explainers").mkdir()
    shutil.copy(ROOT / "benchmarks" / "demo.toml", folder / "benchmarks")
    return folder


def replay(transcript: str, folder: Path) -> None:
    """Run each ``$`` line and hold what it prints against the lines below it; ``...`` stands for anything."""
    turns = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", transcript, re.MULTILINE)
    assert turns
    for typed, wanted in turns:
        words = typed.replace('"', "").split() if '"' not in typed else re.findall(r'"[^"]*"|\S+', typed)
        words = [word.strip('"') for word in words]
        assert words[0] == "heatproof"
        done = subprocess.run(
            [str(COMMAND), *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            check=False,
        )
        assert done.returncode == 0, f"$ {typed}\n{done.stdout}{done.stderr}"
        checker = doctest.OutputChecker()
        assert checker.check_output(wanted, done.stdout, doctest.ELLIPSIS), f"$ {typed}\n{done.stdout}"


@pytest.mark.slow
def test_three_jobs(workspace):
    """Reproduce, add an explainer, regress: in the README's order, in one workspace."""
    replay(blocks("replay")["plan"], workspace)
    for name, text in blocks("file").items():
        (workspace / name).write_text(text, encoding="utf-8")
    spec = workspace / "benchmarks" / "demo.toml"
    spec.write_text(spec.read_text().replace("explainers = [\n", 'explainers = [\n  "spectral",\n'))
    replay(blocks("replay")["explainer"], workspace)
    replay(blocks("replay")["regress"], workspace)


@pytest.mark.slow
def test_your_own_explainer(tmp_path):
    """From an empty folder to the paper's files."""
    replay(blocks("replay")["own"], tmp_path)
    assert (tmp_path / "mine.pdf").stat().st_size > 10_000
    assert "mine (ours)" in (tmp_path / "mine.tex").read_text()


def test_table_is_the_frozen_one():
    """`heatproof report demo --into README.md` was run after the last freeze."""
    if not (ROOT / "results" / "demo.csv").exists():
        pytest.skip("results/demo.csv is not frozen yet")
    from heatproof.readme import filled
    from heatproof.records import read_result

    assert filled(README, read_result(ROOT / "results", "demo")) == README
