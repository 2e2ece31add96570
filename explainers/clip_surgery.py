"""CLIP Surgery: patches compared with the text, after attention of values to values and without what all texts share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

FEATURES = ("empty", "choices", "none")


@dataclass(frozen=True)
class ClipSurgery:
    """Li, Wang, Duan, Li 2023 (arXiv 2304.05653), of the image alone: each patch's cosine with the text, signed.

    ``depth`` is the architecture surgery: from the block with so many above and with it (the released code: the last 6)
    a second path starts, to which each block adds attention of its values to its values, softmax(v v' / sqrt(d)) v head by
    head through its output layer, and no MLP; v is the first path's, which stays as it is. The second path's patches
    are read as the class token is. A tower with fewer blocks is cut whole. 0 leaves the patches of the last block as they are.

    ``features`` is the feature surgery: "empty" takes the cosine with an empty text away, as the release does for
    a single text; "choices" the mean over the case's choices of their cosines, each weighted by w = softmax(2 cosine with
    the class token) over its mean, the text's own weighted alike, as published for several classes; "none" leaves the
    plain cosine. Texts are taken as they stand: the release's mean over 85 prompts is for class names.

    One forward, one of each text, and a head's for each token and text. Criticism: it explains a changed net, not the score: what the
    patches are compared by is not what the class token gathered.
    """

    depth: int = 6
    features: str = "empty"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.features not in FEATURES:
            raise Refused(
                f"clip_surgery: features: found {self.features!r}, accepted are {', '.join(FEATURES)}"
            )
        if model.family != "dual" or "image.attention" not in model.sites or model.extra_tokens != 1:
            raise Unsuited(
                f"CLIP Surgery reads a dual encoder's patches as its class token is read; {model.name} is a "
                f"{model.family} with {model.extra_tokens} such tokens and {', '.join(model.sites)}"
            )
        with torch.no_grad():
            tokens = self._tokens(model, cases)
            heats = [self._heat(model, case, own) for case, own in zip(cases, tokens, strict=True)]
        return [Explanation(image=model.grid(heat)) for heat in heats]

    def _tokens(self, model: Any, cases: Sequence[Case]) -> list[Tensor]:
        """[T, D] of each case at the end of the second path."""
        count = model.sites["image.attention"]
        depth = min(self.depth, count)
        if depth == 0:
            return list(model.upto("image.last", model.stack(cases), cases))
        start = model.site("image.embed") if depth == count else model.site("image.block", count - depth - 1)
        sites = [model.site("image.attention", k) for k in range(count - depth, count)]
        with ExitStack() as stack:
            below = stack.enter_context(model.watch(start))
            seen = [stack.enter_context(model.watch(f"{site}.value")) for site in sites]
            model.upto("image.last", model.stack(cases), cases)
        found = []
        for k in range(len(cases)):
            path = below.value[k]
            for site, watch in zip(sites, seen, strict=True):
                path = path + model.join(site, values_to_values(watch.value[k]))
            found.append(path)
        return found

    def _heat(self, model: Any, case: Case, tokens: Tensor) -> Tensor:
        own = read(model, tokens, case)
        if self.features == "none":
            return own
        if self.features == "empty":
            if case.tokens is None:
                raise Refused(f"case {case.id} has no text")
            return own - read(model, tokens, told(case, "", case.tokens[[0, -1]]))
        texts = {text: model.tokenizer(text, model.text_length)[0] for text in case.choices}
        if len(texts) < 2 or case.target not in texts:
            raise Refused(
                f"clip_surgery: features: 'choices' needs the text among rivals; case {case.id} has {len(texts)}"
            )
        cosines = torch.stack(
            [read(model, tokens, told(case, text, torch.tensor(ids))) for text, ids in texts.items()]
        )
        whole = model.scores(case.pixels[None], [replace(case, choices=tuple(texts))])[0]
        shares = (2 * whole).softmax(0)
        weighted: Tensor = cosines * (shares / shares.mean())[:, None]
        return weighted[list(texts).index(case.target)] - weighted.mean(0)


def values_to_values(value: Tensor) -> Tensor:
    """[heads, T, d] -> the same, each token a mix of the values that resemble its own."""
    alike = value @ value.transpose(1, 2) * value.shape[-1] ** -0.5
    found: Tensor = alike.softmax(-1) @ value
    return found


def read(model: Any, tokens: Tensor, case: Case) -> Tensor:
    """[T, D] after the last block -> [T]: each token's score for the case's text, read as the class token is."""
    found: Tensor = model.above("image.last", tokens[:, None], [case] * len(tokens))
    return found


def told(case: Case, text: str, tokens: Tensor) -> Case:
    """The case with another text, whose cost is still its own."""
    paid = case.charge or case.id
    return replace(case, id=f"{case.id} told {text!r}", charge=paid, target=text, tokens=tokens)
