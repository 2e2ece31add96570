"""The line-up of an audit as a picture: where methods, their copies and the controls come in, column by column. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heatproof.detector import CLEAR, SUSPECT, Verdict
from heatproof.plots import ACCENT, FAINT, INK, MUTED, PALETTE, STYLE
from heatproof.summary import COPIES, Block, Column, Summary, used

GUILTY = PALETTE[1]
# kind -> marker, colour, filled, size; what stands in front is drawn last
MARKS = {
    "never saw the model": ("D", MUTED, False, 16),
    "own map shuffled": ("x", MUTED, True, 20),
    "own map blurred": ("o", ACCENT, False, 26),
    "method": ("o", ACCENT, True, 22),
    "evidence": ("|", PALETTE[3], True, 110),
}
ROW = 0.23  # inches


def kind_of(name: str, column: Column, summary: Summary) -> str:
    """What an explainer is in the line-up: a key of ``MARKS``."""
    if name in column.methods:
        return "method"
    use = used(name, summary.run)
    if use in COPIES:
        return f"own map {use}"
    return "evidence" if use == "oracle" else "never saw the model"


def places(column: Column) -> dict[str, float]:
    """Every explainer's value on a scale from the column's worst, 0, to its best, 1; all at 0.5 where none differs.

    >>> from heatproof.summary import Cell
    >>> cells = {"a": Cell(3.0), "b": Cell(1.0), "c": Cell(2.0), "d": Cell(None)}
    >>> places(Column(("m", "v"), {"better": "lower"}, cells, ("a", "b"), ("c",)))
    {'a': 0.0, 'b': 1.0, 'c': 0.5}
    """
    values = {e: column.sign * (column.cells[e].value or 0.0) for e in column.valued(column.cells)}
    low, high = min(values.values()), max(values.values())
    return {e: (v - low) / (high - low) if high > low else 0.5 for e, v in values.items()}


def figure(summary: Summary, verdicts: Sequence[Verdict]) -> Figure:
    """One panel a model and one row a column: worst on the left, best on the right, suspect columns in red."""
    told = {(v.model, v.column): v for v in verdicts}
    panels = [(b, [c for c in b.columns if c.leader]) for b in summary.blocks]
    panels = [(block, columns) for block, columns in panels if columns]
    tallest = max((len(columns) for _, columns in panels), default=1)
    with mpl.rc_context(STYLE):
        size = (4.4 * max(len(panels), 1) + 0.2, ROW * tallest + 1.4)
        picture = Figure(figsize=size, layout="constrained")
        axes = picture.subplots(1, max(len(panels), 1), squeeze=False)[0]
        for axis, (block, columns) in zip(axes, panels, strict=False):
            _panel(axis, summary, block, columns, told, tallest)
        handles = [
            axes[0].scatter([], [], marker=marker, s=size, label=kind, **_ink(colour, filled=filled))
            for kind, (marker, colour, filled, size) in MARKS.items()
        ]
        # below the panels, where no dot is
        picture.legend(handles=handles, loc="outside lower left", ncols=len(MARKS), frameon=False, fontsize=8)
        picture.suptitle(
            f"{summary.result.name}: the line-up of every column", fontsize=9, color=MUTED, x=0.01, ha="left"
        )
    return picture


def _panel(
    axis: Axes,
    summary: Summary,
    block: Block,
    columns: Sequence[Column],
    told: Mapping[tuple[str, str], Verdict],
    tallest: int,
) -> None:
    for y, column in enumerate(columns):
        axis.axhline(y, color=FAINT, linewidth=0.6, zorder=1)
        spots: dict[str, list[float]] = {kind: [] for kind in MARKS}
        for name, x in places(column).items():
            spots[kind_of(name, column, summary)].append(x)
        for order, (kind, (marker, colour, filled, size)) in enumerate(MARKS.items(), 2):
            ink = _ink(colour, filled=filled)
            axis.scatter(spots[kind], [y] * len(spots[kind]), marker=marker, s=size, zorder=order, **ink)
    says = [told[block.model, c.name].says for c in columns]
    labels = [f"{c.name} ⚑" if s == SUSPECT else c.name for c, s in zip(columns, says, strict=True)]
    axis.set_yticks(range(len(columns)), labels)
    for label, said in zip(axis.get_yticklabels(), says, strict=True):
        label.set_color(GUILTY if said == SUSPECT else INK if said == CLEAR else MUTED)
    axis.set_ylim(tallest - 0.4, -0.6)
    axis.set_xlim(-0.04, 1.04)
    axis.set_xticks([0, 1], ["worst", "best"])
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
    axis.set_title(f"{block.model}: {says.count(SUSPECT)} of {len(columns)} suspect", color=INK)


def _ink(colour: str, *, filled: bool) -> dict[str, Any]:
    return {"color": colour} if filled else {"facecolors": "white", "edgecolors": colour, "linewidths": 1.0}
