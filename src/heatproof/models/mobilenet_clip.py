"""A CLIP whose patches are what a frozen MobileNetV2 saw: small heads, trained here, on a trunk that is not shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.contract import Refused
from heatproof.models import hf_clip, imagenet
from heatproof.models.base import Stage
from heatproof.models.dual import Dual
from heatproof.models.hf_classifier import open_card, open_frame
from heatproof.models.words import read_vocabulary

KIND = "MobileNetClip"  # in config.json: what to build
CHANNELS = 1280  # of the trunk's last feature map


class Cells(nn.Module):
    """Feature maps [N, 1280, h, w] of the trunk as tokens [N, 1 + h w, D]: a class token, then the cells row by row."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.trunk: nn.Module = nn.Identity()  # the frozen net, once it is read from the data folder
        self.project = nn.Linear(CHANNELS, width)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1 + side**2, width))

    def tokens(self, features: Tensor) -> Tensor:
        cells = self.project(features.flatten(2).transpose(1, 2))
        first = self.class_embedding.expand(len(cells), 1, -1)
        return torch.cat([first, cells], 1) + self.position_embedding

    def forward(self, pixels: Tensor, **_: Any) -> Tensor:  # as CLIPModel calls what stands here
        return self.tokens(self.trunk(pixels))


def build(told: Mapping[str, Any]) -> Any:
    """A ``transformers`` CLIPModel of a CLIPConfig's settings, with ``Cells`` for its patch embedding and no trunk yet."""
    from transformers import CLIPConfig, CLIPModel

    net = CLIPModel(CLIPConfig(**{k: v for k, v in told.items() if k != "architectures"}))
    net.vision_model.embeddings = Cells(net.config.vision_config)
    return net


def trunk(folder: str, name: str) -> nn.Sequential:
    """features.0 to features.18 of MobileNetV2, frozen, from the data folder."""
    net: Any = imagenet.MobileNetV2(folder).load(name).net
    features: nn.Sequential = net.features
    return features


def image_stages(net: Any) -> list[Stage]:
    """Sites: image.conv k = the trunk's features.k, 0 to 18; image.embed 0 and image.block k as in CLIP."""
    vision = net.vision_model
    cells = vision.embeddings
    convs = [_conv(f"image.conv {k}", layer) for k, layer in enumerate(cells.trunk)]
    embed = Stage("image.embed 0", lambda x, _: vision.pre_layrnorm(cells.tokens(x)))
    return [*convs, embed, *hf_clip.image_stages(net)[1:]]


def _conv(site: str, layer: nn.Module) -> Stage:
    return Stage(site, lambda x, _: layer(x))


@dataclass(frozen=True)
class MobileNetClip:
    """``name`` is the folder that ``heatproof train`` wrote; ``folder`` has the trunk's weights, as for MobileNetV2."""

    name: str
    folder: str = ""
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Dual:
        place = Path(self.name)
        net = build(json.loads((place / "config.json").read_text(encoding="utf-8")))
        try:
            net.load_state_dict(load_file(place / "model.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:  # absent, another shape, or truncated
            raise Refused(f"model {name}: {place}: {str(error).splitlines()[0]}") from error
        net.vision_model.embeddings.trunk = trunk(self.folder, name)
        return hf_clip.clip(
            name,
            net,
            read_vocabulary(place),
            stages=image_stages,
            frame=open_frame(self.name, None),
            card=open_card(self.name),
            rows=self.rows,
            device=device,
        )
