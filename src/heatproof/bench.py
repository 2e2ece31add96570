"""A spec at work in one process: its samples, its models, its cases, and the store to read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heatproof import cells, checks, keys, seeds
from heatproof.contract import Case, Explanation, Refused, Sample, Unsuited
from heatproof.models.base import Model
from heatproof.models.meter import Memo
from heatproof.records import Curve, Record
from heatproof.spec import Part, Spec
from heatproof.store import News, Store, pack_tensors


@dataclass(frozen=True)
class Job:
    """A piece of work for one process: a chunk of samples for one model, or a fit."""

    model: int
    first: int = 0
    count: int = 0
    fit: int | None = None  # index of the explainer to fit
    metric: int | None = (
        None  # index of the metric to fit: to that explainer's maps, in its place, or to the model alone
    )


@dataclass
class Answer:
    """What a job found; plain data, so that it can cross to the writing process."""

    job: Job
    news: News = field(default_factory=News)
    records: list[Record] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    strip: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    forwards: float = 0.0
    cases: int = 0


@dataclass(frozen=True)
class Fitted:
    """An explainer with what it learned, for a metric's fit to ask like any other."""

    of: Any
    learned: Mapping[str, torch.Tensor] = field(repr=False)

    def explain(self, model: Model, cases: Sequence[Case]) -> Sequence[Explanation]:
        answer: Sequence[Explanation] = self.of.explain(model, cases, self.learned)
        return answer


class Bench:
    """A spec at work in one process: its samples, its models, and the store to read from."""

    def __init__(
        self,
        spec: Spec,
        store: Path,
        device: str = "cpu",
        limit: int | None = None,
        known: Mapping[str, dict[str, Any]] | None = None,  # cells by key that need not be computed
    ) -> None:
        self.spec, self.device, self.known = spec, checked(device), known or {}
        self.store = Store(store)
        self.samples = draw(spec.dataset, spec.seed)[:limit]
        self._models: dict[int, tuple[Model, str]] = {}
        self._digests: dict[str, str] = {}
        self._fits: dict[str, dict[str, torch.Tensor]] = {}
        self._unfit: dict[str, Exception] = {}  # why a fit failed, so that no chunk tries again

    def jobs(self) -> list[Job]:
        """Chunks are runs of whole samples, cut by the spec alone."""
        step = self.spec.chunk
        return [
            Job(m, first, min(step, len(self.samples) - first))
            for m in range(len(self.spec.models))  # one model after the other: each is loaded once a process
            for first in range(0, len(self.samples), step)
        ]

    def fits(self) -> list[Job]:
        """What has to be fitted before the chunks can go: explainers, metrics to every explainer's maps, or to the model."""
        learning = [k for k, metric in enumerate(self.spec.metrics) if hasattr(metric.made, "fit")]
        alone = [k for k in learning if checks.of_model(self.spec.metrics[k].made)]
        explainers = list(enumerate(self.spec.explainers))
        return [
            job
            for m in range(len(self.spec.models))
            for job in (
                *(Job(m, fit=e) for e, part in explainers if hasattr(part.made, "fit")),
                *(Job(m, fit=e, metric=k) for e, _ in explainers for k in learning if k not in alone),
                *(Job(m, metric=k) for k in alone),
            )
        ]

    def do(self, job: Job) -> Answer:
        """Any job; the model's meter tells the forwards that were really run."""
        model, key = self.model(job.model)
        answer = Answer(job)
        before = model.meter.run
        try:
            if not job.count:
                asked = [] if job.metric is None else [self.spec.metrics[job.metric]]
                asked += [] if job.fit is None else [self.spec.explainers[job.fit]]
                self._fit(model, key, answer, *asked)
            else:
                cells.Chunk(self, model, key, answer).run()
        finally:
            model.memo.clear()
        answer.forwards = model.meter.run - before
        return answer

    def model(self, index: int) -> tuple[Model, str]:
        """The loaded model and its key; one is kept at a time."""
        if index not in self._models:
            part = self.spec.models[index]
            self._models.clear()
            model = part.made.load(part.name, self.device)
            self._models[index] = model, keys.model_key(part, model, self.device)
        return self._models[index]

    def scores(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The cells that are there already, by key; what was computed here goes before what is known from elsewhere."""
        return {k: self.known[k] for k in keys if k in self.known} | self.store.scores(keys)

    def policy(self, model: Model) -> str:
        return self.spec.targets[model.family]

    def digest(self, sample: Sample) -> str:
        if sample.id not in self._digests:
            self._digests[sample.id] = sample.digest()
        return self._digests[sample.id]

    def ask(self, model: Model, samples: Sequence[Sample], policy: str = "") -> list[list[Case]]:
        """The cases of each sample, of the spec's target policy or another, with the spec's seed."""
        asked = model.ask(samples, policy or self.policy(model))
        return [[dataclasses.replace(c, seed=self.spec.seed) for c in cases] for cases in asked]

    def other(self, model: Model, index: int) -> Case:
        """The first case of another image: the next, in a random round of all, that has one, whatever the chunks are."""
        round_, total = self._round, len(self.samples)
        place = round_.index(index)
        for step in range(1, total):
            found = self.ask(model, [self.samples[round_[(place + step) % total]]])[0]
            if found:
                return found[0]
        raise Unsuited("there is no other image with a case to swap with")

    @cached_property
    def _round(self) -> list[int]:
        """All images in a seeded random order: data sets are often sorted by class, and a partner should not be."""
        return sorted(
            range(len(self.samples)), key=lambda i: seeds.number(self.spec.seed, "other", self.samples[i].id)
        )

    # ------------------------------------------------------------------ fits

    def fit_name(self, part: Part, model: Model, key: str, to: Part | None = None) -> str:
        """The key of a fit; nothing is learned for it."""
        digests = [self.digest(s) for s in self._fit_samples(part)]
        return keys.fit_key(key, part, digests, self.spec.seed, self._question(part, model), to)

    def _question(self, part: Part, model: Model) -> str:
        """What a part that learns asks of the fit split."""
        policy = self.policy(model)
        if not checks.of_model(part.made):
            return policy
        asked = checks.question(part.made, model.family, policy)
        learns: dict[str, str] = getattr(part.made, "learns", {})
        return learns.get(model.family, asked)

    def fitted(
        self, part: Part, model: Model, key: str, to: Part | None = None
    ) -> tuple[dict[str, torch.Tensor], str]:
        """What an explainer learned from the fit split, or a metric from it and from the maps of ``to``; and its key."""
        name = self.fit_name(part, model, key, to)
        if name in self._unfit:
            raise self._unfit[name]
        if name not in self._fits:
            try:
                stored = self.store.fit(name)
                self._fits[name] = self._learned(part, model, key, to) if stored is None else stored
            except Exception as error:  # foreign code may raise anything, and the chunks will say so
                self._unfit[name] = error
                raise
        return self._fits[name], name

    def _learned(self, part: Part, model: Model, key: str, to: Part | None) -> dict[str, torch.Tensor]:
        explainer = () if to is None else (self._asked(to, model, key),)
        before = checks.condition(model.net)
        try:
            with _apart(model.memo), model.part():
                found = part.made.fit(model, self._feed(part, model), *explainer)
        finally:
            checks.left_as_found(part, before, checks.condition(model.net))
        return {k: v.detach().cpu() for k, v in found.items()}

    def _asked(self, part: Part, model: Model, key: str) -> Any:
        """An explainer that can be asked without more."""
        return Fitted(part.made, self.fitted(part, model, key)[0]) if hasattr(part.made, "fit") else part.made

    def _fit(self, model: Model, key: str, answer: Answer, part: Part, to: Part | None = None) -> None:
        try:
            tensors, name = self.fitted(part, model, key, to)
        except Refused:
            raise
        except Exception:
            return  # the chunks will say so, cell by cell
        answer.news.fits[name] = pack_tensors(tensors)

    def _fit_samples(self, part: Part) -> Sequence[Sample]:
        if self.spec.fit is None:
            raise Refused(
                f"{self.spec.path.name}: {part.shelf[:-1]} {part.name!r} learns from data, but there is no `fit`; "
                'write for example fit = { use = "scenes", split = "train", sample = 64 }'
            )
        if not hasattr(self, "_fit_split"):
            self._fit_split = draw(self.spec.fit, self.spec.seed)
        return self._fit_split

    def _feed(self, part: Part, model: Model) -> Iterator[list[Case]]:
        samples = self._fit_samples(part)
        for first in range(0, len(samples), self.spec.chunk):
            yield [
                case
                for cases in self.ask(
                    model, samples[first : first + self.spec.chunk], self._question(part, model)
                )
                for case in cases
            ]
            model.memo.clear()


@contextmanager
def _apart(memo: Memo) -> Iterator[None]:
    """A memo of its own for a fit, whose cases are other samples' and may share their names."""
    outer = memo.kept, memo.bills
    memo.kept, memo.bills = {}, {}
    try:
        yield
    finally:
        memo.kept, memo.bills = outer


def checked(device: str) -> str:
    """A device that this torch has, or Refused."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise Refused(f"--device {device}: accepted are cpu, cuda, cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise Refused(
            f"--device {device}: torch {torch.__version__} sees no CUDA device. Type: heatproof doctor"
        )
    return device


def draw(part: Part, seed: int) -> list[Sample]:
    """A data set's samples; ``sample = n`` in the spec draws n of them by the spec's seed, in their order."""
    samples = list(part.made.samples())
    if part.sample is not None and part.sample < len(samples):
        dice = np.random.default_rng(seeds.number(seed, "sample", part.use))
        samples = [samples[i] for i in sorted(dice.choice(len(samples), part.sample, replace=False))]
    names = {s.id for s in samples}
    if len(names) < len(samples):
        raise Refused(f"data set {part.name}: {len(samples) - len(names)} samples share an id with another")
    return samples
