"""`heatproof audit-captions`: made-up words are told by what the image adds, and every number is the words' own."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from heatproof.cli import cli
from heatproof.metrics.hallucination import STATISTICS

LIFT = Path(__file__).parent / "metrics" / "test_image_lift.py"
PLANTED = f'''"""A captioner that says "rug" whatever it is shown, from the tests of the metric."""

from dataclasses import dataclass
from pathlib import Path

from heatproof.shelf import load


@dataclass(frozen=True)
class Planted:
    """Says "lamp" or "box" as the image is bright or dark, then "rug"."""

    def load(self, name, device="cpu"):
        return load(Path({str(LIFT)!r})).planted()
'''
LAMPS = '''"""Bright and dark images, of lamps and boxes; there is a rug in one of ``rugs``."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from heatproof import Card, Sample


@dataclass(frozen=True)
class Lamps:
    """Bright and dark."""

    rugs: int = 12
    card: ClassVar[Card] = Card("generated", "1", "CC0-1.0")

    def samples(self):
        return [self._sample(k) for k in range(24)]

    def _sample(self, k):
        bright = k % 3 > 0
        image = np.full((4, 4, 3), 230 if bright else 20, np.uint8)
        told = ("a lamp" if bright else "a box") + (" and a rug" if k % self.rugs == 0 else "")
        return Sample(f"s{k}", lambda: image, captions=(told,))
'''


def type_(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "lamps.py").write_text(LAMPS)
    return tmp_path


def audit(*more: str, rugs: int = 12) -> tuple[int, str]:
    """The images have 4 x 4 pixels, so random maps are smaller than the control's."""
    given = (
        "--explainer",
        "attention",
        "--explainer",
        '{ use = "random", cells = 2 }',
        "--workers",
        "1",
        *more,
    )
    return type_(
        "audit-captions", "./planted.py:Planted", f'{{ use = "./lamps.py:Lamps", rugs = {rugs} }}', *given
    )


def test_the_lift_tells_the_word_that_the_image_is_ignored_for(home):
    code, said = audit("--sample", "24")
    assert code == 0, said
    words = rows(home / "reports" / "Planted-Lamps" / "words.csv")
    assert len(words) == 48
    rugs = [row for row in words if row["word"] == "rug"]
    assert len(rugs) == 24
    assert max(abs(float(row["lift"])) for row in rugs) < 1e-3
    assert sum(int(row["grounded"]) for row in rugs) == 2
    ignored = roc_auc_score([row["word"] != "rug" for row in words], [float(row["lift"]) for row in words])
    assert ignored > 0.95
    area = roc_auc_score([int(row["grounded"]) for row in words], [float(row["lift"]) for row in words])
    assert area > 0.95
    assert float(re.search(r"image lift alone +([\d.]+)", said)[1]) == pytest.approx(area, abs=0.0051)
    assert "22 of 48 are made up, going by the reference captions" in said
    told = json.loads((home / ".heatproof" / "Planted-Lamps.run.json").read_text())
    assert told["targets"]["captioner"] == "said objects"


def test_where_nothing_is_made_up_it_says_so(home):
    code, said = audit("--sample", "3", rugs=1)
    assert code == 0, said
    assert "0 of 6 are made up" in said
    assert "nothing to tell apart" in said


def test_out_of_the_box_and_its_numbers_are_its_words(tmp_path, monkeypatch):
    """small_captioner on scenes: every area of the report is that of words.csv, by scikit-learn."""
    monkeypatch.chdir(tmp_path)
    scenes = '{ use = "scenes", partner = 0.5 }'
    code, said = type_(
        "audit-captions", "small_captioner", scenes, "--sample", "8", "--workers", "1", "--out", "there",
        "--explainer", "lrp", "--explainer", "attention",
    )  # fmt: skip
    assert code == 0, said
    words, cells = rows(tmp_path / "there" / "words.csv"), rows(tmp_path / "there" / "table.csv")
    assert (tmp_path / "there" / "index.html").exists()
    assert not (tmp_path / "reports").exists()
    assert {row["grounded"] for row in words} == {"0", "1"}
    truth = [int(row["grounded"]) for row in words]
    furthest = 0.0
    for cell in cells:
        metric, name = cell["column"].split(".")
        read = f"{cell['explainer']}.{name}" if metric == "hallucination" else "lift"
        if metric == "hallucination" or name == "grounded":
            slow = roc_auc_score(truth, [float(row[read]) for row in words])
            furthest = max(furthest, abs(slow - float(cell["value"])))
    assert furthest < 1e-6  # table.csv has six digits
    assert {c["explainer"] for c in cells} == {"", "lrp", "attention", "random", "shuffled(lrp)"}
    assert [h for h in words[0] if h.startswith("lrp.")] == [f"lrp.{s}" for s in STATISTICS]
    names = [line.split()[0] for line in said.splitlines() if " [" in line]
    assert {"lrp", "attention", "random", "shuffled(lrp)"} <= set(names)

    # what it ran is a benchmark like any other, and is in the store
    code, again = type_("run", "small_captioner-scenes.toml", "--workers", "1")
    assert code == 0
    assert "Said because of the image, or of the language" in again


def test_a_file_that_is_not_its_own_is_not_written_over(home):
    mine = home / "Planted-Lamps.toml"
    mine.write_text("mine\n")
    code, said = audit()
    assert code == 2
    assert "Planted-Lamps.toml is there already and is not this command's; move it" in said
    assert mine.read_text() == "mine\n"


def test_what_writes_no_captions_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = type_("audit-captions", "small_cnn", "scenes")
    assert code == 2
    assert "audit-captions: small_cnn is a classifier, accepted are captioners, as small_captioner" in said
    code, said = type_("audit-captions", "small_captioner", "scenes", "--explainer", "lrpp")
    assert code == 2
    assert "did you mean 'lrp'?" in said
    assert not list(tmp_path.iterdir())


def test_help_shows_one_to_type():
    code, said = type_("audit-captions", "--help")
    assert code == 0
    assert "heatproof audit-captions small_captioner '{ use = \"scenes\", partner = 0.5 }'" in said
