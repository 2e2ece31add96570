"""Which rule for which layer, and the walk of relevance from a score down to the pixels and the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Unsuited
from heatproof.geometry import Frame
from heatproof.lrp import attention
from heatproof.lrp.first import Box, Flat
from heatproof.lrp.folding import fold_batch_norms
from heatproof.lrp.rules import Alpha1Beta0, Clipped, Epsilon, Gamma

# of a convolution, of a linear layer, of the layer that sees the pixels where that is another
RULES: dict[str, tuple[str, str, str]] = {
    "epsilon": ("epsilon", "epsilon", ""),
    "gamma": ("gamma", "epsilon", ""),
    "epsilon_plus": ("alpha1beta0", "epsilon", ""),
    "alpha1beta0": ("alpha1beta0", "alpha1beta0", ""),
    "epsilon_gamma_box": ("gamma", "epsilon", "box"),
    "epsilon_plus_flat": ("alpha1beta0", "epsilon", "flat"),
}
NAMES = tuple(RULES)
# layers through which R = x * g goes by autograd alone
PLAIN = (
    *(nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d),
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Embedding),
)
CURVED = (nn.GELU, nn.SiLU)  # and what ``transformers`` calls an activation
TOKENS = "text.embed 0"


@dataclass(frozen=True)
class Composite:
    """A named set of rules.

    "epsilon": epsilon everywhere. "gamma": gamma in convolutions, epsilon in linear layers. "epsilon_plus": alpha-1
    beta-0 in convolutions, epsilon in linear layers. "alpha1beta0": that rule everywhere (Sun et al. 2022 for VGG).
    "epsilon_gamma_box" and "epsilon_plus_flat" are "gamma" and "epsilon_plus" with a rule of its own for the layer that
    sees the pixels. Defaults of zennit's composites: epsilon 1e-6, gamma 0.25.

    In transformers ``linear_gamma`` above 0 exchanges epsilon for gamma in linear layers, as AttnLRP's authors do
    against noise in vision transformers, and ``mixing`` says what attention's probabilities get: "attnlrp", half of what they mix, which the
    softmax hands on to queries and keys; "constant", nothing (CP-LRP).
    """

    name: str = "gamma"
    epsilon: float = 1e-6
    gamma: float = 0.25
    linear_gamma: float = 0.0
    mixing: str = "attnlrp"

    def __post_init__(self) -> None:
        for field, found, accepted in (
            ("composite", self.name, NAMES),
            ("mixing", self.mixing, attention.MIXING),
        ):
            if found not in accepted:
                raise Refused(f"{field}: found {found!r}, accepted are {', '.join(accepted)}")

    def edit(self, net: nn.Module, within: str = "", frame: Frame | None = None) -> None:
        """Fold batch norms and give every layer its rule, in place; Unsuited names a layer that has none.

        ``within`` names the submodule to edit where relevance only passes that one; ``frame`` tells the box rule what
        black and white are.
        """
        part = net.get_submodule(within)
        fold_batch_norms(part)
        leaves = [(path, m) for path, m in part.named_modules() if not any(True for _ in m.children())]
        first = self._seeing(leaves) if self.whole else None
        for k, (path, module) in enumerate(leaves):
            if k == first:
                rule = self._first(module, leaves[k - 1][1], frame)
            elif first == k + 1 and isinstance(module, nn.ZeroPad2d):
                rule = nn.Identity()  # the rule for pixels pads them itself
            else:
                rule = self._rule(module, path)
            if rule is not module:
                owner, _, name = path.rpartition(".")
                setattr(part.get_submodule(owner), name, rule)
        attention.edit(part, self.epsilon, self.mixing)

    @property
    def whole(self) -> bool:
        """Whether the layer that sees the pixels hands on relevance itself, and no g."""
        return bool(RULES[self.name][2])

    def relevance(self, x: Tensor, g: Tensor) -> Tensor:
        """What came back to the pixels x, as their relevance."""
        return g if self.whole else x.detach() * g

    def _seeing(self, leaves: Sequence[tuple[str, nn.Module]]) -> int:
        for k, (_, module) in enumerate(leaves):
            if isinstance(module, nn.Conv2d):
                return k
        raise Unsuited(
            f"{self.name}: no convolution sees pixels here; take a composite without a rule for them"
        )

    def _first(self, layer: Any, before: nn.Module, frame: Frame | None) -> nn.Module:
        padding = before if isinstance(before, nn.ZeroPad2d) else None
        if RULES[self.name][2] == "flat":
            return Flat(layer, padding)
        if frame is None:
            raise Refused(f"composite: {self.name!r} must know the model's frame")
        ends = zip(frame.mean, frame.std, strict=True)
        low, high = zip(*((-mean / std, (255 * frame.scale - mean) / std) for mean, std in ends), strict=True)
        return Box(layer, padding, low, high)

    def _rule(self, module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            raise Unsuited(f"LRP has no rule for {module.padding_mode!r} padding ({path})")
        if isinstance(module, nn.Conv2d | nn.Linear):
            linear = isinstance(module, nn.Linear)
            name = RULES[self.name][linear]
            if linear and name == "epsilon" and self.linear_gamma > 0:
                return Gamma(module, self.linear_gamma)
            made: dict[str, Callable[[Any], nn.Module]] = {
                "epsilon": partial(Epsilon, epsilon=self.epsilon),
                "gamma": partial(Gamma, gamma=self.gamma),
                "alpha1beta0": Alpha1Beta0,
            }
            return made[name](module)
        if isinstance(module, nn.ReLU6):
            return Clipped()
        if isinstance(module, nn.LayerNorm):
            return attention.Normalised(module, self.epsilon)
        if isinstance(module, CURVED) or type(module).__module__ == "transformers.activations":
            return attention.Passed(module)
        if isinstance(module, PLAIN):
            return module
        raise Unsuited(f"LRP has no rule for {type(module).__name__} ({path})")


def from_score(model: Any, composite: Composite, cases: Sequence[Case]) -> Tensor:
    """The score of each case's target, redistributed to its pixels: relevance [N, C, H, W].

    It sums to the score less what the biases, the softmax and the stabiliser keep.
    """
    x = model.stack(cases).requires_grad_()
    (g,) = torch.autograd.grad(_twin(model, composite).score(x, cases).sum(), x)
    return composite.relevance(x, g)


def from_text(model: Any, composite: Composite, cases: Sequence[Case]) -> list[Tensor]:
    """The same of a dual encoder's text: relevance [T] of each case's tokens, summed over what is embedded of them.

    A token's relevance includes that of its position, which is added to it there.
    """
    twin = _twin(model, composite)
    sizes = [0 if case.tokens is None else len(case.tokens) for case in cases]
    with twin.watch(TOKENS) as seen:
        score = twin.score_text(torch.ones(len(cases), max(sizes)), cases)
        (g,) = torch.autograd.grad(score.sum(), seen.value)
    found = (seen.value.detach() * g).sum(-1)
    return [row[:size] for row, size in zip(found, sizes, strict=True)]


def _twin(model: Any, composite: Composite) -> Any:
    return model.twin(partial(composite.edit, frame=model.frame), f"lrp {composite}")
