"""Image, evidence and map turned over together: docs/laws/flips.md."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXCEPT = {  # metric: why a flip gives another number
    "fidelity:FaithfulnessCorrelation": "the subsets are drawn by place",
    "fidelity:MuFidelity": "the subsets are drawn by place",
    "fidelity:SensitivityN": "the subsets are drawn by place",
    "infidelity": "the squares are drawn by place",
    "mprt:EfficientMprt": "random weights know left from right",
    "mprt:SmoothMprt": "random weights know left from right",
    "randomisation": "random weights know left from right",
    "roar": "weights that are drawn and trained anew know left from right",
    "roar:Kar": "weights that are drawn and trained anew know left from right",
    "roar_pairs": "weights that are trained anew know left from right",
    "robustness:Sensitivity": "the noise is drawn by place",
    "prefix_ablation": "a text is not turned over",
    "text_deletion": "a text is not turned over",
    "rationale": "a text is not turned over",
}
SUITS = {"test_a_mirrored_world_has_the_same_numbers": lambda world: world.use not in EXCEPT}
STILL = {"road": {"noise": 0.0}}  # noise is drawn by place
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(st.integers(0, 2**31))
def test_a_mirrored_world_has_the_same_numbers(world, use, seed):
    here = world(use, even=True)
    metric = here.metric(**STILL.get(use, {}))
    plain = here.maps(seed)
    mirrored = [here.answer(e.image.flip(-1), e.text) for e in plain]
    if here.asks:
        plain = mirrored = here.slope()
    one = here.numbers(metric, here.cases(), plain)
    other = here.numbers(metric, here.cases(flip=True), mirrored)
    here.same(one, other, rel=1e-4, abs_=2e-5)
    assert any(v is not None for found in one for v in found.values())
