"""Captions read word by word, teacher-forced: what the last layer of a captioner reads at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heatproof.models.captioner_nets import CaptionNet, Cells

CUT = 0.75  # captions that have ended are cut off once they are a quarter


class Heard(NamedTuple):
    """Of every word of all captions but their first: a row each, in no order that means anything."""

    context: Tensor  # [M, H]
    mixed: Tensor  # [M, H]: context plus speaking LSTM, what the last layer reads
    wanted: Tensor  # [M] ids: what is said next


def hear(net: CaptionNet, cells: Cells, texts: Tensor, pad: int) -> Heard:
    """Each image's captions [N, K, T], padded; the cells [N, ...] are looked at once."""
    each, texts = texts.shape[1], texts.flatten(0, 1)
    steps = (texts != pad).sum(1) - 1
    order = steps.argsort(descending=True, stable=True)  # so that who has ended is cut off
    texts, steps = texts[order], steps[order]
    cells = Cells(*(part[order // each] for part in cells))
    state, context, mixed, wanted = net.start(cells.whole), [], [], []
    for t in range(int(steps[0])):
        alive = int((steps > t).sum())
        if alive <= CUT * len(cells.whole):  # not each time: a cut costs as much as a step of some rows
            cells, state = (type(some)(*(part[:alive] for part in some)) for some in (cells, state))
        state, _ = net.advance(state, cells, net.embedding(texts[: len(cells.whole), t]))
        context.append(state.context[:alive])
        mixed.append(net.mix(state)[:alive])
        wanted.append(texts[:alive, t + 1])
    return Heard(torch.cat(context), torch.cat(mixed), torch.cat(wanted))
