"""Raw attention: how much one layer's reading token looks at each patch and each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

HEADS = ("mean", "max")


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of one layer, in [0, 1]: no gradient, no target but a captioner's word.

    Image: the class token's row over the patches; without one, the mean row, which in the last layer of a tower that ends
    in attention pooling (SigLIP) is the pooling's own. Text of a dual encoder: the row of the place that is read, for
    CLIP the end token's, over all tokens.
    Captioner: the weights over the encoder's cells at the step that speaks the target (Xu et al. 2015), of a word of several
    tokens its first; a transformer's class token is dropped, so that they may sum to less than 1.
    ``layer`` -1, the last, and the mean of the heads are what papers call "raw attention" (Chefer et al. 2021).
    """

    layer: int = -1
    heads: str = "mean"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.heads not in HEADS:
            raise Refused(f"attention: heads: found {self.heads!r}, accepted are {', '.join(HEADS)}")
        if model.family == "captioner":
            seen = attention_of(
                model, model.site("cross.attention", self.layer), cases
            )  # [N, steps, heads, cells]
            steps = [a[case.target] for a, case in zip(seen, cases, strict=True)]
            return [Explanation(image=model.grid(self._pool(step))) for step in steps]
        if "image.attention" not in model.sites:
            raise Unsuited(f"{model.name} has no attention; its sites are {', '.join(model.sites)}")
        seen = attention_of(model, model.site("image.attention", self.layer), cases)
        images = [model.grid(self._pool(a[:, 0] if model.extra_tokens else a.mean(1))) for a in seen]
        if "text.attention" not in model.sites:
            return [Explanation(image=image) for image in images]
        read = attention_of(model, model.site("text.attention", self.layer), cases)
        rows = zip(read, cases, lengths(cases), strict=True)
        texts = [self._pool(a[:, model.span(case) - 1, :n]) for a, case, n in rows]
        return [Explanation(image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _pool(self, rows: Tensor) -> Tensor:
        """[heads, T] -> [T]."""
        return rows.mean(0) if self.heads == "mean" else rows.amax(0)


def attention_of(model: Any, site: str, cases: Sequence[Case]) -> Tensor:
    """The probabilities [N, heads, T, T] at a site, by one forward of its tower."""
    with torch.no_grad(), model.watch(site) as seen:
        if site.startswith("text."):
            model.score_text(torch.ones(len(cases), max(lengths(cases))), cases)
        else:
            model.score(model.stack(cases), cases)
    found: Tensor = seen.value
    return found


def lengths(cases: Sequence[Case]) -> list[int]:
    """How many real tokens each text has; the last of them is the end token."""
    return [0 if case.tokens is None else len(case.tokens) for case in cases]
