"""Grad-ECLIP: the gradient at what attention mixes, times each token's value, weighted by how near its key is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import Explanation, Unsuited
from heatproof.contract import Case
from heatproof.errors import Refused

SPATIALS = ("loose", "attention", "none")


@dataclass(frozen=True)
class GradEclip:
    """Zhao et al. 2024 (ICML; arXiv 2502.18816): of a token i, sum over channels of w_i g v_i, signed.

    g is the gradient of the cosine at what the reading token's attention mixes, before its output layer; v_i the token's
    value. ``spatial`` is w_i: "loose", as published, the cosine of the reader's query and the token's key, each through the
    output layer as in the released code, scaled to [0, 1] over the patches (1 where all are alike); "attention" the
    probability itself, head by head, which "loose" is to loosen; "none" 1 (the release's "wo-ksim").
    Image: the class token over the patches, summed over the last ``layers`` blocks (the release: 1). Text: the end token
    over all tokens, over the last ``text_layers`` (8 where the release's text maps are re-run), a lower tower with all it
    has. The paper reads the positive part. One forward and backward a tower.

    Unlike the release, the last block keeps its heads, so that the score that is explained is the model's own, and text
    weights are scaled over real tokens, not over padding. Criticism: of lower blocks it sees the reading token's row
    alone, and the last MLP only through its slope; a first-order map, it fades with the number of objects in a scene.
    """

    layers: int = 1
    text_layers: int = 8
    spatial: str = "loose"

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        if self.spatial not in SPATIALS:
            raise Refused(f"grad_eclip: spatial: found {self.spatial!r}, accepted are {', '.join(SPATIALS)}")
        if min(self.layers, self.text_layers) < 1:
            raise Refused("grad_eclip: layers, text_layers: found less than 1, accepted is 1 or more")
        if model.family != "dual" or "image.attention" not in model.sites or model.extra_tokens != 1:
            raise Unsuited(
                f"Grad-ECLIP reads the class token of a dual encoder's attention; {model.name} is a {model.family} "
                f"with {model.extra_tokens} such tokens and {', '.join(model.sites)}"
            )
        images = self._tower(model, "image.attention", self.layers, cases)
        texts = self._tower(model, "text.attention", self.text_layers, cases)
        return [Explanation(image=model.grid(i), text=t) for i, t in zip(images, texts, strict=True)]

    def _tower(self, model: Any, kind: str, layers: int, cases: Sequence[Case]) -> list[Tensor]:
        """[T] of each case, the class token of an image among them."""
        count = model.sites[kind]
        sites = [model.site(kind, k) for k in range(max(0, count - layers), count)]
        parts = [f"{site}{part}" for site in sites for part in ("", ".query", ".key", ".value", ".mixed")]
        image = kind.startswith("image.")
        with ExitStack() as stack:
            seen = {part: stack.enter_context(model.watch(part)) for part in parts}
            if image:
                score = model.score(model.stack(cases), cases)
            else:
                score = model.score_text(torch.ones(len(cases), max(map(len_of, cases))), cases)
            mixed = [seen[f"{site}.mixed"].value for site in sites]
            grads = torch.autograd.grad(score.sum(), mixed)
            values = {part: watch.value.detach() for part, watch in seen.items()}
        found = []
        for i, case in enumerate(cases):
            size = values[sites[0]].shape[-1] if image else len_of(case)
            reader, first = (0, 1) if image else (size - 1, 0)
            heat = torch.zeros(size).to(grads[0])
            for site, grad in zip(sites, grads, strict=True):
                own = {part: values[f"{site}.{part}"][i, :, :size] for part in ("query", "key", "value")}
                each = grad[i, :, reader, None] * own["value"]  # [heads, T, d]
                if self.spatial == "attention":
                    each = each * values[site][i, :, reader, :size, None]
                row = each.sum((0, 2))
                if self.spatial == "loose":
                    row = row * self._near(model, site, own, reader, first)
                heat = heat + row
            found.append(heat)
        return found

    def _near(self, model: Any, site: str, own: dict[str, Tensor], reader: int, first: int) -> Tensor:
        """[T]: how near each token's key is to the reader's query, 0 to 1 from ``first`` on."""
        query, key = (model.join(site, own[part]).detach() for part in ("query", "key"))
        near = F.cosine_similarity(query[reader][None], key, dim=-1)
        low, high = near[first:].min(), near[first:].max()
        return (near - low) / (high - low) if high > low else torch.ones_like(near)


def len_of(case: Case) -> int:
    """How many real tokens a case's text has; the last of them is the end token, which is read."""
    return 0 if case.tokens is None else len(case.tokens)
