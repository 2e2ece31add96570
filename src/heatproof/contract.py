"""The nouns that every part of the house speaks: Sample, Case, Model, Explanation, Explainer, Trial, Metric.

Only shapes and promises live here; the walk of one case through them is told in ``runner.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from heatproof import seeds
from heatproof.errors import Refused, Unsuited

__all__ = [
    "Card",
    "Case",
    "Dataset",
    "Explainer",
    "Explanation",
    "Measure",
    "Metric",
    "Model",
    "Object",
    "Refused",
    "Sample",
    "Score",
    "Trial",
    "Unsuited",
    "Value",
    "Watched",
    "Without",
    "explain",
]


# ---------------------------------------------------------------- what a data set yields


@dataclass(frozen=True, eq=False)
class Object:
    """One annotated thing in an image: ``box`` is x0, y0, x1, y1 in pixels of the sample's image.

    ``mask`` is bool [H, W] in the image's own size, or None where the data set has boxes alone.
    ``ignore`` marks crowds and unsure regions: neither evidence nor background.
    ``without()`` draws the image as if the thing had never been there, for data sets that can. ``also`` is what else it may
    be called: who asks about a "man" means every person.
    """

    name: str
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    ignore: bool = False
    without: Callable[[], np.ndarray] | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what is known about it, before any model has seen it.

    ``read()`` gives the pixels, uint8 [H, W, 3] RGB, and is called only when they are needed.
    """

    id: str
    read: Callable[[], np.ndarray]
    label: str | None = None
    captions: tuple[str, ...] = ()
    objects: tuple[Object, ...] = ()
    rationales: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """A hash of every byte that can move a number: pixels, also without each thing, names, boxes, masks, texts."""
        seal = blake2b(digest_size=16)
        seal.update(np.ascontiguousarray(self.read()).tobytes())
        seal.update(repr((self.id, self.label, self.captions, self.rationales)).encode())
        for thing in self.objects:
            seal.update(repr((thing.name, tuple(map(float, thing.box)), thing.ignore)).encode())
            if thing.mask is not None:
                seal.update(np.packbits(thing.mask).tobytes())
            if thing.without is not None:
                seal.update(b"without" + np.ascontiguousarray(thing.without()).tobytes())
        for name in sorted(self.extras):
            value = self.extras[name]
            raw = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            seal.update(name.encode() + raw)
        return seal.hexdigest()


@dataclass(frozen=True)
class Card:
    """Where a data set comes from, and what is wrong with it."""

    source: str
    revision: str
    licence: str
    cite: str = ""
    leaks: str = "none known"


@runtime_checkable
class Dataset(Protocol):
    """A shelf file's class: a frozen dataclass whose fields are its settings."""

    card: ClassVar[Card]

    def samples(self) -> Sequence[Sample]:
        """Every sample, always in the same order."""
        ...


# ---------------------------------------------------------------- one question to one model


@dataclass(frozen=True, eq=False)
class Without:
    """A thing of a case's image, in the model's geometry: where it is, and the input as if it had never been there.

    ``pixels()`` draws float32 [C, H, W], normalised, and is called only when it is needed.
    """

    name: str
    mask: Tensor  # bool [H, W]
    pixels: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """One question about one sample, put to one model, in that model's own input geometry.

    ``target`` is what the score is of: a class index (classifier), the caption that ``tokens`` holds
    (dual encoder), or the position of a word in ``tokens`` (captioner). ``choices`` are its rivals.
    """

    id: str
    sample: str
    about: str
    pixels: Tensor  # float32 [C, H, W], normalised as the model wants it
    target: Any
    choices: tuple[Any, ...] = ()
    tokens: Tensor | None = None  # int64 [T]; real tokens only, padding is the model's business
    words: tuple[int, ...] = ()  # [T]: the word each token belongs to, -1 for special tokens
    spoken: tuple[str, ...] = ()  # the text of each token, for figures
    evidence: Tensor | None = None  # bool [K, H, W], one plane an instance
    boxes: Tensor | None = None  # float32 [K, 4], x0 y0 x1 y1
    ignore: Tensor | None = None  # bool [H, W]
    evidence_text: Tensor | None = None  # bool [T]
    references: tuple[str, ...] = ()  # what people said of the image
    things: tuple[str, ...] | None = None  # names of all that is annotated in it; None: nothing is
    named: Tensor | None = None  # bool [T, K]: which instance each token names
    cut: float | None = None  # share of the evidence that the model's crop cut away
    without: tuple[Without, ...] | None = None  # every thing that the data set can leave out; None: it cannot
    seed: int = 0  # the spec's seed
    charge: str = ""  # whose cost the work on this case is, where it is not its own
    other: Callable[[], Case] | None = None  # a case of another image, for the `swapped` control

    def generator(self, part: str) -> torch.Generator:
        """Random numbers that belong to this case and part alone (law 1)."""
        return seeds.generator(self.seed, self.id, part)

    @property
    def mask(self) -> Tensor | None:
        """All evidence in one plane, bool [H, W]; None where nothing is annotated."""
        return None if self.evidence is None else self.evidence.any(0)


class Watched(Protocol):
    """What ``Model.watch`` yields: after the next ``score`` the site's value, row by row."""

    @property
    def value(self) -> Tensor:
        """[N, ...]: one tensor for all N rows, on the path from input to score."""
        ...


class Model(Protocol):
    """A classifier, dual encoder or captioner behind one set of verbs; always batched, a case a row.

    The implementations share ``heatproof.models.base.Model``, which is the only door to the net.
    """

    name: str
    family: str  # "classifier" | "dual" | "captioner"
    space: str  # of the score: "logit" | "cosine" | "log-probability"

    @property
    def hash(self) -> str: ...
    @property
    def sites(self) -> Mapping[str, int]: ...
    def site(self, kind: str, index: int = -1) -> str: ...
    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]: ...
    def stack(self, cases: Sequence[Case]) -> Tensor: ...
    def score(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor: ...
    def scores(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor: ...
    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = ...) -> Tensor: ...
    def upto(self, site: str, pixels: Tensor, cases: Sequence[Case]) -> Tensor: ...
    def above(self, site: str, activation: Tensor, cases: Sequence[Case], *, brief: bool = ...) -> Tensor: ...
    def watch(self, site: str) -> AbstractContextManager[Watched]: ...
    def grid(self, tokens: Tensor) -> Tensor: ...
    def embed(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor: ...
    def embed_text(self, cases: Sequence[Case]) -> Tensor: ...
    def write(self, pixels: Tensor, cases: Sequence[Case]) -> list[Any]: ...
    def clean(self, cases: Sequence[Case]) -> Tensor: ...
    def twin(self, edit: Callable[[torch.nn.Module], None], name: str) -> Model: ...
    def recall(
        self, what: str, cases: Sequence[Case], compute: Callable[[list[Case]], Sequence[Any]]
    ) -> list[Any]: ...


# ---------------------------------------------------------------- what an explainer answers


@dataclass(frozen=True, eq=False)
class Explanation:
    """A native, signed, unpooled answer; ``geometry.read`` alone pools, signs and resizes it."""

    image: Tensor | None = None  # [h, w] or [C, h, w]
    text: Tensor | None = None  # [T], as long as the case's tokens
    pairs: Tensor | None = None  # [h*w, T]
    concepts: Mapping[str, float] | None = None
    sentence: str | None = None
    views: Mapping[str, Explanation] = field(default_factory=dict)  # the same by head or stage


@runtime_checkable
class Explainer(Protocol):
    """A frozen dataclass; its fields are its settings.

    An explainer that learns from data also has ``fit(model, feed) -> {name: tensor}``; it is then asked
    as ``explain(model, cases, fitted)``. One that looks at ``case.other`` says so: ``needs_other = True``.
    """

    def explain(self, model: Any, cases: Sequence[Case]) -> Sequence[Explanation]: ...


def explain(explainer: Explainer, model: Model, cases: Sequence[Case]) -> list[Explanation]:
    """Ask another explainer, using what the chunk already knows of it (controls, randomisation checks)."""
    return model.recall(explanation_name(explainer), cases, lambda some: list(explainer.explain(model, some)))


def explanation_name(explainer: Explainer) -> str:
    """What an explainer's answers are called in the chunk's memo: class, file and settings."""
    return f"explanation {type(explainer).__module__} {explainer!r}"


# ---------------------------------------------------------------- what a metric judges


@dataclass(frozen=True, eq=False)
class Trial:
    """Model, explainer, case and explanation: the one parcel that a metric gets."""

    model: Model
    case: Case
    explainer: Explainer | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Value:
    """A number, or the reason why there is none (law 4).

    ``parts`` are the columns that the declared reducer reads where a mean of ``number`` is not the answer.

    >>> Value.undefined("empty mask").defined
    False
    """

    number: float | None
    reason: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defined(self) -> bool:
        return self.number is not None

    @classmethod
    def undefined(cls, reason: str) -> Value:
        return cls(None, reason)

    @classmethod
    def of(cls, number: float | Tensor, reason: str = "not a finite number", **parts: Any) -> Value:
        """A value where the number is finite, else undefined for the reason given."""
        found = float(number)
        return cls(found, parts=parts) if math.isfinite(found) else cls.undefined(reason)


@dataclass(frozen=True, eq=False)
class Score:
    """The named values of one trial, and the curves behind them: name -> (x, y)."""

    values: Mapping[str, Value]
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """What one named value of a metric means: how to read it and how a column of it is reduced."""

    name: str
    better: str  # "higher" | "lower"
    measures: str  # faithfulness | plausibility | robustness | sanity | complexity | quality
    unit: str = ""
    reduce: str = "mean"  # a name in heatproof.reducers.REDUCERS


@runtime_checkable
class Metric(Protocol):
    """A frozen dataclass; its fields are its settings. ``measures`` declares every value it can give.

    A metric that learns from data, of each explainer's maps anew, also has ``fit(model, feed, explainer) -> {name: tensor}``;
    it is then asked as ``measure(trials, fitted)``. The explainer that it is handed can be asked without more: what
    that one was fitted on is bound to it. A metric that looks at ``case.other`` says so: ``needs_other = True``.
    """

    @property
    def measures(self) -> Iterable[Measure]: ...
    def measure(self, trials: Sequence[Trial]) -> Sequence[Score]: ...
