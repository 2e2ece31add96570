"""Two real ImageNet-1k classifiers as plain torch nets: MobileNetV2 1.0 and SqueezeNet 1.1.

Their weights are read from a data folder (``weights/*.safetensors``, ``annotations/imagenet/...``), never shipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.contract import Refused
from heatproof.geometry import Frame
from heatproof.models import coco_synsets
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier

# (expansion, channels, blocks, stride of the first): Sandler et al. 2018, table 2
INVERTED = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)} | {
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}  # layer -> channels in, squeezed, and of each expansion: the release of SqueezeNet 1.1


class SameConv(nn.Sequential):
    """A 3x3 convolution with TensorFlow's "SAME" padding for even sizes: at stride 2, right and bottom only."""

    def __init__(self, wide: int, out: int, stride: int, groups: int = 1) -> None:
        before = 1 if stride == 1 else 0
        super().__init__()
        self.pad = nn.ZeroPad2d((before, 1, before, 1))
        self.add_module("0", nn.Conv2d(wide, out, 3, stride, groups=groups))
        self.add_module("act", nn.ReLU6())


class Pointwise(nn.Sequential):
    """A 1x1 convolution, with ReLU6 unless it is the linear end of a block."""

    def __init__(self, wide: int, out: int, *, linear: bool = False) -> None:
        super().__init__(nn.Conv2d(wide, out, 1), *(() if linear else (nn.ReLU6(),)))


class Inverted(nn.Module):
    """An inverted residual block: widen, filter each channel, narrow without activation."""

    def __init__(self, wide: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = wide * expansion
        widen = [Pointwise(wide, hidden)] if expansion > 1 else []
        filtered = SameConv(hidden, hidden, stride, groups=hidden)
        self.conv = nn.Sequential(*widen, filtered, Pointwise(hidden, out, linear=True))
        self.residual = stride == 1 and wide == out

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv(x)
        return x + inner if self.residual else inner


class MobileNetV2Net(nn.Module):
    """features.0 to features.18, the spatial mean, a linear classifier; batch norm is folded already."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [SameConv(3, 32, 2)]
        wide = 32
        for expansion, out, count, stride in INVERTED:
            for k in range(count):
                blocks.append(Inverted(wide, out, stride if k == 0 else 1, expansion))
                wide = out
        self.features = nn.Sequential(*blocks, Pointwise(wide, 1280))
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classifier = nn.Linear(1280, 1000)


class Fire(nn.Module):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side."""

    def __init__(self, wide: int, squeezed: int, out: int) -> None:
        super().__init__()
        self.squeeze, self.squeezed = nn.Conv2d(wide, squeezed, 1), nn.ReLU()
        self.expand1x1, self.expanded1x1 = nn.Conv2d(squeezed, out, 1), nn.ReLU()
        self.expand3x3, self.expanded3x3 = nn.Conv2d(squeezed, out, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeezed(self.squeeze(x))
        parts = self.expanded1x1(self.expand1x1(x)), self.expanded3x3(self.expand3x3(x))
        return torch.cat(parts, 1)


class SqueezeNetNet(nn.Module):
    """features.0 to features.12, a 1x1 convolution to 1000 channels, ReLU, the spatial mean."""

    def __init__(self) -> None:
        super().__init__()
        layers = [Fire(*FIRES[k]) if k in FIRES else nn.MaxPool2d(3, 2, ceil_mode=True) for k in range(2, 13)]
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), *layers)
        head = nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(*head, nn.Flatten())


def mobilenet_stages(net: Any) -> list[Stage]:
    """Sites: image.conv k = the output of features.k, 0 to 18."""
    sites = [Stage(f"image.conv {k}", _calls(layer)) for k, layer in enumerate(net.features)]
    return [*sites, Stage(None, lambda x, _: net.classifier(net.flat(net.pool(x))))]


def squeezenet_stages(net: Any) -> list[Stage]:
    """Sites: image.conv 0 = the first ReLU, image.conv 1 to 8 = the fire modules' outputs."""
    stages: list[Stage] = []
    waiting: list[nn.Module] = []
    for k, layer in enumerate(net.features):
        waiting.append(layer)
        if k in {1, *FIRES}:
            stages.append(Stage(f"image.conv {len(stages)}", _calls(*waiting)))
            waiting = []
    return [*stages, Stage(None, _calls(net.classifier))]


def _calls(*layers: nn.Module) -> Callable[[Tensor, Any], Tensor]:
    def run(x: Tensor, _: Any) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


@dataclass(frozen=True)
class MobileNetV2:
    """MobileNetV2 1.0 at 224 pixels; ``folder`` is the data folder, else $HEATPROOF_DATA, else ../shared/data."""

    folder: str = ""
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Classifier:
        weights = "mobilenet_v2_1.0_224_bnfolded"
        frame = Frame(224, "crop", resize=256, mean=(0.5,) * 3, std=(0.5,) * 3)
        return _open(name, self, weights, MobileNetV2Net(), mobilenet_stages, frame, device)


@dataclass(frozen=True)
class SqueezeNet:
    """SqueezeNet 1.1 at 227 pixels, BGR 0 to 255 less the means; ``folder`` as for MobileNetV2."""

    folder: str = ""
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Classifier:
        means = (104.0, 117.0, 123.0)
        frame = Frame(227, "crop", 256, mean=means, std=(1.0,) * 3, scale=1.0, channels="bgr")
        net, stages = SqueezeNetNet(), squeezenet_stages
        return _open(name, self, "squeezenet1_1", net, stages, frame, device)


def data_folder(told: str = "") -> Path:
    """Where weights, annotations and photographs are: the folder told, else $HEATPROOF_DATA, else ../shared/data."""
    return Path(told or os.environ.get("HEATPROOF_DATA", "../shared/data"))


def _open(
    name: str,
    settings: MobileNetV2 | SqueezeNet,
    weights: str,
    net: nn.Module,
    stages: Callable[[Any], list[Stage]],
    frame: Frame,
    device: str,
) -> Classifier:
    folder = data_folder(settings.folder)
    file = folder / "weights" / f"{weights}.safetensors"
    index = folder / "annotations" / "imagenet" / "imagenet_class_index.json"
    for path in (file, index):
        if not path.is_file():
            raise Refused(
                f"model {name}: {path} is not there; name the data folder: "
                f"{{ use = 'imagenet:{type(settings).__name__}', folder = 'DIR' }}, or set HEATPROOF_DATA"
            )
    try:
        net.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as error:  # another shape, or a truncated file
        raise Refused(f"model {name}: {file}: {str(error).splitlines()[0]}") from error
    table = json.loads(index.read_text(encoding="utf-8"))
    classes = [table[str(k)] for k in range(len(table))]
    card = {
        "source": file.name,
        "data": "ImageNet-1k (ILSVRC 2012)",
        "licence": "see the data folder",
        "categories": "COCO's stand for their classes by WordNet synset (heatproof/models/coco_synsets.py); the nearest "
        f"thing is meant by {', '.join(coco_synsets.NEAREST)}; no class at all: {', '.join(coco_synsets.LEFT_OUT)}",
    }
    return Classifier(
        *(name, net, frame),
        card=card,
        rows=settings.rows,
        device=device,
        stages=stages,
        labels=labels(classes),
    )


def labels(classes: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """[wnid, "name, other name, ..."] of each class -> every name a data set may use, and its classes.

    A class goes by its first name, by "name (wnid)" where two classes share it or COCO means another thing
    by it, and by its wnid; COCO's categories stand for all classes that mean them.

    >>> found = labels([("n01608432", "kite"), ("n02391049", "zebra")])
    >>> found["kite (n01608432)"], found["zebra"], "kite" in found
    ((0,), (1,), False)
    """
    first = [text.split(",")[0].strip() for _, text in classes]
    shared = {name for name, count in Counter(first).items() if count > 1}
    coco = coco_synsets.classes([wnid for wnid, _ in classes])
    found: dict[str, tuple[int, ...]] = {}
    for k, ((wnid, _), name) in enumerate(zip(classes, first, strict=True)):
        taken = name in shared or name in coco_synsets.LEFT_OUT or coco.get(name, (k,)) != (k,)
        found[f"{name} ({wnid})" if taken else name] = (k,)
    return found | {wnid: (k,) for k, (wnid, _) in enumerate(classes)} | coco
