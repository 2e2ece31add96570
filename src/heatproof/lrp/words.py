"""From a captioner's word down to the pixels and to the words before it, by one pass back through both parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
        relevant(net, rules)  # first: it says which decoders LRP knows
        composite.edit(net, within="encoder", frame=model.frame)

    twin = model.twin(edit, f"lrp {composite} {rules}")
    assert isinstance(twin, Captioner)
    x = model.stack(cases).requires_grad_()
    said = torch.stack([explained(case) for case in cases]).to(x.device)
    with twin.watch(EMBEDDING) as read:
        logits = twin.logits(x, cases).gather(1, said[:, None])
        seen, heard = torch.autograd.grad(logits.sum(), [x, read.value])
    return composite.relevance(x, seen), (read.value.detach() * heard).sum(2)


def piled(
    model: Captioner, composite: Composite, rules: DecoderRules, cases: Sequence[Case]
) -> tuple[Tensor, Tensor]:
    """The same, but a word's pixels have the relevance for every word of its caption up to it: the released code never clears
    the image's gradient between words. One pass a word.
    """
    pixels, words = from_word(model, composite, rules, cases)
    for k in range(max(case.target for case in cases)):
        later = [n for n, case in enumerate(cases) if case.target > k]
        before = [
            replace(cases[n], target=k, choices=(), charge=cases[n].charge or cases[n].id) for n in later
        ]
        pixels[later] += from_word(model, composite, rules, before)[0]
    return pixels, words
