"""Dual encoders (CLIP): the score is the cosine of one image and one text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Sample, Unsuited
from heatproof.models import asking
from heatproof.models.base import Context, Model, Stage
from heatproof.models.classifier import inner_sites
from heatproof.models.words import Tokens

REMOVALS = ("attention", "pad", "unknown", "mask", "delete", "zero", "embedding")
PROMPTS = re.compile(r"label '(?P<prompt>[^']*\{\}[^']*)': (?P<labels>.+)")


def _cosine(net: Any) -> Callable[[Tensor, Context], Tensor]:
    """Rows against the other side: [N, D] against [N, K, D], the one choice squeezed away."""
    unit = getattr(
        net, "heatproof_unit", partial(F.normalize, dim=-1)
    )  # LRP's twins have a norm of their own

    def run(embedding: Tensor, context: Context) -> Tensor:
        found = (unit(embedding)[:, None] * F.normalize(context["other"], dim=-1)).sum(-1)
        return found.squeeze(1) if found.shape[1] == 1 else found

    return run


@dataclass(eq=False)
class Dual(Model):
    """Two towers that meet in a cosine (no logit scale).

    Target policies: "caption k" explains the sample's k-th caption, counted from 0; "label 'a photo of a {}': cat, dog"
    (zero-shot classification) the prompt of the sample's label, its choices the prompts of all labels that are listed.
    A result calls a case by its caption, or by "caption k" where the data set's captions may not be published.
    ``score_text`` removes tokens by one of: "attention" (no other token sees them), "pad", "unknown" and "mask" (another
    token stands there), "delete" (the rest closes up), "zero" (token id 0, whatever that says: M2IB's release),
    "embedding" (the token embedding times ``keep``, soft). A text without an end token is read where ``unended`` says.
    """

    image_stages: Callable[[nn.Module], list[Stage]] = field(kw_only=True)
    text_stages: Callable[[nn.Module], list[Stage]] = field(kw_only=True)
    tokenizer: Tokens = field(kw_only=True)
    text_length: int = field(kw_only=True)
    unended: Callable[[Tensor], int] = field(kw_only=True, default=lambda ids: 0)  # ids [T] -> a position

    family = "dual"
    space = "cosine"

    def _towers(self) -> dict[str, list[Stage]]:
        return {
            "image": [*self.image_stages(self.net), Stage(None, _cosine(self.net))],
            "text": [*self.text_stages(self.net), Stage(None, _cosine(self.net))],
        }

    def _inner_sites(self) -> list[str]:
        return inner_sites(self.net) + inner_sites(self.net, "text")

    def _example(self, tower: str) -> tuple[Tensor, Context]:
        other = torch.ones(self.rows, 1, self._width, device=self.device)
        if tower == "image":
            size = self.frame.size
            return torch.zeros(self.rows, 3, size, size, device=self.device), {"other": other}
        x = self._padded([torch.tensor([self.tokenizer.eos])] * self.rows)
        return x.to(self.device), {
            **{k: v.to(self.device) for k, v in self._reading(x).items()},
            "other": other,
        }

    @property
    def _width(self) -> int:
        config: Any = self.net.config
        return int(config.projection_dim)

    def _context(self, cases: Sequence[Case], choices: bool = False) -> Context:
        image = {"other": self._choices(cases) if choices else self.embed_text(cases)[:, None]}
        return image

    def _choices(self, cases: Sequence[Case]) -> Tensor:
        if any(not case.choices for case in cases):
            raise Refused(
                f"{self.name}: the case has no rival captions to compare with; give `choices` or a metric that needs none"
            )
        texts = list(dict.fromkeys(text for case in cases for text in case.choices))
        asked = [self._worded(Case(f"choice {t}", "", "", cases[0].pixels, t), t) for t in texts]
        found = dict(zip(texts, self.embed_text(asked), strict=True))
        return torch.stack([torch.stack([found[t] for t in case.choices]) for case in cases])

    # ------------------------------------------------------------------ text

    def span(self, case: Case) -> int:
        """How many places of a text have part in its score; the last of them is the one that is read.

        Here those of its tokens: padding stands behind the end token, which sees what is before it.
        """
        return len(_tokens(case))

    def _padded(self, rows: Sequence[Tensor]) -> Tensor:
        ids = torch.full((len(rows), self.text_length), self.tokenizer.pad, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids

    def _reading(self, ids: Tensor, keep: Tensor | None = None) -> Context:
        """What the text tower needs beside the ids: which position is read, and which tokens may be seen."""
        eos = (ids == self.tokenizer.eos).int().argmax(1)
        seen = torch.ones(ids.shape) if keep is None else keep
        return {"eos": eos, "seen": seen, "gain": torch.ones(ids.shape)}

    def _ended(self, context: Context, ids: Tensor, rows: Sequence[Tensor]) -> Context:
        """Where the end token may also stand for a word that was removed, a sentence still ends where it ended."""
        ends = torch.tensor([len(row) - 1 for row in rows])
        there = ids.gather(1, ends[:, None])[:, 0] == self.tokenizer.eos
        context["eos"] = torch.where(there, ends, context["eos"])
        for k, row in enumerate(rows):
            if self.tokenizer.eos not in row:
                context["eos"][k] = self.unended(row)
        return context

    def read(self, cases: Sequence[Case]) -> tuple[Tensor, Context]:
        """The cases' texts as padded ids [N, T], and what the stages of the text tower need beside them."""
        rows = [_tokens(case) for case in cases]
        ids = self._padded(rows)
        return ids, self._ended(self._reading(ids), ids, rows)

    def embed_text(self, cases: Sequence[Case]) -> Tensor:
        """[N] cases -> their texts' embeddings [N, D], not normalised; from the chunk's memo."""

        def compute(some: list[Case]) -> Sequence[Tensor]:
            ids, context = self.read(some)
            with torch.no_grad():
                return list(self._run("text", ids, some, context, 0, -1))

        return torch.stack(self.recall("text embedding", cases, compute))

    def embed(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, C, H, W] -> image embeddings [N, D], not normalised, differentiable in the pixels."""
        return self._run("image", pixels, cases, {}, 0, -1)

    def _image_embedding(self, cases: Sequence[Case]) -> Tensor:
        def compute(some: list[Case]) -> Sequence[Tensor]:
            with torch.no_grad():
                return list(self.embed(self.stack(some), some))

        return torch.stack(self.recall("image embedding", cases, compute))

    def _text_context(self, ids: Tensor, cases: Sequence[Case], keep: Tensor | None = None) -> Context:
        return {**self._reading(ids, keep), "other": self._image_embedding(cases)[:, None]}

    def upto(self, site: str, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        if self._find(site)[0] == "image":
            return super().upto(site, pixels, cases)
        ids = self._padded([_tokens(case) for case in cases])
        return self._run("text", ids, cases, self._reading(ids), 0, self._find(site)[1])

    def above(self, site: str, activation: Tensor, cases: Sequence[Case], *, brief: bool = False) -> Tensor:
        """As for all models; a text's activation may end behind its longest text: what follows is never read."""
        tower, start = self._find(site)
        if tower == "image":
            return super().above(site, activation, cases, brief=brief)
        ids = self._padded([_tokens(case) for case in cases])[:, : activation.shape[1]]
        return self._run("text", activation, cases, self._text_context(ids, cases), start, brief=brief)

    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = "attention") -> Tensor:
        """keep [N, T] in [0, 1], 0 = removed, T at least the longest text's -> [N] cosines with the case's image.

        Differentiable in ``keep`` for removal "embedding"; the others remove where keep < 0.5.
        """
        if removal not in REMOVALS:
            raise ValueError(f"removal: found {removal!r}, accepted are {', '.join(REMOVALS)}")
        rows, full = [], torch.ones(len(cases), self.text_length, device=keep.device)
        full = torch.cat([keep, full[:, keep.shape[1] :]], 1)[:, : self.text_length]
        for case, kept in zip(cases, full.detach().cpu() >= 0.5, strict=True):
            ids = _tokens(case)
            there = kept[: len(ids)]
            if removal == "delete":
                ids = ids[there]
            elif removal in ("pad", "unknown", "mask", "zero"):
                other: int | None = 0 if removal == "zero" else getattr(self.tokenizer, removal)
                if other is None:
                    raise Unsuited(f"{self.name}'s vocabulary has no mask token; take pad, unknown or delete")
                ids = torch.where(there, ids, torch.full_like(ids, other))
            rows.append(ids)
        ids = self._padded(rows)
        context = self._text_context(ids, cases)
        self._ended(context, ids, rows)
        if removal == "attention":
            context["seen"] = (full >= 0.5).float()
        elif removal == "embedding":
            context["gain"] = full
        return self._run("text", ids, cases, context)

    # ------------------------------------------------------------------ asking

    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]:
        """One case a sample: its k-th caption, or its label's prompt among others. Evidence is every annotated object
        that the caption names, or the label's.
        """
        name, _, number = policy.partition(" ")
        if name == "caption" and number.isdigit():
            return [self._ask(sample, int(number)) for sample in samples]
        asked = PROMPTS.fullmatch(policy)
        if asked is None:
            accepted = ["caption 0", "caption 1", "...", "label 'a photo of a {}': cat, dog"]
            raise asking.unknown_policy(policy, self.family, accepted)
        labels = [label.strip() for label in asked["labels"].split(",")]
        return [self._prompted(sample, asked["prompt"], labels) for sample in samples]

    def _prompted(self, sample: Sample, prompt: str, labels: Sequence[str]) -> list[Case]:
        label = sample.label
        if label is None or label not in labels:
            raise Refused(
                f"sample {sample.id} is labelled {label!r}, which is none of the policy's {', '.join(labels)}"
            )
        image, source = asking.pixels(sample, self.frame)
        text = prompt.format(label)
        case = Case(
            id=asking.case_id(sample.id, f"p{label}"),
            sample=sample.id,
            about=label,
            pixels=image,
            target=text,
            choices=tuple(prompt.format(one) for one in labels),
        )
        case = self._about(self._worded(case, text), sample, {label})
        return [replace(case, **asking.evidence(sample, {label}, self.frame, source))]

    def _ask(self, sample: Sample, k: int) -> list[Case]:
        if k >= len(sample.captions):
            raise Refused(
                f"sample {sample.id} has {len(sample.captions)} captions: there is no caption {k} (they count from 0)"
            )
        image, source = asking.pixels(sample, self.frame)
        caption = sample.captions[k]
        case = self._worded(
            Case(
                id=asking.case_id(sample.id, f"c{k}"),
                sample=sample.id,
                about=caption if sample.extras.get("captions") != "unpublished" else f"caption {k}",
                pixels=image,
                target=caption,
            ),
            caption,
        )
        names = dict.fromkeys(o.name for o in sample.objects)
        said = {n for word in case.spoken for n in asking.mentions(word, names)}
        case = self._about(case, sample, said)
        return [replace(case, **asking.evidence(sample, said, self.frame, source))]

    def _about(self, case: Case, sample: Sample, said: set[str]) -> Case:
        """The case with the words marked that name a thing in the image, and which one."""
        if not sample.objects:
            return case
        names = dict.fromkeys(o.name for o in sample.objects)
        speaks = [bool(asking.mentions(word, names)) for word in case.spoken]
        named = asking.named(sample, said, case.spoken)
        return replace(case, evidence_text=torch.tensor(speaks), named=named)

    def _worded(self, case: Case, text: str) -> Case:
        ids, words, spoken = self.tokenizer(text, self.text_length)
        return replace(case, tokens=torch.tensor(ids), words=tuple(words), spoken=tuple(spoken))


def _tokens(case: Case) -> Tensor:
    if case.tokens is None:
        raise Refused(f"case {case.id} has no text")
    return case.tokens
