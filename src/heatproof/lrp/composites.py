"""Which rule for which layer, and the walk of relevance from a score down to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Unsuited
from heatproof.lrp.folding import fold_batch_norms
from heatproof.lrp.rules import Alpha1Beta0, Clipped, Epsilon, Gamma

NAMES = ("epsilon", "gamma", "epsilon_plus", "alpha1beta0")
# layers through which R = x * g goes by autograd alone
PLAIN = (
    *(nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d),
    *(nn.Flatten, nn.Identity, nn.Dropout),
)


@dataclass(frozen=True)
class Composite:
    """A named set of rules.

    "epsilon": epsilon everywhere. "gamma": gamma in convolutions, epsilon in linear layers. "epsilon_plus": alpha-1
    beta-0 in convolutions, epsilon in linear layers. "alpha1beta0": that rule everywhere (Sun et al. 2022 for VGG).
    Defaults of zennit's composites: epsilon 1e-6, gamma 0.25.
    """

    name: str = "gamma"
    epsilon: float = 1e-6
    gamma: float = 0.25

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise Refused(f"composite: found {self.name!r}, accepted are {', '.join(NAMES)}")

    def convolution(self, layer: nn.Conv2d) -> nn.Module:
        if self.name == "epsilon":
            return Epsilon(layer, self.epsilon)
        return Gamma(layer, self.gamma) if self.name == "gamma" else Alpha1Beta0(layer)

    def linear(self, layer: nn.Linear) -> nn.Module:
        return Alpha1Beta0(layer) if self.name == "alpha1beta0" else Epsilon(layer, self.epsilon)

    def edit(self, net: nn.Module, within: str = "") -> None:
        """Fold batch norms and give every layer its rule, in place; Unsuited names a layer that has none.

        ``within`` names the submodule to edit where relevance only passes that one.
        """
        part = net.get_submodule(within)
        fold_batch_norms(part)
        for path, module in list(part.named_modules()):
            if any(True for _ in module.children()):
                continue
            rule = self._rule(module, path)
            if rule is not module:
                owner, _, name = path.rpartition(".")
                setattr(part.get_submodule(owner), name, rule)

    def _rule(self, module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise Unsuited(f"LRP has no rule for {module.padding_mode!r} padding ({path})")
            return self.convolution(module)
        if isinstance(module, nn.Linear):
            return self.linear(module)
        if isinstance(module, nn.ReLU6):
            return Clipped()
        if isinstance(module, PLAIN):
            return module
        raise Unsuited(f"LRP has no rule for {type(module).__name__} ({path}): CNNs with ReLU only")


def from_score(model: Any, composite: Composite, cases: Sequence[Case]) -> Tensor:
    """The score of each case's target, redistributed to its pixels: relevance [N, C, H, W].

    It sums to the score less what the biases and the stabiliser keep.
    """
    twin = model.twin(composite.edit, f"lrp {composite}")
    x = model.stack(cases).requires_grad_()
    (g,) = torch.autograd.grad(twin.score(x, cases).sum(), x)
    relevance: Tensor = x.detach() * g
    return relevance
