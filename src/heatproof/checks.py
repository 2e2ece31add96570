"""What crosses from foreign code into the house is looked at once, here: explanations and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heatproof import keys
from heatproof.contract import Case, Explanation, Refused, Score, Unsuited
from heatproof.spec import Part


def cell(score: Score, cost: tuple[float, float]) -> dict[str, Any]:
    """A score as the store keeps it; what is computed and what is read back are the same plain values."""
    return keys.plain(
        {
            "values": {
                name: {
                    "value": value.number,
                    "status": "value" if value.defined else "undefined",
                    "reason": value.reason,
                    "parts": dict(value.parts),
                }
                for name, value in score.values.items()
            },
            "curves": {
                name: [[float(v) for v in x], [float(v) for v in y]] for name, (x, y) in score.curves.items()
            },
            "forwards": cost[0],
            "backwards": cost[1],
        }
    )


def needs_other(made: Any) -> bool:
    return bool(getattr(made, "needs_other", False))


def needs_more(made: Any) -> bool:
    """Whether an explainer's map depends on more than its own case: what it was fitted on, or another case."""
    return needs_other(made) or hasattr(made, "fit")


def of_model(made: Any) -> bool:
    """Whether a metric is of the model itself: no explainer has part in it."""
    return hasattr(made, "asks")


def question(made: Any, family: str, policy: str) -> str:
    """What such a metric asks a model of a family, the spec's ``policy`` where it says no more; Unsuited for other families."""
    if family not in made.asks:
        raise Unsuited(f"it is of a {' or '.join(made.asks)}, and this is a {family}")
    return made.asks[family] or policy


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def detached(explanation: Explanation) -> Explanation:
    """Plain CPU tensors without a graph, views included."""
    bare = {
        name: tensor.detach().cpu().contiguous()
        for name in ("image", "text", "pairs")
        if (tensor := getattr(explanation, name)) is not None
    }
    views = {name: detached(view) for name, view in explanation.views.items()}
    return dataclasses.replace(explanation, **bare, views=views)


def explanations(
    part: Part, cases: Sequence[Case], before: Sequence[Tensor], answer: Any
) -> list[Explanation]:
    """What an explainer gave; a broken promise is said at once, naming its file and what was promised."""
    where = f"{part.file.name}: {type(part.made).__name__}.explain"
    if not isinstance(answer, Iterable):
        raise Refused(f"{where} gave {answer!r}, accepted is a list of explanations")
    found = list(answer)
    if len(found) != len(cases):
        raise Refused(
            f"{where} gave {len(found)} explanations for {len(cases)} cases: one a case is needed, in order"
        )
    for case, pixels, explanation in zip(cases, before, found, strict=True):
        if not torch.equal(case.pixels, pixels):
            raise Refused(f"{where} edits case {case.id}'s pixels in place: work on a clone")
        if not isinstance(explanation, Explanation):
            raise Refused(f"{where} gave {type(explanation).__name__}, accepted is heatproof.Explanation")
        _sizes(where, case, explanation)
    return found


def _sizes(where: str, case: Case, explanation: Explanation) -> None:
    for name in ("image", "text", "pairs"):
        value = getattr(explanation, name)
        if value is not None and not isinstance(value, Tensor):
            raise Refused(f"{where}: {name} is a {type(value).__name__}, accepted is a tensor")
    image, text = explanation.image, explanation.text
    if image is not None and (image.ndim not in (2, 3) or 0 in image.shape):
        raise Refused(f"{where}: image has shape {list(image.shape)}, accepted is [h, w] or [C, h, w]")
    if image is not None and max(image.shape[-2:]) > max(case.pixels.shape[-2:]):
        raise Refused(
            f"{where}: image has shape {list(image.shape)}, larger than the case's {list(case.pixels.shape)}"
        )
    wanted = [0] if case.tokens is None else list(case.tokens.shape)
    if text is not None and list(text.shape) != wanted:
        raise Refused(f"{where}: text has shape {list(text.shape)}, accepted is {wanted}, one a token")


def scores(metric: Part, cases: Sequence[Case], answer: Any) -> list[Score]:
    """What a metric gave: one score a trial, with values that it declares."""
    where = f"{metric.file.name}: {type(metric.made).__name__}.measure"
    if not isinstance(answer, Iterable):
        raise Refused(f"{where} gave {answer!r}, accepted is a list of scores")
    found = list(answer)
    if len(found) != len(cases):
        raise Refused(
            f"{where} gave {len(found)} scores for {len(cases)} trials: one a trial is needed, in order"
        )
    declared = {m.name for m in metric.made.measures}
    for score in found:
        if not isinstance(score, Score):
            raise Refused(f"{where} gave {type(score).__name__}, accepted is heatproof.Score")
        for name in score.values:
            if name not in declared:
                raise Refused(f"{where} gave {name!r}; `measures` declares {', '.join(sorted(declared))}")
    return found


def condition(net: nn.Module) -> dict[str, Any]:
    """What a part must leave as found (law 5), cheap enough to be looked at after every part."""
    modules, weights = list(net.modules()), [t for t in net.state_dict().values() if t.is_floating_point()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": torch.stack(torch._foreach_norm(weights)).cpu().numpy().tobytes() if weights else b"",
        "hooks": [len(getattr(m, name)) for m in modules for name in hooks],
        "train or eval mode": [m.training for m in modules],
        "gradients": [(p.requires_grad, p.grad is None) for p in net.parameters()],
    }


def left_as_found(part: Part, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse to go on with a model that a part has changed: every later number would be of another model."""
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise Refused(
            f"{part.file.name}: {type(part.made).__name__} leaves the model changed: {', '.join(changed)}; "
            "put it back also when an exception flies, or work on model.twin(...)"
        )
