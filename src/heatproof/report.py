"""A result as one self-contained page, with tables and figures beside it. Reads records only; no torch, no network."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from PIL import Image

from heatproof import detector, pictures, plots, tables, versus, words
from heatproof.errors import listed
from heatproof.pictures import Example, Picture
from heatproof.plots import MeanCurve
from heatproof.records import Result, write_whole
from heatproof.summary import Block, Column, Summary, summarise

TEMPLATES = Path(__file__).parent / "templates"
WIDE, NAMES, ROW, TOP = 280, 190, 20, 26  # of a dot chart, in its own units; most of it that names may take
CURVE = (270, 160, 30, 18)  # width, height, left and bottom margins of a curve chart


def write(result: Result | Summary, folder: Path) -> list[Path]:
    """Write ``index.html``, the tables and the figures of a result; the paths written, the page first."""
    summary = summarise(result)
    page = folder / "index.html"
    write_whole(page, html(summary))
    return [page, *tables.write(summary, folder), *plots.write(summary, folder)]


def html(result: Result | Summary) -> str:
    """The page: first the badge, the sentences, maps and charts, then every number and where it comes from."""
    summary = summarise(result)
    home = templates()
    home.filters["listed"] = listed
    home.filters["faults"] = detector.faults
    home.filters["settings"] = words.settings
    kind, claim = words.badge(summary.run)
    palette = plots.strokes(summary)
    held = versus.pairs(summary)
    return home.get_template("report.html").render(
        run=defaultdict(str, summary.run),
        name=summary.result.name,
        kind=kind,
        claim=claim,
        counts=words.counts(summary),
        sentence=words.headline(summary),
        strip=[
            _strip_row(e, b)
            for e in pictures.examples(summary.result)
            for b in summary.blocks
            if b.model == e.model and b.columns  # none where all metrics are of the models themselves
        ],
        charts=_charts(summary),
        suspects=_suspects(summary),
        reasons=_reasons(summary),
        unsuited=_unsuited(summary),
        models=tables.of_models(summary),
        versus=held,
        held=versus.told(held, summary.run.get("headline", ())),
        told=[words.of_models(grid.columns[0]) for grid in tables.of_models(summary)],
        blocks=[_block(summary, block) for block in summary.blocks if block.columns],
        marks=words.MARKS,
        curves=_curve_charts(summary, palette),
        palette=palette,
        groups=tables.GROUPS,
        definitions=words.definitions(summary),
    )


def templates() -> Environment:
    """The pages' templates, for this one and for that of captions."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=ChainableUndefined,  # an older run.json says less: the page has a gap, not an error
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


# ---------------------------------------------------------------- the strip of maps


def _strip_row(example: Example, block: Block) -> dict[str, Any]:
    column = block.columns[0]
    frames: list[dict[str, Any]] = [
        {
            "name": "the image",
            "note": "",
            "control": False,
            "picture": inline(pictures.framed(example.image, example.evidence)),
            "text": [(token, "transparent") for token in example.spoken],
        }
    ]
    for name in pictures.chosen(example, block):
        cell = column.cells.get(name)
        picture = pictures.overlay(example.image, example.maps[name], example.evidence)
        frames.append(
            {
                "name": name,
                "note": column.text(cell.value) if cell else "",
                "control": name in block.controls,
                "picture": inline(picture),
                "text": tinted(example.spoken, example.texts.get(name)),
            }
        )
    return {
        "model": example.model,
        "family": example.family,
        "about": example.about,
        "case": example.case,
        "sentence": words.sentence(block),
        "column": column.name,
        "frames": frames,
    }


def inline(picture: Picture) -> str:
    """A picture as a data URI; JPEG without chroma subsampling keeps the outline sharp."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=86, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def tinted(spoken: Sequence[str], text: pictures.Array | None) -> list[tuple[str, str]]:
    """Each token with the colour of its relevance, on the scale of the largest."""
    if text is None or len(text) != len(spoken):
        return []
    top = float(np.abs(text).max()) or 1.0
    tints = [("230, 84, 30" if v > 0 else "40, 120, 190", abs(float(v)) / top) for v in text]
    return [(t, f"rgba({rgb}, {0.75 * share:.2f})") for t, (rgb, share) in zip(spoken, tints, strict=True)]


# ---------------------------------------------------------------- charts, in the units of their own viewBox


def _charts(summary: Summary) -> list[dict[str, Any]]:
    """One a headline column: a panel a model, all on one scale."""
    heads = dict.fromkeys(c.name for b in summary.blocks for c in b.columns[: b.headline])
    out = []
    for name in heads:
        panels = [(b, c) for b in summary.blocks for c in b.columns if c.name == name and c.leader]
        if panels:
            low, high = plots.limits(c for _, c in panels)
            measure = panels[0][1].measure
            out.append(
                {
                    "name": name,
                    "better": measure.get("better", "higher"),
                    "measures": measure.get("measures", ""),
                    "panels": [_dots(summary, b, c, low, high) for b, c in panels],
                }
            )
    return out


def _dots(summary: Summary, block: Block, column: Column, low: float, high: float) -> dict[str, Any]:
    names = plots.dotted(summary, block, column)
    left = min(max(14 + 6 * max(map(len, names)), 60), NAMES)

    def at(value: float) -> float:
        return round(left + (WIDE - left - 8) * (value - low) / (high - low), 1)

    rows = []
    for i, name in enumerate(names):
        cell = column.cells[name]
        start, end = plots.reach(cell)
        rows.append(
            {
                "name": name,
                "y": TOP + ROW * (i + 0.5),
                "x": at(cell.value or 0.0),
                "start": at(start),
                "end": at(end),
                "control": name in block.controls,
                "strong": name == column.leader or name in column.tied,
                "full": column.full(name),
            }
        )
    blind = [column.cells[c].value or 0.0 for c in column.valued(column.blind)]
    best = column.cells[column.control].value if column.control else None
    return {
        "model": block.model,
        "faults": detector.faults(column),
        "rows": rows,
        "left": left,
        "height": TOP + ROW * len(rows) + 22,
        "band": [at(min(blind)), at(max(blind))] if blind else None,
        "control": column.control,
        "best": None if best is None else at(best),
        "ticks": [(at(v), f"{v:g}") for v in plots.ticks(low, high)],
    }


def _curve_charts(summary: Summary, palette: Mapping[str, tuple[int, bool]]) -> list[dict[str, Any]]:
    """One a curve name: a panel a model."""
    out = []
    for (metric, name), by_model in plots.mean_curves(summary).items():
        panels = [_curve_panel(model, curves, palette) for model, curves in by_model.items()]
        out.append({"metric": metric, "name": name, "panels": panels})
    return out


def _curve_panel(
    model: str, curves: Sequence[MeanCurve], palette: Mapping[str, tuple[int, bool]]
) -> dict[str, Any]:
    wide, high, left, bottom = CURVE
    xs = [v for c in curves for v in (c.x[0], c.x[-1])]
    ys = np.concatenate([part for c in curves for part in (c.y, c.low, c.high)])
    x0, x1, y0, y1 = (float(end) for end in (min(xs), max(xs), ys.min(), ys.max()))

    def px(v: float) -> float:
        return round(left + (wide - left - 6) * (v - x0) / (x1 - x0 or 1.0), 1)

    def py(v: float) -> float:
        return round(float(high - bottom - (high - bottom - 8) * (v - y0) / (y1 - y0 or 1.0)), 1)

    def points(x: pictures.Array, y: pictures.Array) -> str:
        return " ".join(f"{px(a)},{py(b)}" for a, b in zip(x, y, strict=True))

    lines = [
        {
            "name": c.explainer,
            "stroke": palette.get(c.explainer),
            "line": points(c.x, c.y),
            "band": f"{points(c.x, c.low)} {points(c.x[::-1], c.high[::-1])}",
        }
        for c in reversed(curves)  # the best last, so on top
    ]
    return {
        "model": model,
        "lines": lines,
        "x": [(px(v), f"{v:g}") for v in plots.ticks(x0, x1)],
        "y": [(py(v), f"{v:g}") for v in plots.ticks(y0, y1)],
    }


# ---------------------------------------------------------------- what is odd, and the big table


def _suspects(summary: Summary) -> dict[str, list[str]]:
    """Headline columns that are suspect, with the reasons, and the other suspect columns by name."""
    first: list[str] = []
    more: dict[str, None] = {}
    for block in summary.blocks:
        for i, column in enumerate(block.columns):
            found = detector.faults(column)
            if found and i < block.headline:
                first.append(f"{column.name} on {block.model}: {'; '.join(found)}")
            elif found:
                more[f"{column.name} on {block.model}"] = None
    return {"headline": first, "more": list(more)}


def _reasons(summary: Summary) -> list[tuple[str, int]]:
    lost = [r.reason for r in summary.result.records if r.status in ("undefined", "failed")]
    return sorted(Counter(lost).items(), key=lambda item: (-item[1], item[0]))


def _unsuited(summary: Summary) -> list[tuple[str, str]]:
    """(reason, what it keeps apart): why there are dashes, an explainer or a whole column at a time."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for block in summary.blocks:
        for column in block.columns:
            for name in (*block.methods, *block.controls):
                if name in column.cells and (why := column.cells[name].unsuited):
                    found[why][f"{name} on {block.model}"] = None
        for name, why in block.absent:
            found[why][f"{name} on {block.model}"] = None
    return [(why, listed(list(names), most=4)) for why, names in found.items()]


def _block(summary: Summary, block: Block) -> dict[str, Any]:
    return {
        "model": block.model,
        "family": block.family,
        "sentence": words.sentence(block),
        "images": block.images,
        "cases": block.cases,
        "replicates": block.replicates,
        "grid": tables.grid(summary, block, block.columns, "all"),
        "metrics": [(name, len(columns)) for name, columns in _runs(block.columns)],
        "headline": block.headline,
        "remarks": words.remarks(summary, block),
        "published": words.published(summary, block),
    }


def _runs(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Neighbouring columns of one metric, for the spanning heads of the table."""
    out: list[tuple[str, list[Column]]] = []
    for column in columns:
        if out and out[-1][0] == column.key[0]:
            out[-1][1].append(column)
        else:
            out.append((column.key[0], [column]))
    return out
