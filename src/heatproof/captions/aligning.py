"""Two texts word by word: one to one, as many pairs as possible, in as few unbroken runs as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

STATES = 512  # kept after each word; captions stay far below


class Pair(NamedTuple):
    """Word ``i`` of the one text and word ``j`` of the other; ``stage``: what makes them partners, 0 the closest."""

    i: int
    j: int
    stage: int


class Way(NamedTuple):
    """An alignment of the words up to here; compared from left to right, the higher the better."""

    pairs: int
    runs: int  # negative
    stages: int  # negative: of alignments as good, the one with closer partners
    apart: int  # negative: how far partners stand from each other
    chosen: tuple[Pair, ...]


def align(options: Sequence[Sequence[Pair]]) -> list[Pair]:
    """The best alignment; ``options[i]`` are the partners that word i could have.

    The most pairs; of these the fewest runs (Banerjee and Lavie 2005: the fewest crossings; Denkowski and Lavie 2011: chunks);
    then the closest partners, then the least distance. Exact by dynamic programming over the words of the first text: what
    later words need to know of earlier ones is which of *their* partners are taken and where the last word went. Beyond
    ``STATES`` such memories at a word, which takes a dozen repeated words, the worst are forgotten.

    >>> cat, sat = Pair(0, 3, 0), Pair(1, 1, 0)
    >>> align([[Pair(0, 0, 0), cat], [sat], []])
    [Pair(i=0, j=0, stage=0), Pair(i=1, j=1, stage=0)]
    """
    wanted_later: list[set[int]] = [set()]
    for some in reversed(options):
        wanted_later.append(wanted_later[-1] | {pair.j for pair in some})
    wanted_later.reverse()
    ways: dict[tuple[frozenset[int], int], Way] = {(frozenset(), -2): Way(0, 0, 0, 0, ())}
    for i, some in enumerate(options):
        later: dict[tuple[frozenset[int], int], Way] = {}
        for (taken, last), way in ways.items():
            _keep(later, (taken & wanted_later[i + 1], -2), way)
            for pair in some:
                if pair.j not in taken:
                    memory = (taken | {pair.j}) & wanted_later[i + 1], pair.j
                    _keep(later, memory, _with(way, pair, joined=last == pair.j - 1))
        if len(later) > STATES:
            best = sorted(later.items(), key=lambda item: item[1][:4], reverse=True)
            later = dict(best[:STATES])
        ways = later
    return list(max(ways.values(), key=lambda way: way[:4]).chosen)


def _with(way: Way, pair: Pair, *, joined: bool) -> Way:
    return Way(
        way.pairs + 1,
        way.runs - (not joined),
        way.stages - pair.stage,
        way.apart - abs(pair.i - pair.j),
        (*way.chosen, pair),
    )


def _keep(ways: dict[tuple[frozenset[int], int], Way], memory: tuple[frozenset[int], int], way: Way) -> None:
    if memory not in ways or way[:4] > ways[memory][:4]:
        ways[memory] = way


def chunks(pairs: Sequence[Pair]) -> int:
    """How many unbroken runs the pairs, in the order of ``i``, fall into.

    >>> chunks([Pair(0, 4, 0), Pair(1, 5, 0), Pair(3, 6, 0)])
    2
    """
    return sum(
        k == 0 or (pair.i, pair.j) != (pairs[k - 1].i + 1, pairs[k - 1].j + 1) for k, pair in enumerate(pairs)
    )
