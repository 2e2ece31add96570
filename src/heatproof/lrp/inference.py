"""LRP inference: what the last layer reads, weighed by how much it spoke for the word that it predicts.

Sun, Lapuschkin, Samek, Binder 2022 (https://arxiv.org/abs/2001.01037), section on LRP-inference fine-tuning. A captioner reads its
next word from context plus speaking LSTM; where the word that it predicts is no stop word, both are multiplied by weights
from 0 to 2 made of their relevance for it, and a second reading is made. Training lowers the cross-entropy of both readings;
the weights are constants. What it writes afterwards is written by the plain reading.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.lrp.rules import stabilised
from heatproof.models.captioner_nets import CaptionNet

EPSILON = 0.01


class Readings(NamedTuple):
    """Logits [N, T, V] (or [M, V]) of each next word: as the net reads them, and as it reads them by relevance."""

    plain: Tensor
    weighted: Tensor


def normalised(relevance: Tensor, temperature: float = 1.0) -> Tensor:
    """Relevance [N, H] as weights: max(1, t) + t r / max |r|, row by row; max(1, t) where a row is all zero.

    >>> normalised(torch.tensor([[-2.0, 1.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.5], [1.0, 1.0]]
    """
    most = relevance.abs().amax(1, keepdim=True)
    return max(1.0, temperature) + temperature * relevance / torch.where(most == 0, 1.0, most)


@torch.no_grad()
def weights(
    output: nn.Linear,
    context: Tensor,
    spoken: Tensor,
    logits: Tensor,
    without: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The weights of context and of the speaking LSTM, [N, H] each, for the word that each row of logits [N, V] predicts.

    The predicted word's logit goes back by the epsilon rule through ``output``, whose input is context + spoken [N, H], and is split
    between the two by their values. Rows that predict a word of ``without`` (ids: stop words and specials) have weights of 1.
    """
    word = logits.argmax(1)
    value = logits.gather(1, word[:, None])
    mixed = context + spoken
    relevance = mixed * output.weight[word] * value / stabilised(value, EPSILON)
    share = relevance / stabilised(mixed, EPSILON)
    silent = torch.isin(word, without.to(word.device))[:, None]
    both = (normalised(part * share, temperature).masked_fill(silent, 1.0) for part in (context, spoken))
    first, second = both
    return first, second


def readings(
    net: CaptionNet,
    features: Tensor,
    captions: Tensor,
    without: Tensor,
    temperature: float = 1.0,
) -> Readings:
    """Both readings of every next word, teacher-forced: the encoder's features [N, C, h, w], word ids [N, T].

    States go on unweighted. No gradient goes through the weights.
    """
    cells = net.look(features)
    state = net.start(cells.whole)
    context, spoken = [], []
    for t in range(captions.shape[1]):
        state, _ = net.advance(state, cells, net.embedding(captions[:, t]))
        context.append(state.context)
        spoken.append(net.mix(state) - state.context)
    found = read_twice(net, torch.cat(context), torch.cat(spoken), without, temperature)
    return Readings(*(torch.stack(logits.split(len(captions)), 1) for logits in found))


def read_twice(
    net: CaptionNet, context: Tensor, spoken: Tensor, without: Tensor, temperature: float = 1.0
) -> Readings:
    """Both readings [M, V] of the steps whose context and speaking LSTM are the rows [M, H]."""
    plain = net.say(context + spoken)
    first, second = weights(net.output, context, spoken, plain, without, temperature)
    return Readings(plain, net.say(first * context + second * spoken))


def losses(found: Readings, wanted: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The cross-entropies of both readings against the ids [N, T] (or [M]) that were said next; the mean over words but ``ignored``.

    Their sum is what LRP-inference fine-tuning lowers; the plain one alone is its control.
    """
    plain, weighted = (cross_entropy(logits, wanted, ignored) for logits in found)
    return plain, weighted


def cross_entropy(logits: Tensor, wanted: Tensor, ignored: int) -> Tensor:
    """Of logits [..., V] and ids [...], the mean over words but ``ignored``; in float32 at least."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), wanted.flatten(), ignore_index=ignored)
