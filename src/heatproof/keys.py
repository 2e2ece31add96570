"""The key of a number: a hash of everything that can move it (law 8). Same key, same number.

A score's key is built on its map's key, that on its case's key, and that on its model's: what changed low
changes everything above it, and nothing else. Times, git commits and the number of workers are no part of it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch

from heatproof import shelf
from heatproof.contract import Case, Model
from heatproof.spec import Part


def seal(*parts: Any) -> str:
    """A hash of plain values; dicts by sorted keys.

    >>> seal({"a": 1, "b": 2}) == seal({"b": 2, "a": 1}), seal(1) == seal("1")
    (True, False)
    """
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def model_key(part: Part, model: Model, device: str) -> str:
    """Weights, adapter source, dtype, device kind, processor kind, and the libraries that the net is made of."""
    return seal(
        "model",
        model.hash,
        part.source,
        shelf.source(shelf.file_of(type(model))),
        "float32",
        device.partition(":")[0],
        platform.machine(),
        torch.__version__,
        version("transformers"),
    )


def case_key(model: str, case: Case, digest: str, policy: str) -> str:
    """The sample's bytes and the question: id, seed, target, choices, tokens, geometry of the evidence."""
    hashed = blake2b(digest_size=16)
    told = case.pixels, case.tokens, case.evidence, case.boxes, case.ignore, case.evidence_text, case.named
    for tensor in told:
        if tensor is not None:
            hashed.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        hashed.update(b"|")
    about = (case.id, case.sample, case.about, case.seed, str(case.target), str(case.choices))
    return seal(
        "case",
        model,
        digest,
        policy,
        *about,
        list(case.words),
        case.references,
        case.things,
        hashed.hexdigest(),
    )


def map_key(case: str, part: Part, fitted: str = "", other: str = "") -> str:
    """The explainer's source and settings, what it was fitted on, and the other case it looks at."""
    return seal("map", case, *_made(part), fitted, other)


def fit_key(
    model: str, part: Part, digests: list[str], seed: int, policy: str = "", to: Part | None = None
) -> str:
    """What a fit depends on: the model, the part, every sample of the fit split, and what is asked of it.

    A metric's fit also depends on ``to``, the explainer whose maps it learns from.
    """
    return seal("fit", model, *_made(part), digests, seed, policy, [] if to is None else _made(to))


def score_key(of: str, part: Part, other: str = "", fitted: str = "") -> str:
    """The metric's source and settings on top of the map (or of the bare case), the other case it looks at, and its fit."""
    return seal("score", of, *_made(part), other, fitted)


def _made(part: Part) -> tuple[Any, ...]:
    """What a part is: its name on the shelf, settings and source, and the sources of the explainers inside it."""
    inside = [shelf.source(shelf.file_of(type(made))) for made in nested(part.made)]
    return part.use, part.settings, part.source, inside


def nested(made: Any) -> list[Any]:
    """The explainers inside an explainer, or a metric."""
    inner = [v for v in vars(made).values() if hasattr(v, "explain")]
    return [x for v in inner for x in (v, *nested(v))]


def plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as JSON gives it back, so that what is stored equals what was just computed."""
    loaded: dict[str, Any] = json.loads(json.dumps(mapping))
    return loaded
