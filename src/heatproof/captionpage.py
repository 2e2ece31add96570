"""What captioners say, word by word, as one self-contained page. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heatproof import pictures, report
from heatproof.pictures import Array, Picture

SIDE = 196  # pixels of a map: twice what a cell shows; in fewer, fine maps of both signs would cancel
STANDINGS = {"grounded": "✓", "hallucinated": "✗", "": ""}


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a caption: log-probability (nats) and image lift, and whether what it names is there.

    ``standing`` is "grounded", "hallucinated", or nothing where it names no object or nobody knows; ``why`` says so.
    """

    text: str
    logp: float
    lift: float
    standing: str
    why: str
    evidence: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """One explainer: a map [h, w] and the relevance [t + 1] of <start> and the words before, of each word t of the caption.

    ``unsuited``: why there are none.
    """

    name: str
    maps: Sequence[Array | None] = ()
    texts: Sequence[Array | None] = ()
    unsuited: str = ""


@dataclass(frozen=True, eq=False)
class Told:
    """A photograph and what was said of it, by the captioner and by people."""

    name: str
    image: Picture
    words: Sequence[Word]
    answers: Sequence[Answers]
    references: Sequence[str] = ()


def signed_power(heat: Array, gamma: float) -> Array:
    """sign(R) (|R| / max|R|) ** gamma: faint relevance made visible, zero kept; Sun et al. 2022's figures have 0.7.

    >>> signed_power(np.array([-4.0, 0.0, 1.0]), 0.5).tolist()
    [-1.0, 0.0, 0.5]
    """
    size = np.abs(heat)
    top = float(size.max(initial=0.0))
    found: Array = np.sign(heat) * (size / top) ** gamma if top > 0 else np.zeros_like(heat)
    return found


def html(title: str, found: Sequence[Told], run: Mapping[str, Any]) -> str:
    """The page: a table a photograph, a column a word, a row an explainer. ``run``: model, dataset, gamma, version."""
    rows = [_photograph(told) for told in found]
    return report.templates().get_template("captions.html").render(title=title, found=rows, run=run)


def _photograph(told: Told) -> dict[str, Any]:
    spoken = ["<start>", *(word.text for word in told.words)]
    return {
        "name": told.name,
        "picture": report.inline(pictures.framed(told.image, side=300)),
        "caption": " ".join(spoken[1:]),
        "words": [
            {
                "text": word.text,
                "mark": STANDINGS[word.standing],
                "standing": word.standing,
                "why": word.why,
                "p": _share(float(np.exp(word.logp))),
                "lift": f"{round(word.lift, 1) + 0.0:+.1f}",
            }
            for word in told.words
        ],
        "rows": [_row(told, answers, spoken) for answers in told.answers],
        "references": told.references,
    }


def _row(told: Told, answers: Answers, spoken: Sequence[str]) -> dict[str, Any]:
    cells = [
        {
            "picture": ""
            if heat is None
            else report.inline(pictures.overlay(told.image, heat, word.evidence, SIDE)),
            "text": report.tinted(spoken[: t + 1], text),
            "alt": f"{answers.name}: where “{word.text}” comes from",
        }
        for t, (word, heat, text) in enumerate(
            zip(told.words, answers.maps, answers.texts, strict=bool(answers.maps))
        )
    ]
    parts = re.split(
        r"(?<=[:(])|(?<=[a-z])(?=[A-Z])", answers.name
    )  # where a long name may go on in the next line
    return {"parts": parts, "cells": cells, "unsuited": answers.unsuited}


def _share(p: float) -> str:
    """A probability in two digits, without the zero that all of them have."""
    return "< .01" if p < 0.005 else f"{p:.2f}".removeprefix("0")
