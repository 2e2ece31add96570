"""Which line of a file did it: a fault that was seen is traced by running the file again, line by line.

A trace says where something changed while the file was at work, also deep inside a library that the line called. Where
a second run does not show the fault again, the text of the file is searched for what is known to make it.
"""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

Probe = Callable[[FrameType | None], Any]  # a plain value that is compared with what it was at the start
MOST = 3.0  # seconds of probing, so that a file of many loops is given up rather than waited for
FACTORIES = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli"}
FACTORIES |= {"multinomial", "normal", "poisson", "manual_seed", "seed"}
IN_PLACE = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "cauchy_",
    "geometric_",
    "log_normal_",
}
SEEDED = ("default_rng", "Generator", "RandomState", "SeedSequence", "PCG64", "Philox")


def lines(file: Path, work: Callable[[], Any], probes: Mapping[str, Probe]) -> dict[str, int]:
    """Run ``work``; for each probe that ends different, the file's line at which it last left its first value."""
    wanted = str(file)
    first = {name: probe(None) for name, probe in probes.items()}
    found: dict[str, int] = {}
    began, at = time.perf_counter(), 0

    def look(frame: FrameType | None) -> None:
        for name, probe in probes.items():
            if probe(frame) == first[name]:
                found.pop(name, None)
            elif at:
                found.setdefault(name, at)

    def within(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal at
        if time.perf_counter() - began > MOST:
            sys.settrace(None)
            return None
        look(frame)
        at = frame.f_lineno
        if event == "return":  # back in the line that called, if it is one of the file's
            outer = frame.f_back
            while outer is not None and outer.f_code.co_filename != wanted:
                outer = outer.f_back
            at = outer.f_lineno if outer is not None else at
        return within

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        return within(frame, event, argument) if frame.f_code.co_filename == wanted else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        work()
    except Exception:  # noqa: S110 - what it raises is told elsewhere; here only the place counts
        pass
    finally:
        sys.settrace(before)
    look(None)
    return found


def nonfinite(kind: Callable[[torch.Tensor], torch.Tensor]) -> Probe:
    """A probe that turns true with the first local tensor that holds a NaN (``torch.isnan``) or infinity."""
    seen = False

    def probe(frame: FrameType | None) -> bool:
        nonlocal seen
        for value in () if frame is None or seen else list(frame.f_locals.values()):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if (
                    isinstance(one, torch.Tensor)
                    and one.is_floating_point()
                    and bool(kind(one.detach()).any())
                ):
                    seen = True
        return seen

    return probe


def raised(file: Path, error: BaseException) -> int | None:
    """The file's line that an exception came through last; of a syntax error, its own."""
    if isinstance(error, SyntaxError):
        return error.lineno
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


class Text:
    """What the text of a file says by itself: calls by their dotted names, aliases of imports resolved."""

    def __init__(self, file: Path) -> None:
        self.tree = ast.parse(file.read_text(encoding="utf-8"))
        self.known: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    head = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.known[alias.asname or head] = head
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        found = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        self.calls = sorted(((n.lineno, self._dotted(n.func), n) for n in found), key=lambda c: c[0])

    def _dotted(self, node: ast.expr) -> str:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        head = self.known.get(node.id, node.id) if isinstance(node, ast.Name) else "?"
        return ".".join([head, *reversed(parts)])

    def drawing(self, library: str) -> int | None:
        """The first call that reads the library's global generator: "torch", "numpy" or "random"."""
        for line, name, call in self.calls:
            head, _, last = name.rpartition(".")
            own = any(keyword.arg == "generator" for keyword in call.keywords)
            torch_draws = (head == "torch" and last in FACTORIES) or last in IN_PLACE or "dropout" in last
            draws = {
                "torch": not own and (torch_draws or name.startswith("torch.nn.init.")),
                "numpy": head == "numpy.random" and last not in SEEDED,
                "random": head == "random" and last not in ("Random", "SystemRandom"),
            }
            if draws[library]:
                return line
        return None

    def unseeded(self) -> int | None:
        """The first call that gives something else each time: a generator without a seed, the clock, the system."""
        for line, name, call in self.calls:
            made = name.startswith(("numpy.random.", "random.")) and name.rpartition(".")[2] in (
                *SEEDED,
                "Random",
            )
            if (made and not call.args and not call.keywords) or name.startswith(
                ("time.", "secrets.", "uuid.")
            ):
                return line
            if name in ("os.urandom", "random.SystemRandom", "torch.seed"):
                return line
        return None

    def called(self, last: str) -> int | None:
        """The only call of something of this name; where there are several, none is named."""
        found = {line for line, name, _ in self.calls if name.rpartition(".")[2] == last}
        return found.pop() if len(found) == 1 else None

    def net(self) -> int | None:
        """The first place that reaches for a model's net past its verbs."""
        places = [n.lineno for n in ast.walk(self.tree) if isinstance(n, ast.Attribute) and n.attr == "net"]
        return min(places, default=None)

    def defined(self, cls: str, name: str = "") -> int | None:
        """Where a class stands, or a method of it."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == cls:
                inner = [n.lineno for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name]
                return inner[0] if inner else node.lineno
        return None
