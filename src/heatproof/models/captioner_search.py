"""Writing a caption: greedy, beam search and diverse beam search, every image and beam of a block at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.words import WordList


def search(net: CaptionNet, features: Tensor, words: WordList, length: int, width: int) -> Tensor:
    """What the encoder gives, [N, ...] -> the best caption of each as word ids [N, length - 1], padded, no <end>.

    Beam search of Sun et al. 2022: sums of log-probabilities, not divided by length; a beam that ends retires, and
    the search goes on with one beam less; of the ended ones the best wins, and if none ends within ``length``
    steps, the best of the rest, cut. Width 1 is greedy. An image's result does not depend on the others.
    """
    return diverse(net, features, words, length, width, groups=1)[:, 0]


def diverse(
    net: CaptionNet,
    features: Tensor,
    words: WordList,
    length: int,
    width: int,
    groups: int,
    diversity: float = 0.5,
) -> Tensor:
    """What the encoder gives, [N, ...] -> each group's caption as word ids [N, groups, length - 1], the likeliest first.

    Diverse beam search with Hamming diversity (Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424): ``groups`` beam
    searches of ``width`` beams side by side. A word is worth ``diversity`` less for each time that beams of earlier groups
    have said it at this step; that tells what is chosen, and sums stay those of log-probabilities. Within a group as in
    ``search``. Captions that ended come before those that were cut.

    The released code of Sun et al. differs: it takes the words that the first two groups read at a step, not what they say,
    each once, keeps the difference in the sums, and a group whose last beam ends costs the later ones that step.
    """
    count = features.shape[0]
    at: dict[str, Any] = {"device": features.device}
    rank, first = torch.arange(width, **at), torch.arange(count * groups, **at)[:, None] * width
    cells = net.look(features).repeat(groups * width)
    state = net.start(cells.whole)
    word = torch.full((count * groups * width,), words.bos, **at)
    living = torch.full((count, groups, 1), width, **at)
    # at first the beams are copies of each other: one speaks
    total = features.new_full((count, groups, width), -torch.inf).index_fill(2, rank[:1], 0.0)
    said = word.new_empty((count, groups, width, 0))
    best = features.new_full((count, groups), -torch.inf)
    kept = word.new_full((count, groups, length), words.pad)
    for step in range(length):
        state, logits, _ = net.step(state, cells, word)
        chances = torch.log_softmax(logits, 1).view(count, groups, width, -1)
        sums = total[..., None] + chances
        chosen = _choose(sums, rank < living, diversity)
        total = sums.flatten(2).gather(2, chosen).masked_fill(rank >= living, -torch.inf)
        parent, spoken = chosen // chances.shape[3], chosen % chances.shape[3]
        said = torch.cat([_taken(said, parent), spoken[..., None]], 3)
        ended = (spoken == words.eos) & (rank < living)
        score, place = total.masked_fill(~ended, -torch.inf).max(2)
        better = score > best
        best = torch.where(better, score, best)
        kept[..., : step + 1] = torch.where(better[..., None], _one(said, place), kept[..., : step + 1])
        total = total.masked_fill(ended, -torch.inf)
        living = living - ended.sum(2, keepdim=True)
        if not living.any():
            break
        rows = (first + parent.flatten(0, 1)).flatten()
        state, word = type(state)(*(part[rows] for part in state)), spoken.flatten()
    cut = best == -torch.inf
    rest, place = total.max(2)
    steps = said.shape[3]
    kept[..., :steps] = torch.where(cut[..., None], _one(said, place), kept[..., :steps])
    order = torch.where(cut, rest, best).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, cut.long().gather(1, order).argsort(dim=1, stable=True))
    kept = kept.gather(1, order[..., None].expand_as(kept))
    return kept.masked_fill(kept == words.eos, words.pad)[..., : length - 1]


def without(said: list[str], endings: Sequence[str]) -> list[str]:
    """Words without those of ``endings`` that stand last; as they are where no other is left.

    >>> without("a dog on the".split(), ["on", "the", "a"]), without(["a"], ["a"])
    (['a', 'dog'], ['a'])
    """
    kept = [k for k, word in enumerate(said) if word not in endings]
    return said[: kept[-1] + 1] if kept else said


def _choose(sums: Tensor, alive: Tensor, diversity: float) -> Tensor:
    """The best continuations of each group's beams, one group after the other: [N, G, B, V] -> [N, G, B] of B * V."""
    used = sums.new_zeros(sums.shape[0], sums.shape[3])  # how often each word has been said at this step
    chosen = []
    for group, there in zip(sums.unbind(1), alive.unbind(1), strict=True):
        chosen.append((group - diversity * used[:, None]).flatten(1).topk(group.shape[1], 1).indices)
        used.scatter_add_(1, chosen[-1] % sums.shape[3], there.to(used))
    return torch.stack(chosen, 1)


def _taken(said: Tensor, parent: Tensor) -> Tensor:
    """The beams that each beam continues: [N, G, B, T], [N, G, B] -> [N, G, B, T]."""
    return said.gather(2, parent[..., None].expand(*parent.shape, said.shape[3]))


def _one(said: Tensor, place: Tensor) -> Tensor:
    """One beam of each group: [N, G, B, T], [N, G] -> [N, G, T]."""
    return _taken(said, place[..., None]).squeeze(2)
