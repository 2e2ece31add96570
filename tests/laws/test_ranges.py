"""Every bounded value stays within its bounds, and reaches no number that it does not declare: docs/laws/ranges.md."""

from __future__ import annotations

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

UNIT, TWO = (0.0, 1.0), (-1.0, 1.0)
BOUNDS = {  # by metric and value; what is not here is in units of the score, or of the map, and has no bound
    "agreement": dict.fromkeys(("pixels", "weakest", "leak", "words"), UNIT),
    "complexity": {"gini": UNIT, "entropy": (0.0, math.log(48)), "support": UNIT},
    "concord": dict.fromkeys(("spearman", "kendall", "ssim"), TWO)
    | dict.fromkeys(("feature_agreement", "rank_agreement", "sign_agreement", "signed_rank_agreement"), UNIT),
    "confidence": dict.fromkeys(("image_drop", "image_increase", "image_gain"), UNIT),
    "counterfactual": dict.fromkeys(("spearman", "kendall", "words", "words_kendall"), TWO),
    "fidelity:FaithfulnessCorrelation": {"faithfulness_correlation": TWO},
    "fidelity:MuFidelity": {"mu_fidelity": TWO},
    "fidelity:Monotonicity": {"monotonicity": UNIT, "monotone_steps": UNIT},
    "mosaic": {"grid_pointing": UNIT, "grid_argmax": UNIT},
    "pointing": {"pointing": UNIT},
    "mprt:EfficientMprt": {"rise": (-1.0, math.inf)},
    "mprt:SmoothMprt": {"randomisation": TWO, "randomisation_signed": TWO},
    "random_logit": {"ssim": TWO, "spearman": TWO},
    "roar": {"accuracy": UNIT, "probability": UNIT},
    "roar:Kar": {"accuracy": UNIT, "probability": UNIT},
    "retrieval": dict.fromkeys(("i2t_oc", "i2t_co", "t2i_oc", "t2i_co"), TWO),
    "patch_ablation": {"disappeared": UNIT, "lower": UNIT, "drop": TWO, "forced_drop": TWO},
    "prefix_ablation": {"lower": UNIT, "drop": TWO},
    "word_pointing": {"word_pointing": UNIT, "word_mass": UNIT},
    "roar_pairs": {"i2t": UNIT, "t2i": UNIT},
    "randomisation": {"randomisation": TWO, "randomisation_signed": TWO},
    "irof": {"irof": (-math.inf, 1.0)},
    "infidelity": {"infidelity": (0.0, math.inf), "infidelity_scaled": (0.0, math.inf)},
    "robustness:Sensitivity": dict.fromkeys(
        ("max_sensitivity", "average_sensitivity", "local_lipschitz"), (0.0, math.inf)
    ),
}
SLACK = 1e-9
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEAT = st.sampled_from([-3.0, -1.0, 0.0, 0.0, 0.5, 2.0, 1e4])


@FEW
@given(st.lists(HEAT, min_size=12, max_size=12), st.lists(HEAT, min_size=6, max_size=6))
def test_values_stay_within_their_bounds(world, use, heat, words):
    here = world(use)
    metric = here.metric()
    answer = here.answer(torch.tensor(heat).reshape(3, 4), torch.tensor(words))
    declared = [m.name for m in metric.measures]
    bounds = BOUNDS.get(use, {})
    assert set(bounds) <= set(declared)
    for found in here.numbers(metric, here.cases(), here.slope() if here.asks else [answer] * 2):
        assert list(found) == declared
        for name, number in found.items():
            low, high = bounds.get(name, UNIT if here.of_evidence else (-math.inf, math.inf))
            assert number is None or (math.isfinite(number) and low - SLACK <= number <= high + SLACK), name
