"""``heatproof export-cases``: the very questions that a benchmark asks, for a rival to answer in its own environment."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.bench import Bench
from heatproof.contract import Case
from heatproof.models.base import Model
from heatproof.records import write_whole
from heatproof.runner import Order
from heatproof.store import Store

HOW = """Cases of the benchmark {name}, as its models are asked them.

MODEL/cases.json        what the model is, and one entry a case: what it is about, target, choices, text, token ids
MODEL/CASE.npy          the case's input, float32 [C, H, W], normalised as the model reads it

Write a map a case to a folder of your own: MODEL/CASE.npy, [h, w] or [C, h, w], any grid up to the input's, signed or
not; relevance of the text's tokens to MODEL/CASE.text.npy, [T]. Then name the folder in a spec:

explainers = [ {{ use = "precomputed", folder = "{{maps}}", as = "rival" }} ]
[data]
maps = "FOLDER"
"""


def export_cases(order: Order, folder: Path) -> list[Path]:
    """Write pixels, texts, token ids and case names of every model; the files written, pixels not listed one by one."""
    asked = order.read()
    written = [folder / "README.txt"]
    write_whole(written[0], HOW.format(name=asked.name))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "store.sqlite"
        Store(path, write=True).close()
        bench = Bench(asked, path, order.device, order.limit)
        for index, part in enumerate(asked.models):
            model, _ = bench.model(index)
            place = folder / part.name
            place.mkdir(parents=True, exist_ok=True)
            entries = []
            for first in range(0, len(bench.samples), asked.chunk):
                for cases in bench.ask(model, bench.samples[first : first + asked.chunk]):
                    for case in cases:
                        np.save(place / f"{case.id}.npy", case.pixels.numpy())
                        entries.append(_told(case))
            written.append(place / "cases.json")
            write_whole(written[-1], json.dumps({**_model(model), "cases": entries}, indent=1) + "\n")
        bench.store.close()
    return written


def _model(model: Model) -> dict[str, Any]:
    frame = model.frame
    return {
        "model": model.name,
        "family": model.family,
        "score": model.space,
        "weights": model.hash,
        "input": {
            "pixel": "(x * scale - mean) / std",
            "scale": frame.scale,
            "mean": frame.mean,
            "std": frame.std,
        }
        | {"channels": frame.channels},
    }


def _told(case: Case) -> dict[str, Any]:
    return {
        "case": case.id,
        "sample": case.sample,
        "about": case.about,
        "target": case.target,
        "choices": list(case.choices),
        "tokens": None if case.tokens is None else case.tokens.tolist(),
        "words": list(case.words),
        "spoken": list(case.spoken),
        "shape": list(case.pixels.shape),
        "seed": case.seed,
    }
