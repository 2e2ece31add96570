"""The demo keeps to its budget, counted by a hook of torch and not by the house's own meter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from heatproof import spec
from heatproof.bench import Bench, Job
from heatproof.store import Store

ROOT = Path(__file__).resolve().parents[1]
BUDGET = {"classifier": 500, "dual": 800, "captioner": 500}  # whole forwards of a case's image
MODELS = '[{ use = "NAME", rows = 1 }]'  # one row at a time: nothing is padded, so that a hook counts rows


def counted(net, family):
    """The module that every scored image passes exactly once."""
    if family == "dual":
        return net.visual_projection
    return next(m for m in net.modules() if type(m).__name__ == "ResNetEmbeddings")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "small_clip", "small_captioner"])
def test_forwards_of_a_case(name, tmp_path):
    path = tmp_path / "store.sqlite"
    store = Store(path, write=True)
    asked = spec.read("demo", ROOT, sets=["models=" + MODELS.replace("NAME", name)])
    bench = Bench(asked, path, limit=2)
    for job in bench.fits():
        store.add(bench.do(job).news)
    model, _ = bench.model(0)
    rows = Counter()
    # randomised and LRP twins are deep copies of the net, this hook with it
    handle = counted(model.net, model.family).register_forward_hook(
        lambda module, args, out: rows.update({"forward": len(out)})
    )
    try:
        answer = bench.do(Job(0, 0, 2))
    finally:
        handle.remove()
    assert not answer.failures
    assert answer.cases == 2
    each = rows["forward"] / answer.cases
    assert 100 < each <= BUDGET[model.family]
