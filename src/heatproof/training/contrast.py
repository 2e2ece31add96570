"""Training a small CLIP: which caption belongs to which picture?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.models.words import WordList
from heatproof.scenery import Scene
from heatproof.training import pictures
from heatproof.training.classify import save_net
from heatproof.training.dense import Dense, planes_of
from heatproof.training.pictures import Pictures
from heatproof.training.recipe import Data, Recipe
from heatproof.training.vocabulary import encode, scene_words, swap_sides


class Contrast:
    """A ``transformers`` CLIPModel with a vocabulary of the scenes' own words."""

    def __init__(self, recipe: Recipe) -> None:
        from transformers import CLIPConfig, CLIPModel

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.trunk: nn.Module | None = None
        self.words: WordList = scene_words()
        told = {name: dict(value) if isinstance(value, dict) else value for name, value in recipe.net.items()}
        told["text_config"].update(
            vocab_size=len(self.words.ids),
            bos_token_id=self.words.bos,
            eos_token_id=self.words.eos,
            pad_token_id=self.words.pad,
        )
        for tower in ("text_config", "vision_config"):
            told[tower]["projection_dim"] = told["projection_dim"]
        self.net = CLIPModel(CLIPConfig(**told))
        self.learner: nn.Module = self.net
        if recipe.settings.dense:
            tower = self.net.config.vision_config
            self.dense = Dense(tower.hidden_size, tower.patch_size)
            self.learner = nn.ModuleList([self.net, self.dense])
        self.length = int(told["text_config"]["max_position_embeddings"])

    def learn(self, seen: Pictures, quiet: bool = False) -> None:
        """Take the training pictures and their five captions in."""
        self.pixels = seen.pixels
        if self.recipe.settings.dense:
            self.pixels = torch.cat([seen.pixels, planes_of(seen.scenes, quiet)], 1)
        self._read(seen)

    def _read(self, seen: Pictures) -> None:
        self.texts = torch.stack(
            [encode(self.words, scene.captions(), self.length) for scene in seen.scenes]
        )  # [N, 5, T]

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """The symmetric contrastive loss of a batch; a flipped picture has left and right swapped in its text."""
        flip = torch.rand(len(rows), generator=dice) < 0.5
        pixels = pictures.moved(pictures.mirror(self.pixels[rows], flip), self.recipe.settings.shift, dice)
        which = torch.randint(0, self.texts.shape[1], (len(rows),), generator=dice)
        texts = self.texts[rows, which]
        texts = torch.where(flip[:, None], swap_sides(texts, self.words), texts)
        texts = texts[:, : int((texts != self.words.pad).sum(1).max())]
        dense = self.recipe.settings.dense
        found = self.net(input_ids=texts, pixel_values=pictures.normalise(pixels[:, :3]))
        here = torch.arange(len(rows))
        image, text = found.logits_per_image, found.logits_per_text
        entropy = nn.functional.cross_entropy
        loss = (entropy(image, here) + entropy(text, here)) / 2
        if dense:
            tokens = found.vision_model_output.last_hidden_state[:, 1:]
            loss = loss + dense * self.dense(tokens, pixels[:, 3:])
        return loss

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        """Recall at 1 among 100 scenes, mean over ten hundreds of the test split; caption 0, and by caption."""
        seen = pictures.paint(Data(sample=1000, split="test"), quiet)
        self._read(seen)
        self.net.eval()
        with torch.inference_mode():
            images = torch.cat([self._image(some) for some in pictures.batches(seen.pixels)])
            texts = [self._texts(self.texts[:, caption]) for caption in range(self.texts.shape[1])]
            found = [_recall(images, text, self.texts[:, k]) for k, text in enumerate(texts)]
            pairs = [scene for scene in seen.scenes if len(scene.things) > 1]
            rows = torch.tensor([len(scene.things) > 1 for scene in seen.scenes])
            right = (images * texts[0]).sum(1)[rows]
            tricked = {}
            for name, trick in (
                ("places", _trade_places),
                ("colours", _trade_colours),
                ("kinds", _trade_kinds),
            ):
                false = [trick(scene).captions()[0] for scene in pairs]
                like = (images[rows] * self._texts(encode(self.words, false, self.length))).sum(1)
                # a trade that changes no word of the caption says nothing
                same = [f == scene.captions()[0] for f, scene in zip(false, pairs, strict=True)]
                tricked[name] = round((right > like)[~torch.tensor(same)].float().mean().item(), 4)
        worst = min(range(len(found)), key=lambda caption: found[caption][0])
        return {
            "recall_at_1": found[0][0],
            "text_to_image_recall_at_1": found[0][1],
            "by_caption": [to_text for to_text, _ in found],
            "prefers_truth_over_traded": tricked,
            "images": len(seen),
            "bad_at": "order and shape: the true caption beats the one where the two things trade their "
            f"places in {tricked['places']:.3f} of scenes, their colours in {tricked['colours']:.3f}, "
            f"their kinds in {tricked['kinds']:.3f} (chance 0.5); "
            f"captions of form {worst}: recall {found[worst][0]:.3f}",
        }

    def save(self, out: Path) -> None:
        """A folder that ``CLIPModel`` opens, and the vocabulary in words.json."""
        save_net(self.net, out, self.words)

    def _image(self, pixels: Tensor) -> Tensor:
        found = self.net.vision_model(pixel_values=pictures.normalise(pixels)).pooler_output
        return nn.functional.normalize(self.net.visual_projection(found), dim=-1)

    def _texts(self, ids: Tensor) -> Tensor:
        parts = [self.net.text_model(input_ids=some).pooler_output for some in pictures.batches(ids)]
        return nn.functional.normalize(self.net.text_projection(torch.cat(parts)), dim=-1)


def _trade_places(scene: Scene) -> Scene:
    """The main thing and the one named beside it, each where the other was."""
    main, other, *rest = scene.things
    places = replace(main, x=other.x, y=other.y), replace(other, x=main.x, y=main.y)
    return replace(scene, things=(*places, *rest))


def _trade_colours(scene: Scene) -> Scene:
    main, other = scene.things[:2]
    return scene.recolour(0, other.colour).recolour(1, main.colour)


def _trade_kinds(scene: Scene) -> Scene:
    main, other, *rest = scene.things
    kinds = replace(main, kind=other.kind), replace(other, kind=main.kind)
    return replace(scene, things=(*kinds, *rest))


def _recall(images: Tensor, texts: Tensor, ids: Tensor, among: int = 100) -> tuple[float, float]:
    """Share of images whose best caption is theirs, and of captions whose best image is; equal sentences count."""
    hits = torch.zeros(2)
    for start in range(0, len(images), among):
        some = slice(start, start + among)
        like = images[some] @ texts[some].T
        said = ids[some]
        mine = (said[like.argmax(1)] == said).all(1)
        hits += torch.stack([mine.sum(), (like.argmax(0) == torch.arange(len(said))).sum()])
    return round(hits[0].item() / len(images), 4), round(hits[1].item() / len(images), 4)
