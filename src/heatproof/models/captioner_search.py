"""Writing a caption: greedy and beam search, every image and beam of a block at once."""

from __future__ import annotations

import torch
from torch import Tensor

from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.words import WordList


def search(net: CaptionNet, features: Tensor, words: WordList, length: int, width: int) -> Tensor:
    """Feature maps [N, C, h, w] -> the best caption of each as word ids [N, length - 1], padded, no <end>.

    Beam search of Sun et al. 2022: sums of log-probabilities, not divided by length; a beam that ends retires, and
    the search goes on with one beam less; of the ended ones the best wins, and if none ends within ``length``
    steps, the best of the rest, cut. Width 1 is greedy. An image's result does not depend on the others.
    """
    count, start = features.shape[0], torch.arange(features.shape[0], device=features.device)
    cells = net.look(features).repeat(width)
    state = net.start(cells.whole)
    word = torch.full((count * width,), words.bos, device=features.device)
    rank = torch.arange(width, device=features.device)
    living = torch.full((count, 1), width, device=features.device)
    # at first the beams are copies of each other: one speaks
    total = features.new_full((count, width), -torch.inf).index_fill(1, rank[:1], 0.0)
    said = word.new_empty((count, width, 0))
    best = features.new_full((count,), -torch.inf)
    kept = word.new_full((count, length), words.pad)
    for step in range(length):
        state, logits, _ = net.step(state, cells, word)
        chances = torch.log_softmax(logits, 1).view(count, width, -1)
        total, chosen = (total[:, :, None] + chances).flatten(1).topk(width, 1)
        total = total.masked_fill(rank >= living, -torch.inf)
        parent, spoken = chosen // chances.shape[2], chosen % chances.shape[2]
        said = torch.cat([said[start[:, None], parent], spoken[:, :, None]], 2)
        ended = (spoken == words.eos) & (rank < living)
        score, place = total.masked_fill(~ended, -torch.inf).max(1)
        better = score > best
        best = torch.where(better, score, best)
        kept[better, : step + 1] = said[start, place][better]
        total = total.masked_fill(ended, -torch.inf)
        living = living - ended.sum(1, keepdim=True)
        if not living.any():
            break
        rows = (start[:, None] * width + parent).flatten()
        state, word = type(state)(*(part[rows] for part in state)), spoken.flatten()
    unended = best == -torch.inf
    if unended.any():
        kept[unended, : said.shape[2]] = said[start, total.argmax(1)][unended]
    return kept.masked_fill(kept == words.eos, words.pad)[:, : length - 1]
