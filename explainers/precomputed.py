"""Maps from elsewhere: what a user computed already, read from files named by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

KINDS = (".npy", ".png")


@dataclass(frozen=True)
class Precomputed:
    """A map from ``folder``: CASE.npy, [h, w] or [C, h, w], signed or not, any grid; or CASE.png, one channel.

    ``folder``/MODEL/ is looked in first, so that several models can have maps of cases of one name. CASE.text.npy beside
    it, [T], is the relevance of the case's tokens. PNG values are taken as they are, 0 to 255 or 0 to 65535.
    ``heatproof export-cases SPEC DIR`` writes the pixels, texts, token ids and names to compute maps of.

    A map that is missing, of another shape, or holds NaN is named and fails its case; the run goes on. Numbers are
    keyed by the files' bytes: change a map, and the method's scores are computed again. Maps cost nothing here: the
    cost column tells the metric's forwards alone.
    """

    folder: str
    digest: str = field(init=False)  # of every file's name and bytes: part of the key

    def __post_init__(self) -> None:
        top = Path(self.folder)
        if not top.is_dir():
            raise Refused(
                f"precomputed: folder: found {self.folder!r}, which is no folder; write for example "
                '{ use = "precomputed", folder = "{maps}", as = "rival" } and [data] maps = "rival_maps"'
            )
        seal = blake2b(digest_size=16)
        for path in sorted(p for p in top.rglob("*") if p.suffix in KINDS):
            seal.update(path.relative_to(top).as_posix().encode() + b"\0" + path.read_bytes())
        object.__setattr__(self, "digest", seal.hexdigest())

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if "~" in model.name or any(
            case.charge for case in cases
        ):  # a twin, or a neighbour or partner of the case
            raise Unsuited("maps from elsewhere cannot be asked again, of another model or another image")
        return [self._answer(model.name, case) for case in cases]

    def _answer(self, model: str, case: Case) -> Explanation:
        places = [Path(self.folder) / model / case.id, Path(self.folder) / case.id]
        files = [place.with_name(place.name + kind) for place in places for kind in KINDS]
        image = next((p for p in files if p.is_file()), None)
        text = next(
            (p for place in places if (p := place.with_name(place.name + ".text.npy")).is_file()), None
        )
        if image is None and text is None:
            raise FileNotFoundError(
                f"no map of case {case.id}: none of {', '.join(map(str, files))} is there"
            )
        tokens = 0 if case.tokens is None else len(case.tokens)
        return Explanation(
            image=None if image is None else self._image(image, case),
            text=None if text is None else _checked(text, np.load(text), (tokens,)),
        )

    def _image(self, path: Path, case: Case) -> Tensor:
        array = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
        high, wide = case.pixels.shape[-2:]
        if array.ndim not in (2, 3) or 0 in array.shape or array.shape[-2] > high or array.shape[-1] > wide:
            raise ValueError(
                f"{path}: found shape {list(array.shape)}, accepted are [h, w] and [C, h, w] up to {high} x {wide}"
            )
        return _checked(path, array)


def _checked(path: Path, array: np.ndarray, shape: tuple[int, ...] | None = None) -> Tensor:
    """As float32, every value finite."""
    if shape is not None and array.shape != shape:
        raise ValueError(f"{path}: found shape {list(array.shape)}, accepted is {list(shape)}, one a token")
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ValueError(f"{path}: {broken} of {array.size} values are NaN or infinite")
    return torch.from_numpy(array.astype(np.float32))
