"""One chunk of samples through one model: every explainer's maps, every metric's scores, what fails and why.

What the store knows already is not computed again; what one case breaks does not stop the others (law 9).
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from heatproof import checks, geometry, keys
from heatproof.contract import Case, Explanation, Refused, Sample, Score, Trial, Unsuited, explanation_name
from heatproof.models.base import Model
from heatproof.models.meter import Bill, Meter
from heatproof.records import Curve, Record
from heatproof.spec import Part
from heatproof.store import pack

if TYPE_CHECKING:
    from heatproof.bench import Answer, Bench

T = TypeVar("T")
NOBODY = Part("", "explainers", "", "model", None)  # who explains where a metric is of the model itself


class Chunk:
    """The cells of one chunk: (explainer, metric) pairs over the chunk's cases."""

    def __init__(self, bench: Bench, model: Model, key: str, answer: Answer) -> None:
        self.bench, self.spec, self.model, self.model_key, self.answer = bench, bench.spec, model, key, answer
        self.part = bench.spec.models[answer.job.model]
        self.condition = checks.condition(model.net)
        self.judges = [m for m in self.spec.metrics if not checks.of_model(m.made)]

    def run(self) -> None:
        first, count = self.answer.job.first, self.answer.job.count
        samples = self.bench.samples[first : first + count]
        asked = self.bench.ask(self.model, samples)
        self.cases = [case for cases in asked for case in cases]
        self.index = {s.id: first + i for i, s in enumerate(samples)}
        digests = {s.id: self.bench.digest(s) for s in samples}
        policy = self.bench.policy(self.model)
        self.case_keys = {
            c.id: keys.case_key(self.model_key, c, digests[c.sample], policy) for c in self.cases
        }
        self.answer.cases = len(self.cases)
        self.answer.model = {
            "name": self.part.name,
            "replicate": self.part.replicate,
            "family": self.model.family,
            "space": self.model.space,
            "hash": self.model.hash,
            "policy": policy,
            "card": dict(self.model.card),
        }
        self.shown = [c for c in self.cases if c.mask is not None and c.mask.any()][:1] if not first else []
        self.rows = {c.id: self._strip_row(c) for c in self.shown}
        for part in self.spec.explainers:
            if self.cases and self.judges:
                self._explainer(part)
        for metric in self.spec.metrics:
            if checks.of_model(metric.made):
                self._itself(metric, samples)
        self.answer.strip = list(self.rows.values())

    # ------------------------------------------------------------------ one explainer

    def _explainer(self, part: Part) -> None:
        cases = self.cases
        try:
            fitted, fit_key = None, ""
            if hasattr(part.made, "fit"):
                try:
                    fitted, fit_key = self.bench.fitted(part, self.model, self.model_key)
                except (Unsuited, Refused):
                    raise
                except Exception as error:  # foreign code may raise anything, and the run goes on
                    for case in cases:
                        self._failed(part, None, case, error)
                    return
            if any(checks.needs_other(p.made) for p in (part, *self.judges)):
                cases = [dataclasses.replace(c, other=self._other(c)) for c in cases]
            map_keys = {c.id: self._map_key(part, c, fit_key) for c in cases}
            learned = {m.name: self._fit_name(m, part) for m in self.judges}
            score_keys = {
                (c.id, m.name): keys.score_key(map_keys[c.id], m, self._partner(m, c), learned[m.name])
                for c in cases
                for m in self.judges
            }
            stored = self.bench.scores(list(score_keys.values()))
            todo = [
                c
                for c in cases
                if c.id in self.rows or any(score_keys[c.id, m.name] not in stored for m in self.judges)
            ]
            maps, costs = self._maps(part, todo, map_keys, fitted)
        except Unsuited as reason:
            for metric in self.judges:
                self._unsuited(part, metric, str(reason))
            return
        for case in self.shown:
            if case.id in maps:
                self._show(part, case, maps[case.id])
        for metric in self.judges:
            missing = [c for c in todo if c.id in maps and score_keys[c.id, metric.name] not in stored]
            found = self._scores(part, metric, missing, maps, costs)
            if found is None:
                continue
            for case in cases:
                key = score_keys[case.id, metric.name]
                cell = stored.get(key) or found.get(case.id)
                if cell is not None:
                    self._record(part, metric, case, key, cell)
                if case.id in found:
                    self.answer.news.scores[key] = found[case.id]

    def _fit_name(self, metric: Part, part: Part | None) -> str:
        """The key of what a metric learned, of the explainer's maps if of one's; nothing where it learns nothing."""
        if not hasattr(metric.made, "fit"):
            return ""
        return self.bench.fit_name(metric, self.model, self.model_key, part)

    def _other(self, case: Case) -> Callable[[], Case]:
        def other() -> Case:
            name = self.index[case.sample]
            return self.model.recall(  # type: ignore[no-any-return]
                "other case", [case], lambda _: [self.bench.other(self.model, name)]
            )[0]

        return other

    def _map_key(self, part: Part, case: Case, fitted: str) -> str:
        return keys.map_key(self.case_keys[case.id], part, fitted, self._partner(part, case))

    def _partner(self, part: Part, case: Case) -> str:
        """The other case that a part looks at, with its image's bytes; nothing where it looks at none."""
        if not checks.needs_other(part.made) or case.other is None:
            return ""
        partner = case.other()
        sample = next(s for s in self.bench.samples if s.id == partner.sample)
        return partner.id + self.bench.digest(sample)

    def _maps(
        self, part: Part, cases: list[Case], map_keys: dict[str, str], fitted: Any
    ) -> tuple[dict[str, Explanation], dict[str, tuple[float, float]]]:
        """Explanations of the cases, stored or new; a case that fails is missing and recorded."""
        maps, costs = self._stored(part, cases, map_keys)
        missing = [c for c in cases if c.id not in maps]
        name = explanation_name(part.made)
        inner = keys.nested(part.made) if missing else []
        for own in (p for p in self.spec.explainers if p.made in inner and not checks.needs_more(p.made)):
            # the map that a control is made of may be in the store, though nothing of it is asked any more
            self._stored(own, missing, {c.id: self._map_key(own, c, "") for c in missing})

        def explain(some: list[Case]) -> list[Explanation]:
            before = [c.pixels.clone() for c in some]
            extra = () if fitted is None else (fitted,)
            with self._judged(part) as spent:
                answer = part.made.explain(self.model, some, *extra)
            found = [checks.detached(e) for e in checks.explanations(part, some, before, answer)]
            for case, explanation in zip(some, found, strict=True):
                costs[case.id] = spent.forward[case.id], spent.backward[case.id]
                self.model.memo.keep((self.model.hash, name, case.id), explanation, Bill(*costs[case.id]))
            return found

        for case, explanation in self._attempt(part, None, missing, explain):
            maps[case.id] = explanation
            self.answer.news.maps[map_keys[case.id]] = (pack(explanation), *costs[case.id])
        return maps, costs

    def _stored(
        self, part: Part, cases: list[Case], map_keys: dict[str, str]
    ) -> tuple[dict[str, Explanation], dict[str, tuple[float, float]]]:
        """The explanations of these cases that the store has, and what they cost; the memo knows them from now on."""
        stored = self.bench.store.maps([map_keys[c.id] for c in cases])
        maps, costs = {}, {}
        for case in (c for c in cases if map_keys[c.id] in stored):
            maps[case.id], *cost = stored[map_keys[case.id]]
            costs[case.id] = cost[0], cost[1]
            name = self.model.hash, explanation_name(part.made), case.id
            self.model.memo.keep(name, maps[case.id], Bill(*costs[case.id]))
        return maps, costs

    # ------------------------------------------------------------------ one metric

    def _itself(self, metric: Part, samples: Sequence[Sample]) -> None:
        """A metric of the model itself, asked once a case of the question that it puts."""
        try:
            policy = checks.question(metric.made, self.model.family, self.bench.policy(self.model))
        except Unsuited as reason:
            self._unsuited(NOBODY, metric, str(reason))
            return
        cases = [case for cases in self.bench.ask(self.model, samples, policy) for case in cases]
        digests = {s.id: self.bench.digest(s) for s in samples}
        learned = self._fit_name(metric, None)
        names = {
            c.id: keys.score_key(
                keys.case_key(self.model_key, c, digests[c.sample], policy), metric, "", learned
            )
            for c in cases
        }
        stored = self.bench.scores(list(names.values()))
        missing = [c for c in cases if names[c.id] not in stored]
        found = self._scores(NOBODY, metric, missing, {}, {})
        for case in cases if found is not None else ():
            cell = stored.get(names[case.id]) or found.get(case.id)  # type: ignore[union-attr]
            if cell is not None:
                self._record(NOBODY, metric, case, names[case.id], cell)
                self.answer.news.scores[names[case.id]] = cell

    def _scores(
        self,
        part: Part,
        metric: Part,
        cases: list[Case],
        maps: dict[str, Explanation],
        costs: dict[str, tuple[float, float]],
    ) -> dict[str, dict[str, Any]] | None:
        cells: dict[str, dict[str, Any]] = {}
        fitted: tuple[Any, ...] = ()

        def measure(some: list[Case]) -> list[Score]:
            trials = [Trial(self.model, c, part.made, maps.get(c.id)) for c in some]
            with torch.inference_mode(), self._judged(metric) as spent:
                answer = metric.made.measure(trials, *fitted)
            found = checks.scores(metric, some, answer)
            for case, score in zip(some, found, strict=True):
                explained = costs.get(case.id, (0.0, 0.0))  # nothing for a metric of the model itself
                cost = spent.forward[case.id] + explained[0], spent.backward[case.id] + explained[1]
                cells[case.id] = checks.cell(score, cost)
            return found

        try:
            if cases and hasattr(metric.made, "fit"):
                to = None if part is NOBODY else part
                fitted = (self.bench.fitted(metric, self.model, self.model_key, to)[0],)
            for _ in self._attempt(part, metric, cases, measure):
                pass
        except Unsuited as reason:
            self._unsuited(part, metric, str(reason))
            return None
        except Refused:
            raise
        except Exception as error:  # a fit that fails, fails for every case
            for case in cases:
                self._failed(part, metric, case, error)
        return cells

    @contextmanager
    def _judged(self, part: Part) -> Iterator[Meter]:
        """A part at work: what it costs, and that it leaves the model as found, whatever it raises (law 5)."""
        try:
            with self.model.part() as spent:
                yield spent
        finally:
            checks.left_as_found(part, self.condition, checks.condition(self.model.net))

    # ------------------------------------------------------------------ when something raises

    def _attempt(
        self, part: Part, metric: Part | None, cases: list[Case], work: Callable[[list[Case]], list[T]]
    ) -> Iterator[tuple[Case, T]]:
        """All at once; if that raises, by halves (out of memory) or one by one; what still raises is recorded."""
        if not cases:
            return
        try:
            found = work(cases)
        except (Unsuited, Refused):
            raise
        except Exception as error:  # foreign code may raise anything, and the run goes on
            if len(cases) == 1:
                self._failed(part, metric, cases[0], error)
                return
            step = (len(cases) + 1) // 2 if checks.out_of_memory(error) else 1
        else:
            yield from zip(cases, found, strict=True)
            return
        # the error is let go first, and with it the memory that its frames hold
        for first in range(0, len(cases), step):
            yield from self._attempt(part, metric, cases[first : first + step], work)

    def _failed(self, part: Part, metric: Part | None, case: Case, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        self.answer.failures.append(
            {
                "model": self.part.name,
                "explainer": part.name,
                "metric": metric.name if metric else "",
                "case": case.id,
                "error": said,
                "traceback": "".join(traceback.format_exception(error)),
            }
        )
        for judge in [metric] if metric else self.judges:
            cell = {
                "values": {
                    m.name: {"value": None, "status": "failed", "reason": said} for m in judge.made.measures
                }
            }
            self._record(part, judge, case, "", cell)

    # ------------------------------------------------------------------ rows

    def _unsuited(self, part: Part, metric: Part, reason: str) -> None:
        nobody = Case("", "", "", torch.empty(0), None)
        cell = {
            "values": {
                m.name: {"value": None, "status": "unsuited", "reason": reason} for m in metric.made.measures
            }
        }
        self._record(part, metric, nobody, "", cell)

    def _record(self, part: Part, metric: Part, case: Case, key: str, cell: dict[str, Any]) -> None:
        model, replicate = self.part.name, self.part.replicate
        for name, value in cell["values"].items():
            self.answer.records.append(
                Record(
                    benchmark=self.spec.name,
                    model=model,
                    family=self.model.family,
                    replicate=replicate,
                    explainer=part.name,
                    role=part.role,
                    sample=case.sample,
                    case=case.id,
                    about=case.about,
                    metric=metric.name,
                    name=name,
                    value=value["value"],
                    parts=value.get("parts", {}),
                    status=value["status"],
                    reason=value.get("reason", ""),
                    forwards=cell.get("forwards", 0.0),
                    backwards=cell.get("backwards", 0.0),
                    key=key,
                )
            )
        for name, (x, y) in cell.get("curves", {}).items():
            place = (self.spec.name, model, replicate, part.name, case.sample, case.id, metric.name, name)
            self.answer.curves.append(Curve(*place, tuple(x), tuple(y)))

    def _strip_row(self, case: Case) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": self.part.name,
            "family": self.model.family,
            "case": case.id,
            "about": case.about,
            "spoken": list(case.spoken),
            "image": self.model.frame.picture(case.pixels),
            "maps": {},
            "texts": {},
        }
        if case.mask is not None:
            row["evidence"] = case.mask.numpy()
        return row

    def _show(self, part: Part, case: Case, explanation: Explanation) -> None:
        row = self.rows[case.id]
        size = case.pixels.shape[-2], case.pixels.shape[-1]
        if explanation.image is not None:
            heat = geometry.read(explanation.image, size)
            row["maps"][part.name] = (heat / heat.abs().max().clamp(min=1e-12)).numpy().astype(np.float16)
        if explanation.text is not None:
            text = explanation.text / explanation.text.abs().max().clamp(min=1e-12)
            row["texts"][part.name] = text.numpy().astype(np.float16)
