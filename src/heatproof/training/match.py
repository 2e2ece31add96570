"""Training a dual encoder on photographs: which caption belongs to which photograph? The trunk is frozen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save as packed
from torch import Tensor, nn

from heatproof import seeds
from heatproof.contract import Refused, Sample
from heatproof.models import mobilenet_clip
from heatproof.records import write_whole
from heatproof.training import pictures
from heatproof.training.recipe import Photographs, Recipe
from heatproof.training.views import CAPTIONS, both_ways, kept, photographs, texts_of, vocabulary
from heatproof.training.vocabulary import SPECIAL, encode, swap_sides

LEAST = 4  # times that a word stands in the captions, to be one of the vocabulary
KEPT = 18  # blocks of the trunk whose output is kept; the last one widens it fourfold and is run each time
SIDE = 224
COLOURS = ("black", "white", "red", "blue", "green", "yellow", "brown", "orange", "pink", "purple")


class Match:
    """A small transformer on a frozen MobileNetV2, and a small text transformer (``models/mobilenet_clip.py``)."""

    def __init__(self, recipe: Recipe) -> None:
        if not isinstance(recipe.data, Photographs):
            raise Refused(f"{recipe.name}: [data] must name photographs")
        self.recipe, self.data = recipe, recipe.data
        self.trunk: nn.Module | None = None  # none that learns
        self.seen = self.photographs("train")[: self.data.sample]
        self.words = vocabulary((text for sample in self.seen for text in sample.captions), LEAST)
        told = {name: dict(value) if isinstance(value, dict) else value for name, value in recipe.net.items()}
        told["text_config"].update(
            vocab_size=len(self.words.ids),
            bos_token_id=self.words.bos,
            eos_token_id=self.words.eos,
            pad_token_id=self.words.pad,
        )
        told["vision_config"].update(image_size=SIDE, patch_size=32)
        for tower in ("text_config", "vision_config"):
            told[tower]["projection_dim"] = told["projection_dim"]
        torch.manual_seed(recipe.seed)
        self.net = mobilenet_clip.build(told)
        self.learner: nn.Module = self.net
        self.length = int(told["text_config"]["max_position_embeddings"])
        self.eyes: Any = mobilenet_clip.trunk(self.data.folder, recipe.name)

    # ------------------------------------------------------------------ what is learnt from

    def photographs(self, split: str) -> Sequence[Sample]:
        """A split of the recipe's data set, which must have five captions a photograph."""
        return photographs(self.recipe, split)

    def look(self, path: Path, quiet: bool = False) -> Tensor:
        """float16 [2, N, 320, 7, 7]: what the trunk makes of each photograph and its mirror image; read where kept."""
        return kept(path, self.eyes, self.seen, lambda: self._views(self.seen, quiet))

    def _views(self, samples: Sequence[Sample], quiet: bool) -> Tensor:
        return both_ways(self.eyes[:KEPT], samples, pixels_of, quiet)

    def learn(self, seen: Tensor, quiet: bool = False) -> None:
        """Take the views and the photographs' captions in."""
        self.views = seen
        self._read(self.seen)

    def _read(self, samples: Sequence[Sample]) -> None:
        self.texts = texts_of(samples, self.words, self.length, self.recipe.name)  # [N, 5, T]

    # ------------------------------------------------------------------ the loss

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """The symmetric contrastive loss of a batch, mean over ``texts`` of each photograph's captions.

        A mirrored photograph has left and right swapped in its text; some cells and words are hidden.
        """
        settings = self.recipe.settings
        flip = torch.rand(len(rows), generator=dice) < 0.5
        views = self.views[flip.long(), rows].flatten(2).transpose(1, 2)  # [N, 49, 320]
        cells = views.shape[1]
        keep = max(1, round(cells * (1 - settings.hidden)))
        some = torch.rand(views.shape[:2], generator=dice).argsort(1)[:, :keep].sort(1).values
        images = self._image(views.gather(1, some[..., None].expand(-1, -1, views.shape[2])).float(), some)
        which = torch.rand(len(rows), CAPTIONS, generator=dice).argsort(1)[:, : settings.texts]
        texts = self.texts[rows[:, None], which].transpose(0, 1).flatten(0, 1)  # [texts * N, T]
        texts = torch.where(flip.repeat(settings.texts)[:, None], swap_sides(texts, self.words), texts)
        lost = (torch.rand(texts.shape, generator=dice) < settings.unknown) & (texts >= len(SPECIAL))
        found = self._text(torch.where(lost, self.words.unknown, texts))
        scale = self.net.logit_scale.exp().clamp(max=100)
        here = torch.arange(len(rows))
        losses = []
        for each in found.split(len(rows)):
            like = scale * images @ each.T
            losses += [F.cross_entropy(way, here, label_smoothing=settings.smooth) for way in (like, like.T)]
        return torch.stack(losses).mean()

    def _image(self, views: Tensor, cells: Tensor | None = None) -> Tensor:
        """Views [N, P, 320] of the cells of those numbers (None: of all) -> unit embeddings [N, D]."""
        vision = self.net.vision_model
        place = vision.embeddings
        with torch.no_grad():  # the trunk's last block is 1 x 1: cell by cell
            wide = self.eyes[KEPT](views.transpose(1, 2)[..., None]).squeeze(3).transpose(1, 2)
        at = place.position_embedding
        own = at[1:] if cells is None else at[1:][cells]
        x = place.project(self._drop(wide)) + own
        x = torch.cat([(place.class_embedding + at[0]).expand(len(x), 1, -1), x], 1)
        x = vision.pre_layrnorm(x)
        for block in vision.encoder.layers:
            x = block(x, None)
        return F.normalize(self.net.visual_projection(self._drop(vision.post_layernorm(x[:, 0]))), dim=-1)

    def _text(self, ids: Tensor) -> Tensor:
        """Padded ids [N, T] -> unit embeddings [N, D]."""
        text = self.net.text_model
        ends = (ids == self.words.eos).int().argmax(1)
        ids = ids[:, : int(ends.max()) + 1]
        x = self._drop(text.embeddings(input_ids=ids))
        lowest = torch.finfo(x.dtype).min
        mask = torch.full((ids.shape[1],) * 2, lowest).triu(1)[None, None]
        for block in text.encoder.layers:
            x = block(x, mask)
        x = text.final_layer_norm(x[torch.arange(len(x)), ends])
        return F.normalize(self.net.text_projection(self._drop(x)), dim=-1)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.recipe.settings.dropout, self.net.training)

    # ------------------------------------------------------------------ what it is worth

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        """Recall at 1, 5 and 10 among all photographs and all captions of the split "test", and where it is weak."""
        samples = self.photographs("test")
        self._read(samples)
        self.net.eval()
        with torch.inference_mode():
            seen = [
                self._image(self.eyes[:KEPT](pixels_of(some)).flatten(2).transpose(1, 2))
                for some in track(
                    [samples[k : k + 50] for k in range(0, len(samples), 50)], "judging", disable=quiet
                )
            ]
            images = torch.cat(seen)
            texts = self._all(self.texts.flatten(0, 1)).unflatten(0, (len(samples), CAPTIONS))
            to_text, to_image = recall(images, texts)
            right = (images[:, None] * texts).sum(-1)  # [N, 5]
            colour, order = (self._tricked(images, right, samples, trick) for trick in (recoloured, shuffled))
        return {
            "source": "heads trained by heatproof on Flickr8k; the trunk is a MobileNetV2 that is not shipped",
            "licence": "Apache-2.0; learnt from Flickr8k, whose terms are non-commercial research and education",
            "recall_at_1": to_text[0],
            "image_to_text": dict(zip(("1", "5", "10"), to_text, strict=True)),
            "text_to_image": dict(zip(("1", "5", "10"), to_image, strict=True)),
            "prefers_truth_over_recoloured": colour,
            "prefers_truth_over_shuffled": order,
            "images": len(samples),
            "captions": CAPTIONS * len(samples),
            "words": len(self.words.ids),
            "bad_at": f"colour and word order: the true caption beats the one with other colours in {colour:.3f} of "
            f"the captions that name one, the one with its words shuffled in {order:.3f} (chance 0.5); "
            f"{to_image[0]:.3f} of the captions find their photograph first among {len(samples)}",
        }

    def _tricked(self, images: Tensor, right: Tensor, samples: Sequence[Sample], trick: Any) -> float:
        """Share of the first captions, of those that the trick changes, which fit better than the changed ones."""
        false = [trick(sample.captions[0], sample.id) for sample in samples]
        said = self._all(encode(self.words, false, self.length))
        ids = encode(self.words, [sample.captions[0] for sample in samples], self.length)
        changed = (encode(self.words, false, self.length) != ids).any(1)
        return round((right[:, 0] > (images * said).sum(1))[changed].float().mean().item(), 4)

    def _all(self, ids: Tensor) -> Tensor:
        return torch.cat([self._text(some) for some in pictures.batches(ids, 200)])

    def save(self, out: Path) -> None:
        """config.json, model.safetensors without the trunk, preprocessor_config.json and words.json."""
        config = self.net.config.to_diff_dict() | {"architectures": [mobilenet_clip.KIND]}
        feed = {
            "size": {"height": SIDE, "width": SIDE},
            "resample": 2,
            "image_mean": list(pictures.FRAME.mean),
            "image_std": list(pictures.FRAME.std),
        }
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        write_whole(out / "model.safetensors", packed(weights))
        for name, page in (
            ("config", config),
            ("preprocessor_config", feed),
            ("words", self.words.ids),
        ):
            write_whole(out / f"{name}.json", json.dumps(page, indent=1) + "\n")


def pixels_of(samples: Sequence[Sample]) -> Tensor:
    """Photographs that are 224 pixels a side already, or squashed to it, as the trunk wants them."""
    from heatproof.geometry import Frame

    frame = Frame(SIDE, "squash")
    seen = torch.stack([frame.image(sample.read()) for sample in samples])
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    return seen.contiguous(**layout)


def recall(images: Tensor, texts: Tensor, ats: Sequence[int] = (1, 5, 10)) -> tuple[list[float], list[float]]:
    """Unit embeddings [N, D] and [N, K, D] -> recall at each of ``ats``, image to text and text to image.

    An image is right at k where one of its own K texts is among the k best of all N K; a text where its image is among
    the k best of all N. What ties with the right one counts as better, so that a constant gets nothing.

    >>> recall(torch.eye(2), torch.eye(2)[:, None], (1, 2))
    ([1.0, 1.0], [1.0, 1.0])
    """
    like = images @ texts.flatten(0, 1).T  # [N, N K]
    k, here = texts.shape[1], torch.arange(len(images))
    own = torch.zeros_like(like, dtype=torch.bool)
    own[here[:, None], here[:, None] * k + torch.arange(k)] = True
    best = like.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    before = ((like >= best) & ~own).sum(1)
    mine = like[own]  # [N K]: each text with its image
    ahead = (like >= mine[None]).sum(0) - 1
    return (
        [round((before < at).float().mean().item(), 4) for at in ats],
        [round((ahead < at).float().mean().item(), 4) for at in ats],
    )


def recoloured(caption: str, who: str) -> str:
    """Every colour word made the next of ``COLOURS``; left and right as they are."""
    follow = dict(zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True))
    return " ".join(follow.get(word, word) for word in caption.lower().split())


def shuffled(caption: str, who: str) -> str:
    """The words in a random order of this photograph's own."""
    said = caption.lower().split()
    order = torch.randperm(len(said), generator=seeds.generator(0, "shuffled", who)).tolist()
    return " ".join(said[k] for k in order)
