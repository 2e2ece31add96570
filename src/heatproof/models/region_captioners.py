"""The two captioning nets of Sun et al. 2022 over the features of regions in place of an encoder's map.

Bottom-up features are those of Anderson et al., "Bottom-Up and Top-Down Attention", CVPR 2018,
https://arxiv.org/abs/1707.07998. A region's row is projected as a cell's is; the image as a whole is the mean of the
projected regions. The encoder is empty, and what ``look`` reads is [N, R, D] as it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig
from heatproof.models.captioner_nets import CaptionNet, Cells
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig


@dataclass(frozen=True)
class RegionAdaptiveConfig(AdaptiveConfig):
    """``channels`` a region (published: 2048), ``cells`` regions (36); hidden is 1024 in the published scripts.

    ``masked``: rows of zeros, which fill an image with fewer regions up, are neither attended to nor in the mean. The
    released code masks nothing: there a row of zeros is a region like another, and what was trained so must be run so.
    """

    masked: bool = True


@dataclass(frozen=True)
class RegionMultiHeadConfig(MultiHeadConfig):
    """``channels`` a region (published: 2048); ``masked`` as in ``RegionAdaptiveConfig``."""

    masked: bool = True


class RegionRows(CaptionNet):
    """What reading regions changes in a net: a last column of the keys tells which rows are none, by 0 or -inf."""

    def rows(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, R, D] -> the projected regions [N, R, H], their mean [N, H], and the keys' last column [N, R, 1]."""
        values = F.relu(self.project(features))
        there = (features != 0).any(2, keepdim=True)
        if not self.config.masked:
            there = torch.ones_like(there)
        there = there | ~there.any(1, keepdim=True)  # where nothing was found, nothing is left out
        mean = (values * there).sum(1) / there.sum(1)
        return values, mean, torch.zeros_like(values[..., :1]).masked_fill(~there, -torch.inf)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        found: Tensor = super().scores(query, keys[..., :-1])  # type: ignore[misc]  # a net's own
        away = keys[..., -1]
        return found + (away if found.ndim == 2 else away[:, None])


class RegionAdaptive(RegionRows, AdaptiveCaptioner):
    """``AdaptiveCaptioner`` over regions."""

    config: RegionAdaptiveConfig

    def __init__(self, encoder: nn.Module, config: RegionAdaptiveConfig) -> None:
        super().__init__(encoder, config)
        self.project = nn.Linear(config.channels, config.hidden)
        self.summarise = nn.Linear(config.hidden, config.embed)

    def look(self, features: Tensor) -> Cells:
        values, mean, away = self.rows(features)
        return Cells(torch.cat([self.key(values), away], 2), values, F.relu(self.summarise(mean)))


class RegionMultiHead(RegionRows, MultiHeadCaptioner):
    """``MultiHeadCaptioner`` over regions."""

    config: RegionMultiHeadConfig

    def __init__(self, encoder: nn.Module, config: RegionMultiHeadConfig) -> None:
        super().__init__(encoder, config)
        self.project = nn.Linear(config.channels, config.hidden)

    def look(self, features: Tensor) -> Cells:
        values, mean, away = self.rows(features)
        return Cells(torch.cat([self.key(values), away], 2), self.value(values), mean)
