"""What is removed as one: cells of a grid, superpixels, tokens, words."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case

SEGMENTS = ("grid", "slic")


def grid(size: tuple[int, int], cells: int) -> Tensor:
    """A fixed grid of ``cells`` x ``cells`` segments, as equal as whole pixels allow: int64 [H, W], from 0.

    No more than one cell a pixel along a side.

    >>> grid((2, 5), 3).tolist()
    [[0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    """
    down, along = (torch.arange(side) * min(cells, side) // side for side in size)
    return down[:, None] * (int(along[-1]) + 1) + along


def slic(image: Tensor, number: int, compactness: float, frame: geometry.Frame) -> Tensor:
    """Superpixels of about equal size, by k-means in colour and place (Achanta et al. 2012): int64 [H, W], from 0.

    image [C, H, W] normalised; the photograph that it shows is cut, so the model's normalisation moves no edge.
    About ``number`` segments; how many there are depends on the image. Colours are compared as CIELAB, grey ones
    too, or ``compactness`` would mean another thing for them. By scikit-image, which must be there.
    """
    segmentation = importlib.import_module("skimage.segmentation")
    picture = frame.picture(image.expand(3, -1, -1) if len(image) == 1 else image)
    found = segmentation.slic(
        picture, n_segments=number, compactness=compactness, start_label=0, channel_axis=-1, convert2lab=True
    )
    labels: Tensor = torch.unique(torch.from_numpy(found), return_inverse=True)[1]
    return labels


def removable(case: Case, family: str, unit: str = "token") -> list[list[int]]:
    """The tokens that may go, those that go together in one list: single tokens, or all tokens of a word.

    Special tokens (word -1) stay: encoders read the end token. A captioner's target is the caption's word
    ``target``, token ``target + 1``: it and what follows stay too, since nothing before it depends on them.

    >>> case = Case("id", "s", "dog", torch.zeros(3, 1, 1), 3, words=(-1, 0, 0, 1, 2, -1))
    >>> removable(case, "captioner"), removable(case, "dual", "word")
    ([[1], [2], [3]], [[1, 2], [3], [4]])
    """
    stop = int(case.target) + 1 if family == "captioner" else len(case.words)
    free = [place for place, word in enumerate(case.words[:stop]) if word >= 0]
    if unit == "token":
        return [[place] for place in free]
    words = dict.fromkeys(case.words[place] for place in free)
    return [[place for place in free if case.words[place] == word] for word in words]
