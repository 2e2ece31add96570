"""``heatproof audit-captions``: does a captioner say its object words because of the image, and do maps tell those it made up?

A benchmark is made of what was typed, written down beside the reader and run like any other: the metrics are
``image_lift`` (of the captioner itself) and ``hallucination`` (of each explainer's maps).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from heatproof import bench, ordering, report, runner
from heatproof.captioning import accept, truth_of
from heatproof.progress import Progress
from heatproof.records import Result, write_whole
from heatproof.runner import Order
from heatproof.summary import Column, Summary, measures, summarise

SHOWN = ("mean", "abs_mean", "positive_mean", "max")  # of a map's statistics; the report has them all
TRUTHS = {"objects": "what is annotated", "references": "the reference captions"}
NOTE = (
    "in brackets: 95 % bootstrap interval (BCa) over images; *: it leaves out 0.5, which tells nothing (below 0.5 made-up words "
    "have more). A shuffled map has its method's values: such numbers say how much relevance there is, not where"
)


def asked(raw: dict[str, Any], cwd: Path) -> dict[str, Any]:
    """The whole benchmark: what was typed, with the two metrics, the controls and the truth that the data set allows."""
    typed = ordering.passing(raw, cwd, "audit-captions")
    accept(typed.models[0].made.load(typed.models[0].name), "audit-captions")
    truth = truth_of(bench.draw(typed.dataset, typed.seed))
    names = [p.name for p in typed.explainers]
    drawn = type(typed.dataset.made).card.source.startswith("generated")
    return {
        **raw,
        "title": f"Said because of the image, or of the language: {raw['title']}",
        "kind": "instrument" if drawn else "photographs",
        "metrics": [{"use": name, "truth": truth} for name in ("hallucination", "image_lift")],
        "controls": [
            *(name for name in ("random",) if name not in names),
            {"use": "shuffled", "of": names[:1]},
        ],
        "headline": [f"hallucination.{name}" for name in SHOWN],
        "targets": {"captioner": "said objects"},
    }


def run(
    raw: dict[str, Any],
    cwd: Path,
    out: Path | None = None,
    workers: int = 1,
    device: str = "cpu",
    progress: Callable[[int], Progress] = Progress,
) -> tuple[list[str], list[Path], bool]:
    """The table in lines; the files written: the benchmark, ``words.csv`` and the report; and whether nothing failed."""
    name = f"{ordering.called(raw['models'][0])}-{ordering.called(raw['dataset'])}"
    file = cwd / f"{name}.toml"
    ordering.keep(
        asked(raw, cwd), file, f"# written by heatproof audit-captions; again: heatproof run {file.name}"
    )
    order = Order(str(file), workers=workers, device=device, cwd=cwd)
    result = runner.run(order, progress)
    summary = summarise(result)
    place = out or order.read().workspace / "reports" / name
    write_whole(place / "words.csv", sheet(result))
    failed = result.run["failures"]
    lines = told(summary)
    lines += (
        [f"{len(failed)} failed; the first: {failed[0]['explainer']}: {failed[0]['error']}"] if failed else []
    )
    return lines, [file, place / "words.csv", *report.write(summary, place)], not failed


def told(summary: Summary) -> list[str]:
    """The short table: the captioner's own two numbers, then each explainer's areas under the ROC curve, best first."""
    words = [r for r in summary.result.records if (r.metric, r.name) == ("image_lift", "grounded")]
    labels = [int(r.parts["label"]) for r in words if r.status == "value"]
    (metric,) = [m for m in summary.run["metrics"] if m["name"] == "image_lift"]
    truth = TRUTHS[metric["settings"]["truth"]]
    images = len({r.sample for r in words})
    head = (
        f"{summary.run['models'][0]['name']} said {len(words)} object words of {images} images; "
        f"{len(labels) - sum(labels)} of {len(labels)} are made up, going by {truth}"
    )
    if len(set(labels)) < 2:
        return [head, "so there is nothing to tell apart. Type a larger --sample, or other DATA"]
    own = {c.name: c for c in summary.models}
    lift, prior, alone = (own[f"image_lift.{n}"] for n in ("lift", "prior", "grounded"))
    (model,) = alone.cells
    nats = f"lift, what the image adds to a word's log-probability: {lift.full(model)} nats"
    language = f"prior, the log-probability without the image: {prior.full(model)}"
    return [head, f"{nats}; {language}", "", *_table(summary, alone, model), "", NOTE]


def _table(summary: Summary, alone: Column, model: str) -> list[str]:
    table = Table(
        box=box.SIMPLE_HEAD, title="area under the ROC curve, seen words against made-up ones", pad_edge=False
    )
    table.add_column("what is read")
    (block,) = summary.blocks
    columns = {c.key[1]: c for c in block.columns if c.key[0] == "hallucination"}
    for name in SHOWN:
        table.add_column(name, no_wrap=True)
    table.add_row("image lift alone", _area(alone, model), end_section=True)
    for group in (block.methods, block.controls):
        for name in group:
            cells = [_area(columns[s], name) if s in columns else "–" for s in SHOWN]
            table.add_row(name, *cells, end_section=name == group[-1])
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


def _area(column: Column, name: str) -> str:
    """``0.71 [0.60, 0.80] *``, marked where the interval leaves out 0.5."""
    cell = column.cells.get(name)
    if cell is None or cell.value is None:
        return "–"
    return column.full(name) + (" *" if cell.low > 0.5 or cell.high < 0.5 else "")


def sheet(result: Result) -> str:
    """A row a word as CSV: image, word, lift, prior, grounded (1 or 0), and each explainer's statistics of its map, every digit."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    heads: dict[str, None] = {}
    order = list(measures(result.run))  # as each metric tells them
    place = {p["name"]: k for k, p in enumerate(result.run["explainers"])}
    for r in sorted(
        result.records, key=lambda r: (place.get(r.explainer, -1), order.index((r.metric, r.name)))
    ):
        if r.case:
            name = r.name if r.metric == "image_lift" else f"{r.explainer}.{r.name}"
            row = rows.setdefault((r.sample, r.case, r.about), {})
            value = r.parts.get("label") if name == "grounded" else r.value
            row[name] = "" if value is None else repr(value)
            heads[name] = None
    first = ("lift", "prior", "grounded")
    names = [*first, *(name for name in heads if name not in first)]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "case", "word", *names])
    for word in sorted(rows):
        table.writerow([*word, *(rows[word].get(name, "") for name in names)])
    return out.getvalue()
