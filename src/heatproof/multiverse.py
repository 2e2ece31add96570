"""``heatproof multiverse``: one set of maps under every admissible setting of a metric; how stable is the ranking?

A setting that suits the spec is seldom the only one that would have: Steegen et al. 2016 call the table of all of
them the multiverse. Maps come from the store and are never computed twice; only scores are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from heatproof import provenance, reducers, runner, stability
from heatproof.bench import Bench
from heatproof.contract import Case, Measure, Score, Trial
from heatproof.errors import Refused, unknown
from heatproof.fields import fits, readable, typed
from heatproof.progress import Progress
from heatproof.records import Record, write_whole
from heatproof.reducers import Numbering
from heatproof.runner import Order
from heatproof.spec import Part, Spec

# What may be chosen otherwise, for every metric that has a setting of the name (PITFALLS of the field: baseline, sign, pooling,
# enlarging and output space each change rankings). "ties" is for all: another random order of tied pixels.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "baseline": ("mean", "black", "blur", "noise", "marginal", "inpaint"),
    "sign": ("signed", "positive", "abs"),
    "pool": ("sum", "l2"),
    "upsample": ("bilinear", "nearest"),
    "output": ("native", "probability"),
}
MOST = 1000  # settings


@dataclass(frozen=True)
class Retied:
    """A metric with other random numbers: tied pixels go in another order."""

    of: Any
    ties: int

    @property
    def measures(self) -> Sequence[Measure]:
        found: Sequence[Measure] = self.of.measures
        return found

    def measure(self, trials: Sequence[Trial]) -> Sequence[Score]:
        answer: Sequence[Score] = self.of.measure([replace(t, case=self._turned(t.case)) for t in trials])
        return answer

    def _turned(self, case: Case) -> Case:
        # a name of its own, so that what the memo keeps of the two is never mixed; the case itself pays
        name = f"{case.id}~ties{self.ties}"
        return replace(case, id=name, seed=case.seed + self.ties, charge=case.charge or case.id)


def expanded(
    spec: Spec, column: str, vary: Mapping[str, tuple[Any, ...]]
) -> tuple[Spec, list[dict[str, Any]]]:
    """The spec with the column's metric under every admissible setting, and those settings in the same order."""
    name, _, value = column.partition(".")
    part = next((m for m in spec.metrics if m.name == name), None)
    if part is None or value not in {m.name for m in part.made.measures}:
        known = [f"{m.name}.{v.name}" for m in spec.metrics for v in m.made.measures]
        raise unknown(f"multiverse of {spec.name}", "column", column, known)
    hints = {f.name: f for f in dataclasses.fields(part.made)}
    choices = {k: v for k, v in CHOICES.items() if k in hints} if not vary else dict(vary)
    for choice, values in choices.items():
        if choice != "ties" and choice not in hints:
            raise unknown(f"--vary {choice}", f"setting of {name}", choice, [*hints, "ties"])
        own = getattr(part.made, choice, 0)
        for wrong in (v for v in values if not fits(v, type(own))):
            raise Refused(
                f"--vary {choice}: found {wrong!r}, accepted is {readable(type(own))}, as in {own!r}"
            )
    if "ties" in choices and hasattr(part.made, "fit"):
        raise Refused(
            f"--vary ties: {name} is fitted to maps, so other ties are another fit; vary its settings"
        )
    variants: list[Part] = []
    settings: list[dict[str, Any]] = []
    for chosen in itertools.product(*choices.values()):
        setting = dict(zip(choices, chosen, strict=True))
        try:
            made = replace(part.made, **{k: v for k, v in setting.items() if k != "ties"})
        except Refused:
            continue  # the metric does not take it: not admissible
        made = Retied(made, setting["ties"]) if setting.get("ties") else made
        variants.append(replace(part, name=f"{name}#{len(settings)}", made=made, entry={}))
        settings.append(setting)
    if len(settings) > MOST:
        raise Refused(
            f"multiverse: found {len(settings)} settings, accepted are up to {MOST}: give fewer --vary"
        )
    if len(settings) < 2:
        raise Refused(
            f"multiverse: {column} has {len(settings)} admissible settings; give --vary SETTING=VALUE,VALUE"
        )
    return replace(spec, metrics=tuple(variants)), settings


def choices(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """What was typed, ``sign=signed,abs`` and ``steps=5,10``, as values: TOML where it is, else words.

    >>> choices(["sign=signed,abs", "steps=5,10"])
    {'sign': ('signed', 'abs'), 'steps': (5, 10)}
    """
    found = {}
    for text in texts:
        name, sep, values = text.partition("=")
        if not sep:
            raise Refused(f"--vary {text}: found no '='; write for example sign=signed,abs")
        found[name] = tuple(typed(value) for value in values.split(","))
    return found


def _bench(order: Order, store: Path, column: str, vary: Mapping[str, tuple[Any, ...]]) -> Bench:
    spec, _ = expanded(order.read(), column, vary)
    return Bench(spec, store, order.device, order.limit)


def run(
    order: Order,
    column: str = "",
    vary: Mapping[str, tuple[Any, ...]] | None = None,
    progress: Callable[[int], Progress] = Progress,
) -> tuple[list[str], list[Path]]:
    """The stability of a column's ranking in sentences, and the files written: cells as CSV, sentences, a picture."""
    asked = order.read()
    column, vary = column or asked.headline[0], vary or {}
    _, settings = expanded(asked, column, vary)
    store = provenance.working(asked) / f"{asked.name}.sqlite"
    bench, answers = runner.answers(
        partial(_bench, order, store, column, vary), store, order.workers, progress
    )
    value = column.partition(".")[2]
    rows = [r for a in answers for r in a.records if r.name == value]
    part = bench.spec.metrics[0]
    measure = next(m for m in part.made.measures if m.name == value)
    cells = _cells(rows, bench.spec.metrics, settings, measure.reduce)
    universes = stability.gather(cells, measure.better)
    lines = [line for u in universes for line in stability.told(u, column)]
    place = asked.workspace / "reports" / asked.name
    files = [place / f"multiverse-{column}.{end}" for end in ("csv", "txt", "png")]
    write_whole(files[0], stability.sheet(cells, column))
    write_whole(files[1], "\n".join(lines) + "\n")
    stability.figure(universes, column).savefig(files[2], dpi=150)
    return lines, files


def _cells(
    rows: Sequence[Record], metrics: Sequence[Part], settings: Sequence[dict[str, Any]], how: str
) -> list[stability.Cell]:
    found = []
    place = {m.name: tuple(s.items()) for m, s in zip(metrics, settings, strict=True)}
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((row.model, row.metric, row.explainer), []).append(row)
    suited = {(m, e) for (m, _, e), some in groups.items() if any(r.status != "unsuited" for r in some)}
    # a setting that no explainer of a model can be asked under (a probability of a cosine) is no admissible one
    open_ = {(m, name) for (m, name, _), some in groups.items() if any(r.status != "unsuited" for r in some)}
    for (model, name, explainer), some in groups.items():
        if (model, explainer) in suited and (model, name) in open_:
            cases = [r for r in some if r.case]
            value = reducers.reduce(how, Numbering.of(cases).rows(cases, how)) if cases else float("nan")
            found.append(stability.Cell(model, place[name], explainer, value))
    return found
