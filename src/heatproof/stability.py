"""How stable is a ranking over the admissible settings of a metric? Plain numbers and a picture; no torch."""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from heatproof.errors import listed
from heatproof.plots import ACCENT, FAINT, INK, MUTED, STYLE

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One column of the table under one setting of the metric: NaN where it has no value."""

    model: str
    setting: tuple[tuple[str, Any], ...]
    explainer: str
    value: float


def ranks(values: Array) -> Array:
    """Ranks from the highest value down along the last axis, counted from 1, ties at their mean.

    >>> ranks(np.array([[3.0, 1.0, 3.0]])).tolist()
    [[1.5, 3.0, 1.5]]
    """
    above = (values[..., None, :] > values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    found: Array = above + (same + 1) / 2
    return found


def kendall_w(table: Array) -> float:
    """Kendall's coefficient of concordance W of m rankings of n things, 0 (none) to 1 (all the same), with ties.

    table [m, n] of ranks. W = 12 S / (m^2 (n^3 - n) - m T): S the spread of the rank sums, T the sum of t^3 - t over all
    groups of t tied ranks (Kendall and Babington Smith 1939; Siegel 1956 for ties). NaN for fewer than two rankings or
    things, and where all is tied.

    >>> kendall_w(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])), kendall_w(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    (1.0, 0.0)
    """
    m, n = table.shape
    if m < 2 or n < 2:
        return float("nan")
    sums = table.sum(0)
    spread = float(((sums - sums.mean()) ** 2).sum())
    tied = sum(
        float((count**3 - count).sum()) for row in table for count in [np.unique(row, return_counts=True)[1]]
    )
    whole = m * m * (n**3 - n) - m * tied
    return 12 * spread / whole if whole > 0 else float("nan")


def before(values: Array) -> Array:
    """[n, n]: in which share of the m settings explainer i is better than j; ties count half. values [m, n], higher better.

    >>> before(np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])).round(3).tolist()
    [[0.5, 0.625], [0.375, 0.5]]
    """
    more = (values[:, :, None] > values[:, None, :]).mean(0)
    same = (values[:, :, None] == values[:, None, :]).mean(0)
    found: Array = more + same / 2
    return found


@dataclass(frozen=True, eq=False)
class Multiverse:
    """One model's values [m, n] of m settings and n explainers, turned so that higher is better."""

    model: str
    explainers: tuple[str, ...]
    settings: tuple[tuple[tuple[str, Any], ...], ...]
    values: Array
    left_out: tuple[str, ...]  # explainers without a value in some setting

    @property
    def w(self) -> float:
        return kendall_w(ranks(self.values))

    @property
    def order(self) -> list[int]:
        """Explainers by their mean rank."""
        return [int(i) for i in np.argsort(ranks(self.values).mean(0), kind="stable")]

    def sway(self) -> dict[str, float]:
        """For each choice: Kendall's W over its values alone, all else fixed, averaged; the lowest sways the ranking most."""
        found = {}
        for name in dict(self.settings[0]) if self.settings else {}:
            groups: dict[Any, list[int]] = defaultdict(list)
            for i, setting in enumerate(self.settings):
                groups[tuple((k, v) for k, v in setting if k != name)].append(i)
            each = [kendall_w(ranks(self.values[rows])) for rows in groups.values() if len(rows) > 1]
            if each:
                found[name] = float(np.nanmean(each))
        return found


def gather(cells: Sequence[Cell], better: str) -> list[Multiverse]:
    """The cells of every model as tables; what has no value under some setting takes no part, and is named."""
    sign = 1.0 if better == "higher" else -1.0
    found = []
    for model in dict.fromkeys(c.model for c in cells):
        mine = {(c.setting, c.explainer): sign * c.value for c in cells if c.model == model}
        names = tuple(dict.fromkeys(e for _, e in mine))
        settings = tuple(dict.fromkeys(s for s, _ in mine))
        whole = np.array([[mine.get((s, e), np.nan) for e in names] for s in settings])
        known = ~np.isnan(whole).any(0)
        kept = tuple(e for e, k in zip(names, known, strict=True) if k)
        lost = tuple(e for e, k in zip(names, known, strict=True) if not k)
        found.append(Multiverse(model, kept, settings, whole[:, known], lost))
    return found


def told(universe: Multiverse, column: str) -> list[str]:
    """The stability of one model's ranking in sentences."""
    m, n = universe.values.shape
    if m < 2 or n < 2:
        return [f"{universe.model}: {m} settings and {n} explainers with a value leave nothing to compare"]
    names, order, share = universe.explainers, universe.order, before(universe.values)
    lines = [f"{universe.model}: {column}, {n} explainers under {m} settings, Kendall's W {universe.w:.2f}"]
    firsts = np.argsort(-universe.values, axis=1)[:, 0]
    won = {names[i]: int((firsts == i).sum()) for i in order}
    lines.append("  first in: " + listed([f"{e} {k}" for e, k in won.items() if k]))
    lines += [
        f"  {names[i]} before {names[j]} in {share[i, j]:.0%} of {m} settings"
        for i, j in itertools.pairwise(order)
    ]
    sway = sorted(universe.sway().items(), key=lambda item: item[1])
    lines.append(
        "  what sways it most: " + listed([f"{name} (W {w:.2f} over its values)" for name, w in sway])
    )
    if universe.left_out:
        lines.append("  without a value under some setting: " + listed(list(universe.left_out)))
    return lines


def sheet(cells: Sequence[Cell], column: str) -> str:
    """Every cell as CSV: model, the choices, explainer, value."""
    choices = list(dict.fromkeys(name for c in cells for name, _ in c.setting))
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["model", *choices, "explainer", column])
    for c in cells:
        chosen: Mapping[str, Any] = dict(c.setting)
        value = "" if np.isnan(c.value) else repr(c.value)
        rows.writerow([c.model, *(chosen.get(name, "") for name in choices), c.explainer, value])
    return out.getvalue()


def figure(universes: Sequence[Multiverse], column: str) -> Figure:
    """Where each explainer comes in, over all settings: one panel a model, the size of a dot its share of settings."""
    tallest = max(len(u.explainers) for u in universes)
    with mpl.rc_context(STYLE):
        picture = Figure(figsize=(3.4 * len(universes) + 0.6, 0.24 * tallest + 1.1), layout="constrained")
        axes = picture.subplots(1, len(universes), squeeze=False)[0]
        for ax, universe in zip(axes, universes, strict=True):
            place = ranks(universe.values)
            for y, i in enumerate(universe.order):
                spots, counts = np.unique(place[:, i], return_counts=True)
                ax.plot([spots.min(), spots.max()], [y, y], color=FAINT, linewidth=1, zorder=1)
                ax.scatter(
                    spots,
                    [y] * len(spots),
                    s=90 * counts / len(place),
                    color=ACCENT,
                    alpha=0.75,
                    linewidths=0,
                )
                ax.plot(place[:, i].mean(), y, "|", color=INK, markersize=9)
            ax.set_yticks(range(len(universe.order)), [universe.explainers[i] for i in universe.order])
            ax.set_ylim(len(universe.order) - 0.4, -0.6)
            ax.set_xlabel("rank; bar: mean")
            ax.tick_params(length=0)
            ax.set_title(
                f"{universe.model}\n{len(universe.settings)} settings, W {universe.w:.2f}", color=INK
            )
        picture.suptitle(
            f"{column} under every admissible setting", fontsize=9, color=MUTED, x=0.01, ha="left"
        )
    return picture
