"""``heatproof show``: one case, the image with each explainer's map side by side."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from heatproof import geometry, plots
from heatproof.bench import Bench
from heatproof.contract import Unsuited
from heatproof.errors import Refused, unknown
from heatproof.runner import Order
from heatproof.store import Store


def show(order: Order, wanted: str | None, out: Path | None) -> list[str]:
    """Draw a PNG a model that has the case; without a case, the names there are."""
    asked = order.read()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "show.sqlite"
        Store(path, write=True).close()
        bench = Bench(asked, path, order.device, order.limit)
        if wanted is None:
            return [f"{part.name}: {' '.join(_names(bench, m))}" for m, part in enumerate(asked.models)]
        drawn = [line for m in range(len(asked.models)) for line in _draw(bench, m, wanted, out)]
        bench.store.close()
    if not drawn:
        known = [n for m in range(len(asked.models)) for n in _names(bench, m)]
        raise unknown(f"heatproof show {asked.name}", "case", wanted, known[:60])
    return drawn


def _names(bench: Bench, m: int) -> list[str]:
    model, _ = bench.model(m)
    return [c.id for cases in bench.ask(model, bench.samples) for c in cases]


def _draw(bench: Bench, m: int, wanted: str, out: Path | None) -> list[str]:
    model, key = bench.model(m)
    samples = [i for i, s in enumerate(bench.samples) if wanted.startswith(s.id.replace("/", "-"))]
    cases = [(i, c) for i in samples for c in bench.ask(model, [bench.samples[i]])[0] if c.id == wanted]
    if not cases:
        return []
    index, case = cases[0]
    case = dataclasses.replace(case, other=lambda: bench.other(model, index))
    size = (case.pixels.shape[-2], case.pixels.shape[-1])
    maps, unsuited = {}, []
    for part in bench.spec.explainers:
        try:
            extra = (bench.fitted(part, model, key)[0],) if hasattr(part.made, "fit") else ()
            heat = part.made.explain(model, [case], *extra)[0].image
        except Unsuited as reason:
            unsuited.append(f"  {part.name}: {reason}")
            continue
        if heat is not None:
            maps[part.name] = geometry.read(heat, size).numpy()
    if not maps:
        raise Refused(f"no explainer of {bench.spec.name} gives a map of {wanted} on {model.name}")
    evidence = None if case.mask is None else case.mask.numpy()
    figure = plots.case_figure(
        model.frame.picture(case.pixels), evidence, maps, f"{model.name}: {case.about}"
    )
    path = out or bench.spec.workspace / "reports" / bench.spec.name / "cases" / f"{model.name}.{case.id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return [str(path), *unsuited]
