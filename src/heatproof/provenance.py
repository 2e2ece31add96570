"""Where results go and what is written beside them: ``NAME.run.json`` tells how every number came to be."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import heatproof
from heatproof.bench import Answer, Bench
from heatproof.records import Result, write_curves, write_records, write_whole
from heatproof.spec import Part, Spec

if TYPE_CHECKING:
    from heatproof.runner import Order


def working(spec: Spec) -> Path:
    """The folder of the working stores and latest results, beside the spec's shelves."""
    return spec.workspace / ".heatproof"


def story(
    spec: Spec, order: Order, bench: Bench, answers: Sequence[Answer], seconds: float
) -> dict[str, Any]:
    """The content of run.json: what the names in the rows mean, and what produced them."""
    models: dict[tuple[str, int], dict[str, Any]] = {}
    for answer in answers:
        name = answer.model["name"], answer.model["replicate"]
        entry = models.setdefault(name, {**answer.model, "samples": 0, "cases": 0})
        entry["samples"] += answer.job.count
        entry["cases"] += answer.cases
    card = type(spec.dataset.made).card
    return {
        "heatproof": heatproof.__version__,
        "name": spec.name,
        "title": spec.title,
        "kind": spec.kind,
        "paper": spec.paper,
        "seed": spec.seed,
        "headline": list(spec.headline),
        **({"against": dict(spec.against)} if spec.against else {}),
        "tolerances": dict(spec.tolerances),
        "targets": dict(spec.targets),
        "dataset": {
            "use": spec.dataset.use,
            "settings": dict(spec.dataset.entry),
            "card": {f: getattr(card, f) for f in ("source", "revision", "licence", "cite", "leaks")},
            "samples": len(bench.samples),
        },
        "models": list(models.values()),
        "explainers": [{**_told(p), "role": p.role} for p in spec.explainers],
        "metrics": [
            {
                **_told(p),
                "measures": [
                    {k: getattr(m, k) for k in ("name", "better", "measures", "unit", "reduce")}
                    for m in p.made.measures
                ],
            }
            for p in spec.metrics
        ],
        "modes": list(spec.modes),
        "published": [dict(p) for p in spec.published],
        "stand_in": spec.stand_in,
        "changes": {"set": list(order.sets), "limit": order.limit},
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": _version("transformers"),
            "device": order.device,
            "processor": _processor(order.device),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "git": _git(spec.workspace),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "forwards": round(sum(a.forwards for a in answers), 1),
        "failures": [f for a in answers for f in a.failures],
        "spec": spec.text,
    }


def _told(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "use": part.use,
        "settings": part.settings,
        "source": part.source,
        "summary": part.summary,
    }


def write(result: Result, answers: Sequence[Answer]) -> None:
    """The files of a result, in the benchmark's working folder."""
    folder, name = result.folder, result.name
    write_curves(folder / f"{name}.curves.csv", result.curves)
    _write_strip(result.strip, [row for a in answers for row in a.strip])
    write_whole(folder / f"{name}.run.json", json.dumps(result.run, indent=1) + "\n")
    write_records(folder / f"{name}.csv", result.records)


def _write_strip(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    arrays: dict[str, Any] = {}
    index = []
    for i, row in enumerate(rows):
        index.append(
            {
                "row": i,
                **{k: row[k] for k in ("model", "family", "case", "about", "spoken")},
                "explainers": list(dict.fromkeys([*row["maps"], *row["texts"]])),
            }
        )
        arrays[f"{i}/image"] = row["image"]
        if "evidence" in row:
            arrays[f"{i}/evidence"] = row["evidence"]
        arrays |= {f"{i}/map/{name}": heat for name, heat in row["maps"].items()}
        arrays |= {f"{i}/text/{name}": heat for name, heat in row["texts"].items()}
    out = io.BytesIO()
    np.savez_compressed(out, index=np.array(json.dumps(index)), **arrays)
    write_whole(path, out.getvalue())


def _processor(device: str) -> str:
    """The kind of processor: another one may give other last bits under the same key."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _git(folder: Path) -> dict[str, Any]:
    """The checkout's commit, where the workspace is one."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except FileNotFoundError:
        return {"commit": "", "dirty": False}
