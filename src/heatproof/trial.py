"""One explainer before one small model: asked, asked again, asked alone, and watched all the while."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heatproof import blame, checks, shelf
from heatproof.contract import Case, Explanation, Refused, Unsuited
from heatproof.models.base import Model
from heatproof.models.recipe import Recipe
from heatproof.shelf import Place
from heatproof.spec import TARGETS, Part

MANY = 8  # cases a model is asked about; and the most of what a setting counts, to be quick
ORDERS = {"alone": slice(5, 6), "among three": slice(2, 5), "in another order": slice(None, None, -1)}
GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy": lambda: str(np.random.get_state(legacy=False)),
    "random": random.getstate,
}
SIDE = {  # what an explainer may leave changed, and what is wrong then
    **{
        name: f"reads the global random generator of {name}: draw from case.generator(...)"
        for name in GENERATORS
    },
    "images": "edits the images in place: work on a clone",
    "hooks": "leaves a hook: take it off also when an exception flies, or use `with model.watch(site)`",
    "weights": "leaves the weights changed: work on model.twin(...)",
    "train or eval mode": "leaves the net in another mode: put it back",
    "gradients": "leaves gradients on the net's parameters: use torch.autograd.grad, not backward()",
    "grad mode": "leaves autograd switched for everyone: use `with torch.no_grad()`",
}


@dataclass(frozen=True)
class Finding:
    """One line of the answer: ``level`` is right, wrong, warn or dash; ``line`` of the explainer's file, if known."""

    level: str
    said: str
    line: int | None = None
    model: str = ""


def _shake(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _tensors(told: Explanation) -> dict[str, Tensor]:
    found = {n: t for n in ("image", "text", "pairs") if (t := getattr(told, n)) is not None}
    return found | {f"{v}/{n}": t for v, view in told.views.items() for n, t in _tensors(view).items()}


def _equal(x: Tensor, y: Tensor) -> bool:
    """The same to the last bit; a NaN, which is told elsewhere, is like another."""
    return x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


def _same(a: Explanation, b: Explanation) -> bool:
    x, y = _tensors(a), _tensors(b)
    alike = x.keys() == y.keys() and all(map(_equal, x.values(), y.values()))
    return alike and (a.concepts, a.sentence) == (b.concepts, b.sentence)


@dataclass
class Trial:
    """What ``heatproof check`` finds out about an explainer with one of the small models."""

    part: Part
    name: str
    place: Place
    text: blame.Text
    found: list[Finding] = field(default_factory=list)
    fitted: tuple[Any, ...] = ()
    cost: str = ""

    def findings(self) -> list[Finding]:
        self._open()
        try:
            whole = self._asked(slice(None))
            self._judge(whole)
            self._compare(whole)
        except Unsuited as reason:
            if len(str(reason)) > MANY:
                self._say("dash", str(reason))
            else:
                line = blame.raised(self.part.file, reason)
                self._say("wrong", "Unsuited without a reason: it stands in the table", line)
        except Exception as error:  # foreign code may raise anything, and the check goes on
            self._raised(error)
        if self.cost and not any(f.said in SIDE.values() for f in self.found):
            self._say("right", "leaves model, images and generators as found")
        return self.found

    def _say(self, level: str, said: str, line: int | None = None) -> None:
        if not self._knows(said):
            self.found.append(Finding(level, said, line, self.name))

    def _knows(self, said: str) -> bool:
        return any(f.said == said for f in self.found)

    def _raised(self, error: Exception, how: str = "") -> None:
        line = blame.raised(self.part.file, error)
        if isinstance(error, Refused):  # a promise broken: `checks` says which
            place = f"{self.part.file.name}: {self.part.name}.explain"
            self._say(
                "wrong", str(error).removeprefix(place).lstrip(": "), line or self.text.called("Explanation")
            )
        else:
            self._say("wrong", f"raises {type(error).__name__}{how}: {error}", line)

    def _open(self) -> None:
        """A fresh model with its cases: what a fault has spoilt is never used again."""
        self.model: Model = Recipe(self.name, str(self.place.recipes()[self.name])).load(self.name)
        samples = shelf.find("datasets", "scenes", self.place, "heatproof check")(sample=MANY).samples()
        cases = [c for some in self.model.ask(samples, TARGETS[self.model.family]) for c in some][:MANY]
        others = [*cases[1:], cases[0]]
        self.cases = [
            dataclasses.replace(c, other=partial(_given, o)) for c, o in zip(cases, others, strict=True)
        ]

    # ------------------------------------------------------------------ one question, watched

    def _now(self, name: str, _: Any = None) -> Any:
        """One of the things that an explainer must leave as it found them."""
        if name in GENERATORS:
            return GENERATORS[name]()
        if name == "images":
            return [zlib.crc32(c.pixels.numpy().tobytes()) for c in self.cases]
        if name == "grad mode":
            return torch.is_grad_enabled()
        told = checks.condition(self.model.net)[name]
        return (told, sorted(self.model._watches)) if name == "hooks" else told

    def _call(self, order: slice) -> list[Explanation]:
        self.model.memo.clear()
        made, cases = self.part.made, self.cases[order]
        if hasattr(made, "fit") and not self.fitted:
            self.fitted = (made.fit(self.model, iter([list(self.cases)])),)
        with self.model.part() as spent:
            answer = made.explain(self.model, cases, *self.fitted)
        found = checks.explanations(self.part, cases, [c.pixels for c in cases], answer)
        self.cost = (
            f"{spent.forward[cases[0].id]:.3g} + {spent.backward[cases[0].id]:.3g} forwards and backwards"
        )
        return [checks.detached(e) for e in found]

    def _asked(self, order: slice, seed: int = 1) -> list[Explanation]:
        """The answer; whatever else has changed is said with its line, and the model is a fresh one then."""
        _shake(seed)
        before = {name: self._now(name) for name in SIDE}
        try:
            return self._call(order)
        finally:
            changed = [name for name in SIDE if self._now(name) != before[name]]
            torch.set_grad_enabled(True)
            if set(changed) - set(GENERATORS):
                self._open()
            news = [name for name in changed if not self._knows(SIDE[name])]
            at = self._lines(order, {name: partial(self._now, name) for name in news}) if news else {}
            for name in news:
                line = at.get(name) or (self.text.drawing(name) if name in GENERATORS else None)
                self._say("wrong", SIDE[name], line)

    def _lines(self, order: slice, probes: dict[str, blame.Probe]) -> dict[str, int]:
        _shake(1)
        found = blame.lines(self.part.file, partial(self._call, order), probes)
        torch.set_grad_enabled(True)
        self._open()
        return found

    # ------------------------------------------------------------------ what it answered

    def _judge(self, whole: list[Explanation]) -> None:
        for kind, bad in (("NaN", torch.isnan), ("infinity", torch.isinf)):
            hit = [e for e in whole if any(bool(bad(t).any()) for t in _tensors(e).values())]
            if hit:
                at = self._lines(slice(None), {kind: blame.nonfinite(bad)})
                self._say("wrong", f"{kind} in {len(hit)} of {len(whole)} answers", at.get(kind))
        empty = sum(not (_tensors(e) or e.concepts or e.sentence) for e in whole)
        if empty == len(whole):
            self._say("wrong", "an empty answer, neither map nor text", self.text.called("Explanation"))
        elif empty:
            self._say("warn", f"an empty answer in {empty} of {len(whole)} cases")
        images = [e.image for e in whole if e.image is not None]
        flat = sum(bool((i == i.flatten()[0]).all()) for i in images)
        if len(images) > 1 and all(torch.equal(i, images[0]) for i in images):
            self._say("warn", "draws the same map whatever the case" + ", one value everywhere" * bool(flat))
        elif flat:
            self._say("warn", f"one value everywhere in {flat} of {len(images)} maps")
        told = [f"{n} {list(t.shape)}" for n, t in _tensors(whole[0]).items()]
        if not any(f.level == "wrong" for f in self.found):
            self._say("right", f"{', '.join(told) or 'words'}, {self.cost} a case")

    def _compare(self, whole: list[Explanation]) -> None:
        again = self._asked(slice(None), seed=2)
        if not all(map(_same, whole, again)):
            line = self.text.unseeded() or next(filter(None, map(self.text.drawing, GENERATORS)), None)
            self._say("wrong", f"not repeatable: asked twice, {self._apart(whole, again)} differ", line)
            return
        moved = []
        for how, order in ORDERS.items():
            try:
                if not all(map(_same, self._asked(order), whole[order])):
                    moved.append(how)
            except Exception as error:  # foreign code may raise anything, and the check goes on
                self._raised(error, f" when asked {how}")
        if moved:
            said = f"not the same {', '.join(moved)} as among {MANY}: an answer must not depend on its neighbours"
            net = self.text.net()
            said += "; the net is to be reached by the model's verbs alone" if net else ""
            self._say("wrong", said, net or self.text.defined(self.part.name, "explain"))
        elif not any(f.level == "wrong" for f in self.found):
            self._say("right", f"the same again, {', '.join(ORDERS)} as among {MANY}")

    def _apart(self, one: list[Explanation], two: list[Explanation]) -> str:
        return f"{sum(not _same(a, b) for a, b in zip(one, two, strict=True))} of {len(one)} answers"


def _given(case: Case) -> Case:
    return case
