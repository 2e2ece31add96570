"""From a captioner's word down to the pixels and to the words before it, by one pass back through both parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heatproof.contract import Case
from heatproof.lrp.composites import Composite
from heatproof.lrp.decoder import DecoderRules, relevant
from heatproof.models.captioner import EMBEDDING, Captioner, explained


def from_word(
    model: Captioner, composite: Composite, rules: DecoderRules, cases: Sequence[Case]
) -> tuple[Tensor, Tensor]:
    """Relevance of the pixels [N, C, H, W] and of the words before the target [N, length].

    The decoder goes by ``rules``, the encoder by ``composite``; together they sum to the word's raw logit, less what
    biases and stabilisers keep.
    """

    def edit(net: nn.Module) -> None:
        composite.edit(net, within="encoder", frame=model.frame)
        relevant(net, rules)

    twin = model.twin(edit, f"lrp {composite} {rules}")
    assert isinstance(twin, Captioner)
    x = model.stack(cases).requires_grad_()
    said = torch.stack([explained(case) for case in cases]).to(x.device)
    with twin.watch(EMBEDDING) as read:
        logits = twin.logits(x, cases).gather(1, said[:, None])
        seen, heard = torch.autograd.grad(logits.sum(), [x, read.value])
    return composite.relevance(x, seen), (read.value.detach() * heard).sum(2)
