"""What a Hugging Face captioner is asked, behind the captioners' contract: words of one or several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from heatproof import geometry
from heatproof.contract import Case, Sample, Unsuited
from heatproof.models.base import Context, Model, Stage
from heatproof.models.captioner import ATTENTION, EMBEDDING, REMOVALS, Captioner, explained
from heatproof.models.captioner_search import search
from heatproof.models.classifier import inner_sites
from heatproof.models.hf_captioner_nets import CROSS, PARTS, Parts, Shown, decode
from heatproof.models.hf_captioner_words import Spelling, Walker
from heatproof.models.watching import passing

# ids, the place of each among the case's tokens (-1: stays), and how many at the end are scored
Row = tuple[Tensor, Tensor, int]


@dataclass(eq=False)
class HfCaption(Captioner):
    """A transformer that speaks in tokens; what is explained is a word.

    The score is the log-probability of the word's tokens given the image and all tokens before: where a word has several, the sum of
    theirs, each after those before it (teacher-forced). A case's target t is the place before the word's first token; ``words``
    tells the word of each token, ``spoken`` has the whole word, lower-cased, at its first token and nothing at the others.
    tokens[0] is the last of the prompt; what stands before it is the model's and in no case. Rival words in ``choices`` have
    numbers past the vocabulary (``Spelling``).

    Sites: "image.embed 0", "image.block k" up to the last that the words look at, "image.attention k", "text.embed 0"
    [N, length, E], and "cross.attention k" [N, length, heads, P]: each caption token's attention over the image, a class token first
    where there is one; of LLaVA the part of the decoder's self-attention that lies on the image.
    ``write`` reads all that was said anew at each step.
    """

    words: Spelling = field(kw_only=True)
    prompt: tuple[int, ...] = field(kw_only=True)
    cells: int = field(kw_only=True)

    def __post_init__(self) -> None:
        self.extra_tokens = self._parts().special
        for name in self.objects:  # so that their numbers are the same whatever is asked first
            self.words.rival(name)
        super().__post_init__()

    def _parts(self) -> Parts:
        return PARTS[type(self.net).__name__](self.net)

    def _towers(self) -> dict[str, list[Stage]]:
        parts, prompt, words, length, beam = self._parts(), self.prompt, self.words, self.length, self.beam

        def look(x: Tensor, c: Context) -> Tensor:
            heard = passing(f"image.{EMBEDDING}", parts.embedding(c["ids"]))
            return decode(parts, prompt, "image", x, heard, c["last"])

        def hear(x: Tensor, c: Context) -> Tensor:
            return decode(parts, prompt, "text", c["features"], x, c["last"])

        def again(features: Tensor, ids: Tensor) -> Tensor:
            last = torch.full((len(ids),), length - 1, device=ids.device)
            return decode(parts, prompt, "write", features, parts.embedding(ids), last)

        walker = cast("Any", Walker(again, length))
        return {
            "image": [*parts.image, Stage(None, look), Stage(None, _read)],
            "text": [
                Stage(EMBEDDING, lambda x, c: parts.embedding(x) * c["gain"][..., None]),
                Stage(None, hear),
                Stage(None, _read),
            ],
            "write": [
                *(Stage(None, stage.run) for stage in parts.image),
                Stage(None, lambda x, _: search(walker, x, words, length, beam)),
            ],
        }

    def _inner_sites(self) -> list[str]:
        shown = [m.site for m in self.net.modules() if isinstance(m, Shown)]
        return [*inner_sites(self.net), *(shown or inner_sites(self.net, "cross"))]

    def _identity(self) -> object:
        vocabulary = sorted(self.words.inner.get_vocab().items())
        return (
            Model._identity(self),
            vocabulary,
            self.objects,
            self.length,
            self.beam,
            self.prompt,
            self.words.eos,
        )

    def _example(self, tower: str) -> tuple[Tensor, Context]:
        image = next(self.net.parameters()).new_zeros(self.rows, 3, self.frame.size, self.frame.size)
        rows = [(torch.tensor([self.words.bos, self.words.eos]), torch.tensor([-1, -1]), 1)] * self.rows
        context = {key: value.to(self.device) for key, value in self._questions(rows).items()}
        if tower == "text":
            x = image
            for stage in self._parts().image:
                x = stage.run(x, {})
            return context["ids"], {**context, "features": x, "gain": torch.ones_like(context["ids"])}
        return image, context

    def _run(
        self, tower: str, x: Tensor, cases: Sequence[Case], context: Context, *some: Any, **more: Any
    ) -> Tensor:
        # the sites of all layers, as Captioner does for its one
        sites = [s for s in self._watches if s.startswith(CROSS) and s != ATTENTION]
        both = {f"{tower}.{s}": self._watches[s] for s in sites}
        self._watches.update(both)
        try:
            return super()._run(tower, x, cases, context, *some, **more)
        finally:
            for site in both:
                del self._watches[site]

    def grid(self, tokens: Tensor) -> Tensor:
        """Values of a block's tokens, or of what the words look at, on the image grid; special tokens dropped."""
        return geometry.fold(tokens, len(tokens) - self.cells)

    # ------------------------------------------------------------------ what a row is asked

    def _row(self, case: Case, choice: int | None = None) -> Row:
        """Tokens up to the target and those of the word, or of a rival."""
        tokens, first = cast("Tensor", case.tokens), int(explained(case))
        ids: list[int] = []
        places: list[int] = []
        for k, token in enumerate(tokens[: case.target + 1].tolist()):
            spelled = self.words.spell(token, first=k == 1)
            ids += spelled
            places += [k if k else -1] * len(spelled)
        start = case.target + 1
        if choice is not None and choice != first:
            word = list(self.words.spell(choice, first=start == 1))
        elif first >= self.words.size:
            word = list(self.words.spell(first, first=start == 1))
        else:
            same = [w == case.words[start] for w in case.words[start:]]
            word = tokens[start : start + (same.index(False) if False in same else len(same))].tolist()
        return torch.tensor([*ids, *word]), torch.tensor([*places, *[-1] * len(word)]), len(word)

    def _questions(self, rows: Sequence[Row]) -> Context:
        ends = torch.tensor([[len(ids) - 1] for ids, _, _ in rows])
        counts, place = torch.tensor([[n] for _, _, n in rows]), torch.arange(self.length)
        asked = (place >= ends - counts) & (place < ends)  # where a token of the word is said
        return {"ids": self._padded([ids for ids, _, _ in rows]), "asked": asked, "last": ends[:, 0] - 1}

    def _context(self, cases: Sequence[Case], choices: bool = False) -> Context:
        return self._questions([self._row(case) for case in cases])

    def scores(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, 3, H, W] -> [N, K]: the scores of each case's choices, a row of the decoder each."""
        if not all(case.choices for case in cases):
            super()._context(cases, choices=True)  # refuses
        asked = [(k, choice) for k, case in enumerate(cases) for choice in case.choices]
        features = self.features(pixels, cases)[[k for k, _ in asked]]
        context = self._questions([self._row(cases[k], choice) for k, choice in asked])
        return self._run("image", features, [cases[k] for k, _ in asked], context, -2).view(len(cases), -1)

    def logits(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, 3, H, W] -> [N, V]: every token's raw logit where the first of the case's word is said; differentiable."""
        return self.speak(self.features(pixels, cases), cases)

    def speak(self, features: Tensor, cases: Sequence[Case]) -> Tensor:
        context = self._context(cases)
        places = context["asked"].int().argmax(1)
        return self._run("image", features, cases, context, -2, -1)[torch.arange(len(cases)), places]

    # ------------------------------------------------------------------ text

    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = "delete") -> Tensor:
        """As a ``Captioner``'s, by tokens; the prompt, the start and the word that is scored are never removed."""
        if removal not in REMOVALS:
            raise ValueError(f"removal: found {removal!r}, accepted are {', '.join(REMOVALS)}")
        other: int | None = None if removal in ("delete", "embedding") else getattr(self.words, removal)
        if other is None and removal == "mask":
            raise Unsuited(f"{self.name}'s vocabulary has no mask token; take pad, unknown or delete")
        rows, gains = [], []
        for (ids, places, count), kept in zip(map(self._row, cases), keep, strict=True):
            gain = torch.where(places.to(keep.device) < 0, 1.0, kept[places.clamp(min=0).to(keep.device)])
            there = gain.detach().cpu() >= 0.5
            if removal == "delete":
                ids, places = ids[there], places[there]
            elif other is not None:
                ids = ids.masked_fill(~there, other)
            rows.append((ids, places, count))
            gains.append(F.pad(gain, (0, self.length - len(gain)), value=1.0))
        gain = torch.stack(gains) if removal == "embedding" else torch.ones(len(cases), self.length)
        context = {**self._questions(rows), "features": self.looked(cases), "gain": gain}
        return self._run("text", context["ids"], cases, context)

    # ------------------------------------------------------------------ asking

    def _write(self, pixels: Tensor, cases: Sequence[Case]) -> list[list[str]]:
        return [said for (said,) in self._variants(pixels, cases)]

    def _variants(self, pixels: Tensor, cases: Sequence[Case]) -> list[list[list[str]]]:
        with torch.no_grad():
            ids = self._run("write", pixels, cases, {})
        return [[self._fitting(self.words.text(row))] for row in ids.tolist()]

    def _fitting(self, caption: list[str]) -> list[str]:
        """As many words as have room."""
        kept, room = [], self.length - 1
        for k, word in enumerate(caption):
            room -= len(self.words.pieces(word, first=k == 0))
            if room < 0:
                break
            kept.append(word)
        return kept

    def _said(self, sample: Sample, image: Tensor, caption: list[str], mark: str) -> Case:
        ids, words, spoken = [self.words.bos], [-1], [""]
        for k, word in enumerate(self._fitting(caption)):
            pieces = self.words.pieces(word, first=k == 0)
            ids += pieces
            words += [k] * len(pieces)
            spoken += [word.lower(), *[""] * len(pieces)][: len(pieces)]
        case = super()._said(sample, image, [], mark)
        return replace(case, tokens=torch.tensor(ids), words=tuple(words), spoken=tuple(spoken))

    def _rivals(self, said: int, name: str) -> tuple[int, ...]:
        """The word said, and the last word of every other name, by its number past the vocabulary."""
        rivals = dict.fromkeys(self.words.rival(other) for other in self.objects)
        return (said, *(number for number in rivals if number != self.words.rival(name)))


def _read(logits: Tensor, context: Context) -> Tensor:
    """Logits [N, L, V] -> the sum [N] of the log-probabilities of the tokens that are asked for."""
    told = torch.log_softmax(logits, 2)[:, :-1].gather(2, context["ids"][:, 1:, None])[..., 0]
    return torch.where(context["asked"][:, :-1], told, torch.zeros_like(told)).sum(1)
