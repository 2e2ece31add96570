"""What the house adds to the bare forwards that a definition needs, as a ratio within one process.

    pytest benchmarks/speed --benchmark-only -s

Each part is timed in turn with the forwards (and backwards) that it cannot do without, round by round, so that a
busy machine slows both alike; the ratio of the medians is printed and kept. It reports; it fails nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

from heatproof import shelf, spec  # noqa: E402
from heatproof.contract import Trial  # noqa: E402
from heatproof.metrics.deletion import Deletion  # noqa: E402

HOUSE = Path(__file__).resolve().parents[2]
PLACE = shelf.Place(HOUSE, HOUSE)
ROUNDS = 7
CASES = 24  # as many as the demo's models forward at a time: no row is padding


def explainer(use: str, **settings: Any) -> Any:
    return shelf.find("explainers", use, PLACE, "speed")(**settings)


@pytest.fixture(scope="module")
def bench() -> Any:
    from heatproof.bench import Bench
    from heatproof.store import Store

    path = HOUSE / ".heatproof" / "speed.sqlite"
    Store(path, write=True).close()
    return Bench(spec.read("demo", HOUSE), path)


def at_hand(bench: Any, name: str, count: int = CASES) -> tuple[Any, Any]:
    index = next(i for i, part in enumerate(bench.spec.models) if part.name == name)
    model, _ = bench.model(index)
    return model, [c for cases in bench.ask(model, bench.samples[:count]) for c in cases]


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(benchmark: Any, what: str, part: Callable[[], Any], bare: Callable[[], Any], aim: float) -> None:
    for work in (part, bare):
        work()
    pairs = [(seconds(part), seconds(bare)) for _ in range(ROUNDS)]
    ratio = statistics.median(p for p, _ in pairs) / statistics.median(b for _, b in pairs)
    benchmark.extra_info.update({"ratio": round(ratio, 3), "aim": aim})
    print(f"\n{what}: {ratio:.2f}x of the bare forwards it needs (aim {aim:.2f}x)")
    benchmark.pedantic(part, rounds=3)


def forwards(model: Any, cases: Any, count: int) -> Callable[[], None]:
    """``count`` forwards of each case through the net itself, without the house, in blocks as large."""

    def work() -> None:
        block = torch.stack([case.pixels for case in cases])
        with torch.inference_mode():
            for _ in range(count):
                model.net(pixel_values=block)

    return work


def backwards(model: Any, cases: Any, count: int) -> Callable[[], None]:

    def work() -> None:
        block = torch.stack([case.pixels for case in cases])
        for _ in range(count):
            x = block.clone().requires_grad_()
            torch.autograd.grad(model.net(pixel_values=x).logits[:, 0].sum(), x)

    return work


def test_curves(benchmark: Any, bench: Any) -> None:
    """Deletion and insertion: 2 S rows a case."""
    model, cases = at_hand(bench, "small_cnn")
    maps = explainer("random").explain(model, cases)
    metric = Deletion(steps=10)
    trials = [Trial(model, c, None, m) for c, m in zip(cases, maps, strict=True)]

    def part() -> None:
        model.memo.clear()
        with torch.inference_mode():
            metric.measure(trials)

    compare(benchmark, "curves, 10 steps", part, forwards(model, cases, 20), 1.10)


def test_gradcam(benchmark: Any, bench: Any) -> None:
    """Grad-CAM: one forward, and a backward from the score to the last convolution only."""
    model, cases = at_hand(bench, "small_cnn")
    method = explainer("gradcam")
    compare(benchmark, "Grad-CAM", lambda: method.explain(model, cases), forwards(model, cases, 1), 1.10)


def test_ig(benchmark: Any, bench: Any) -> None:
    """Integrated gradients: n forward-backwards."""
    model, cases = at_hand(bench, "small_cnn")
    method = explainer("captum_suite:IntegratedGradients", steps=16)
    compare(
        benchmark, "IG, 16 steps", lambda: method.explain(model, cases), backwards(model, cases, 16), 1.08
    )


def test_rise(benchmark: Any, bench: Any) -> None:
    """RISE: one forward a mask."""
    model, cases = at_hand(bench, "small_cnn")
    method = explainer("rise", masks=128)
    compare(
        benchmark, "RISE, 128 masks", lambda: method.explain(model, cases), forwards(model, cases, 128), 1.08
    )


def test_m2ib(benchmark: Any, bench: Any) -> None:
    """M2IB: 9 updates of 10 copies through what lies above the site, there and back, on the image and on the text."""
    model, cases = at_hand(bench, "small_clip")
    method = explainer("m2ib", text_layer=-1)
    rows = [case for case in cases for _ in range(method.repeats)]

    def bare() -> None:
        for site in (model.site("image.block", method.layer), model.site("text.block", -1)):
            with torch.no_grad():
                held = model.upto(site, model.stack(cases), cases).repeat_interleave(method.repeats, 0)
            for _ in range(method.steps - 1):
                x = held.clone().requires_grad_()
                torch.autograd.grad(model.above(site, x, rows).sum(), x)

    compare(benchmark, "M2IB, 10 steps of 10 copies", lambda: method.explain(model, cases), bare, 1.10)
