"""The box score of Sun et al. against arrays made by the authors' code, both as released and corrected."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof.contract import Case, Explanation, Trial
from heatproof.metrics.correctness import THRESHOLDS, Correctness, inside
from heatproof.metrics.maps import box_planes

FOLDER = Path(os.environ.get("HEATPROOF_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    file = FOLDER / "lrp_captioning" / "metrics.npz"
    if not file.is_file():
        pytest.skip(f"HEATPROOF_PARITY: no reference arrays at {file}")
    return dict(np.load(file, allow_pickle=False))


@pytest.mark.parametrize(
    ("released", "key"), [(False, "correctness_fresh_copy"), (True, "correctness_as_released_per_box")]
)
def test_the_formula(arrays, released, key):
    heat, boxes = torch.tensor(arrays["rel"]), torch.tensor(arrays["boxes"])
    regions = box_planes(boxes, tuple(heat.shape))
    found = inside(heat, regions, arrays["thresholds"].tolist(), as_released=released)
    assert np.abs(found.numpy() - arrays[key]).max() < 1e-12


@pytest.mark.parametrize(
    ("released", "key"), [(False, "correctness_fresh_copy"), (True, "correctness_as_released_per_box")]
)
def test_the_metric(arrays, released, key):
    assert pytest.approx(arrays["thresholds"]) == THRESHOLDS
    case = Case("c", "s", "thing", torch.zeros(3, 224, 224), 0, boxes=torch.tensor(arrays["boxes"]).float())
    trial = Trial(None, case, None, Explanation(image=torch.tensor(arrays["rel"])))
    (score,) = Correctness(as_released=released).measure([trial])
    best = arrays[key].max(0)  # the better of the two boxes
    assert score.curves["inside"][1] == pytest.approx(best, abs=1e-6)
    assert score.values["inside_50"].number == pytest.approx(best[5], abs=1e-6)


def test_the_switch_moves_the_published_number(arrays):
    gap = arrays["correctness_as_released_per_box"].max(0) - arrays["correctness_fresh_copy"].max(0)
    assert gap[0] > 0.01
