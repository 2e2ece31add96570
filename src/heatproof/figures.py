"""``heatproof figure``: cases drawn by a printed rule, a row each; the image, then each method's map, from the store."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from heatproof import checks, geometry, keys, paper, plots, provenance, results, words
from heatproof.bench import Bench
from heatproof.contract import Case, Explanation
from heatproof.errors import Refused, unknown
from heatproof.paper import Pick
from heatproof.pictures import Picture, framed, overlay
from heatproof.plots import ACCENT, INK, SIDE, Panel
from heatproof.records import write_whole
from heatproof.runner import Order
from heatproof.spec import Part
from heatproof.store import News, Store, pack
from heatproof.summary import Block, Column, Summary, summarise

ENDINGS: dict[str, dict[str, Any]] = {  # what a file keeps of the day it was made: nothing
    ".pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    ".png": {"metadata": {"Software": None}},
}


def draw(order: Order, rows: str, out: Path, ours: str = "", column: str = "", model: str = "") -> list[str]:
    """Draw the figure; its rule, its cases and the path in lines."""
    if out.suffix not in ENDINGS:
        raise Refused(f"--out {out}: found {out.suffix or 'no ending'!r}, accepted are {', '.join(ENDINGS)}")
    wanted = paper.asked(rows)
    summary = summarise(results.latest(order.benchmark, order.cwd)[0])
    block = _block(summary, ours, model)
    shown = _column(block, column)
    whose, seed = ours or str(shown.leader), int(summary.run.get("seed", 0))
    picks = paper.picks(summary.result.records, block, shown, wanted, whose, seed)
    rule = paper.rule(wanted, block, shown, whose, seed)
    methods = [m for m in shown.ranked(shown.valued(block.methods)) if m != ours] + [ours] * bool(ours)
    panels = _Maps(order, summary, block).rows(picks, methods, shown, ours)
    kind, claim = words.badge(summary.run)
    _save(plots.sheet(panels, f"{rule}\n{kind}: {claim}.", SIDE), out)
    told = [f"{p.rule:<8}  {p.case}  {p.about}: {_values(p, methods, shown)}" for p in picks]
    return [rule, *told, str(out)]


def _block(summary: Summary, ours: str, model: str) -> Block:
    found = paper.blocks(summary, ours) if ours else list(summary.blocks)
    named = [b for b in found if b.model == model] if model else found[:1]
    if not named:
        raise unknown(f"{summary.result.name}: --model", "model", model, [b.model for b in found])
    return named[0]


def _column(block: Block, name: str) -> Column:
    there = {c.name: c for c in block.columns if c.leader}
    if not there:
        raise Refused(f"{block.model}: no method has a value in any column")
    if name and name not in there:
        raise unknown("--column", "column", name, there)
    return there[name] if name else next(iter(there.values()))


def _values(pick: Pick, methods: Sequence[str], column: Column) -> str:
    return ", ".join(f"{m} {column.text(pick.values.get(m))}" for m in methods)


def _save(figure: Figure, out: Path) -> None:
    content = io.BytesIO()
    with mpl.rc_context(plots.STYLE):
        figure.savefig(content, format=out.suffix[1:], dpi=150, **ENDINGS[out.suffix])
    write_whole(out, content.getvalue())


class _Maps:
    """The maps of one model's cases, from the benchmark's own store; what is not there is explained and kept."""

    def __init__(self, order: Order, summary: Summary, block: Block) -> None:
        self.asked = order.read()
        self.name = self.asked.name
        index = [i for i, part in enumerate(self.asked.models) if part.name == block.model]
        if not index:
            raise unknown(f"{self.name}", "model", block.model, [p.name for p in self.asked.models])
        path = provenance.working(self.asked) / f"{self.name}.sqlite"
        self.store = Store(path, write=True)
        self.bench = Bench(self.asked, path, order.device, order.limit)
        self.model, self.key = self.bench.model(index[0])
        hashes = [m.get("hash") for m in summary.run.get("models", ()) if m["name"] == block.model]
        if self.model.hash not in hashes:
            raise Refused(self._stale(f"{block.model}'s weights"))
        self.summary = summary

    def _stale(self, what: str) -> str:
        return f"{what} changed since the table was made: type heatproof run {self.name} first"

    def rows(
        self, picks: Sequence[Pick], methods: Sequence[str], column: Column, ours: str
    ) -> list[list[Panel]]:
        parts = {p.name: p for p in self.asked.explainers}
        for name in methods:
            told = self.summary.part("explainers", name)
            now = parts.get(name)
            if now is None or (now.source, keys.plain(now.settings)) != (
                told.get("source"),
                told.get("settings"),
            ):
                raise Refused(self._stale(f"explainer {name!r}"))
        try:
            return [self._row(pick, [parts[name] for name in methods], column, ours) for pick in picks]
        finally:
            self.store.close()
            self.bench.store.close()

    def _row(self, pick: Pick, parts: Sequence[Part], column: Column, ours: str) -> list[Panel]:
        case = self._case(pick)
        image = self.model.frame.picture(case.pixels)
        evidence = None if case.mask is None else case.mask.numpy()
        panels = [Panel(framed(image, evidence, SIDE), f"{pick.rule}\n{_short(pick.about)}")]
        size = case.pixels.shape[-2], case.pixels.shape[-1]
        for part in parts:
            heat = self._explained(part, case).image
            picture = (
                _blank(image)
                if heat is None
                else overlay(image, geometry.read(heat, size).numpy(), evidence, SIDE)
            )
            colour = ACCENT if part.name == ours else INK
            panels.append(Panel(picture, f"{part.name}\n{column.text(pick.values.get(part.name))}", colour))
        return panels

    def _case(self, pick: Pick) -> Case:
        places = [i for i, s in enumerate(self.bench.samples) if s.id == pick.sample]
        for place in places:
            for case in self.bench.ask(self.model, [self.bench.samples[place]])[0]:
                if case.id == pick.case:
                    return dataclasses.replace(case, other=partial(self.bench.other, self.model, place))
        raise Refused(self._stale(f"the data: there is no case {pick.case}; it"))

    def _explained(self, part: Part, case: Case) -> Explanation:
        """The stored map of a case, or a new one, which is stored under the key that a run looks for (law 8)."""
        extra: tuple[Any, ...] = ()
        learned = ""
        if hasattr(part.made, "fit"):
            fitted, learned = self.bench.fitted(part, self.model, self.key)
            extra = (fitted,)
        samples = {s.id: s for s in self.bench.samples}
        policy = self.bench.policy(self.model)
        asked = keys.case_key(self.key, case, self.bench.digest(samples[case.sample]), policy)
        partner = case.other() if checks.needs_other(part.made) and case.other else None
        other = "" if partner is None else partner.id + self.bench.digest(samples[partner.sample])
        key = keys.map_key(asked, part, learned, other)
        stored = self.store.maps([key])
        if key in stored:
            return stored[key][0]
        self.model.memo.clear()
        before, found = case.pixels.clone(), checks.condition(self.model.net)
        with self.model.part() as spent:
            answer = part.made.explain(self.model, [case], *extra)
        checks.left_as_found(part, found, checks.condition(self.model.net))
        (told,) = checks.explanations(part, [case], [before], answer)
        explanation = checks.detached(told)
        cost = spent.forward[case.id], spent.backward[case.id]
        self.store.add(News(maps={key: (pack(explanation), *cost)}))
        return explanation


def _blank(image: Picture) -> Picture:
    """Where a method answers in words alone."""
    return np.full_like(framed(image, None, SIDE), 255)


def _short(about: str) -> str:
    return about if len(about) <= 24 else about[:22].rstrip() + " …"
