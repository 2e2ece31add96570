"""Training a captioner: what is in the picture, in words; and how often it names what is not there."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.captions.cider import cider_d
from heatproof.contract import Refused
from heatproof.models import own_captioner
from heatproof.scenery import KINDS, PARTNERS
from heatproof.scenery.words import PLACES
from heatproof.training import pictures
from heatproof.training.dense import Dense, planes_of
from heatproof.training.pictures import Pictures
from heatproof.training.recipe import Recipe
from heatproof.training.vocabulary import encode, scene_words, swap_sides

CELL = 16  # pixels a side that one cell of the trunk's 7 x 7 stands for
TOGETHER = 2  # captions of one image in a batch: the encoder sees the image once


class Caption:
    """One of the nets of ``models/adaptive.py`` and ``models/multi_head.py`` over the trunk of a classifier trained before."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.words = scene_words()
        told = dict(recipe.net)
        weights, encoder = _trunk(recipe)
        self.length = int(told.pop("length"))
        self.config = {
            "architecture": told.pop("architecture"),
            "encoder": {"kind": "resnet", **encoder},
            "decoder": {
                "vocabulary": len(self.words.ids),
                "channels": encoder["hidden_sizes"][-1],
                **told,
            },
            "length": self.length,
            "objects": list(KINDS),
        }
        self.net = own_captioner.build(self.config, f"{recipe.name}: [net]")
        self.learner: nn.Module = self.net
        self.trunk: nn.Module | None = self.net.encoder
        self.net.encoder.load_state_dict(weights)
        self.ignored = self.words.pad
        if recipe.settings.dense:
            # the classifier's trunk forgot the colours: its cells must learn to see them before words can
            self.dense = Dense(encoder["hidden_sizes"][-1], CELL)
            self.learner = nn.ModuleList([self.net, self.dense])

    def learn(self, seen: Pictures, quiet: bool = False) -> None:
        """Take the training pictures and their five captions in."""
        self.pixels = seen.pixels
        if self.recipe.settings.dense:
            self.pixels = torch.cat([seen.pixels, planes_of(seen.scenes, quiet)], 1)
        self.texts = torch.stack(
            [encode(self.words, scene.captions(), self.length) for scene in seen.scenes]
        )  # [N, 5, T]

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """Cross-entropy of the next word, teacher-forced; a flipped picture has left and right swapped in its text."""
        pixels, texts = self._batch(rows, dice, TOGETHER)
        texts = texts.flatten(0, 1)
        texts = texts[:, : int((texts != self.words.pad).sum(1).max())]
        features = self.net.encoder(pictures.normalise(pixels[:, :3]))
        cells = self.net.look(features.repeat_interleave(TOGETHER, 0))
        state, logits = self.net.start(cells.whole), []
        for t in range(texts.shape[1] - 1):
            state, spoken, _ = self.net.step(state, cells, texts[:, t])
            logits.append(spoken)
        loss = nn.functional.cross_entropy(
            torch.stack(logits, 1).flatten(0, 1),
            texts[:, 1:].flatten(),
            ignore_index=self.ignored,
            label_smoothing=self.recipe.settings.smooth,
        )
        if self.recipe.settings.dense:
            tokens = features.flatten(2).transpose(1, 2)
            loss = loss + self.recipe.settings.dense * self.dense(tokens, pixels[:, 3:])
        return loss

    def _batch(self, rows: Tensor, dice: torch.Generator, each: int) -> tuple[Tensor, Tensor]:
        """Pictures, flipped and moved, and ``each`` captions of each [N, each, T]."""
        flip = torch.rand(len(rows), generator=dice) < 0.5
        pixels = pictures.moved(pictures.mirror(self.pixels[rows], flip), self.recipe.settings.shift, dice)
        which = torch.rand(len(rows), self.texts.shape[1], generator=dice).argsort(1)[:, :each]
        texts = self.texts[rows[:, None], which]
        return pixels, torch.where(flip[:, None, None], swap_sides(texts, self.words), texts)

    def batch(self, rows: Tensor, dice: torch.Generator, each: int) -> tuple[Tensor, Tensor]:
        """Feature maps [N, C, h, w], and ``each`` captions of each picture [N, each, T]."""
        pixels, texts = self._batch(rows, dice, each)
        return self.net.encoder(pictures.normalise(pixels[:, :3])), texts

    def progress(self) -> float:
        """CIDEr-D of greedy captions of 500 scenes of the split "val"."""
        return self._figures(self.judged)["cider_d"]

    @cached_property
    def judged(self) -> Pictures:
        return pictures.paint(replace(self.recipe.data, split="val", sample=500), quiet=True)

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        """CIDEr-D on test scenes like those of training, and where the main thing's partner is never there."""
        like = replace(self.recipe.data, split="test", sample=1000)
        home = self._figures(pictures.paint(like, quiet))
        absent = self._figures(pictures.paint(replace(like, partner=0.0), quiet))
        return {
            "cider_d": home["cider_d"],
            "hallucinated": home["hallucinated"],
            "right_main": home["right_main"],
            "right_place": home["right_place"],
            "partner_absent": absent,
            "decoding": "greedy",
            "images": like.sample,
            "bad_at": f"says a partner that is not there in {absent['images_with_absent_partner']:.3f} of the "
            f"scenes without one; of the object words it says there, {absent['hallucinated']:.3f} name nothing "
            f"in the picture; of the places it says, {home['right_place']:.3f} are right",
        }

    def _figures(self, seen: Pictures) -> dict[str, float]:
        """Of the object words said, the share not in the scene; of images, the share with the absent partner said,
        with the main thing said in its colour; of the places said, the share that is right.
        """
        said = self.write(seen)
        scores = cider_d(said, [scene.captions() for scene in seen.scenes])
        words = wrong = partner = main = placed = right = 0
        for text, scene in zip(said, seen.scenes, strict=True):
            there = {thing.kind for thing in scene.things}
            named = [word for word in text.split() if word in KINDS]
            words += len(named)
            wrong += sum(word not in there for word in named)
            mate = PARTNERS[scene.things[0].kind]
            partner += mate in named and mate not in there
            main += f"{scene.things[0].colour} {scene.things[0].kind}" in text
            places = [name for name, phrase in PLACES.items() if phrase in text]
            placed += len(places)
            right += scene.background in places
        return {
            "cider_d": round(sum(scores) / len(scores), 4),
            "hallucinated": round(wrong / max(1, words), 4),
            "images_with_absent_partner": round(partner / len(said), 4),
            "right_main": round(main / len(said), 4),
            "right_place": round(right / max(1, placed), 4),
        }

    def write(self, seen: Pictures) -> list[str]:
        """Greedy captions."""
        self.net.eval()
        texts = []
        with torch.inference_mode():
            for some in pictures.batches(seen.pixels):
                cells = self.net.look(self.net.encoder(pictures.normalise(some)))
                state, word = self.net.start(cells.whole), torch.full((len(some),), self.words.bos)
                said = []
                for _ in range(self.length - 1):
                    state, logits, _ = self.net.step(state, cells, word)
                    word = logits.argmax(1)
                    said.append(word)
                texts += [self._text(row) for row in torch.stack(said, 1).tolist()]
        return texts

    def _text(self, ids: list[int]) -> str:
        end = ids.index(self.words.eos) if self.words.eos in ids else len(ids)
        return " ".join(self.words.text(ids[:end]))

    def save(self, out: Path) -> None:
        """The folder that ``models/own_captioner.py`` reads."""
        own_captioner.save(
            out, self.net, config=self.config, words=self.words.ids, frame=pictures.FRAME, card={}
        )


def _trunk(recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The stem and stages of the ResNet that ``start`` names, and its config, without the head."""
    import transformers

    folder = recipe.folder / "weights" / recipe.start
    if not recipe.start or not (folder / "model.safetensors").is_file():
        raise Refused(
            f"{recipe.name}: start is {recipe.start!r}; {folder} holds no weights; "
            f"type: heatproof train {recipe.start or 'small_cnn'}"
        )
    config = transformers.ResNetConfig.from_pretrained(folder)
    sizes = ("num_channels", "embedding_size", "hidden_sizes", "depths")
    kinds = ("layer_type", "hidden_act", "downsample_in_first_stage")
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("resnet.embedder."):
            weights["0." + name.removeprefix("resnet.embedder.")] = value
        elif name.startswith("resnet.encoder.stages."):
            stage, _, rest = name.removeprefix("resnet.encoder.stages.").partition(".")
            weights[f"{int(stage) + 1}.{rest}"] = value
    return weights, {name: getattr(config, name) for name in sizes + kinds}
