"""Batch normalisation folded into the convolution before it: the same function with fewer layers.

In evaluation a batch norm is a fixed scale and shift per channel; LRP's rules need it inside the weights, because
a rule applied to the shift alone would swallow relevance.
"""

from __future__ import annotations

import torch
from torch import nn


def fold_batch_norms(net: nn.Module) -> None:
    """Fold, in place, each BatchNorm2d whose previous sibling is a Conv2d; it becomes an Identity.

    Siblings are read in the order in which they were defined, which is the order of use in an nn.Sequential and
    in Hugging Face's ResNet. Two neighbours that do not fit in size are left alone.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    >>> x = torch.ones(1, 3, 2, 2)
    >>> before = net(x)
    >>> fold_batch_norms(net)
    >>> type(net[1]).__name__, bool(torch.allclose(net(x), before))
    ('Identity', True)
    """
    for parent in list(net.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            match before, child:
                case nn.Conv2d() as conv, nn.BatchNorm2d() as norm if conv.out_channels == norm.num_features:
                    _fold(conv, norm)
                    setattr(parent, name, nn.Identity())
            before = child


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    bias = shift if conv.bias is None else conv.bias * scale + shift
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
