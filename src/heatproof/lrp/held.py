"""Gradients of one word's logit through a captioner's decoder, with what attention decides held constant.

The gradient family of Sun, Lapuschkin, Samek, Binder, "Explain and Improve: LRP-Inference Fine-Tuning for Image
Captioning Models", Information Fusion 77 (2022), https://arxiv.org/abs/2001.01037. The way back starts with 1 at the
word's raw logit. LSTMs are differentiated in full, and so is the gate behind multi-head attention; attention weights,
queries and keys, the sentinel's share and the sentinel's gate are constants. The ReLUs behind the two projections of
the features hand on what they get, as they do in LRP.

As in ``heatproof.lrp.decoder`` a net with the same forward and another way back (``held``) lets autograd do it.
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
from heatproof.models.adaptive import AdaptiveCaptioner, SentinelCaptioner, SingleCaptioner, SingleState
from heatproof.models.captioner import EMBEDDING, Captioner, explained
from heatproof.models.captioner_nets import Cells
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadState


@dataclass(frozen=True)
class HeldRules:
    """How the gradient goes back; the last three are bugs of the released code, each off where the definition holds.

    ``head``: only this attention head's gradient reaches the cells (and what goes through the LSTM), as in the released
    explainers; None keeps all heads, because only their sum is the word's gradient.
    ``guided``: the encoder's ReLUs let positive gradients alone pass (Springenberg et al. 2015).
    ``lost_recurrence``: adaptive and single; what the first LSTM hands to its own last state is lost.
    ``lost_steps``: multi-head; of the gradient at the mean cell, which is read at every step, step 0's alone is kept.
    ``active_only``: adaptive and single, in the guided methods; the gradient at the features passes where they are
    positive, before Grad-CAM takes its weights from it.
    """

    head: int | None = None
    guided: bool = False
    lost_recurrence: bool = False
    lost_steps: bool = False
    active_only: bool = False

    @classmethod
    def released(cls, head: int | None = None, *, guided: bool = False) -> HeldRules:
        """The rules of the released code, bugs and all."""
        return cls(head, guided, lost_recurrence=True, lost_steps=True, active_only=guided)


class Gradients(NamedTuple):
    """Signed and not normalised, each beside the value that it is the gradient at."""

    pixels: Tensor  # [N, 3, H, W]; nothing where the encoder was not passed
    features: Tensor  # [N, C, h, w], what the encoder gives
    words: Tensor  # [N, length, E], embeddings of <start> and all words
    at_pixels: Tensor
    at_features: Tensor
    at_words: Tensor  # zero from the target on


def at_features(model: Captioner, cases: Sequence[Case], rules: HeldRules = HeldRules()) -> Gradients:
    """Gradients at the encoder's features and at the words.

    Costs a forward and a backward pass of the decoder; the features come from the chunk's memo.
    """
    twin = _twin(model, rules)
    with torch.enable_grad(), twin.watch(EMBEDDING) as read:
        features = model.looked(cases).clone().requires_grad_()
        start = _said(twin.speak(features, cases), cases)
        seen, heard = torch.autograd.grad(start, [features, read.value])
    none = features.new_zeros(0)
    return Gradients(none, features.detach(), read.value.detach(), none, seen, heard)


def at_pixels(model: Captioner, cases: Sequence[Case], rules: HeldRules = HeldRules()) -> Gradients:
    """Gradients at the pixels, at the features above them and at the words, by one pass."""
    twin = _twin(model, rules)
    with torch.enable_grad(), twin.watch(EMBEDDING) as read, twin.watch(twin.site("image.conv")) as top:
        x = model.stack(cases).requires_grad_()
        start = _said(twin.logits(x, cases), cases)
        found = torch.autograd.grad(start, [x, top.value, read.value])
    return Gradients(x.detach(), top.value.detach(), read.value.detach(), *found)


def held(net: Any, rules: HeldRules) -> None:
    """The edit for ``model.twin``: the decoder forwards as before, and its gradients leave out what is held."""
    kinds: dict[type, type] = {
        AdaptiveCaptioner: AdaptiveHeld,
        MultiHeadCaptioner: MultiHeadHeld,
        SingleCaptioner: SingleHeld,
    }
    if type(net) not in kinds:
        raise Unsuited(
            f"gradients with attention held know {', '.join(kind.__name__ for kind in kinds)}, "
            f"this is a {type(net).__name__}"
        )
    if rules.head is not None and not 0 <= rules.head < net.heads:
        raise Unsuited(f"this captioner has {net.heads} attention heads, there is no head {rules.head}")
    if rules.guided:
        guide(net.encoder)
    net.__class__ = kinds[type(net)]  # same weights, same shapes: only the way back is another
    net.rules = rules


def guide(encoder: nn.Module) -> None:
    """Let every ReLU and ReLU6 hand back positive gradients alone, in place."""
    found = [module for module in encoder.modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
    if not found:
        raise Unsuited("guided backpropagation needs ReLU layers; this captioner's encoder has none")
    for module in found:
        module.register_forward_hook(_positive)


def _positive(module: nn.Module, given: Any, out: Tensor) -> None:
    if out.requires_grad:
        out.register_hook(lambda grad: grad.clamp(min=0))


def _twin(model: Captioner, rules: HeldRules) -> Captioner:
    twin = model.twin(lambda net: held(net, rules), str(rules))
    assert isinstance(twin, Captioner)
    return twin


def _said(logits: Tensor, cases: Sequence[Case]) -> Tensor:
    said = torch.stack([explained(case) for case in cases]).to(logits.device)
    return logits.gather(1, said[:, None]).sum()


def _passed(sums: Tensor) -> Tensor:
    """A ReLU that hands its gradient on as it is."""
    return stand(sums, F.relu(sums), torch.ones_like(sums))


class SentinelHeld(SentinelCaptioner):
    """What looks, with gradients that know the cells, the memory behind the sentinel, and the LSTM."""

    rules: HeldRules

    def look(self, features: Tensor) -> Cells:
        if self.rules.active_only:
            features = stand(features, features, (features > 0).to(features))
        values = _passed(self.project(features)).flatten(2).transpose(1, 2)
        whole = _passed(self.summarise(features.mean((2, 3))))
        return Cells(self.key(values), values, whole)

    def heed(
        self, x: Tensor, h: Tensor, c: Tensor, cells: Cells, shift: Tensor | float = 0.0
    ) -> tuple[SingleState, Tensor]:
        after, memory = self.visual_lstm(x, (h.detach() if self.rules.lost_recurrence else h, c))
        gate = torch.sigmoid(self.gate_x(x) + self.gate_h(after if self.newest else h))
        sentinel = gate.detach() * torch.tanh(memory)
        attention, beta = self.attend(after, sentinel, cells.keys)
        attention, beta = attention.detach() + shift, beta.detach()
        seen = (attention @ cells.values).squeeze(1)
        context = beta * sentinel + (1 - beta) * seen
        return SingleState(after, memory, sentinel, beta, seen, context), attention


class AdaptiveHeld(SentinelHeld, AdaptiveCaptioner):
    """``AdaptiveCaptioner`` with what attention decides held."""


class SingleHeld(SentinelHeld, SingleCaptioner):
    """``SingleCaptioner`` with what attention decides held; there are no arrays of the release's."""


class MultiHeadHeld(MultiHeadCaptioner):
    """``MultiHeadCaptioner`` whose gradients know the values, the gate behind attention, and the LSTM."""

    rules: HeldRules

    def look(self, features: Tensor) -> Cells:
        rows = _passed(self.project(features)).flatten(2).transpose(1, 2)
        return Cells(self.key(rows), self.value(rows), rows.mean(1))

    def advance(
        self, state: MultiHeadState, cells: Cells, word: Tensor, shift: Tensor | float = 0.0
    ) -> tuple[MultiHeadState, Tensor]:
        if self.rules.lost_steps and state.h.requires_grad:  # before the first word the state is a constant
            cells = cells._replace(whole=cells.whole.detach())
        return super().advance(state, cells, word, shift)

    def attend(self, h: Tensor, keys: Tensor) -> Tensor:
        return super().attend(h, keys).detach()

    def gather(self, attention: Tensor, values: Tensor) -> Tensor:
        seen = super().gather(attention, values)
        if self.rules.head is None:
            return seen
        heads = torch.arange(self.heads, device=seen.device).repeat_interleave(seen.shape[1] // self.heads)
        return stand(seen, seen, (heads == self.rules.head).to(seen).expand_as(seen))
