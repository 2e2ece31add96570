"""LRP through the captioners' decoders: from one word's logit to the image's features and the words before.

Sun, Lapuschkin, Samek, Binder, "Explain and Improve: LRP-Inference Fine-Tuning for Image Captioning Models",
Information Fusion 77 (2022), https://arxiv.org/abs/2001.01037. The relevance R of the word's raw logit goes back by

- the epsilon rule wherever terms are summed (linear layers, means, attended cells, LSTM cells, skip sums):
  R_i = term_i R / (z + eps sign z), the bias being a term that keeps its share;
- signal-take-all (Arras et al. 2017, https://arxiv.org/abs/1706.07206): gates, attention and the sentinel's share
  are constants, a gated signal takes all, and tanh and ReLU hand on what they get.

As everywhere in ``heatproof.lrp`` a tensor x carries g with R = x * g: a net with the same forward and another way
back (``relevant``) lets autograd do it, for all cases at once, through the model's one door.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.contract import Case, Unsuited
from heatproof.lrp.rules import stand
from heatproof.models.adaptive import (
    AdaptiveCaptioner,
    AdaptiveState,
    SentinelCaptioner,
    SingleCaptioner,
    SingleState,
)
from heatproof.models.captioner import EMBEDDING, Captioner, explained
from heatproof.models.captioner_nets import Cells
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadState


@dataclass(frozen=True)
class DecoderRules:
    """How relevance goes back; the last three are bugs of the released code, each off where the definition holds.

    ``head``: keep this attention head's relevance only (and what goes through the LSTM), as the released explainer
    does; None keeps all heads, because only their sum is the word's relevance.
    ``bias_twice``: the speaking LSTM adds its input bias twice and no recurrent one, also going forward.
    ``lost_recurrence``: adaptive and single; what the first LSTM hands to its own last state is lost.
    ``lost_memory``: multi-head; what goes through the forget gate to the last memory is lost.
    """

    epsilon: float = 0.01
    head: int | None = None
    bias_twice: bool = False
    lost_recurrence: bool = False
    lost_memory: bool = False

    @classmethod
    def released(cls, head: int | None = None) -> DecoderRules:
        """The rules of the released code, bugs and all."""
        return cls(head=head, bias_twice=True, lost_recurrence=True, lost_memory=True)

    def back(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Going forward y (z where not given); coming back, y's relevance is split among z's terms."""
        value = z if y is None else y
        return stand(z, value, value / torch.where(z >= 0, z + self.epsilon, z - self.epsilon))


class Relevance(NamedTuple):
    """Signed and not normalised; with the shares of biases and epsilon they sum to the logit explained."""

    features: Tensor  # [N, C, h, w], of what the encoder gives
    words: Tensor  # [N, length], of <start> and the words before the target, then zeros


def relevance(
    model: Captioner,
    cases: Sequence[Case],
    rules: DecoderRules = DecoderRules(),
    words: Tensor | None = None,
) -> Relevance:
    """Relevance for the raw logit of each case's word, or of ``words`` [N], said in its place.

    Costs a forward and a backward pass of the decoder; the encoder's features come from the chunk's memo.
    """
    twin = model.twin(lambda net: relevant(net, rules), str(rules))
    assert isinstance(twin, Captioner)
    said = torch.stack([explained(case) for case in cases]) if words is None else words
    with torch.enable_grad(), twin.watch(EMBEDDING) as read:
        features = model.looked(cases).clone().requires_grad_()
        logits = twin.speak(features, cases)
        start = logits.gather(1, said.to(logits.device)[:, None]).sum()
        seen, heard = torch.autograd.grad(start, [features, read.value])
    return Relevance((features * seen).detach(), (read.value * heard).sum(2).detach())


def relevant(net: Any, rules: DecoderRules) -> None:
    """The edit for ``model.twin``: the decoder forwards as before, and its gradients g are relevance / value.

    With the encoder's layers replaced as well (``heatproof.lrp.composites``), one backward pass from
    ``twin.logits`` reaches the pixels.
    """
    kinds: dict[type, type] = {
        AdaptiveCaptioner: AdaptiveRelevance,
        MultiHeadCaptioner: MultiHeadRelevance,
        SingleCaptioner: SingleRelevance,
    }
    if type(net) not in kinds:
        raise Unsuited(
            f"LRP knows {', '.join(kind.__name__ for kind in kinds)}, this is a {type(net).__name__}"
        )
    if rules.head is not None and not 0 <= rules.head < net.heads:
        raise Unsuited(f"this captioner has {net.heads} attention heads, there is no head {rules.head}")
    net.__class__ = kinds[type(net)]  # same weights, same shapes: only the way back is another
    net.rules = rules


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Of two that vanish together, 0."""
    return torch.where(below == 0, torch.zeros_like(below), above / below)


def _lstm(
    cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor, rules: DecoderRules, *, bias_twice: bool = False
) -> tuple[Tensor, Tensor]:
    """One step, signal-take-all: h -> c -> the candidate and the last memory; the candidate -> x and h."""
    bias = cell.bias_ih if bias_twice else cell.bias_hh
    sums = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, bias)
    into, forget, candidate, out = sums.chunk(4, 1)
    signal = rules.back(candidate, into.sigmoid() * candidate.tanh())
    memory = rules.back(forget.sigmoid().detach() * c + signal)
    spoken = out.sigmoid() * memory.tanh()
    return stand(memory, spoken, _ratio(spoken, memory)), memory


class SentinelRelevance(SentinelCaptioner):
    """What looks, with gradients that are relevance / value."""

    rules: DecoderRules

    def look(self, features: Tensor) -> Cells:
        sums = self.project(features)
        values = self.rules.back(sums, F.relu(sums)).flatten(2).transpose(1, 2)
        whole = self.summarise(self.rules.back(features.mean((2, 3))))
        return Cells(self.key(values).detach(), values, self.rules.back(whole, F.relu(whole)))

    def heed(
        self, x: Tensor, h: Tensor, c: Tensor, cells: Cells, shift: Tensor | float = 0.0
    ) -> tuple[SingleState, Tensor]:
        rules = self.rules
        after, memory = _lstm(self.visual_lstm, x, h.detach() if rules.lost_recurrence else h, c, rules)
        kept = torch.sigmoid(self.gate_x(x) + self.gate_h(h)) * torch.tanh(memory)
        sentinel = stand(memory, kept, _ratio(kept, memory))
        attention, beta = self.attend(after, sentinel, cells.keys)
        attention, beta = attention.detach() + shift, beta.detach()
        seen = rules.back((attention @ cells.values).squeeze(1))
        context = rules.back(beta * sentinel + (1 - beta) * seen)
        return SingleState(after, memory, sentinel, beta, seen, context), attention

    def mix(self, state: Any) -> Tensor:
        return self.rules.back(super().mix(state))

    def say(self, mixed: Tensor) -> Tensor:
        return self.rules.back(super().say(mixed))


class AdaptiveRelevance(SentinelRelevance, AdaptiveCaptioner):
    """``AdaptiveCaptioner`` whose gradients are relevance / value."""

    def advance(
        self, state: AdaptiveState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[AdaptiveState, Tensor]:
        x1 = torch.cat([state.h2, cells.whole, word], 1)
        looked, attention = self.heed(x1, state.h1, state.c1, cells, shift)
        x2, twice = torch.cat([looked.context, looked.h], 1), self.rules.bias_twice
        h2, c2 = _lstm(self.language_lstm, x2, state.h2, state.c2, self.rules, bias_twice=twice)
        return AdaptiveState(looked.h, looked.c, h2, c2, *looked[2:]), attention


class SingleRelevance(SentinelRelevance, SingleCaptioner):
    """``SingleCaptioner`` whose gradients are relevance / value.

    The released explainer of this net is another: in its LSTM it divides by the candidate after tanh, leaves biases out, and
    takes the relevance of the image as a whole from the last step alone. There are no arrays of it, and no switches here.
    """


class MultiHeadRelevance(MultiHeadCaptioner):
    """``MultiHeadCaptioner`` whose gradients are relevance / value."""

    rules: DecoderRules

    def look(self, features: Tensor) -> Cells:
        sums = self.project(features)
        rows = self.rules.back(sums, F.relu(sums)).flatten(2).transpose(1, 2)
        values = self.rules.back(self.value(rows))
        return Cells(self.key(rows).detach(), values, self.rules.back(rows.mean(1)))

    def advance(
        self, state: MultiHeadState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[MultiHeadState, Tensor]:
        rules = self.rules
        last = state.c.detach() if rules.lost_memory else state.c
        x = torch.cat([word, cells.whole], 1)
        h, c = _lstm(self.language_lstm, x, state.h, last, rules, bias_twice=rules.bias_twice)
        attention = self.attend(h, cells.keys).detach() + shift
        seen = rules.back(self.gather(attention, cells.values))
        if rules.head is not None:
            heads = torch.arange(self.heads, device=seen.device).repeat_interleave(
                seen.shape[1] // self.heads
            )
            seen = stand(seen, seen, (heads == rules.head).to(seen).expand_as(seen))
        gated = self.linear(seen)
        context = rules.back(gated, torch.sigmoid(self.gate(h)) * gated)
        return MultiHeadState(h, c, seen, context), attention

    def mix(self, state: MultiHeadState) -> Tensor:
        return self.rules.back(super().mix(state))

    def say(self, mixed: Tensor) -> Tensor:
        return self.rules.back(super().say(mixed))
