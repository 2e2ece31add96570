"""Which line did it: by tracing where it shows again, by the file's text where it does not."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from heatproof import blame


def draws(_: object) -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def lines(folder: Path, text: str, probes: dict[str, blame.Probe]) -> dict[str, int]:
    file = folder / "mine.py"
    file.write_text(text)
    work = runpy.run_path(str(file))["work"]
    return blame.lines(file, work, probes)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import torch\ndef work():\n    x = 1\n    torch.rand(1)\n    return x\n", 4),
        ("import torch\ndef inner():\n    torch.rand(1)\ndef work():\n    inner()\n    return 1\n", 3),
        ("import torch\ndef inner():\n    return 1\ndef work():\n    return inner() + torch.rand(1)\n", 5),
        (
            "import torch\ndef work():\n    return [\n        torch.rand(1)\n        for _ in range(3)\n    ]\n",
            4,
        ),
        ("import torch\ndef work():\n    torch.rand(1)\n    raise ValueError\n", 3),
        ("import torch\ndef work():\n    return sorted([1, 2], key=lambda k: float(torch.rand(1)))\n", 3),
        (
            "import torch\nfrom heatproof.seeds import forked\ndef work():\n    with forked(1):\n        torch.rand(1)\n    torch.rand(1)\n",
            6,
        ),
        ("import torch\ndef work():\n    torch.nn.functional.dropout(torch.ones(3))\n", 3),
    ],
)
def test_the_line_after_which_a_generator_is_another(tmp_path, text, line):
    assert lines(tmp_path, text, {"torch": draws}) == {"torch": line}


def test_what_is_put_back_is_nobodys_fault(tmp_path):
    text = "import torch\nfrom heatproof import seeds\ndef work():\n    with seeds.forked(1):\n        torch.rand(1)\n"
    assert lines(tmp_path, text, {"torch": draws}) == {}
    assert sys.gettrace() is None or "pytest" not in repr(sys.gettrace())


def test_the_first_local_that_holds_a_nan(tmp_path):
    text = (
        "import torch\ndef work():\n    x = torch.ones(2)\n    y = [x, (x - 2).sqrt()]\n    return y, x / 0\n"
    )
    found = lines(tmp_path, text, {"nan": blame.nonfinite(torch.isnan), "inf": blame.nonfinite(torch.isinf)})
    assert found == {"nan": 4}


def test_a_file_of_many_loops_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(blame, "MOST", 0.0)
    assert (
        lines(tmp_path, "import torch\ndef work():\n    torch.rand(1)\n    torch.rand(1)\n", {"t": draws})
        == {}
    )


TEXT = """import random as dice
import time
import torch
import numpy as np
import torch.nn.functional as F
from torch import randn as noise
from numpy.random import default_rng
from heatproof import Explanation


class Mine:
    def explain(self, model, cases):
        own = torch.rand(3, generator=cases[0].generator("x"))
        fine = default_rng(3), np.random.default_rng(seed=4)
        noise(3)
        own.normal_(generator=fine)
        np.random.shuffle(own)
        dice.random()
        default_rng()
        return Explanation(), model.net
"""


def test_what_the_text_says_by_itself(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TEXT)
    text = blame.Text(file)
    assert [text.drawing(name) for name in ("torch", "numpy", "random")] == [15, 17, 18]
    assert text.unseeded() == 19
    assert text.called("Explanation") == text.net() == 20
    assert text.called("default_rng") is None  # three lines: none is named
    assert (text.defined("Mine"), text.defined("Mine", "explain"), text.defined("Other")) == (11, 12, None)
    file.write_text("import torch.nn.functional as F\nx = F.dropout(y)\nx.uniform_()\n")
    assert blame.Text(file).drawing("torch") == 2
    file.write_text("from time import time\nx = time()\n")
    assert blame.Text(file).unseeded() == 2
    file.write_text("import torch\nx = torch.rand(1, generator=g)\n")
    assert blame.Text(file).drawing("torch") is None
