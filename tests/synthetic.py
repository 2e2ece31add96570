"""Made-up results with known truth: what the tests of tables, plots, report and regress are fed with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from heatproof.records import Curve, Record, Result, write_curves, write_records, write_whole

METHODS = {"lrp": 0.40, "gradcam": 0.38, "ig-16": 0.30, "rise-128": 0.33, "attention": 0.15}
CONTROLS = {"random": 0.0, "centre": 0.10, "edges": 0.05, "prior": 0.12, "swapped": 0.08}
ANNOTATIONS = {"blurred-gradcam": 0.36, "oracle": 0.35}
MODELS = {"small_cnn": "classifier", "small_clip": "dual"}
MEASURES = {
    "deletion": [
        {"name": "srg", "better": "higher", "measures": "faithfulness", "unit": "", "reduce": "mean"},
        {"name": "deletion", "better": "lower", "measures": "faithfulness", "unit": "", "reduce": "mean"},
    ],
    "localization": [
        {"name": "mass", "better": "higher", "measures": "plausibility", "unit": "", "reduce": "mean"},
        {
            "name": "pooled",
            "better": "higher",
            "measures": "plausibility",
            "unit": "",
            "reduce": "pooled_ratio",
        },
        {"name": "best", "better": "higher", "measures": "plausibility", "unit": "", "reduce": "max_by"},
    ],
}


def run_of(
    name: str,
    models: dict[str, str],
    roles: dict[str, str],
    measures: dict[str, list[dict[str, str]]],
    **more: Any,
) -> dict[str, Any]:
    """A whole run.json, as the runner writes it."""
    return {
        "heatproof": "0.1.0",
        "name": name,
        "title": "Synthetic: maps with a known truth",
        "kind": "instrument",
        "seed": 0,
        "headline": ["deletion.srg", "localization.mass"],
        "tolerances": {"deletion.srg": 0.005},
        "dataset": {
            "use": "scenes",
            "settings": {"split": "test", "sample": 24},
            "card": {"source": "generated", "revision": "1", "licence": "CC0-1.0", "cite": "", "leaks": "none known"},
            "samples": 24,
        },
        "models": [
            {
                "name": model, "family": family, "space": "logit", "hash": f"hash-of-{model}", "policy": "label",
                "samples": 24, "cases": 48, "card": {},
            }
            for model, family in models.items()
        ],
        "explainers": [
            {
                "name": e, "role": role, "use": e.split("-")[0], "settings": {"steps": 16} if e == "ig-16" else {},
                "source": f"source-of-{e}", "summary": f"What {e} computes, in a line.",
            }
            for e, role in roles.items()
        ],
        "metrics": [
            {
                "name": metric, "use": metric, "settings": {"steps": 7, "baseline": "mean"},
                "source": f"source-of-{metric}", "summary": f"What {metric} asks, in a line.", "measures": values,
            }
            for metric, values in measures.items()
        ],
        "modes": ["corrected"],
        "published": [],
        "stand_in": False,
        "machine": {"python": "3.11", "torch": "2.13.0", "transformers": "5.0", "device": "cpu", "platform": "linux"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "made": "2026-01-02T03:04:05+00:00",
        "seconds": 58.3,
        "forwards": 110000.0,
        "failures": [],
        "spec": 'title = "Synthetic"\n',
        **more,
    }  # fmt: skip


def make(
    folder: Path,
    *,
    name: str = "synthetic",
    models: dict[str, str] | None = None,
    methods: dict[str, float] | None = None,
    controls: dict[str, float] | None = None,
    measures: dict[str, list[dict[str, str]]] | None = None,
    images: int = 24,
    asked: int = 2,
    noise: float = 0.08,
    undefined: float = 0.0,
    unsuited: tuple[tuple[str, str], ...] = (),
    replicates: int = 1,
    seed: int = 0,
    curves: bool = True,
    strip: bool = False,
    **more: Any,
) -> Result:
    """A result whose cells have the given true values, with noise by photograph and by case."""
    chance = np.random.default_rng(seed)
    models = MODELS if models is None else models
    methods = METHODS if methods is None else methods
    controls = {**CONTROLS, **ANNOTATIONS} if controls is None else controls
    measures = MEASURES if measures is None else measures
    truth = {**methods, **controls}
    roles = {e: "method" if e in methods else "control" for e in truth}
    rows: list[Record] = []
    lines: list[Curve] = []
    for model, family in models.items():
        hard = chance.normal(0, noise, images)
        for e, level in truth.items():
            off = (model, e) in unsuited
            for metric, values in measures.items():
                for value in values:
                    head = (name, model, family)
                    if off:
                        row = Record(*head, 0, e, roles[e], "", "", "", metric, value["name"], None,
                                     status="unsuited", reason=f"{model} has no attention")  # fmt: skip
                        rows.append(row)
                        continue
                    for r in range(replicates):
                        for i in range(images):
                            for k in range(asked):
                                number = level + hard[i] + chance.normal(0, noise)
                                gone = chance.random() < undefined
                                parts = {"num": number * (k + 1), "den": k + 1.0}
                                rows.append(
                                    Record(
                                        *head,
                                        r,
                                        e,
                                        roles[e],
                                        f"im{i:03d}",
                                        f"im{i:03d}-{k}",
                                        f"thing{k}",
                                        metric,
                                        value["name"],
                                        None if gone else float(number),
                                        {} if gone or value["reduce"] != "pooled_ratio" else parts,
                                        "undefined" if gone else "value",
                                        "empty mask" if gone else "",
                                        12.0,
                                        1.0,
                                        f"{model}/{e}/{metric}/{i}/{k}/{r}",
                                    )
                                )
            if curves and not off:
                x = tuple(float(v) for v in np.linspace(0, 1, 8))
                for r in range(replicates):
                    for i in range(images):
                        for sign, curve in ((-1, "morf"), (1, "lerf")):
                            y = (1 - np.array(x)) ** (9.0 ** (-sign * level)) + chance.normal(0, 0.05, 8)
                            lines.append(Curve(name, model, r, e, f"im{i:03d}", f"im{i:03d}-0", "deletion", curve,
                                               x, tuple(map(float, y))))  # fmt: skip
    run = run_of(name, models, roles, measures, **more)
    result = Result(name, rows, lines, run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if strip:
        np.savez(result.strip, **_strip(models, truth, unsuited))
    return result


def save(result: Result) -> None:
    """The three text files, as the runner leaves them."""
    write_records(result.folder / f"{result.name}.csv", result.records)
    write_curves(result.folder / f"{result.name}.curves.csv", result.curves)
    write_whole(result.folder / f"{result.name}.run.json", json.dumps(dict(result.run), indent=1))


def _strip(
    models: dict[str, str], truth: dict[str, float], unsuited: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    """A drawn scene a model, with blobs that miss the evidence the more, the lower the truth is."""
    chance = np.random.default_rng(5)
    y, x = np.mgrid[:112, :112] / 112.0
    out: dict[str, Any] = {}
    index = []
    for row, (model, family) in enumerate(models.items()):
        cx, cy = chance.uniform(0.3, 0.7, 2)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < 0.03
        box = (abs(x - cx + 0.25) < 0.1) & (abs(y - 0.75) < 0.12)
        image = np.stack([0.55 + 0.2 * np.sin(9 * x + k) * np.cos(7 * y - k) for k in range(3)], -1)
        image[disc] = chance.uniform(0.2, 0.9, 3)
        image[box] = chance.uniform(0.1, 0.9, 3)
        image = image + chance.normal(0, 0.03, image.shape)
        out[f"{row}/image"] = (255 * image.clip(0, 1)).astype(np.uint8)
        out[f"{row}/evidence"] = disc
        shown = [e for e in truth if (model, e) not in unsuited]
        for n, e in enumerate(shown):
            away = (0.45 - truth[e]) * np.array([np.cos(2.1 * n), np.sin(2.1 * n)])
            heat = np.exp(-((x - cx - away[0]) ** 2 + (y - cy - away[1]) ** 2) / 0.02)
            if e in ("lrp", "ig-16"):
                heat = heat * (1 + chance.normal(0, 0.6, heat.shape)) - 0.5 * np.exp(
                    -((x - 0.2) ** 2 + (y - 0.7) ** 2) / 0.02
                )
            if e == "random":
                heat = chance.random(heat.shape)
            out[f"{row}/map/{e}"] = heat.astype(np.float16)
        spoken = ["a", "red", "disc", "left", "of", "a", "box"] if family == "dual" else []
        if spoken:
            for e in shown:
                out[f"{row}/text/{e}"] = chance.normal(0, 1, len(spoken)).astype(np.float16)
        index.append(
            {
                "row": row,
                "model": model,
                "family": family,
                "case": "im000-0",
                "about": "disc",
                "explainers": shown,
                "spoken": spoken,
            }
        )
    out["index"] = np.array(json.dumps(index))
    return out
