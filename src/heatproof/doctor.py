"""``heatproof doctor``: looks before a run does, and says what to type."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from heatproof import shelf
from heatproof.shelf import Place

NEEDED = ("torch", "transformers", "captum", "numpy", "scipy", "matplotlib", "safetensors", "pycocotools")
EXTRAS = {"test": ("pytest", "hypothesis", "pytest-benchmark", "scikit-learn", "scikit-image")}


def examine(cwd: Path) -> tuple[list[str], bool]:
    """Lines to print, and whether everything that a run needs is in order."""
    found = [*_versions(), *_torchvision(), *_device(), *_products(), *_extras(), *_data(cwd), *_disk(cwd)]
    signs = {True: "ok  ", False: "BAD ", None: "    "}
    return [signs[good] + text for good, text in found], all(good is not False for good, _ in found)


Finding = tuple[bool | None, str]


def _versions() -> Iterator[Finding]:
    yield None, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in NEEDED:
        try:
            yield True, f"{name} {version(name)}"
        except PackageNotFoundError:
            yield False, f"{name} is missing. Type: pip install -c constraints.txt {name}"


def _torchvision() -> Iterator[Finding]:
    """Nothing here needs it, but one that does not match torch breaks transformers' imports."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision

        yield True, f"torchvision {torchvision.__version__} imports (nothing here needs it)"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        wrong = f"torchvision does not fit this torch build ({said}); transformers breaks on it"
        yield False, f"{wrong}. Type: pip uninstall torchvision"


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        yield True, f"cuda: {torch.cuda.get_device_name(0)}. Type: heatproof run demo --device cuda"
    else:
        yield None, f"no CUDA device; cpu with {os.cpu_count()} cores (--workers {os.cpu_count()})"


def _products() -> Iterator[Finding]:
    """Law 1 needs a row of a matrix product to be the same wherever in the matrix it stands."""
    try:
        import torch
    except ImportError:
        return
    dice = torch.Generator().manual_seed(0)
    row, weight = torch.randn(17, 64, generator=dice), torch.randn(64, 10, generator=dice)
    found = (row.expand(24, 17, 64).reshape(-1, 64) @ weight).view(24, 17, 10)
    if bool((found == found[0]).all()):
        yield True, "matrix products: a row's bits do not depend on its place"
    else:
        yield False, "matrix products: a row's bits depend on its place. Type: export MKL_CBWR=AUTO,STRICT"


def _extras() -> Iterator[Finding]:
    for extra, names in EXTRAS.items():
        absent = [n for n in names if importlib.util.find_spec(_module(n)) is None]
        if absent:
            yield None, f"extra '{extra}' lacks {', '.join(absent)}. Type: pip install 'heatproof[{extra}]'"


def _module(name: str) -> str:
    return {"scikit-learn": "sklearn", "scikit-image": "skimage"}.get(name, name.replace("-", "_"))


def _data(cwd: Path) -> Iterator[Finding]:
    """The folders that benchmarks name under [data]: are they there, and do their archives open?"""
    seen: set[Path] = set()
    for name, path in Place(cwd, cwd).benchmarks().items():
        for key, default in shelf.read_toml(path).get("data", {}).items():
            folder = Path(os.environ.get(f"HEATPROOF_DATA_{key.upper()}") or path.parent / default).resolve()
            if folder in seen:
                continue
            seen.add(folder)
            if not folder.is_dir():
                yield None, f"data '{key}' of {name}: not found. Type: heatproof run {name} --data {key}=DIR"
                continue
            broken = [z.name for z in sorted(folder.rglob("*.zip")) if not zipfile.is_zipfile(z)]
            state = f"{', '.join(broken)} cannot be opened as zip" if broken else "readable"
            yield not broken, f"data '{key}' of {name}: {state}"


def _disk(cwd: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(cwd).free / 2**30
    yield free > 0.2, f"{free:.1f} GiB free here for the working store and reports"
