"""The grid pointing game against loops over cells, and against localization's mass where it is the same."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from heatproof import shelf
from heatproof.contract import Refused
from heatproof.geometry import Frame
from heatproof.metrics import mosaic
from heatproof.metrics.localization import Localization
from heatproof.metrics.mosaic import GridPointing
from heatproof.shelf import Place

FEW = st.sampled_from([0.0, 0.25, 1.0, 2.0, -1.0])


@st.composite
def scenes(draw, elements=FEW):
    """A map, the cell asked about as a mask, cells a side, and pixels a cell."""
    grid, side = draw(st.sampled_from([(2, 1), (2, 3), (3, 2)]))
    heat = draw(arrays(np.float32, (grid * side, grid * side), elements=elements))
    y, x = draw(st.integers(0, grid - 1)), draw(st.integers(0, grid - 1))
    mask = torch.zeros(heat.shape, dtype=torch.bool)
    mask[y * side : (y + 1) * side, x * side : (x + 1) * side] = True
    return torch.tensor(heat), mask, grid, side


def judged(toys, heat, evidence, metric=None, channels=1, **more):
    evidence = evidence[None] if evidence.ndim == 2 else evidence
    case = toys.case(pixels=torch.zeros(channels, *evidence.shape[1:]), evidence=evidence, **more)
    (score,) = (metric or GridPointing()).measure(toys.trials(None, [case], [heat]))
    return score.values


def ask(toys, *told, **more):
    return {name: value.number for name, value in judged(toys, *told, **more).items()}


def slow(heat, mask, grid, side, smooth):
    """Positive relevance cell by cell, after a mean over squares with zeros around the map."""
    n, reach = grid * side, smooth // 2

    def at(y, x):
        near = [(v, u) for v in range(y - reach, y + reach + 1) for u in range(x - reach, x + reach + 1)]
        return sum(heat[v][u] for v, u in near if 0 <= v < n and 0 <= u < n) / smooth**2

    cells = {}
    for y in range(n):
        for x in range(n):
            cells.setdefault((y // side, x // side), []).append((max(at(y, x), 0.0), mask[y][x]))
    mass = {c: sum(h for h, _ in some) for c, some in cells.items()}
    (target,) = (c for c, some in cells.items() if some[0][1])
    best = [c for c in mass if mass[c] >= max(mass.values()) - 1e-9]
    total = sum(mass.values())
    return {
        "grid_pointing": mass[target] / total if total else None,
        "grid_argmax": (target in best) / len(best),
    }


@settings(deadline=None)
@given(scenes(), st.sampled_from([1, 3, 5]))
def test_it_is_the_slow_twin(toys, scene, smooth):
    heat, mask, grid, side = scene
    expected = slow(heat.tolist(), mask.tolist(), grid, side, smooth)
    found = ask(toys, heat, mask, GridPointing(grid=grid, smooth=smooth))
    assert found["grid_pointing"] == pytest.approx(expected["grid_pointing"], abs=1e-6)
    assert found["grid_argmax"] == expected["grid_argmax"]


@settings(deadline=None)
@given(scenes(st.floats(-4, 4, width=16)), st.sampled_from(["positive", "negative", "abs"]))
def test_without_smoothing_it_is_localizations_mass_to_the_last_bit(toys, scene, sign):
    heat, mask, grid, _ = scene
    case = toys.case(pixels=torch.zeros(1, *mask.shape), evidence=mask[None])
    (other,) = toys.numbers(Localization(sign=sign), None, [case], [heat])
    assert ask(toys, heat, mask, GridPointing(grid=grid, sign=sign))["grid_pointing"] == other["mass"]


@pytest.mark.parametrize("grid", [2, 3])
def test_chance_is_one_over_the_number_of_cells(toys, grid):
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[: 6 // grid, : 6 // grid] = True
    found = ask(toys, torch.ones(2, 2), mask, GridPointing(grid=grid))
    assert found == {"grid_pointing": pytest.approx(1 / grid**2), "grid_argmax": pytest.approx(1 / grid**2)}
    nothing = judged(toys, -torch.ones(2, 2), mask, GridPointing(grid=grid))
    assert (nothing["grid_pointing"].number, nothing["grid_pointing"].reason) == (
        None,
        "no positive relevance",
    )
    assert nothing["grid_argmax"].number == pytest.approx(1 / grid**2)


def test_cells_of_an_image_that_does_not_divide(toys):
    """Three cells on 224 px, as a mask of half-covered pixels has them, and 7 cells of a map by 2."""
    cell = mosaic.cells((224, 7), 3)
    assert torch.bincount(cell[:, 0]).tolist()[::3] == [75, 74, 75]
    assert cell[0].tolist() == [0, 0, 1, 1, 1, 2, 2]
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[75:149, :75] = True
    heat = torch.zeros(14, 14)
    heat[5:9, :4] = 1.0
    assert ask(toys, heat, mask, GridPointing(grid=3))["grid_argmax"] == 1.0
    value = judged(toys, heat, mask, GridPointing(grid=2))["grid_argmax"]
    assert (value.number, value.reason) == (None, "the evidence is not made of whole cells of a 2 x 2 grid")


def test_a_class_in_two_cells(toys):
    planes = torch.zeros(2, 4, 4, dtype=torch.bool)
    planes[0, :2, :2] = planes[1, 2:, 2:] = True
    heat = torch.tensor([[1.0, 3.0], [0.0, 3.0]])
    found = ask(toys, heat, planes, GridPointing(upsample="none"))
    assert found == {"grid_pointing": 4 / 7, "grid_argmax": 0.5}


def test_on_mosaics_of_the_shelf(toys, tmp_path):
    """The data set's own masks, in the model's geometry, are whole cells."""
    mosaics = shelf.find("datasets", "mosaics", Place(Path.cwd(), Path.cwd()), "tests")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for i in range(9):
            Image.new("RGB", (10, 10), (20 * i, 0, 0)).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"n{i:02d}_thing.png")
    (sample,) = mosaics(str(tmp_path / "some.zip"), count=1, grid=3, cell=16).samples()
    frame = Frame(size=40, mode="squash")
    assert len({thing.box for thing in sample.objects}) == 9
    for thing in sample.objects:
        mask = frame.mask(thing.mask)
        heat = torch.zeros(3, 3)
        heat[int(thing.box[1]) // 16, int(thing.box[0]) // 16] = 1.0
        found = ask(toys, heat, mask, GridPointing(grid=3, upsample="nearest"), channels=3)
        assert found["grid_argmax"] == 1.0
        assert found["grid_pointing"] > 0.9  # 13.33 px a cell: pixels are whole, and so are those of the map


def test_mosaics_ask_about_any_cell(tmp_path):
    """A map of another mosaic must not do well because the asked cell is always the same."""
    mosaics = shelf.find("datasets", "mosaics", Place(Path.cwd(), Path.cwd()), "tests")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"n{i:02d}_thing.png", b"")
    first = [s.objects[0].box for s in mosaics(str(tmp_path / "some.zip"), count=40).samples()]
    assert min(first.count(box) for box in set(first)) >= 4
    assert len(set(first)) == 4


@settings(deadline=None)
@given(scenes(st.floats(-4, 4, width=16)), st.integers(-8, 8), st.sampled_from([1, 3]))
def test_range_and_positive_rescaling(toys, scene, power, smooth):
    heat, mask, grid, _ = scene
    metric = GridPointing(grid=grid, smooth=smooth)
    found = ask(toys, heat, mask, metric)
    assert all(v is None or 0 <= v <= 1 for v in found.values())
    assert ask(toys, heat * 2.0**power, mask, metric) == found


@settings(deadline=None)
@given(st.randoms(use_true_random=False), scenes(), st.sampled_from([1, 3]))
def test_flipping_image_and_map_together_changes_nothing(toys, chance, scene, smooth):
    _, mask, grid, _ = scene
    metric = GridPointing(grid=grid, smooth=smooth)
    heat = torch.tensor(chance.sample(range(100), mask.numel())).float().reshape(mask.shape)
    for how in (lambda x: x.flip(0), lambda x: x.flip(1)):
        assert ask(toys, how(heat), how(mask), metric) == pytest.approx(
            ask(toys, heat, mask, metric), abs=1e-6
        )


def test_fp16_channels_and_images_that_are_not_square(toys):
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4, :6] = True
    small = torch.tensor([[1.0, -2.0], [0.25, 0.0]])
    plain = ask(toys, small, mask)
    assert plain["grid_argmax"] == 1.0
    assert ask(toys, small.half(), mask) == plain
    assert ask(toys, torch.stack([small, small]), mask, channels=3) == plain
    assert ask(toys, small, mask, GridPointing(upsample="none")) == {"grid_pointing": 0.8, "grid_argmax": 1.0}


def test_ignored_pixels_take_no_part(toys):
    heat = torch.tensor([[9.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, :2] = True
    ignore = torch.zeros(2, 4, dtype=torch.bool)
    ignore[0, 0] = True
    assert ask(toys, heat, mask) == {"grid_pointing": 10 / 13, "grid_argmax": 1.0}
    assert ask(toys, heat, mask, ignore=ignore) == {"grid_pointing": 0.25, "grid_argmax": 0.0}


@pytest.mark.parametrize(
    ("heat", "evidence", "reason"),
    [
        (None, "some", "no image map"),
        (torch.tensor([[0.0, math.nan]]), "some", "NaN or infinity in the map"),
        (torch.ones(2, 2), None, "nothing annotated"),
        (torch.ones(2, 2), torch.zeros(0, 4, 4, dtype=torch.bool), "no evidence in the image"),
        (torch.ones(2, 2), torch.ones(1, 4, 4, dtype=torch.bool), "evidence everywhere"),
    ],
)
def test_undefined_is_never_a_number(toys, heat, evidence, reason):
    if isinstance(evidence, str):
        evidence = torch.zeros(1, 4, 4, dtype=torch.bool)
        evidence[0, :2, :2] = True
    (score,) = GridPointing().measure(toys.trials(None, [toys.case(evidence=evidence)], [heat]))
    assert [(n, v.number, v.reason) for n, v in score.values.items()] == [
        (m.name, None, reason) for m in GridPointing.measures
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sign": "signed"}, "gridpointing: no sign 'signed'"),
        ({"grid": 1}, "found grid 1 and smooth 1"),
        ({"smooth": 4}, "found grid 2 and smooth 4"),
        ({"smooth": 0}, "found grid 2 and smooth 0"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        GridPointing(**setting)
