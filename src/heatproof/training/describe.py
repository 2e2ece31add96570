"""Training a captioner on photographs: what people said of them, seen through a trunk that is frozen and not shipped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.captions.cider import cider_d
from heatproof.captions.tokens import plain
from heatproof.contract import Refused, Sample
from heatproof.errors import unknown
from heatproof.models import own_captioner
from heatproof.models.captioner_search import search
from heatproof.models.trunks import TRUNKS
from heatproof.training.hearing import hear
from heatproof.training.recipe import Photographs, Recipe
from heatproof.training.views import BLOCK, CAPTIONS, both_ways, kept, photographs, texts_of, vocabulary
from heatproof.training.vocabulary import swap_sides

LEAST = 5  # times that a word stands in the captions, to be one of the vocabulary
BEAM = 3


class Describe:
    """One of the nets of ``models/adaptive.py`` and ``models/multi_head.py`` on a trunk of ``models/trunks.py``.

    It learns from what the trunk gives, rounded to float16 and divided by its root mean square; the division is folded into
    the first projections at the end. Words that stand less than five times are unknown: they are read, never learnt to be said.
    """

    def __init__(self, recipe: Recipe) -> None:
        where = f"{recipe.name}: "
        if not isinstance(recipe.data, Photographs):
            raise Refused(f"{where}[data] must name photographs")
        self.recipe = recipe
        told = dict(recipe.net)
        kind = told.pop("encoder", "")
        if kind not in TRUNKS:
            raise unknown(f"{where}[net]", "encoder", kind, TRUNKS)
        self.frozen = TRUNKS[kind]
        self.eyes: Any = self.frozen.read(recipe.data.folder, recipe.name)
        self.seen = photographs(recipe, "train")[: recipe.data.sample]
        self.judged = photographs(recipe, "dev")
        self.words = vocabulary(chain.from_iterable(sample.captions for sample in self.seen), LEAST)
        self.length = int(told.pop("length"))
        sizes = {"channels": self.frozen.channels, "vocabulary": len(self.words.ids)}
        if told["architecture"] == "adaptive":
            sizes["cells"] = self.frozen.cells
        self.config = {
            "architecture": told.pop("architecture"),
            "encoder": {"kind": kind},
            "objects": list(told.pop("objects")),
            "length": self.length,
            "decoder": {**sizes, **told},
        }
        torch.manual_seed(recipe.seed)
        self.net = own_captioner.build(self.config, f"{where}[net]")
        self.net.encoder = nn.Identity()  # the trunk has looked already
        self.learner: nn.Module = self.net
        self.trunk: nn.Module | None = None  # none that learns
        self.ignored = self.words.unknown  # what is not learnt to be said
        self.curve: list[dict[str, float]] = []

    # ------------------------------------------------------------------ what is learnt from

    def look(self, path: Path, quiet: bool = False) -> Tensor:
        """float16 [2, N, C, h, w]: the trunk's views of the photographs to learn from and to judge by, and mirrored."""
        every = [*self.seen, *self.judged]
        return kept(path, self.eyes, every, lambda: both_ways(self.eyes, every, self.pixels, quiet))

    def pixels(self, samples: Sequence[Sample]) -> Tensor:
        seen = torch.stack([self.frozen.frame.image(sample.read()) for sample in samples])
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        return seen.contiguous(**layout)

    def learn(self, seen: Tensor, quiet: bool = False) -> None:
        """Take the views and the photographs' captions in."""
        self.views = seen
        parts = (some.float().square().mean() for some in seen[0, : len(self.seen)].split(BLOCK))
        self.spread = float(torch.stack(list(parts)).mean().sqrt())
        self.texts = texts_of(self.seen, self.words, self.length, self.recipe.name)  # [N, 5, T]

    # ------------------------------------------------------------------ the loss

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """Cross-entropy of the next word, teacher-forced, mean over words; one that is unknown is not learnt to be said.

        Of each photograph ``texts`` captions; a mirrored one has left and right swapped in its text.
        """
        features, texts = self.batch(rows, dice, self.recipe.settings.texts)
        heard = hear(self.net, self.net.look(features), texts, self.words.pad)
        logits = self.net.say(heard.mixed)
        return F.cross_entropy(
            *(logits.float(), heard.wanted),
            ignore_index=self.ignored,
            label_smoothing=self.recipe.settings.smooth,
        )

    def batch(self, rows: Tensor, dice: torch.Generator, each: int) -> tuple[Tensor, Tensor]:
        """Feature maps [N, C, h, w] of photographs or their mirror images, and ``each`` captions of each [N, each, T]."""
        flip = torch.rand(len(rows), generator=dice) < 0.5
        which = torch.rand(len(rows), CAPTIONS, generator=dice).argsort(1)[:, :each]
        texts = self.texts[rows[:, None], which]
        texts = torch.where(flip[:, None, None], swap_sides(texts, self.words), texts)
        return self.views[flip.long(), rows].float() / self.spread, texts

    # ------------------------------------------------------------------ what it is worth

    def progress(self) -> float:
        """CIDEr-D of greedy captions of the split "dev"."""
        views = self.views[0, len(self.seen) :]
        said = [self.write(some.float() / self.spread, 1) for some in views.split(BLOCK)]
        return _cider(list(chain.from_iterable(said)), self.judged)

    def write(self, features: Tensor, beam: int) -> list[str]:
        """Captions of feature maps [N, C, h, w]."""
        self.net.eval()
        with torch.inference_mode():
            found = search(self.net, features, self.words, self.length, beam)
        return [" ".join(self.words.text(row)) for row in found.tolist()]

    def save(self, out: Path) -> None:
        """The folder that ``models/own_captioner.py`` reads; the weights in float16, and the net is made what they say."""
        parts = [self.net.project, getattr(self.net, "summarise", None)]
        with torch.no_grad():
            for part in filter(None, parts):
                part.weight.div_(self.spread)
        self.spread = 1.0
        small = copy.deepcopy(self.net).half()
        own_captioner.save(
            *(out, small),
            config=self.config,
            words=self.words.ids,
            frame=self.frozen.frame,
            card={},
        )
        self.net.load_state_dict(small.state_dict())

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        """CIDEr-D on the split "test", with beams and greedy, and what the captions are like."""
        samples = photographs(self.recipe, "test")
        beamed: list[str] = []
        greedy: list[str] = []
        for start in range(0, len(samples), BLOCK):
            with torch.inference_mode():
                features = self.eyes(self.pixels(samples[start : start + BLOCK]))
            beamed += self.write(features, BEAM)
            greedy += self.write(features, 1)
        known = {plain(text) for sample in self.seen for text in sample.captions}
        copied = sum(text in known for text in beamed) / len(beamed)
        false, named = self._untold(beamed, samples)
        kind = self.config["encoder"]["kind"]
        return {
            "source": f"a captioner trained by heatproof on Flickr8k; its trunk, {kind}, is not shipped",
            "licence": "Apache-2.0; learnt from Flickr8k, whose terms are non-commercial research and education",
            "cider_d": _cider(beamed, samples),
            "cider_d_greedy": _cider(greedy, samples),
            "decoding": f"beam {BEAM}, sums of log-probabilities, no length normalisation",
            "different_captions": len(set(beamed)),
            "said_in_training": round(copied, 4),
            "untold": round(false / max(1, named), 4),
            "images": len(samples),
            "words": len(self.words.ids),
            "curve": self.curve,
            "bad_at": f"{len(set(beamed))} different captions for {len(samples)} photographs, {copied:.3f} of them word "
            f"for word from the training captions; of the object words that it says, {false / max(1, named):.3f} stand in none "
            "of the photograph's five captions",
        }

    def _untold(self, said: Sequence[str], samples: Sequence[Sample]) -> tuple[int, int]:
        """Of the objects' names in the captions: how many are in none of the photograph's own, and how many there are."""
        objects = set(self.config["objects"])
        false = named = 0
        for text, sample in zip(said, samples, strict=True):
            told = set(chain.from_iterable(plain(caption).split() for caption in sample.captions))
            mine = set(text.split()) & objects
            named += len(mine)
            false += len(mine - told)
        return false, named


def _cider(said: Sequence[str], samples: Sequence[Sample]) -> float:
    told = [[plain(text) for text in sample.captions[:CAPTIONS]] for sample in samples]
    scores = cider_d(said, told)
    return round(sum(scores) / len(scores), 4)
