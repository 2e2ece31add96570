"""Control: a method's own map, its parts in random places: does a metric tell the map from its own pieces?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation
from heatproof.contract import Case, Explainer, explain


@dataclass(frozen=True)
class Shuffled:
    """The map of ``of`` on its own grid, cut into blocks that change places at random; all channels go together.

    It has the map's values and its texture, and says nothing of where. As many blocks a side as divide it, up to
    ``cells`` (7 is the grid of most methods' maps, so their single places move), single places where less than 3 do:
    noise pixel by pixel would be salt and pepper, which is another thing to remove than a map. The relevance of a
    text changes places among its words; special tokens keep theirs.
    """

    of: Explainer
    cells: int = 7

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        answers = explain(self.of, model, cases)
        return [self._shuffle(case, answer) for case, answer in zip(cases, answers, strict=True)]

    def _shuffle(self, case: Case, answer: Explanation) -> Explanation:
        chance = case.generator("shuffled")
        image, text = answer.image, answer.text
        if image is not None:
            image = permuted(
                image, blocks(image.shape[-2], self.cells), blocks(image.shape[-1], self.cells), chance
            )
        if text is not None:
            real = torch.tensor([k for k, word in enumerate(case.words) if word >= 0], dtype=torch.long)
            text = text.clone()
            text[real] = text[real[torch.randperm(len(real), generator=chance)]]
        return replace(answer, image=image, text=text, pairs=None, views={})


def blocks(side: int, most: int) -> int:
    """How many equal blocks a side is cut into: the largest divisor from 3 to ``most``, else every place is one.

    >>> blocks(56, 7), blocks(64, 7), blocks(13, 7), blocks(2, 7)
    (7, 4, 13, 2)
    """
    return max((n for n in range(3, most + 1) if side % n == 0), default=side)


def permuted(heat: Tensor, down: int, along: int, chance: torch.Generator) -> Tensor:
    """[..., h, w] cut into down x along blocks, which change places."""
    *front, high, wide = heat.shape
    cut = heat.reshape(*front, down, high // down, along, wide // along).movedim(-2, -3)
    flat = cut.reshape(*front, down * along, high // down, wide // along)
    flat = flat[..., torch.randperm(down * along, generator=chance), :, :]
    return flat.reshape(cut.shape).movedim(-3, -2).reshape(heat.shape)
