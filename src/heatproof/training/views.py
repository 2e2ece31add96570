"""What the tasks on photographs share: a split with its captions, its words, and what a frozen trunk sees in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from heatproof import shelf
from heatproof.contract import Refused, Sample
from heatproof.models.imagenet import data_folder
from heatproof.models.words import WordList
from heatproof.training.recipe import Recipe
from heatproof.training.vocabulary import SPECIAL, encode

CAPTIONS = 5  # of each photograph
BLOCK = 50  # photographs that a trunk sees at a time


def photographs(recipe: Recipe, split: str) -> Sequence[Sample]:
    """A split of the recipe's data set."""
    named = {"data": str(data_folder(recipe.data.folder)), "split": split}
    told = {key: value.format(**named) for key, value in recipe.data.dataset.items()}
    place = shelf.Place(recipe.folder, recipe.folder.resolve().parent)
    made = shelf.find("datasets", told.pop("use", ""), place, f"{recipe.name}: [data] dataset")(**told)
    samples: Sequence[Sample] = made.samples()
    return samples


def vocabulary(captions: Iterable[str], least: int) -> WordList:
    """The words that stand ``least`` times, in alphabetical order after the special tokens; "left" and "right" always."""
    every = WordList(dict.fromkeys(SPECIAL, 0))
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(every(caption, 1000)[2][1:-1])
    kept = {word for word, count in counts.items() if count >= least} | {"left", "right"}
    return WordList({word: index for index, word in enumerate((*SPECIAL, *sorted(kept)))})


def texts_of(samples: Sequence[Sample], words: WordList, length: int, where: str) -> Tensor:
    """int64 [N, 5, length]: each photograph's captions, padded; raises Refused where one has fewer than five."""
    few = [sample.id for sample in samples if len(sample.captions) < CAPTIONS]
    if few:
        raise Refused(f"{where}: photograph {few[0]} has fewer than {CAPTIONS} captions")
    return torch.stack([encode(words, sample.captions[:CAPTIONS], length) for sample in samples])


def kept(path: Path, eyes: nn.Module, samples: Sequence[Sample], see: Callable[[], Tensor]) -> Tensor:
    """What ``see`` gives, written to ``path`` for the next start, or read from there where trunk and photographs are the same."""
    state = blake2b(digest_size=16)
    for value in eyes.state_dict().values():
        state.update(value.numpy().tobytes())
    state.update(repr([sample.id for sample in samples]).encode())
    if path.is_file():
        found = torch.load(path, weights_only=True, mmap=True)
        if found["of"] == state.hexdigest():
            views: Tensor = found["views"]
            return views
    views = see()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save({"of": state.hexdigest(), "views": views}, fresh)
    fresh.replace(path)
    return views


def both_ways(
    eyes: nn.Module, samples: Sequence[Sample], pixels: Callable[[Sequence[Sample]], Tensor], quiet: bool
) -> Tensor:
    """float16 [2, N, C, h, w]: what the trunk makes of each photograph and of its mirror image."""
    parts = []
    with torch.inference_mode():
        for start in track(range(0, len(samples), BLOCK), "looking at photographs", disable=quiet):
            seen = pixels(samples[start : start + BLOCK])
            parts.append(torch.stack([eyes(view).half() for view in (seen, seen.flip(-1))]).contiguous())
    return torch.cat(parts, 1)
