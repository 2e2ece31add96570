"""Flickr8k: photographs of people and animals doing something, with five captions each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from heatproof.contract import Card, Refused, Sample
from heatproof.photographs import Files, Lazy

SPLITS = ("train", "dev", "test")  # 6,000, 1,000 and 1,000 photographs


@dataclass(frozen=True)
class Flickr8k:
    """One split, in the order of its list: ``images`` is a zip or a folder of the photographs, ``text`` the folder of
    Flickr8k.token.txt and Flickr_8k.{train,dev,test}Images.txt. A sample's id is its file's name.

    Captions are as written, numbered as in the file; results call them by their numbers. Nothing else is annotated:
    no label, no objects.

    Raises Refused, naming the file: one that is missing, a photograph that is listed but not there or has no
    caption, a line that is no caption; and, when pixels are read, an image that is truncated.
    """

    images: str
    text: str
    split: str = "test"

    card: ClassVar[Card] = Card(
        source="https://www.jair.org/index.php/jair/article/view/10833, Flickr8k_Dataset and Flickr8k_text",
        revision="the files given",
        licence="non-commercial research and education; the photographs are their Flickr users' and may not be published",
        cite="Hodosh, Young, Hockenmaier. Framing Image Description as a Ranking Task. JAIR 47, 2013, 853-899",
        leaks="web-trained models may have seen the photographs and their captions; "
        "the five captions of a photograph often tell different things, and many captions fit several photographs",
    )

    def samples(self) -> Sequence[Sample]:
        """The split's photographs, each with its captions."""
        if self.split not in SPLITS:
            raise Refused(f"flickr8k: split: found {self.split!r}, accepted are {', '.join(SPLITS)}")
        listed, tokens = (
            Path(self.text) / name for name in (f"Flickr_8k.{self.split}Images.txt", "Flickr8k.token.txt")
        )
        names = [line.strip() for line in _lines(listed) if line.strip()]
        said = captions(tokens)
        silent = [name for name in names if name not in said]
        if silent:
            raise Refused(
                f"{tokens}: no caption of {len(silent)} photographs of {listed.name}: {silent[0]}, ..."
            )
        files = Files(Path(self.images), "flickr8k")
        files.check(names, listed.name)
        return Lazy([(name, said[name]) for name in names], partial(_sample, files))


def captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Lines "FILE.jpg#K<tab>caption" -> the captions of each file by K."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, mark, k = key.rpartition("#")
        if not (tab and mark and k.isdigit()):
            raise Refused(
                f"{path}: line {number}: found {line[:60]!r}, accepted is NAME.jpg#NUMBER<tab>caption"
            )
        found[name][int(k)] = caption.strip()
    return {name: tuple(said[k] for k in sorted(said)) for name, said in found.items()}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise Refused(f"flickr8k: there is no file {path}")
    return path.read_text(encoding="utf-8").split("\n")


def _sample(files: Files, name: str, said: tuple[str, ...]) -> Sample:
    # results are published, these captions may not be
    return Sample(
        id=Path(name).stem,
        read=partial(files.read, name),
        captions=said,
        extras={"captions": "unpublished"},
    )
