"""A result as pictures: dots with intervals, mean curves, strips of maps; PNG and SVG, the same bytes each time.

Reads records and the kept example maps only; no torch.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heatproof import detector, statistics
from heatproof.pictures import Array, Picture, chosen, examples, framed, overlay
from heatproof.records import Curve, Result
from heatproof.summary import Block, Cell, Column, Summary, annotating, summarise

INK, MUTED, FAINT, BAND, ACCENT = "#1d1f24", "#6a707c", "#c9cdd4", "#e6e8ec", "#1d5fae"
SIDE = 150  # of a picture in the strip
GAP, LETTER = 12, 12  # between pictures, and how wide a letter of a title is at most, in pixels
PALETTE = ("#1d5fae", "#d1495b", "#2a9d6f", "#e08e1b", "#7b4fa3", "#2ba5b8", "#a0642c", "#d46fa9")
STYLE: Any = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "svg.hashsalt": "heatproof",
    "svg.fonttype": "none",
    "figure.dpi": 100,
}


def case_figure(
    image: Picture,
    evidence: npt.NDArray[np.bool_] | None,
    maps: Mapping[str, npt.NDArray[Any]],
    title: str,
    *,
    across: int = 5,
) -> Figure:
    """One case: the image with its evidence outlined, then every explainer's map side by side."""
    cells = [Panel(framed(image, evidence), "image")]
    cells += [Panel(overlay(image, heat, evidence), name) for name, heat in maps.items()]
    return sheet([cells[i : i + across] for i in range(0, len(cells), across)], title)


def _panels(
    down: int,
    across: int,
    cell: tuple[float, float],
    around: tuple[float, float, float, float],
    foot: float = 0.4,
) -> tuple[Figure, Any]:
    """Axes of ``cell`` inches with ``around`` (left, right, top, bottom) inches free about each and ``foot`` below all: laid out by
    arithmetic, because matplotlib's own layout doubles the time of a figure.
    """
    left, right, top, bottom = around
    wide, high = left + cell[0] + right, top + cell[1] + bottom
    figure = Figure(figsize=(wide * across, high * down + foot))
    size = figure.get_size_inches()
    axes = np.array(
        [
            [
                figure.add_axes(
                    (
                        (j * wide + left) / size[0],
                        ((down - 1 - i) * high + bottom + foot) / size[1],
                        cell[0] / size[0],
                        cell[1] / size[1],
                    )
                )
                for j in range(across)
            ]
            for i in range(down)
        ]
    )
    return figure, axes


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet with the words below it."""

    picture: Picture
    below: str
    colour: str = INK


def sheet(rows: Sequence[Sequence[Panel]], title: str = "", side: int = 224) -> Figure:
    """Panels in rows, as one raster with text: a grid of axes takes seconds to lay out. A long title is wrapped."""
    lines = max(p.below.count("\n") for row in rows for p in row) + 1
    wide = max(p.picture.shape[1] for row in rows for p in row) + GAP
    span = wide * max(map(len, rows)) - GAP
    told = [line for part in title.split("\n") for line in textwrap.wrap(part, max(span // LETTER, 20))]
    gap, foot, head = GAP, 12 + 22 * lines, 5 + 25 * len(told) if title else 0
    high = side + foot
    size = (head + high * len(rows), span)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=((size[1] + 2 * gap) / 150, (size[0] + 2 * gap) / 150))
        axis = figure.add_axes((0, 0, 1, 1), xlim=(-gap, size[1] + gap), ylim=(size[0] + gap, -gap))
        axis.set_axis_off()
        axis.text(0, 0, "\n".join(told), va="top", fontsize=9.5)
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                x, y = j * wide, head + i * high
                across = panel.picture.shape[1]
                axis.imshow(
                    panel.picture, extent=(x, x + across, y + side, y), interpolation="none", aspect="auto"
                )
                longest = max(map(len, panel.below.split("\n")))
                axis.text(
                    x + across / 2,
                    y + side + 5,
                    panel.below,
                    ha="center",
                    va="top",
                    color=panel.colour,
                    fontsize=min(8.5, 8.5 * across / (7.6 * longest)),  # inside its column
                )
        axis.set(xlim=(-gap, size[1] + gap), ylim=(size[0] + gap, -gap))
    return figure


def strip_figure(summary: Summary) -> Figure | None:
    """One row a kept case: the photograph, the methods in rank order, the best control."""
    blocks = {b.model: b for b in summary.blocks}
    rows = [(e, blocks[e.model]) for e in examples(summary.result) if e.model in blocks]
    if not rows:
        return None
    panels = []
    for example, block in rows:
        said = textwrap.shorten(example.about, 24, placeholder=" …")
        cells = [Panel(framed(example.image, example.evidence, SIDE), f"{example.model}\n{said}")]
        for name in chosen(example, block):
            picture = overlay(example.image, example.maps[name], example.evidence, SIDE)
            cells.append(Panel(picture, name, MUTED if name in block.controls else INK))
        panels.append(cells)
    return sheet(panels, side=SIDE)


# ---------------------------------------------------------------- dots with intervals


def dots_figure(summary: Summary, name: str) -> Figure | None:
    """One headline column, a panel a model: value and interval, the blind controls as a grey band."""
    panels = [(b, c) for b in summary.blocks for c in b.columns if c.name == name and c.leader]
    if not panels:
        return None
    tall = max(len(dotted(summary, b, c)) for b, c in panels)
    longest = max(len(name) for b, c in panels for name in dotted(summary, b, c))
    with mpl.rc_context(STYLE):
        around = (0.2 + 0.073 * longest, 0.15, 0.35, 0.25)
        figure, axes = _panels(1, len(panels), (2.1, 0.22 * (tall + 1)), around)
        for axis, (block, column) in zip(axes[0], panels, strict=True):
            axis.set(xlim=limits(c for _, c in panels), ylim=(tall - 0.5, -1.2))
            _dots(axis, summary, block, column)
        better = panels[0][1].measure.get("better", "higher")
        figure.text(0.5, 0.02, f"{name}, {better} is better", ha="center", va="bottom")
    return figure


def limits(columns: Iterable[Column]) -> tuple[float, float]:
    """The ends of one scale that holds every interval of these columns, with a little room."""
    ends = [end for c in columns for e in c.valued(c.cells) for end in reach(c.cells[e])]
    room = 0.06 * (max(ends) - min(ends)) or 0.5
    return min(ends) - room, max(ends) + room


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers between the ends, at most five.

    >>> ticks(-0.03, 0.47), ticks(0, 1), ticks(11, 93)
    ([0.0, 0.2, 0.4], [0.0, 0.5, 1.0], [20.0, 40.0, 60.0, 80.0])
    """
    least = 0.234 * (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(least))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) + 0.0 for n in range(first, last + 1)]


def _inside(ends: tuple[float, float]) -> list[float]:
    return ticks(min(ends), max(ends))


def reach(cell: Cell) -> tuple[float, float]:
    """The ends of a cell's interval, or its value twice where it has none."""
    value = cell.value or 0.0
    return (value, value) if math.isnan(cell.low) else (cell.low, cell.high)


def dotted(summary: Summary, block: Block, column: Column) -> list[str]:
    """The explainers that get a dot: methods in rank order, then the controls that know mask or map."""
    methods = column.ranked(column.valued(block.methods))
    knowing = [c for c in block.controls if annotating(c, summary.run)]
    return [*methods, *column.ranked(column.valued(knowing))]


def _dots(axis: Axes, summary: Summary, block: Block, column: Column) -> None:
    names = dotted(summary, block, column)
    blind = [column.cells[c].value or 0.0 for c in column.valued(column.blind)]
    if blind and column.control:
        best = column.cells[column.control].value or 0.0
        axis.axvspan(min(blind), max(blind), color=BAND, lw=0, zorder=0)
        axis.axvline(best, color=MUTED, lw=0.8, ls=(0, (3, 2)), zorder=1)
        low, high = axis.get_xlim()
        side = "left" if best < low + 0.6 * (high - low) else "right"
        axis.text(best, -0.75, f" {column.control} ", color=MUTED, fontsize=7.5, ha=side, va="center")
    for y, name in enumerate(names):
        cell, control = column.cells[name], name in block.controls
        strong = name == column.leader or name in column.tied
        colour = MUTED if control else ACCENT
        axis.plot([cell.low, cell.high], [y, y], color=colour, lw=1.6, alpha=1 if strong else 0.55, zorder=2)
        face = colour if strong else "white"
        axis.plot([cell.value or 0.0], [y], "D" if control else "o", ms=5, mfc=face, mec=colour, zorder=3)
    axis.set_yticks(range(len(names)), names)
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_color(MUTED if name in block.controls else INK)
    axis.set_xticks(_inside(axis.get_xlim()))
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
    axis.set_title(f"{block.model} ⚑" if detector.faults(column) else block.model)


# ---------------------------------------------------------------- mean curves


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """A curve averaged over cases, with a 95 % band by resampling photographs."""

    explainer: str
    x: Array
    y: Array
    low: Array
    high: Array


def mean_curves(summary: Summary) -> dict[tuple[str, str], dict[str, list[MeanCurve]]]:
    """{(metric, curve name): {model: its explainers' mean curves}}; other x are read by interpolation."""
    grouped: dict[tuple[str, str, str], dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for curve in summary.result.curves:
        if np.isfinite(curve.y).all() and curve.x:
            grouped[curve.metric, curve.name, curve.model][curve.explainer].append(curve)
    out: dict[tuple[str, str], dict[str, list[MeanCurve]]] = defaultdict(dict)
    for block in summary.blocks:
        order = [*block.methods, *block.controls]
        for (metric, name, model), found in sorted(grouped.items()):
            if model == block.model:
                out[metric, name][model] = [_mean_curve(e, found[e]) for e in order if e in found]
    return dict(sorted(out.items()))


def _mean_curve(explainer: str, curves: Sequence[Curve]) -> MeanCurve:
    xs = {c.x for c in curves}
    if len(xs) == 1:
        x = np.array(curves[0].x)
        y = np.array([c.y for c in curves])
    else:
        x = np.linspace(min(c.x[0] for c in curves), max(c.x[-1] for c in curves), 21)
        y = np.array([np.interp(x, c.x, c.y) for c in curves])
    samples, inverse = np.unique([c.sample for c in curves], return_inverse=True)
    sums, sizes = np.zeros((len(samples), len(x))), np.bincount(inverse).astype(np.float64)
    np.add.at(sums, inverse, y)
    weights = statistics.resampled(len(samples), 1)[0][1 + len(samples) :]
    drawn = (weights @ sums) / (weights @ sizes)[:, None]
    low, high = np.quantile(drawn, (statistics.TAIL, 1 - statistics.TAIL), axis=0)
    return MeanCurve(explainer, x, y.mean(0), low, high)


def strokes(summary: Summary) -> dict[str, tuple[int, bool]]:
    """A stroke a method, the same in every figure: its place in the palette, and whether it is dashed."""
    methods = dict.fromkeys(m for block in summary.blocks for m in block.methods)
    return {m: (i % len(PALETTE), i >= len(PALETTE)) for i, m in enumerate(sorted(methods))}


def curves_figure(
    summary: Summary, metric: str, curves: Mapping[tuple[str, str], Mapping[str, Sequence[MeanCurve]]]
) -> Figure:
    """All curves of one metric: a row a curve name, a column a model."""
    names = [name for m, name in curves if m == metric]
    models = [b.model for b in summary.blocks if any(b.model in curves[metric, name] for name in names)]
    palette = strokes(summary)
    shown = {c.explainer for n in names for some in curves[metric, n].values() for c in some}
    marks = [
        Line2D([], [], color=PALETTE[colour], ls=_dash(dashed), lw=1.5, label=m)
        for m, (colour, dashed) in palette.items()
        if m in shown
    ]
    marks.append(Line2D([], [], color=FAINT, lw=1, label="controls"))
    longest = max(len(str(mark.get_label())) for mark in marks)
    abreast = max(1, int(2.75 * len(models) / (0.42 + 0.062 * longest)))
    foot = 0.1 + 0.2 * math.ceil(len(marks) / abreast)
    with mpl.rc_context(STYLE):
        figure, grid = _panels(len(names), len(models), (2.2, 1.6), (0.4, 0.15, 0.3, 0.25), foot)
        for axes, name in zip(grid, names, strict=True):
            for axis, model in zip(axes, models, strict=True):
                _curves(axis, curves[metric, name].get(model, ()), palette)
                axis.set(xticks=_inside(axis.get_xlim()), yticks=_inside(axis.get_ylim()))
                axis.set_title(f"{model}: {name}")
        figure.legend(handles=marks, loc="lower center", ncols=abreast, frameon=False, borderaxespad=0.2)
    return figure


def _dash(dashed: bool) -> Any:
    return (0, (4, 1.5)) if dashed else "-"


def _curves(axis: Axes, curves: Sequence[MeanCurve], palette: Mapping[str, tuple[int, bool]]) -> None:
    """Three collections, not thirty artists: controls, bands and methods, the best on top."""
    methods = [c for c in reversed(curves) if c.explainer in palette]
    controls = [np.column_stack([c.x, c.y]) for c in curves if c.explainer not in palette]
    colours = [PALETTE[palette[c.explainer][0]] for c in methods]
    bands = [np.column_stack([[*c.x, *c.x[::-1]], [*c.low, *c.high[::-1]]]) for c in methods]
    lines = [np.column_stack([c.x, c.y]) for c in methods]
    dashes = [_dash(palette[c.explainer][1]) for c in methods]
    axis.add_collection(LineCollection(controls, colors=FAINT, linewidths=0.9))
    axis.add_collection(PolyCollection(bands, facecolors=colours, alpha=0.09, linewidths=0))
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=1.5, linestyles=dashes))
    axis.margins(0.04)
    axis.autoscale_view()


# ---------------------------------------------------------------- files


def save(figure: Figure, stem: Path) -> list[Path]:
    """``STEM.png`` and ``STEM.svg``, without dates or versions in them."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], dpi=150, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def write(result: Result | Summary, folder: Path) -> list[Path]:
    """Every figure of a result into the folder: ``dots-COLUMN``, ``curves-METRIC`` and ``strip``."""
    summary = summarise(result)
    heads = dict.fromkeys(c.name for b in summary.blocks for c in b.columns[: b.headline])
    curves = mean_curves(summary)
    figures = {f"dots-{name}": dots_figure(summary, name) for name in heads}
    figures |= {
        f"curves-{metric}": curves_figure(summary, metric, curves)
        for metric in dict.fromkeys(m for m, _ in curves)
    }
    figures["strip"] = strip_figure(summary)
    return [path for name, figure in figures.items() if figure for path in save(figure, folder / name)]
