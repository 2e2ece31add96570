"""Confidence as M2IB's release measures it, against arrays of its released code; everything is read from the folder ``m2ib``.

The reference's own heat maps go through the metric. Tolerances are those of its FIXTURES.md: drops 1e-3, masks exact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from heatproof.contract import Case, Explanation, Trial
from heatproof.geometry import Frame
from heatproof.metrics import confidence_text
from heatproof.metrics.confidence import Confidence
from heatproof.models.hf_clip import clip

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HEATPROOF_PARITY", ROOT.parent / "shared" / "parity")) / "m2ib"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"HEATPROOF_PARITY: nothing at {FOLDER}")
BETA = "beta0.1"  # of the maps that metrics.npz was made with
DROPS, COSINES = 1e-3, 1e-5  # points x 100, and the cosines that they are differences of
RELEASED = Confidence(
    output="cosine",
    drop="absolute",
    image_mask="normalised",
    text_mask="median",
    sign="signed",
    as_released=True,
)
FULL = replace(RELEASED, as_released=False, by_threshold=True, zero_ids=True, no_ends=True)  # all but row0


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


class Ids:
    """The special ids are all of a tokenizer that the model asks for here."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.bos, self.eos, self.pad = (config[f"{k}_token_id"] for k in ("bos", "eos", "pad"))
        self.unknown = self.pad


@dataclass(frozen=True)
class Reference:
    """The reference's maps, for every case."""

    image: Tensor
    text: Tensor

    def explain(self, model: Any, cases: list[Case]) -> list[Explanation]:
        return [Explanation(image=self.image, text=self.text) for _ in cases]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return read("metrics")


@pytest.fixture(scope="module")
def trial() -> Trial:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng():
        net = CLIPModel(CLIPConfig(**config))
    found = net.load_state_dict({k: torch.from_numpy(v) for k, v in read("state").items()}, strict=False)
    assert not found.missing_keys
    ids = Ids(config["text_config"])
    model = clip("reference", net, ids, frame=Frame(config["vision_config"]["image_size"]))
    inputs = read("inputs")
    pixels, tokens = torch.from_numpy(inputs["pixel_values"])[0], torch.from_numpy(inputs["input_ids"])[0]
    content = [int(t) not in (ids.bos, ids.eos) for t in tokens]
    words = tuple(sum(content[:k]) if here else -1 for k, here in enumerate(content))
    case = Case("c", "s", "", pixels, "", tokens=tokens, words=words)
    maps = (torch.from_numpy(read(f"ref_{tower}_{BETA}")["heatmap"]) for tower in ("vision", "text"))
    explainer = Reference(*maps)
    return Trial(model, case, explainer, explainer.explain(model, [case])[0])


def told(metric: Confidence, trial: Trial) -> dict[str, float]:
    trial.model.memo.clear()
    (score,) = metric.measure([trial])
    return {name: value.number for name, value in score.values.items()}


@contextmanager
def seen(net: Any) -> Iterator[list[Tensor]]:
    """The token ids that enter the text tower, block by block."""
    ids: list[Tensor] = []
    hook = net.text_model.embeddings.token_embedding.register_forward_pre_hook(
        lambda _, args: ids.append(args[0].clone())
    )
    try:
        yield ids
    finally:
        hook.remove()


def test_drops_and_increases(trial: Trial, expected: dict[str, np.ndarray]) -> None:
    released, full = told(RELEASED, trial), told(FULL, trial)
    pairs = {
        "image_drop_released_row0": released["image_drop"],
        "image_increase_released_row0": released["image_increase"],
        "image_drop_full_map": full["image_drop"],
        "image_increase_full_map": full["image_increase"],
        "text_drop_released": released["text_drop"],
        "text_increase_released": released["text_increase"],
    }
    off = {name: abs(found - float(expected[name])) for name, found in pairs.items()}
    print(
        f"drops and increases: off by {max(off.values()):.1e} points x 100 at most, {max(off, key=off.get)}"
    )
    assert max(off.values()) < DROPS, off
    assert {n: v for n, v in released.items() if n.startswith("text")} == {
        n: v for n, v in full.items() if n.startswith("text")
    }
    assert abs(released["image_drop"] - full["image_drop"]) > 100 * DROPS


def test_the_cosines_behind_them(trial: Trial, expected: dict[str, np.ndarray]) -> None:
    released, full = told(RELEASED, trial), told(FULL, trial)
    model, case = trial.model, trial.case
    clean = float(model.clean([case])[0])
    shown = lambda score, side, y: y + (score[f"{side}_gain"] - score[f"{side}_drop"]) / 100
    (bare,) = confidence_text.Text(lambda *_: None, "zero", "signed", no_ends=True).clean(
        "native", model, [case]
    )
    pairs = {
        "score_image_original": clean,
        "score_text_with_bos_eos": clean,
        "score_image_times_full_map": shown(full, "image", clean),
        "score_image_times_row0": shown(released, "image", clean),
        "score_text_no_bos_eos": bare,
        "score_text_no_bos_eos_masked": shown(released, "text", bare),
    }
    off = {name: abs(found - float(expected[name])) for name, found in pairs.items()}
    print(f"cosines: off by {max(off.values()):.1e} at most, {max(off, key=off.get)}")
    assert max(off.values()) < COSINES, off


def test_the_tokens_that_stay_and_what_the_others_become(
    trial: Trial, expected: dict[str, np.ndarray]
) -> None:
    case, net, pad = trial.case, trial.model.net, trial.model.tokenizer.pad
    inner = case.tokens[confidence_text.inside(case)].tolist()
    masked, kept = expected["text_ids_masked"][0].tolist(), expected["text_keep_mask"]
    keep = RELEASED._text.keep(trial)
    assert (keep[confidence_text.inside(case)] == 1).tolist() == kept.tolist()
    trial.model._weights("text")  # the stages are weighed once, and that is no row of ours
    with seen(net) as released:
        told(RELEASED, trial)
    rows = [row[: len(inner)].tolist() for block in released for row in block]
    assert rows[-trial.model.rows :] == [masked] * trial.model.rows  # one row, and what fills its block
    assert inner in rows  # the untouched caption, without its ends
    assert all((row[len(inner) :] == pad).all() for row in released[-1])
    with seen(net) as corrected:
        told(replace(RELEASED, as_released=False), trial)
    whole = [int(t) if k else pad for t, k in zip(inner, kept, strict=True)]
    assert corrected[-1][0, : len(case.tokens)].tolist() == [
        int(case.tokens[0]),
        *whole,
        int(case.tokens[-1]),
    ]


def test_each_switch_moves_what_it_says(trial: Trial) -> None:
    plain = replace(RELEASED, as_released=False)
    off, on = told(plain, trial), told(RELEASED, trial)
    moved = {}
    for quirk in ("row0", "by_threshold", "zero_ids", "no_ends"):
        found = told(replace(plain, **{quirk: True}), trial)
        moved[quirk] = {name for name in off if found[name] != off[name]}
    assert moved["row0"] == {"image_drop"}
    assert moved["by_threshold"] == set()  # nothing is tied here
    assert moved["zero_ids"]
    assert moved["no_ends"]
    assert all(name.startswith("text_") for name in moved["zero_ids"] | moved["no_ends"])
    assert on == told(replace(plain, row0=True, by_threshold=True, zero_ids=True, no_ends=True), trial)
