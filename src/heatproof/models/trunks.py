"""Trunks trained on ImageNet-1k for a captioner to see with: frozen, read from a data folder, never shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from heatproof.contract import Refused
from heatproof.geometry import Frame
from heatproof.models import imagenet
from heatproof.models.encoders import vgg

SIDE = 224


@dataclass(frozen=True)
class Trunk:
    """The layers features.0, features.1, ... of a classifier, and the last layer of each stage of the image tower."""

    file: str  # weights/FILE.safetensors in the data folder; other names than features.* are passed over
    layers: Callable[[], Iterable[nn.Module]]
    ends: tuple[int, ...]
    channels: int  # of the last feature map ...
    cells: int  # ... and its places, at 224 pixels
    frame: Frame

    def fresh(self) -> nn.Sequential:
        """The stages, with fresh weights."""
        return self._staged(list(self.layers()))

    def read(self, folder: str, name: str) -> nn.Sequential:
        """The stages with the weights of the data folder ``folder`` ("": see ``imagenet.data_folder``), frozen.

        Raises Refused, naming model and file, where the file is missing or holds another net.
        """
        file = imagenet.data_folder(folder) / "weights" / f"{self.file}.safetensors"
        if not file.is_file():
            raise Refused(
                f"model {name}: {file} is not there; name the data folder by folder = 'DIR', or set HEATPROOF_DATA"
            )
        layers = nn.Sequential(*self.layers())
        try:
            found = load_file(file)
            own = {k.removeprefix("features."): v for k, v in found.items() if k.startswith("features.")}
            layers.load_state_dict(own)
        except (RuntimeError, SafetensorError) as error:  # another shape, or a truncated file
            raise Refused(f"model {name}: {file}: {str(error).splitlines()[0]}") from error
        layout: Any = {"memory_format": torch.channels_last}
        return self._staged(list(layers)).to(**layout).eval().requires_grad_(False)

    def _staged(self, layers: list[nn.Module]) -> nn.Sequential:
        starts = (0, *(end + 1 for end in self.ends[:-1]))
        return nn.Sequential(
            *(nn.Sequential(*layers[a : b + 1]) for a, b in zip(starts, self.ends, strict=True))
        )


def _vgg16() -> Iterable[nn.Module]:
    """VGG16 up to its last ReLU, numbered as torchvision numbers it; the last maximum is left out, as in Sun et al."""
    return chain.from_iterable(vgg([64, 128, 256, 512, 512], [2, 2, 3, 3, 3]))  # type: ignore[arg-type]


TRUNKS = {
    "squeezenet": Trunk(
        file="squeezenet1_1",
        layers=lambda: imagenet.SqueezeNetNet().features,
        ends=(1, *imagenet.FIRES),
        channels=512,
        cells=13**2,
        frame=Frame(SIDE, mean=(104.0, 117.0, 123.0), std=(1.0,) * 3, scale=1.0, channels="bgr"),
    ),
    "mobilenet": Trunk(
        file="mobilenet_v2_1.0_224_bnfolded",
        layers=lambda: imagenet.MobileNetV2Net().features,
        ends=tuple(range(19)),
        channels=1280,
        cells=7**2,
        frame=Frame(SIDE),
    ),
    "vgg16": Trunk(
        file="vgg16",
        layers=_vgg16,
        ends=(4, 9, 16, 23, 29),
        channels=512,
        cells=14**2,
        frame=Frame(SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
}
