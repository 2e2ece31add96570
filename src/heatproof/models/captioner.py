"""Image captioners: the score is the log-probability of one word, given the image and the words before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Sample, Unsuited
from heatproof.models import asking
from heatproof.models.base import Context, Model, Stage
from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.captioner_search import diverse, without
from heatproof.models.regions import Regions
from heatproof.models.watching import passing
from heatproof.models.words import WordList

REMOVALS = ("delete", "pad", "unknown", "mask", "embedding")
WORDS = re.compile(r"said words '([^']+)'")
EMBEDDING, ATTENTION = "text.embed 0", "cross.attention 0"


@dataclass(eq=False)
class Captioner(Model):
    """A net that looks at an image once and then says a word a step (Sun et al. 2022).

    A case's tokens are <start> and the words of one caption; its target t is the word tokens[t + 1], which is read
    after tokens[0] to tokens[t]. ``objects`` are the names that count as objects; ``length`` is the longest caption,
    <start> included; ``beam`` is how wide ``write`` searches. With more than one of ``groups`` the search is diverse, by
    ``diversity`` (``captioner_search.diverse``). Words of ``endings`` are taken off the end of what it writes, unless
    there is no other.

    Sites: "image.conv k" (the encoder's stages), "text.embed 0" [N, length, E], and "cross.attention 0"
    [N, length, heads, cells], zero after the step that speaks the target. ``score`` shows all of them to watchers,
    so that one backward pass gives gradients on the image and on the words before.
    Target policies: "said objects" (every object word that the model itself writes), "caption k" (every object
    word of the sample's k-th caption, teacher-forced; a word that the model does not know cannot be asked), "said words
    'dog, grass'" (every one of these that the model writes), "written" (one case an image, for what is asked of the caption as a whole).

    Where ``frame`` is ``regions.Regions``, pixels are region features [N, R, D] all over: there are no sites of the image,
    no grid, and cases without evidence.
    """

    words: WordList = field(kw_only=True)
    objects: tuple[str, ...] = field(kw_only=True)
    length: int = field(kw_only=True)
    beam: int = field(kw_only=True, default=3)
    groups: int = field(kw_only=True, default=1)
    diversity: float = field(kw_only=True, default=0.5)
    endings: tuple[str, ...] = field(kw_only=True, default=())

    family = "captioner"
    space = "log-probability"
    extra_tokens = 0

    def _towers(self) -> dict[str, list[Stage]]:
        net = cast("CaptionNet", self.net)
        told = self.words, self.length, self.beam, self.groups, self.diversity
        parts = list(net.encoder) if isinstance(net.encoder, nn.Sequential) else [net.encoder]
        eyes = [Stage(f"image.conv {k}", _seen_by(part)) for k, part in enumerate(parts)]
        return {
            "image": [
                *eyes,
                Stage(None, lambda x, c: _decode(net, "image", x, _embed(net, c), c)),
                Stage(None, _read),
            ],
            "text": [
                Stage(EMBEDDING, lambda x, c: net.embedding(x) * c["gain"][..., None]),
                Stage(None, lambda x, c: _decode(net, "text", c["features"], x, c)),
                Stage(None, _read),
            ],
            "write": [
                *(Stage(None, eye.run) for eye in eyes),
                Stage(None, lambda x, _: diverse(net, x, *told)),
            ],
        }

    def _inner_sites(self) -> list[str]:
        return [ATTENTION]

    def _identity(self) -> object:
        rest: tuple[object, ...] = (sorted(self.words.ids.items()), self.objects, self.length, self.beam)
        if self.groups > 1 or self.endings:  # who has neither keeps the hash of before there were any
            rest += (self.groups, self.diversity, self.endings)
        rules = getattr(self.net, "rules", None)  # of an LRP twin: other gradients, maybe another forward
        return type(self.net).__name__, self.net.config, rules, rest

    def _example(self, tower: str) -> tuple[Tensor, Context]:
        frame, like = self.frame, next(self.net.parameters())
        shape = (frame.count, frame.width) if isinstance(frame, Regions) else (3, frame.size, frame.size)
        image = like.new_zeros(self.rows, *shape)
        whole = torch.full((self.rows,), self.length - 1, device=self.device)
        ids = torch.zeros(self.rows, self.length, dtype=torch.long, device=self.device)
        context = {"ids": ids, "position": whole, "targets": ids[:, :1]}
        if tower == "text":
            features = cast("CaptionNet", self.net).encoder(image)
            return ids, {**context, "features": features, "gain": torch.ones_like(ids)}
        return image, context

    def _run(
        self,
        tower: str,
        x: Tensor,
        cases: Sequence[Case],
        context: Context,
        start: int = 0,
        stop: int | None = None,
        *,
        brief: bool = False,
    ) -> Tensor:
        # words and attention are on the way of either tower, and a run shows the sites of its own tower only
        both = {f"{tower}.{s}": w for s, w in self._watches.items() if s in (EMBEDDING, ATTENTION)}
        self._watches.update(both)
        try:
            return super()._run(tower, x, cases, context, start, stop, brief=brief)
        finally:
            for site in both:
                del self._watches[site]

    def grid(self, tokens: Tensor) -> Tensor:
        if isinstance(self.frame, Regions):
            raise Unsuited(f"{self.name} reads region features: they have no grid")
        return super().grid(tokens)

    # ------------------------------------------------------------------ what a row is asked

    def _context(self, cases: Sequence[Case], choices: bool = False) -> Context:
        if choices and not all(case.choices for case in cases):
            raise Refused(
                f"{self.name}: the case has no rival words to compare with; give `choices` or a metric that needs none"
            )
        wanted = [case.choices if choices else (int(explained(case)),) for case in cases]
        return {
            "ids": self._padded([_tokens(case) for case in cases]),
            "position": torch.tensor([case.target for case in cases]),
            "targets": torch.tensor(wanted),
        }

    def _padded(self, rows: Sequence[Tensor]) -> Tensor:
        ids = torch.full((len(rows), self.length), self.words.pad, dtype=torch.long)
        for i, row in enumerate(rows):
            if len(row) > self.length:
                raise Refused(f"{self.name}: a caption of {len(row)} tokens, it reads {self.length} at most")
            ids[i, : len(row)] = row
        return ids

    def features(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, 3, H, W] -> the encoder's last map [N, C, h, w], differentiable in the pixels."""
        return self._run("image", pixels, cases, {}, 0, -2)

    def logits(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, 3, H, W] -> [N, V]: every word's raw logit where the case's word is said; differentiable."""
        return self._run("image", pixels, cases, self._context(cases), 0, -1)

    def speak(self, features: Tensor, cases: Sequence[Case]) -> Tensor:
        """``logits`` from what ``features`` gives; the encoder is not run."""
        return self._run("image", features, cases, self._context(cases), -2, -1)

    # ------------------------------------------------------------------ text

    def looked(self, cases: Sequence[Case]) -> Tensor:
        """[N, C, h, w]: ``features`` of the untouched images, from the chunk's memo."""

        def compute(some: list[Case]) -> Sequence[Tensor]:
            with torch.no_grad():
                return list(self.features(self.stack(some), some))

        return torch.stack(self.recall("image features", cases, compute))

    def _text_context(self, cases: Sequence[Case]) -> Context:
        gain = torch.ones(len(cases), self.length)
        return {**self._context(cases), "features": self.looked(cases), "gain": gain}

    def upto(self, site: str, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        tower, stop = self._find(site)
        if tower == "image":
            return self._run("image", pixels, cases, {}, 0, stop)
        context = self._text_context(cases)
        return self._run("text", context["ids"], cases, context, 0, stop)

    def above(self, site: str, activation: Tensor, cases: Sequence[Case], *, brief: bool = False) -> Tensor:
        tower, start = self._find(site)
        context = self._context(cases) if tower == "image" else self._text_context(cases)
        return self._run(tower, activation, cases, context, start)

    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = "delete") -> Tensor:
        """``keep`` [N, T] in [0, 1], 0 = removed, T at least the longest caption's -> [N] log-probabilities.

        "delete" closes the prefix up (as Sun et al. do), "pad", "unknown" and "mask" put that token there, and
        "embedding" multiplies the word's embedding by ``keep``, differentiably; the others remove where keep < 0.5.
        <start> is never removed, and what stands after the target cannot matter.
        """
        if removal not in REMOVALS:
            raise ValueError(f"removal: found {removal!r}, accepted are {', '.join(REMOVALS)}")
        context = self._text_context(cases)
        full = torch.ones(len(cases), self.length, dtype=keep.dtype, device=keep.device)
        full = torch.cat([full[:, :1], keep[:, 1:], full[:, max(keep.shape[1], 1) :]], 1)
        full = full[:, : self.length]
        there = full.detach().cpu() >= 0.5
        if removal == "embedding":
            context["gain"] = full
        elif removal == "delete":
            rows = [_tokens(case) for case in cases]
            kept = [row[there[i, : len(row)]] for i, row in enumerate(rows)]
            context["ids"] = self._padded(kept)
            before = torch.arange(self.length) <= context["position"][:, None]
            context["position"] = (there & before).sum(1) - 1
        else:
            other: int | None = getattr(self.words, removal)
            if other is None:
                raise Unsuited(f"{self.name}'s vocabulary has no mask token; take pad, unknown or delete")
            context["ids"] = context["ids"].masked_fill(~there, other)
        return self._run("text", context["ids"], cases, context)

    # ------------------------------------------------------------------ writing

    def write(self, pixels: Tensor, cases: Sequence[Case]) -> list[str]:
        """[N, 3, H, W] -> N captions, by beam search (greedy where ``beam`` is 1), special tokens left out."""
        return [" ".join(said) for said in self._write(pixels, cases)]

    def variants(self, pixels: Tensor, cases: Sequence[Case]) -> list[list[str]]:
        """[N, 3, H, W] -> a caption of each of ``groups``, the likeliest first, which is the one that ``write`` gives."""
        return [[" ".join(said) for said in each] for each in self._variants(pixels, cases)]

    def _write(self, pixels: Tensor, cases: Sequence[Case]) -> list[list[str]]:
        return [first for first, *_ in self._variants(pixels, cases)]

    def _variants(self, pixels: Tensor, cases: Sequence[Case]) -> list[list[list[str]]]:
        with torch.no_grad():
            ids = self._run("write", pixels, cases, {})
        return [[without(self.words.text(row), self.endings) for row in each] for each in ids.tolist()]

    # ------------------------------------------------------------------ asking

    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]:
        """One list of cases a sample, one case an object word; none where no object word is said.

        Policies: "said objects" (every object word that the model itself said), "first said object", "said words 'a, b'"
        (every one of these words), "caption k" (the object words of the sample's k-th caption, counted from 0), and
        "written" (one case, of the caption that the model wrote), and
        "reference k" (one case, of the sample's k-th caption).
        """
        kind, _, number = policy.partition(" ")
        listed = WORDS.fullmatch(policy)
        said = policy in ("said objects", "first said object", "written") or listed
        if not said and not (kind in ("caption", "reference") and number.isdigit()):
            accepted = [
                "said objects",
                "first said object",
                "said words 'dog, grass'",
                *("written", "reference 0"),
                "caption 0",
                "...",
            ]
            raise asking.unknown_policy(policy, self.family, accepted)
        if not samples:
            return []
        seen = [self._seen(sample) for sample in samples]
        if said:
            asked = [Case(s.id, s.id, "", image, 0) for s, (image, _) in zip(samples, seen, strict=True)]
            captions = self._write(self.stack(asked), asked)
        else:
            captions = [self._reference(sample, int(number)) for sample in samples]
        mark = policy if policy == "written" else "said" if said else f"{kind[0]}{number}"
        cases = [
            self._said(sample, image, caption, mark)
            for sample, (image, _), caption in zip(samples, seen, captions, strict=True)
        ]
        if policy == "written" or kind == "reference":
            return [[case] for case in cases]
        names = tuple(word.strip() for word in listed[1].split(",")) if listed else self.objects
        found = [
            self._about_words(case, sample, source, names, listed is None)
            for case, sample, (_, source) in zip(cases, samples, seen, strict=True)
        ]
        return [cases[:1] for cases in found] if policy == "first said object" else found

    def _seen(self, sample: Sample) -> tuple[Tensor, tuple[int, int] | None]:
        """The model's input, and the size of the photograph where it is one."""
        if isinstance(self.frame, Regions):
            return self.frame.read(sample), None
        return asking.pixels(sample, self.frame)

    def _said(self, sample: Sample, image: Tensor, caption: list[str], mark: str) -> Case:
        """One caption of an image as a case, about none of its words yet."""
        ids = [self.words.bos, *(self.words.ids.get(w, self.words.unknown) for w in caption)]
        return Case(
            id=asking.case_id(sample.id, mark),
            sample=sample.id,
            about="",
            pixels=image,
            target=0,
            tokens=torch.tensor(ids),
            words=tuple(range(-1, len(caption))),
            spoken=("", *caption),
            references=sample.captions,
            things=tuple(o.name for o in sample.objects if not o.ignore) if sample.objects else None,
        )

    def _about_words(
        self, case: Case, sample: Sample, source: tuple[int, int] | None, names: tuple[str, ...], rivals: bool
    ) -> list[Case]:
        """The case about each word of its caption that one of the names means."""
        cases = []
        for t, word in enumerate(case.spoken[1:]):
            meant = asking.mentions(word, names)
            said = int(_tokens(case)[t + 1])
            if not meant or said == self.words.unknown:
                continue
            # "dog" is a dog where there is such a name, else every name with that word in it
            meant = [name for name in meant if " " not in name] or meant
            cases.append(
                replace(
                    case,
                    id=f"{case.id}.{asking.case_id(f'w{t}', meant[0])}",
                    about=meant[0],
                    target=t,
                    choices=self._rivals(said, meant[0]) if rivals else (),
                    **(asking.evidence(sample, meant, self.frame, source) if source else {}),
                )
            )
        return cases

    def _reference(self, sample: Sample, k: int) -> list[str]:
        if k >= len(sample.captions):
            raise Refused(
                f"sample {sample.id} has {len(sample.captions)} captions: "
                f"there is no caption {k} (they count from 0)"
            )
        return self.words(sample.captions[k], self.length + 1)[2][1:-1]

    def _rivals(self, said: int, name: str) -> tuple[int, ...]:
        """The word said, and the last word of every other name that the model knows."""
        heads = dict.fromkeys(other.rsplit(maxsplit=1)[-1] for other in self.objects)
        others = [
            self.words.ids[w] for w in heads if w in self.words.ids and w != name.rsplit(maxsplit=1)[-1]
        ]
        return (said, *(other for other in others if other != said))


def _seen_by(part: nn.Module) -> Callable[[Tensor, Context], Tensor]:
    return lambda x, _: part(x)


def _embed(net: CaptionNet, context: Context) -> Tensor:
    return passing(f"image.{EMBEDDING}", net.embedding(context["ids"]))


def _decode(net: CaptionNet, tower: str, features: Tensor, words: Tensor, context: Context) -> Tensor:
    """Features [N, C, h, w], word embeddings [N, T, E] -> logits [N, V] of the word at each row's position."""
    position = context["position"]
    cells = net.look(features)
    state, mixed, seen = net.start(cells.whole), [], []
    rows, steps = torch.arange(len(words), device=words.device), int(position.max()) + 1
    # each step's attention depends on the last: watchers get the gradient of a zero added to all of them ...
    shape = (len(words), words.shape[1], net.heads, cells.values.shape[1])
    shift = passing(f"{tower}.{ATTENTION}", features.new_zeros(shape))
    for t in range(steps):
        state, attention = net.advance(state, cells, words[:, t], shift[:, t])
        mixed.append(net.mix(state))
        seen.append(attention)
    # ... and here the values; steps after a row's own are its neighbours' business
    own = torch.arange(steps, device=words.device) <= position[:, None]
    shown = torch.stack(seen, 1).detach() * own[:, :, None, None]
    passing(f"{tower}.{ATTENTION}", F.pad(shown, (0, 0, 0, 0, 0, words.shape[1] - steps)))
    return net.say(torch.stack(mixed)[position, rows])


def _read(logits: Tensor, context: Context) -> Tensor:
    """Logits [N, V] -> log-probabilities of each row's targets [N, K], the one target squeezed away."""
    found = torch.log_softmax(logits, 1).gather(1, context["targets"])
    return found.squeeze(1) if found.shape[1] == 1 else found


def _tokens(case: Case) -> Tensor:
    if case.tokens is None:
        raise Refused(f"case {case.id} has no caption")
    return case.tokens


def explained(case: Case) -> Tensor:
    """The id of the word that a case explains."""
    tokens = _tokens(case)
    if not 0 <= case.target < len(tokens) - 1:
        raise Refused(
            f"case {case.id}: target {case.target!r} is no word of its caption, "
            f"accepted are 0 to {len(tokens) - 2}"
        )
    return tokens[case.target + 1]
