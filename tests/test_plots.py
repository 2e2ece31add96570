"""Maps on images, mean curves and figure files: the right colours and numbers, the same bytes each time."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from heatproof import pictures, plots, statistics
from heatproof.records import Curve
from heatproof.summary import summarise

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic.py"))))
GREY = np.full((32, 32, 3), 120, np.uint8)


def tint(picture):
    """Red minus blue, pixel by pixel: above zero is warm."""
    return picture[..., 0].astype(int) - picture[..., 2].astype(int)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return synthetic.make(folder, unsuited=(("small_cnn", "attention"),), strip=True)


# ---------------------------------------------------------------- maps on images


def test_signed_maps_keep_their_zero():
    heat = np.zeros((32, 32))
    heat[:, :8], heat[:, 24:] = 1.0, -0.5
    found = tint(pictures.overlay(GREY, heat, side=32))
    assert (found[:, :6] > 60).all()
    assert (found[:, 26:] < -60).all()
    assert (found[:, 12:20] == 0).all()


def test_maps_without_a_sign_are_stretched():
    heat = np.linspace(0.9, 1.0, 32)[None].repeat(32, 0)
    found = tint(pictures.overlay(GREY, heat, side=32))
    assert found[0, 0] == 0
    assert found[0, -1] > 60


@pytest.mark.parametrize("heat", [np.zeros((8, 8)), np.full((8, 8), 3.0), np.full((8, 8), np.nan)])
def test_maps_that_say_nothing_show_nothing(heat):
    assert (tint(pictures.overlay(GREY, heat, side=32)) == 0).all()


def test_a_positive_factor_changes_no_pixel():
    heat = np.random.default_rng(0).normal(size=(8, 8))
    assert np.array_equal(pictures.overlay(GREY, heat), pictures.overlay(GREY, 1000 * heat))


def test_the_evidence_is_outlined_and_its_inside_left_alone():
    evidence = np.zeros((32, 32), bool)
    evidence[8:24, 8:24] = True
    plain, found = pictures.framed(GREY, side=128), pictures.framed(GREY, evidence, side=128)
    changed = (plain != found).any(-1)
    assert changed.any()
    assert not changed[36:92, 36:92].any()
    assert not changed[:26].any()
    assert {tuple(c) for c in found[changed]} == {(255, 255, 255), (20, 20, 20)}


def test_shapes_follow_the_image():
    wide = np.zeros((40, 80, 3), np.uint8)
    assert pictures.overlay(wide, np.ones((5, 10)), side=100).shape == (100, 200, 3)


def test_a_strip_shows_methods_in_rank_order_then_the_best_blind_control(result):
    block = summarise(result).blocks[0]
    example = pictures.examples(result)[0]
    names = pictures.chosen(example, block)
    assert names[:-1] == [m for m in block.methods if m != "attention"]  # unsuited: no map was kept
    assert names[-1] == block.columns[0].control
    assert example.maps["lrp"].shape == example.image.shape[:2]


def test_case_figure_shows_every_map():
    figure = plots.case_figure(GREY, None, {f"e{i}": np.ones((4, 4)) * i for i in range(6)}, "a case")
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert texts == {"a case", "image", *(f"e{i}" for i in range(6))}
    assert len(figure.axes[0].images) == 7


# ---------------------------------------------------------------- curves


def test_mean_curves_are_means_with_the_band_of_the_photographs(result):
    summary = summarise(result)
    found = plots.mean_curves(summary)["deletion", "morf"]["small_cnn"]
    assert [c.explainer for c in found[:2]] == list(summary.blocks[0].methods[:2])
    mine = [c for c in result.curves if (c.model, c.explainer, c.name) == ("small_cnn", "lrp", "morf")]
    curve = next(c for c in found if c.explainer == "lrp")
    assert np.allclose(curve.y, np.mean([c.y for c in mine], axis=0))
    alone = [np.mean([c.y[3] for c in mine if c.sample == s]) for s in sorted({c.sample for c in mine})]
    weights = statistics.resampled(len(alone), 1)[0][1 + len(alone) :]
    assert curve.low[3] == pytest.approx(np.quantile(weights @ alone / len(alone), 0.025))
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()


def test_curves_on_different_steps_are_read_by_interpolation(tmp_path):
    made = synthetic.make(tmp_path, models={"m": "classifier"}, curves=False)
    head = ("synthetic", "m", 0, "lrp")
    curves = [
        Curve(*head, "im000", "im000-0", "deletion", "morf", (0.0, 1.0), (1.0, 0.0)),
        Curve(*head, "im001", "im001-0", "deletion", "morf", (0.0, 0.5, 1.0), (1.0, 0.5, 0.0)),
    ]
    (found,) = plots.mean_curves(summarise(replace(made, curves=curves)))["deletion", "morf"]["m"]
    assert np.allclose(found.y, 1 - found.x)


# ---------------------------------------------------------------- figures


def test_dots_stand_at_the_values_and_the_band_spans_the_blind_controls(result):
    summary = summarise(result)
    axis = plots.dots_figure(summary, "deletion.srg").axes[0]
    column = summary.blocks[0].columns[0]
    names = [t.get_text() for t in axis.get_yticklabels()]
    assert names == plots.dotted(summary, summary.blocks[0], column)
    dots = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() in ("o", "D")}
    for y, name in enumerate(names):
        assert dots[y].get_xdata()[0] == column.cells[name].value
        strong = name == column.leader or name in column.tied
        assert (to_hex(dots[y].get_markerfacecolor()) != "#ffffff") is strong
    blind = [column.cells[c].value for c in column.blind]
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert (band.x0, band.x1) == (pytest.approx(min(blind)), pytest.approx(max(blind)))


def test_files_are_whole_and_the_same_twice(result, tmp_path):
    first, second = plots.write(result, tmp_path / "a"), plots.write(result, tmp_path / "b")
    names = ["dots-deletion.srg", "dots-localization.mass", "curves-deletion", "strip"]
    assert [p.name for p in first] == [f"{n}.{end}" for n in names for end in ("png", "svg")]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
        if one.suffix == ".png":
            with Image.open(one) as picture:
                assert picture.size[0] > 300
        else:
            assert ET.parse(one).getroot().tag.endswith("svg")


def test_without_curves_and_maps_the_dots_remain(tmp_path):
    made = synthetic.make(tmp_path, curves=False)
    assert {p.stem for p in plots.write(made, tmp_path)} == {"dots-deletion.srg", "dots-localization.mass"}


def test_without_any_value_there_is_no_figure(tmp_path):
    names = (*synthetic.METHODS, *synthetic.CONTROLS, *synthetic.ANNOTATIONS)
    unsuited = tuple((m, e) for m in synthetic.MODELS for e in names)
    assert plots.write(synthetic.make(tmp_path, unsuited=unsuited), tmp_path) == []
