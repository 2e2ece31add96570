"""M2IB: how much of each token a noisy bottleneck must let through to keep image and text matched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case

Noise = Callable[[int], Tensor]  # the next draw for case k, [repeats, T_k, D]
TOGETHER = 96  # rows optimised side by side: most blocks are whole, and memory is bounded


@dataclass(frozen=True)
class M2ib:
    """Multi-modal information bottleneck, Wang, Rudner, Wilson, NeurIPS 2023 (arXiv 2312.17174), as its code has it.

    At the output h of one block, t = s h + (1 - s) noise with s = sigmoid(alpha), one alpha a token and channel. Adam
    lowers beta * mean capacity - cosine(f(t), other side); capacity = KL(N(s h, (1 - s)^2) || N(0, 1)) in nats. The map
    is each token's capacity summed over channels, >= 0: patches as [h, w], and every text token, ends included.

    Defaults are the release's: beta 0.1, 10 steps, 10 noisy copies, learning rate 1, alpha from 5. ``layer`` counts
    the model's block sites; the published block 9 of 12 is -2 (two blocks above it remain), so that smaller towers
    are cut at the like place. ``text_layer`` is for the text tower where it differs (7 of 12 for the chest X-rays,
    beta 1); where that tower is too low for ``layer``, its first site is meant. The release's "var" is no setting: it
    never reaches the numbers.

    ``before_last``: the release reads the map before the last update, and so makes steps - 1; here the last one counts.
    ``as_released`` turns that on. The release's other quirks are of its metrics and of its model, not of the map.

    alpha and the capacity are float32 whatever the model is; the log-variance is -2 softplus(alpha), finite where
    s rounds to 1. Nothing below the block runs more than once, nor does the other tower; the last block runs for the
    token alone that is read, and texts without padding. Where padding has part in a text's score (SigLIP), it
    passes the bottleneck as well and counts in the mean capacity; the map leaves it out.

    Known criticism: the prior is N(0, 1) on the raw residual stream, whose channels are of very different sizes; the map
    moves with the noise (released code, seed 0 against 1, on a tiny model: rank correlation 0.87 to 0.90); the end
    token takes most of a text's capacity; beta weighs a mean, so that it means another thing in towers of another size.
    """

    layer: int = -2
    text_layer: int | None = None
    beta: float = 0.1
    steps: int = 10
    repeats: int = 10
    lr: float = 1.0
    alpha: float = 5.0
    before_last: bool = False
    as_released: bool = False

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if model.family != "dual":
            raise Unsuited(f"M2IB matches an image embedding with a text's; {model.name} is a {model.family}")
        text_layer = self.text_layer
        if text_layer is None:
            text_layer = max(self.layer, -model.sites["text.block"])
        images = self._heat(model, model.site("image.block", self.layer), cases)
        texts = self._heat(model, model.site("text.block", text_layer), cases)
        texts = [t[: 0 if c.tokens is None else len(c.tokens)] for t, c in zip(texts, cases, strict=True)]
        return [Explanation(image=model.grid(i), text=t) for i, t in zip(images, texts, strict=True)]

    def _heat(self, model: Any, site: str, cases: Sequence[Case]) -> list[Tensor]:
        """Each case's capacity by token, [T] in nats."""
        with torch.no_grad():
            whole = model.upto(site, model.stack(cases), cases)
        found: dict[int, Tensor] = {}
        together = max(1, TOGETHER // self.repeats)
        image = site.startswith("image.")
        sizes = [whole.shape[1] if image else model.span(case) for case in cases]
        for size in sorted(set(sizes)):  # texts of one length run without padding
            alike = [k for k, n in enumerate(sizes) if n == size]
            for first in range(0, len(alike), together):
                places = alike[first : first + together]
                some, hidden = [cases[k] for k in places], whole[places, :size]
                alphas, _ = self.optimise(model, site, hidden, some, self._noise(site, hidden, some))
                for k, h, alpha in zip(places, hidden, alphas, strict=True):
                    found[k] = capacity(h.float(), alpha).sum(-1)
        return [found[k] for k in range(len(cases))]

    def _noise(self, site: str, hidden: Tensor, cases: Sequence[Case]) -> Noise:
        chances = [case.generator(f"m2ib {site}") for case in cases]
        return lambda k: torch.randn(self.repeats, *hidden.shape[1:], generator=chances[k])

    def optimise(
        self,
        model: Any,
        site: str,
        hidden: Tensor,
        cases: Sequence[Case],
        noise: Noise,
        updates: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each case's alpha [T, D] after the updates, and before each: its capacity, fit and loss, [N, 3].

        hidden [N, T, D] is cut behind texts of T tokens: it holds no padding. A case keeps tensors of its own, because
        the last bits of an elementwise function depend on where in a tensor the element stands. They are float32 also
        where the model's are half: Adam's epsilon is 0 in half.
        """
        if updates is None:
            updates = self.steps - (self.before_last or self.as_released)
        real = list(hidden.float())
        alphas = [torch.full_like(h, self.alpha).requires_grad_() for h in real]
        adam = torch.optim.Adam(alphas, lr=self.lr, foreach=False)
        many = [case for case in cases for _ in range(self.repeats)]
        trace = []
        for _ in range(updates):
            mixed = []
            for k, (h, alpha) in enumerate(zip(real, alphas, strict=True)):
                share = torch.sigmoid(alpha)
                mixed.append((share * h + (1 - share) * noise(k).to(h)).to(hidden))
            fits = model.above(site, torch.cat(mixed), many, brief=True).split(self.repeats)
            losses = []
            for h, alpha, each in zip(real, alphas, fits, strict=True):
                kept, fit = capacity(h, alpha).mean(), each.float().mean()
                losses.append(torch.stack([kept, fit, self.beta * kept - fit]))
            told = torch.stack(losses)
            # each loss has its own alpha alone, so the sum's gradients are the cases' own
            for alpha, grad in zip(alphas, torch.autograd.grad(told[:, 2].sum(), alphas), strict=True):
                alpha.grad = grad
            adam.step()
            trace.append(told.detach())
        return [alpha.detach() for alpha in alphas], trace


def capacity(hidden: Tensor, alpha: Tensor) -> Tensor:
    """KL(N(s h, (1 - s)^2) || N(0, 1)) in nats, element by element; s = sigmoid(alpha), safe where s is 1.

    >>> capacity(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 100.0])).tolist()
    [0.4431471824645996, 101.5]
    """
    log_variance = -2 * F.softplus(alpha)  # log (1 - s)^2
    mean = torch.sigmoid(alpha) * hidden
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp())
