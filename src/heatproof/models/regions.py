"""Features of an image's regions in place of its pixels: found by a detector beforehand, read by image id."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from heatproof.contract import Refused, Sample, Unsuited
from heatproof.geometry import Frame

KEY = "image_features"  # of an HDF5 file
ENDS = (".npy", ".hdf5", ".h5")


@dataclass(frozen=True)
class Regions(Frame):
    """The frame of a model that reads no pixels: ``count`` regions of ``width`` features, float32 [count, width].

    Bottom-up features of Anderson et al. 2018 (https://arxiv.org/abs/1707.07998) have 36 regions of 2048. They are a sample's
    ``extras["regions"]``, else in ``folder``: ID.npy, ID.hdf5 or ID.h5 (with ``h5py``, its data set "image_features"; the
    released code of Sun et al. writes FILE.jpg.hdf5), or one .npz file with an array for each id. A missing ".jpg" is
    added to an id. An image with fewer regions is filled up with zeros.

    >>> sample = Sample("a", read=lambda: None, extras={"regions": np.ones((2, 4))})
    >>> Regions(count=3, width=4).read(sample).sum(1).tolist()
    [4.0, 4.0, 0.0]
    """

    size: int = 0
    count: int = 36
    width: int = 2048
    folder: str = field(default="", repr=False)  # where it lies does not change what is computed

    def read(self, sample: Sample) -> Tensor:
        """float32 [count, width]; raises Refused, naming the sample and the file, where there is nothing that fits."""
        found, where = sample.extras.get("regions"), "extras['regions']"
        if found is None:
            found, where = self._stored(sample.id)
        rows = np.asarray(found)
        rows = rows[0] if rows.ndim == 3 and len(rows) == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) > self.count or rows.dtype.kind != "f":
            raise Refused(
                f"sample {sample.id}: {where} is {rows.dtype} {list(rows.shape)}, "
                f"accepted are numbers [{self.count} at most, {self.width}]"
            )
        filled = torch.zeros(self.count, self.width)
        filled[: len(rows)] = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        return filled

    def _stored(self, name: str) -> tuple[Any, str]:
        folder = Path(self.folder)
        names = [name] if name.endswith(".jpg") else [name, f"{name}.jpg"]
        if self.folder.endswith(".npz") and folder.is_file():
            with np.load(folder) as arrays:
                for key in names:
                    if key in arrays:
                        return arrays[key], f"{folder}: {key}"
        for file in (folder / f"{key}{end}" for key in names for end in ENDS):
            if self.folder and file.is_file():
                return _array(file), str(file)
        raise Refused(
            f"sample {name} has no regions{f' in {self.folder}' if self.folder else ''}; name what has them: "
            f"regions = 'DIR' with {names[-1]}.npy or .hdf5, or regions = 'FILE.npz' with an array {names[-1]!r}"
        )

    def image(self, pixels: np.ndarray) -> NoReturn:
        raise _none()

    def picture(self, pixels: Tensor) -> NoReturn:
        raise _none()

    def mask(self, mask: np.ndarray) -> NoReturn:
        raise _none()

    def box(self, box: Any, source: tuple[int, int]) -> NoReturn:
        raise _none()


def _none() -> Unsuited:
    return Unsuited("this model reads region features: there are no pixels")


def _array(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return np.load(file)
        import h5py  # type: ignore[import-not-found]  # not a dependency

        with h5py.File(file) as found:
            return found[KEY][:]
    except ModuleNotFoundError as error:
        raise Refused(
            f"{file}: reading HDF5 needs h5py; type: pip install h5py, or save .npy files"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{file} cannot be read: {error}") from error
