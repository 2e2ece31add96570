"""CHAIR: which of the objects that a caption names are not in the image?

Rohrbach, Hendricks, Burns, Darrell, Saenko, "Object Hallucination in Image Captioning", EMNLP 2018,
https://arxiv.org/abs/1809.02156. The synonym list is its authors' (github.com/LisaAnne/Hallucination, data/synonyms.txt).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from heatproof.captions.tokens import paired, plain
from heatproof.errors import Refused

YOUNG = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
# Two words that together name something else than each alone; beside the list's own phrases, from the authors' code
TOGETHER = {
    **{f"{age} {animal}": animal for animal in YOUNG for age in ("baby", "adult")},  # no person
    "passenger jet": "jet",
    "passenger train": "train",
    "toilet seat": "toilet",
    "home plate": "",
}
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "policemen": "policeman",
    "servicemen": "serviceman",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}


class Mention(NamedTuple):
    """An object named by a caption: the list's word for what was said, in the singular, and the object it stands for."""

    word: str
    thing: str


class Chair(NamedTuple):
    """``i``: of the objects named, the share that is not there; ``s``: of the captions, the share that names one such."""

    i: float
    s: float


def read_synonyms(path: Path, *, as_released: bool = False) -> dict[str, str]:
    """The list as word or phrase -> object. A line is an object's name and what else it is called, with commas between.

    ``as_released``: cut at a comma and one space, as its authors' code does, so that "motor bike" and "cheesecake", which
    stand behind two, and "iPhone", which is not in lower case, are never found. Raises Refused where there is no such file,
    or one that gives a phrase to two objects.
    """
    if not path.is_file():
        raise Refused(f"CHAIR: synonyms: there is no file {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        cut = line.strip().split(", ") if as_released else [part.strip().lower() for part in line.split(",")]
        for phrase in filter(None, cut):
            if found.setdefault(phrase, cut[0]) != cut[0]:
                raise Refused(
                    f"{path}: line {number}: {phrase!r} is {found[phrase]!r} already, and {cut[0]!r} here"
                )
    return found


def mentions(caption: str, synonyms: Mapping[str, str]) -> list[Mention]:
    """The objects that a caption names, in its order, each time it names one.

    The longest phrase of the list counts, so "hot dog" is no dog; plural as singular. "baby" or "adult" before an animal and
    "passenger" before jet or train are no person, "home plate" is nothing, and where a toilet is named a seat is no chair:
    the authors' rules. They make singulars with a library that takes any word for a noun ("bus" for a plural); here a
    word is one only if the list then has it, and "stove top oven" is one oven, not two.

    >>> words = {"hot dog": "hot dog", "dog": "dog", "puppy": "dog", "knife": "knife", "person": "person", "baby": "person"}
    >>> mentions("Two puppies, a baby dog and knives beside hot dogs", words)
    [Mention(word='puppy', thing='dog'), Mention(word='dog', thing='dog'), Mention(word='knife', thing='knife'), \
Mention(word='hot dog', thing='hot dog')]
    """
    words = plain(caption).split()
    known = {**TOGETHER, **{phrase: phrase for phrase in synonyms}}
    longest = max((phrase.count(" ") + 1 for phrase in known), default=1)
    said: list[str] = []
    at = 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            *before, last = words[at : at + size]
            found = next((p for w in singulars(last) if (p := " ".join([*before, w])) in known), None)
            if found is not None:
                said.append(known[found])
                break
        at += size
    if "toilet" in said:
        said = [word for word in said if word != "seat"]
    return [Mention(word, synonyms[word]) for word in said if word in synonyms]


def singulars(word: str) -> Iterator[str]:
    """The word itself, and what it may be the plural of, the likeliest first.

    >>> list(singulars("knives")), list(singulars("men")), list(singulars("dog"))
    (['knives', 'knif', 'knife', 'knive'], ['men', 'man'], ['dog'])
    """
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        yield word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]


def present(
    synonyms: Mapping[str, str], labels: Collection[str] = (), captions: Sequence[str] = ()
) -> frozenset[str]:
    """The objects that are in an image: those labelled, and those that people's captions name; CHAIR takes both together.

    ``labels`` are names of COCO's categories or any phrase of the list; raises Refused for one that the list does not have.

    >>> sorted(present({"dog": "dog", "puppy": "dog", "cat": "cat"}, ["cat"], ["a puppy"]))
    ['cat', 'dog']
    """
    for label in labels:
        if label not in synonyms:
            raise Refused(
                f"CHAIR: labels: found {label!r}, which the synonym list does not have: add it there"
            )
    named = {mention.thing for caption in captions for mention in mentions(caption, synonyms)}
    return frozenset({synonyms[label] for label in labels} | named)


def hallucinated(
    caption: str, there: Collection[str], synonyms: Mapping[str, str]
) -> tuple[list[Mention], list[Mention]]:
    """What a caption names, and what of it is not ``there``: objects, as ``present`` gives them.

    >>> said, wrong = hallucinated("a cat and a puppy", {"cat"}, {"cat": "cat", "puppy": "dog"})
    >>> len(said), wrong
    (2, [Mention(word='puppy', thing='dog')])
    """
    said = mentions(caption, synonyms)
    return said, [mention for mention in said if mention.thing not in there]


def chair(said: Sequence[str], there: Sequence[Collection[str]], synonyms: Mapping[str, str]) -> Chair:
    """CHAIR-i and CHAIR-s of captions, each 0 to 1, lower is better: ``said[i]`` one caption, ``there[i]`` what is in its image.

    CHAIR-i pools the mentions of all captions: an object named twice counts twice. A caption of one image by itself has a CHAIR-s of
    0 or 1. NaN: CHAIR-i where no object is named, CHAIR-s where there is no caption. Says nothing of objects outside the list,
    and a caption that names none is never wrong.

    >>> chair(["a cat and a puppy", "a cat"], [{"cat"}, {"cat"}], {"cat": "cat", "puppy": "dog"})
    Chair(i=0.3333333333333333, s=0.5)
    """
    paired(said, [list(some) for some in there])
    found = [hallucinated(caption, some, synonyms) for caption, some in zip(said, there)]
    named = sum(len(all_) for all_, _ in found)
    wrong = sum(len(some) for _, some in found)
    return Chair(
        wrong / named if named else math.nan,
        sum(bool(some) for _, some in found) / len(said) if said else math.nan,
    )
