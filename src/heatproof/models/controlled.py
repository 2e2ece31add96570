"""Models whose answer is known by construction: wired, not trained, with the true evidence in every case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Sample
from heatproof.errors import unknown
from heatproof.geometry import Frame
from heatproof.models import asking
from heatproof.models.attention import causal
from heatproof.models.base import Context, Model, Stage
from heatproof.models.captioner import Captioner as CaptionerModel
from heatproof.models.classifier import Classifier
from heatproof.models.controlled_nets import (
    SIDE,
    ControlledCnn,
    ControlledPair,
    ControlledVit,
    captioner,
)
from heatproof.models.dual import Dual
from heatproof.models.words import WordList

PLANTED = "controlled 1"  # datasets/controlled.py says so of its samples
TRUTH = "by construction"
# what the score depends on, and the things of the picture that therefore matter
THINGS = {"region": ("lamp",), "interaction": ("lamp", "box"), "shortcut": ("mark",), "word": ()}
CUE, DECOY, TARGET = "bright", "small", "lamp"
WORDS = WordList({
    w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "bright", "small", "lamp", "a", "in", "room", "has", "of"])
})  # fmt: skip
LENGTH = 16


@dataclass(eq=False)
class Known(Model):
    """What the controlled models have in common: the truth, told with every case.

    ``evidence`` holds the pixels that the score depends on, a plane a thing, and ``evidence_text`` the words: whatever
    happens to all the others, short of planting a colour that the model reads, the score is the same to the last bit.
    """

    on: str = field(kw_only=True)

    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]:
        asked = super().ask(samples, policy)
        return [
            [self._told(case, sample) for case in cases] for cases, sample in zip(asked, samples, strict=True)
        ]

    def _told(self, case: Case, sample: Sample) -> Case:
        if sample.extras.get("planted") != PLANTED:
            raise Refused(
                f"sample {sample.id}: {self.name} knows what truly matters in the pictures of datasets/controlled.py; "
                'write dataset = "controlled"'
            )
        names = {thing.name for thing in sample.objects}
        things = THINGS[self.on]
        matter = things if names.issuperset(things) else ()  # of two that must be there, one alone is nothing
        source = case.pixels.shape[-2], case.pixels.shape[-1]
        told = asking.evidence(sample, matter, self.frame, source)
        return replace(case, **told, evidence_text=self._words(case), named=None)

    def _words(self, case: Case) -> Tensor | None:
        """The cue, where it is read: in a captioner's sentence before the word that is scored."""
        if case.tokens is None:
            return None
        stop = case.target + 1 if self.family == "captioner" else len(case.spoken)
        return torch.tensor([self.on == "word" and w == CUE and k < stop for k, w in enumerate(case.spoken)])


@dataclass(eq=False)
class KnownClassifier(Known, Classifier):
    """A controlled classifier: class 0 is the lamp, class 1 has a logit of 0."""


@dataclass(eq=False)
class KnownCaptioner(Known, CaptionerModel):
    """A controlled captioner: it knows one object word, the lamp."""


@dataclass(eq=False)
class KnownDual(Known, Dual):
    """A controlled dual encoder, whose towers meet in a plane."""

    @property
    def _width(self) -> int:
        return 2

    def _identity(self) -> object:
        return type(self.net).__name__, sorted(WORDS.ids.items())


# ---------------------------------------------------------------- stages


def cnn_stages(net: Any) -> list[Stage]:
    """Sites: image.conv 0 = the detectors, pixel by pixel, image.conv 1 = their means over 7 x 7 cells."""
    return [
        Stage("image.conv 0", lambda x, _: net.act(net.see(x))),
        Stage("image.conv 1", lambda x, _: net.pool(x)),
        Stage(None, lambda x, _: net.say(net.unit(net.gather(net.flatten(x))))),
    ]


def vit_stages(net: Any) -> list[Stage]:
    """Sites: image.embed 0, image.block 0 and 1; of the last block the first token alone is read."""
    stages = [Stage("image.embed 0", lambda x, _: net.embed(x))]
    stages += [
        _image_block(f"image.block {k}" if k < 2 else None, block) for k, block in enumerate(net.blocks)
    ]
    return [*stages, Stage(None, lambda x, _: net.read(x))]


def text_stages(net: Any) -> list[Stage]:
    """Sites: text.embed 0, text.block 0; of the last block the end token alone is read."""

    def read(x: Tensor, context: Context) -> Tensor:
        found: Tensor = net.project(x[torch.arange(len(x), device=x.device), context["eos"]])
        return found

    stages = [Stage("text.embed 0", lambda ids, c: net.table(ids) * c["gain"][..., None])]
    stages += [_text_block("text.block 0" if k == 0 else None, block) for k, block in enumerate(net.text)]
    return [*stages, Stage(None, read)]


def _image_block(site: str | None, block: Any) -> Stage:
    return Stage(site, lambda x, _: block(x))


def _text_block(site: str | None, block: Any) -> Stage:
    return Stage(site, lambda x, context: block(x, causal(context["seen"])))


# ---------------------------------------------------------------- what a spec names


@dataclass(frozen=True)
class _Wired:
    """``on`` is what the score depends on: region | interaction | shortcut, and word where text is read."""

    on: str = "region"
    rows: int = 8

    reads: ClassVar[tuple[str, ...]] = tuple(THINGS)

    def __post_init__(self) -> None:
        if self.on not in self.reads:
            raise unknown(f"models: controlled:{type(self).__name__}: on", "evidence", self.on, self.reads)

    def _common(self, device: str) -> dict[str, Any]:
        card = {"source": "wired by hand, nothing is trained", "on": self.on, "truth": TRUTH}
        return {"frame": Frame(SIDE), "card": card, "rows": self.rows, "device": device, "on": self.on}

    def _classifier(self, name: str, net: nn.Module, stages: Any, device: str) -> KnownClassifier:
        labels = {TARGET: (0,), "nothing": (1,)}
        return KnownClassifier(name, net, stages=stages, labels=labels, **self._common(device))


@dataclass(frozen=True)
class Cnn(_Wired):
    """A CNN that tells lamp from mark by the weights of its last layer: its logit rises with what ``on`` says.

    region: how strongly the lamp is coloured. interaction: how far lamp and box together exceed 1, which either alone never
    does. shortcut: the mark in the corner, whatever becomes of the lamp that it is asked about.
    """

    on: str = "region"
    rows: int = 8

    reads: ClassVar[tuple[str, ...]] = ("region", "interaction", "shortcut")

    def load(self, name: str, device: str = "cpu") -> KnownClassifier:
        return self._classifier(name, ControlledCnn(self.on), cnn_stages, device)


@dataclass(frozen=True)
class Vit(_Wired):
    """Three blocks of attention without norms; the same three kinds of evidence as ``Cnn``.

    In the last block a head carries the evidence, and an idle one, whose values are zero, looks at something else.
    """

    on: str = "region"
    rows: int = 8

    reads: ClassVar[tuple[str, ...]] = ("region", "interaction", "shortcut")

    def load(self, name: str, device: str = "cpu") -> KnownClassifier:
        return self._classifier(name, ControlledVit(self.on), vit_stages, device)


@dataclass(frozen=True)
class Clip(_Wired):
    """The same blocks as an image tower, and a text tower that hears one word, "bright".

    region, interaction, shortcut: every text has the same embedding. word: every image has, and the cosine falls
    where the word is not in the text.
    """

    on: str = "region"
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> KnownDual:
        ids = WORDS.ids
        net = ControlledPair(self.on, len(ids), WORDS.bos, ids[CUE], ids[DECOY])
        return KnownDual(
            name, net, image_stages=lambda net: vit_stages(net.image), text_stages=text_stages,
            tokenizer=WORDS, text_length=LENGTH, **self._common(device),
        )  # fmt: skip


@dataclass(frozen=True)
class Captioner(_Wired):
    """A multi-head captioner that can say "lamp", explained where it says so.

    region, interaction, shortcut: the words before do not matter. word: the image does not, and the log-probability
    falls where "bright" was not said before.
    """

    on: str = "region"
    beam: int = 3
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> KnownCaptioner:
        ids = WORDS.ids
        net = captioner(self.on, len(ids), WORDS.eos, ids[CUE], ids[TARGET])
        return KnownCaptioner(
            name, net, words=WORDS, objects=(TARGET,), length=LENGTH, beam=self.beam, **self._common(device)
        )
