"""Training a classifier: which kind is the largest thing?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.contract import Refused
from heatproof.models.words import WordList
from heatproof.records import write_whole
from heatproof.scenery import KINDS
from heatproof.training import pictures
from heatproof.training.dense import Dense, planes_of
from heatproof.training.pictures import Pictures
from heatproof.training.recipe import Data, Recipe


class Classify:
    """A ``transformers`` image classifier of the class that ``[net] class`` names."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.trunk: nn.Module | None = None
        self.net = build(recipe.net)
        self.learner: nn.Module = self.net
        if recipe.settings.dense:
            self.dense = Dense(self.net.config.hidden_size, self.net.config.patch_size)
            self.learner = nn.ModuleList([self.net, self.dense])

    def learn(self, seen: Pictures, quiet: bool = False) -> None:
        """Take the training pictures in."""
        self.labels = torch.tensor([KINDS.index(label) for label in seen.labels])
        self.pixels = seen.pixels
        if self.recipe.settings.dense:
            self.pixels = torch.cat([seen.pixels, planes_of(seen.scenes, quiet)], 1)

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """Cross-entropy of a batch, flipped and shifted."""
        settings = self.recipe.settings
        pixels = self.pixels[rows]
        pixels = pictures.mirror(pixels, torch.rand(len(rows), generator=dice) < 0.5)
        pixels = pictures.moved(pixels, settings.shift, dice)
        found = self.net(pictures.normalise(pixels[:, :3]), output_hidden_states=bool(settings.dense))
        label = self.labels[rows]
        loss = nn.functional.cross_entropy(found.logits, label, label_smoothing=settings.smooth)
        if settings.dense:
            tokens = found.hidden_states[-1][:, 1:]
            loss = loss + settings.dense * self.dense(tokens, pixels[:, 3:])
        return loss

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        """Accuracy on the test split: as trained, by class, and where it is weak."""
        test = Data(sample=2000, split="test")
        seen = pictures.paint(test, quiet)
        right = self._right(seen)
        labels = seen.labels
        by_class = {
            kind: sum(r for r, k in zip(right, labels, strict=True) if k == kind) / labels.count(kind)
            for kind in KINDS
        }
        hard = replace(test, sample=500)
        worst = min(by_class, key=lambda kind: by_class[kind])
        small = self._share(replace(hard, size=0.6), quiet)
        crowded = self._share(replace(hard, clutter=6), quiet)
        return {
            "accuracy": round(sum(right) / len(right), 4),
            "by_class": {kind: round(share, 4) for kind, share in by_class.items()},
            "small": small,
            "crowded": crowded,
            "images": test.sample,
            "bad_at": f"everything drawn at 0.6 of the size: accuracy {small:.3f}; up to six other things: "
            f"{crowded:.3f}; its worst kind, {worst}: {by_class[worst]:.3f}",
        }

    def save(self, out: Path) -> None:
        """A folder that ``AutoModelForImageClassification`` opens."""
        save_net(self.net, out)

    def _share(self, data: Data, quiet: bool) -> float:
        right = self._right(pictures.paint(data, quiet))
        return sum(right) / len(right)

    def _right(self, seen: Pictures) -> list[bool]:
        self.net.eval()
        found: list[int] = []
        with torch.inference_mode():
            for some in pictures.batches(seen.pixels):
                found += self.net(pictures.normalise(some)).logits.argmax(-1).tolist()
        return [KINDS[i] == label for i, label in zip(found, seen.labels, strict=True)]


def save_net(net: Any, out: Path, words: WordList | None = None) -> None:
    """The net's own files, how to feed it, and its words: a folder that Hugging Face's loaders open."""
    net.eval()
    net.save_pretrained(out)
    feed = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": pictures.FRAME.size, "width": pictures.FRAME.size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": pictures.FRAME.scale,
        "do_normalize": True,
        "image_mean": list(pictures.FRAME.mean),
        "image_std": list(pictures.FRAME.std),
    }
    write_whole(out / "preprocessor_config.json", json.dumps(feed, indent=1) + "\n")
    if words is not None:
        write_whole(out / "words.json", json.dumps(words.ids, indent=1) + "\n")


def build(told: Mapping[str, Any]) -> Any:
    """A net of random weights from the recipe's ``[net]`` table."""
    import transformers

    settings = dict(told)
    kind = settings.pop("class", None)
    configs = {"ResNetForImageClassification": "ResNetConfig", "ViTForImageClassification": "ViTConfig"}
    if kind not in configs:
        raise Refused(f"recipe: [net] class is {kind!r}; accepted are {', '.join(configs)}")
    names = dict(enumerate(KINDS))
    config = getattr(transformers, configs[kind])(
        **settings, id2label=names, label2id={name: i for i, name in names.items()}
    )
    return getattr(transformers, kind)(config)
