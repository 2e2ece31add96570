"""The space that a score is told in, and the declared rules from a model's own space to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heatproof.contract import Case, Model, Refused, Unsuited

OUTPUTS = ("native", "probability", "margin", "accuracy")


def check(output: str, model: Model, cases: Sequence[Case]) -> None:
    """Raise Unsuited where the model's score of a case has no declared way to the output space."""
    if output == "probability" and model.space != "logit" and alone(model) is None:
        raise Unsuited(
            f"{model.name}'s score is a {model.space}, which no declared rule turns into a probability; "
            'take output = "native"'
        )
    # a classifier's rivals are its classes, where the case names no others
    if output in ("margin", "accuracy") and model.family != "classifier":
        for case in cases:
            if len(case.choices) < 2:
                raise Unsuited(f"case {case.id} has no rivals, so there is no {output} among its choices")


def score(output: str, model: Model, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
    """[N, C, H, W] -> [N]: the score of each case's target in the output space.

    - "native": the model's own (logit, cosine, log-probability)
    - "probability": the exponential of a log-probability; the softmax of logits over the case's choices, or
      over all classes where it has none; the model's own ``probability`` of its score where it has one (SigLIP's
      sigmoid of the scaled cosine and a bias, which knows no rivals)
    - "margin": the native score less that of the best rival among the choices (all classes where it has none)
    - "accuracy": 1 where the target has the highest native score of the choices, 0 where another has; 1/n where it
      shares it with n - 1 others. A mean over cases is an accuracy (zero-shot, for prompts of a dual encoder)
    """
    if output == "native":
        return model.score(pixels, cases)
    if output == "probability" and (rule := alone(model)):
        return rule(model.score(pixels, cases))
    found = model.scores(pixels, cases)
    places = torch.tensor([_place(case) for case in cases], device=found.device)[:, None]
    if output == "probability":
        return found.softmax(1).gather(1, places)[:, 0]
    own = found.gather(1, places)[:, 0]
    if output == "margin":
        return own - found.scatter(1, places, -torch.inf).amax(1)
    best = found == found.amax(1, keepdim=True)
    return best.gather(1, places)[:, 0].to(found) / best.sum(1)


def alone(model: Model) -> Callable[[Tensor], Tensor] | None:
    """How a native score, of an image or of a text, is a probability by itself; None where it takes rivals or there is no way."""
    if model.space == "log-probability":
        return torch.exp
    found: Callable[[Tensor], Tensor] | None = getattr(model, "probability", None)
    return found


def clean(output: str, model: Model, cases: Sequence[Case]) -> Tensor:
    """[N]: the scores of the untouched images, from the chunk's memo."""
    if output == "native":
        return model.clean(cases)

    def compute(some: list[Case]) -> list[Tensor]:
        with torch.no_grad():
            return list(score(output, model, model.stack(some), some))

    return torch.stack(model.recall(f"clean {output}", cases, compute))


def _place(case: Case) -> int:
    """Where the target stands among the scores of a case's choices."""
    if not case.choices:
        return int(case.target)  # a classifier's, over all classes
    # a captioner's target is a place in the caption, and its choices are words
    target = (
        case.target
        if case.tokens is None or isinstance(case.target, str)
        else int(case.tokens[case.target + 1])
    )
    if target not in case.choices:
        raise Refused(f"case {case.id}: the target {target!r} is none of its choices {case.choices}")
    return case.choices.index(target)
