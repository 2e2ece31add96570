"""LRP: layer-wise relevance propagation from the target's logit down to the pixels, and to the words before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.lrp.composites import Composite, from_score
from heatproof.lrp.decoder import DecoderRules
from heatproof.lrp.words import from_word


@dataclass(frozen=True)
class Lrp:
    """Unpooled pixel relevance [C, H, W], signed; sums, with the words', to the logit less what biases keep.

    In deep nets with large folded biases that is nearly all (MobileNetV2: less than 1 % comes through, except with
    "epsilon"), so that maps compare by place and not by sum; SqueezeNet 1.1 keeps 95 to 100 %.

    Bach et al. 2015 (PLoS ONE 10, e0130140); gamma: Montavon et al. 2019, "Layer-wise relevance propagation: an
    overview". CNNs by ``composite``: "epsilon", "gamma", "epsilon_plus" or "alpha1beta0", with batch norms folded,
    residual sums split by value, max pools to the winner, ReLU6 passing relevance whole; the first layer has the
    rule of the others. ``epsilon`` 1e-6 and ``gamma`` 0.25 are zennit's defaults (Anders et al. 2021). A captioner's
    decoder goes by Sun et al. 2022 with ``decoder_epsilon``, its encoder by ``composite`` (there: "alpha1beta0").
    """

    composite: str = "gamma"
    epsilon: float = 1e-6
    gamma: float = 0.25
    decoder_epsilon: float = 0.01

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if "image.attention" in model.sites or "image.conv" not in model.sites:
            raise Unsuited("LRP through attention blocks and layer norms is not built: CNNs only")
        composite = Composite(self.composite, self.epsilon, self.gamma)
        if model.family != "captioner":
            return [Explanation(image=heat) for heat in from_score(model, composite, cases)]
        rules = DecoderRules(self.decoder_epsilon)
        heats, words = from_word(model, composite, rules, cases)
        sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
        rows = zip(heats, words, sizes, strict=True)
        return [Explanation(image=heat, text=word[:size]) for heat, word, size in rows]
