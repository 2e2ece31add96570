"""LRP: layer-wise relevance propagation from the target's score down to the pixels, and to the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.lrp.composites import Composite, from_score, from_text
from heatproof.lrp.decoder import DecoderRules
from heatproof.lrp.words import from_word, piled


@dataclass(frozen=True)
class Lrp:
    """Unpooled pixel relevance [C, H, W], signed; sums, with the words', to the score less what biases keep.

    Bach et al. 2015 (PLoS ONE 10, e0130140); gamma: Montavon et al. 2019, "Layer-wise relevance propagation: an
    overview". ``composite``: "epsilon", "gamma", "epsilon_plus", "alpha1beta0", "epsilon_gamma_box" or
    "epsilon_plus_flat", with batch norms folded, residual sums split by value, max pools to the winner, ReLU6 passing
    relevance whole. ``epsilon`` 1e-6 and ``gamma`` 0.25 are zennit's defaults (Anders et al. 2021).

    ViT and CLIP go by AttnLRP (Achtibat et al. 2024, arXiv 2402.05602): each factor of a product gets half, the softmax
    goes by its gradient, norms are constants (a cosine's too), activations pass relevance whole; texts have their
    tokens' relevance. ``mixing`` "constant" holds attention's probabilities fixed (CP-LRP, Ali et al. 2022).
    ``linear_gamma`` is gamma of the linear layers of transformers, whose maps are noisy without it; the authors search
    it for each net on a grid from 0 to 1.

    A captioner's decoder goes by Sun et al. 2022 with ``decoder_epsilon``, its encoder by ``composite`` (there:
    "alpha1beta0"). ``head`` keeps one attention head's relevance, as they do; None keeps all, whose sum is the word's.
    ``as_released`` brings their code's bugs back: the speaking LSTM's input bias counts twice, what the recurrence or the
    forget gate hands back is lost, and a word's pixels pile up on those of the words before it.

    Biases keep relevance: nearly all in deep nets where they are folded and large (MobileNetV2: less than 1 % comes
    through, except with "epsilon"), 0 to 5 % in SqueezeNet 1.1; so maps compare by place and not by sum. So does the
    softmax: of 24 scenes the median share of the score at small_vit's blocks is 83, 78 and 88 % (from the first on) and
    at its pixels 86; small_clip's 72, 78, 91 and 54, and with "constant" 101 at each block.
    """

    composite: str = "gamma"
    epsilon: float = 1e-6
    gamma: float = 0.25
    linear_gamma: float = 0.05
    mixing: str = "attnlrp"
    decoder_epsilon: float = 0.01
    head: int | None = None
    as_released: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        transformer = "image.attention" in model.sites
        if not (transformer or "image.conv" in model.sites):
            raise Unsuited(f"LRP reaches no pixels in {model.name}, which reads features of regions")
        linear_gamma = self.linear_gamma if transformer else 0.0
        composite = Composite(self.composite, self.epsilon, self.gamma, linear_gamma, self.mixing)
        if model.family == "captioner":
            rules = DecoderRules.released(self.head) if self.as_released else DecoderRules(head=self.head)
            way = piled if self.as_released else from_word
            heats, texts = way(model, composite, replace(rules, epsilon=self.decoder_epsilon), cases)
            sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
            rows = zip(heats, texts, sizes, strict=True)
            return [Explanation(image=heat, text=word[:size]) for heat, word, size in rows]
        if self.as_released or self.head is not None:
            raise Unsuited(
                f"`as_released` and `head` are of a captioner's decoder; {model.name} is a {model.family}"
            )
        images = from_score(model, composite, cases)
        if model.family == "classifier":
            return [Explanation(image=heat) for heat in images]
        texts = from_text(model, composite, cases)
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]
