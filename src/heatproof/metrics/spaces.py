"""The space that a score is told in, and the declared rules from a model's own space to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatproof.contract import Case, Model, Refused, Unsuited

OUTPUTS = ("native", "probability")


def check(output: str, model: Model) -> None:
    """Raise Unsuited where the model's score has no declared way to the output space."""
    if output == "probability" and model.space not in ("logit", "log-probability"):
        raise Unsuited(
            f"{model.name}'s score is a {model.space}, which no declared rule turns into a probability; "
            'take output = "native"'
        )


def score(output: str, model: Model, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
    """[N, C, H, W] -> [N]: the score of each case's target in the output space.

    - "native": the model's own (logit, cosine, log-probability)
    - "probability": the exponential of a log-probability; the softmax of logits over the case's choices, or
      over all classes where it has none
    """
    if output == "native":
        return model.score(pixels, cases)
    if model.space == "log-probability":
        return model.score(pixels, cases).exp()
    chances = model.scores(pixels, cases).softmax(1)
    places = torch.tensor([_place(case) for case in cases], device=chances.device)
    return chances.gather(1, places[:, None])[:, 0]


def clean(output: str, model: Model, cases: Sequence[Case]) -> Tensor:
    """[N]: the scores of the untouched images, from the chunk's memo."""
    if output == "native":
        return model.clean(cases)

    def compute(some: list[Case]) -> list[Tensor]:
        with torch.no_grad():
            return list(score(output, model, model.stack(some), some))

    return torch.stack(model.recall(f"clean {output}", cases, compute))


def _place(case: Case) -> int:
    if not case.choices:
        return int(case.target)
    if case.target not in case.choices:
        raise Refused(f"case {case.id}: the target {case.target!r} is none of its choices {case.choices}")
    return case.choices.index(case.target)
