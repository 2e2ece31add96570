"""Pixel LRP of a captioner, decoder and VGG together, against what the authors' code computed (``folder.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import shelf
from heatproof.lrp.composites import Composite
from heatproof.lrp.decoder import DecoderRules
from heatproof.lrp.words import from_word

folder = shelf.load(Path(__file__).with_name("folder.py"))
pytestmark = folder.present
Lrp = shelf.load(Path(__file__).resolve().parents[2] / "explainers" / "lrp.py").Lrp


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, folder.EXACT), (torch.float32, folder.SINGLE_LRP)]
)
@folder.whole("lrp_pixels")
def test_every_stored_word_and_their_released_sum(name: str, dtype: torch.dtype, tolerance: float) -> None:
    cases = folder.cases_of(dtype)
    found = {}
    for kind in folder.NETS:
        rules = DecoderRules.released(folder.head_of(kind))
        found[kind], _ = from_word(folder.model_of(kind, dtype), Composite("alpha1beta0"), rules, cases)
    with folder.every(name) as expected:
        for key, value in expected.items():
            what, t, sub = folder.place(key)
            kind, _, form = what.removesuffix("_R").partition("_")
            # released: gradients pile up over the words
            mine = found[kind][t] if form == "cleared" else found[kind][: t + 1].sum(0)
            if form == "as_released" and dtype == torch.float64:  # the method of the shelf, with its switch
                lrp = Lrp("alpha1beta0", as_released=True, head=folder.head_of(kind))
                (told,) = lrp.explain(folder.model_of(kind, dtype), [cases[t]])
                assert folder.apart(folder.seen(told.image, sub), value) < tolerance, key
            assert folder.apart(folder.seen(mine, sub), value) < tolerance, key


def test_another_rule_is_another_map() -> None:
    cases, model = folder.cases_of()[:1], folder.model_of("gridtd")
    rules = DecoderRules.released()
    found, other = (from_word(model, Composite(name), rules, cases)[0] for name in ("alpha1beta0", "gamma"))
    assert folder.apart(other, np.asarray(found)) > 0.01
