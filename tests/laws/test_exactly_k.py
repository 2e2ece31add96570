"""However many pixels or words are tied, exactly k of them go: docs/laws/exactly-k.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEPS = 5
WHOLE = 48  # pixels of the image
# how many pixels are gone in each row that is asked for, whatever the map
GONE = {
    "deletion": [round(WHOLE * k / STEPS) for k in (1, 2, 3, 4)],
    "flipping": [round(WHOLE * k / STEPS) for k in (1, 2, 3, 4)],
    "road": [10, 19, 29, 38],  # 20, 40, 60 and 80 %
    "irof": [12, 24, 36],  # whole cells of 12
    "fidelity:FaithfulnessCorrelation": [10],
    "fidelity:MuFidelity": [24],  # two cells of four
    "fidelity:SensitivityN": [1, 2, 10, 24, 38],
    "fidelity:Monotonicity": [12, 24, 36],
}
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIED = st.lists(st.sampled_from([0.0, 1.0]), min_size=WHOLE, max_size=WHOLE)


@pytest.mark.parametrize("asked", GONE)
@FEW
@given(TIED)
def test_exactly_k_pixels_go_whatever_the_ties(world, asked, heat):
    here = world(asked)
    model, (case,), seen = here.model(), here.cases(1), []
    for verb in ("score", "scores"):
        ask = getattr(model, verb)
        setattr(model, verb, lambda x, cases, ask=ask: seen.extend(x.clone()) or ask(x, cases))
    here.measure(here.metric(), model, [case], [here.answer(torch.tensor(heat).reshape(here.size))])
    changed = sorted({int((row != case.pixels).any(0).sum()) for row in seen})
    assert [k for k in changed if 0 < k < WHOLE] == GONE[asked]


@pytest.mark.parametrize("asked", ["text_deletion", "rationale"])
@FEW
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6))
def test_exactly_k_words_go_whatever_the_ties(world, asked, relevance):
    here = world(asked)
    model, (case,), seen = here.model(), here.cases(1), []
    ask = model.score_text
    model.score_text = lambda keep, *rest: seen.extend(keep.clone()) or ask(keep, *rest)
    here.measure(here.metric(), model, [case], [here.answer(None, torch.tensor(relevance))])
    assert all(row[0] == row[5] == 1 for row in seen)  # the sentence's ends stay
    gone = sorted({int((row[1:5] == 0).sum()) for row in seen})
    assert gone == ([0, 1, 2, 3, 4] if asked == "text_deletion" else [0, 1, 2, 3])
