"""Encoders that a captioner is built over, with fresh weights; each child is one stage of the image tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def vgg(channels: Sequence[int], convolutions: Sequence[int]) -> nn.Sequential:
    """A VGG trunk: stages of 3 x 3 convolutions with ReLU, a 2 x 2 maximum between two stages, none at the end.

    >>> len(vgg([64, 128, 256, 512, 512], [2, 2, 3, 3, 3]))  # VGG16
    5
    """
    stages, width = [], 3
    for k, (wide, many) in enumerate(zip(channels, convolutions, strict=True)):
        layers: list[nn.Module] = []
        for _ in range(many):
            layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
            width = wide
        if k + 1 < len(channels):
            layers.append(nn.MaxPool2d(2))
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(*stages)


def resnet_trunk(config: Any) -> nn.Sequential:
    """The stem and the stages of a ``transformers`` ResNet, without its pooling and head.

    ``config`` is a ResNetConfig or the dict of one; load a classifier's weights with
    ``resnet_trunk(net.config)[0].load_state_dict(net.resnet.embedder.state_dict())`` and so on, stage by stage.
    """
    from transformers import ResNetConfig, ResNetModel

    settings = ResNetConfig(**config) if isinstance(config, Mapping) else config
    model = ResNetModel(settings)
    return nn.Sequential(model.embedder, *model.encoder.stages)
