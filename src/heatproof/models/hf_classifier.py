"""Hugging Face image classifiers (ResNet, ViT), from the hub's cache or a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heatproof.contract import Refused
from heatproof.geometry import Frame
from heatproof.models.attention import tell_sites
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier


@dataclass(frozen=True)
class HfClassifier:
    """``name`` is a hub name or a folder with config.json and model.safetensors.

    The image processor's own size, crop and normalisation are used.
    """

    name: str
    revision: str | None = None
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Classifier:
        from transformers import AutoModelForImageClassification

        net = open_net(AutoModelForImageClassification, self.name, self.revision)
        kind = type(net).__name__
        if kind not in STAGES:
            raise Refused(
                f"model {name}: found {kind}, accepted are {', '.join(STAGES)}; "
                "another net needs its stages told once, see docs/models.md"
            )
        if kind.startswith("ViT"):
            tell_sites(net, [net.config], {"image": [b.attention for b in net.vit.layers]})
        labels: dict[str, list[int]] = {}
        for index, text in net.config.id2label.items():
            for label in str(text).split(","):
                labels.setdefault(label.strip(), []).append(int(index))
        return Classifier(
            name,
            net,
            open_frame(self.name, self.revision),
            card=open_card(self.name),
            rows=self.rows,
            device=device,
            stages=STAGES[kind],
            labels={k: tuple(v) for k, v in labels.items()},
        )


def resnet(net: Any) -> list[Stage]:
    """Sites: image.conv 0 = the stem, then the output of every stage."""
    model = net.resnet
    stages = [Stage("image.conv 0", lambda x, _: model.embedder(x))]
    for k, block in enumerate(model.encoder.stages):
        stages.append(_block(f"image.conv {k + 1}", block))
    return [*stages, Stage(None, lambda x, _: net.classifier(model.pooler(x)))]


def vit(net: Any) -> list[Stage]:
    """Sites: image.embed 0, then image.block k = the output of block k, wherever patches still reach the score.

    The head reads the class token alone, so the last block's output is no site.
    """
    model = net.vit
    last = len(model.layers) - 1
    stages = [Stage("image.embed 0", lambda x, _: model.embeddings(x))]
    for k, block in enumerate(model.layers):
        site = f"image.block {k}" if k < last else None
        stages.append(_block(site, block, None))
    return [*stages, Stage(None, lambda x, _: net.classifier(model.layernorm(x)[:, 0]))]


def _block(site: str | None, block: Any, *arguments: Any) -> Stage:
    return Stage(site, lambda x, _: block(x, *arguments))


STAGES: dict[str, Callable[[Any], list[Stage]]] = {
    "ResNetForImageClassification": resnet,
    "ViTForImageClassification": vit,
}


# ---------------------------------------------------------------- opening a folder or a hub name


def open_net(auto: Any, name: str, revision: str | None) -> Any:
    """Weights in float32 from safetensors, every one of them; errors name the model and what does not fit."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would report of missing weights is an error here
    where = "the folder" if Path(name).exists() else "the hub name (no folder of this name is here)"
    try:
        net, found = auto.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # torn files, absent files and no network come as many kinds
        raise Refused(f"model {name!r}: {where} cannot be loaded: {str(error).splitlines()[0]}") from error
    wrong = [
        f"{key} is {list(had)}, the net wants {list(wants)}" for key, had, wants in found["mismatched_keys"]
    ]
    wrong += [f"{key} is missing" for key in sorted(found["missing_keys"])]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Refused(f"model {name!r}: the weights do not fit: {'; '.join(wrong[:3])}{more}")
    return net


def open_frame(name: str, revision: str | None) -> Frame:
    """The image processor's settings as a Frame."""
    from transformers import AutoImageProcessor

    own = Path(name) / "preprocessor_config.json"
    if own.exists():
        settings = json.loads(own.read_text(encoding="utf-8"))
    else:
        settings = AutoImageProcessor.from_pretrained(name, revision=revision).to_dict()
    return frame_of(settings)


def frame_of(settings: dict[str, Any]) -> Frame:
    """A Hugging Face processor's settings -> Frame.

    >>> frame_of({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}).mode
    'crop'
    """
    size = settings.get("size", 224)
    if isinstance(size, dict):
        edge = size.get("shortest_edge") or size["height"]
    else:
        edge = size
    ways = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    common: dict[str, Any] = {
        "mean": tuple(settings.get("image_mean") or (0.5, 0.5, 0.5)),
        "std": tuple(settings.get("image_std") or (0.5, 0.5, 0.5)),
        "scale": settings.get("rescale_factor") or 1 / 255,
        "resample": ways.get(settings.get("resample", 2), "bilinear"),
    }
    cropped = isinstance(size, dict) and "shortest_edge" in size
    if not cropped:
        return Frame(int(edge), "squash", **common)
    crop = settings.get("crop_size")
    if crop is None:  # ConvNeXT-like processors: resize to edge / crop_pct, then crop to edge
        share = settings.get("crop_pct") or 224 / 256
        return Frame(int(edge), "crop", resize=int(edge / share), **common)
    crop = crop["height"] if isinstance(crop, dict) else crop
    return Frame(int(crop), "crop", resize=int(edge), **common)


def open_card(name: str) -> dict[str, Any]:
    """The card that our own recipes leave beside the weights; else just the name."""
    card = Path(name) / "card.json"
    return (
        json.loads(card.read_text(encoding="utf-8"))
        if card.exists()
        else {"source": Path(name).name if Path(name).is_dir() else name}
    )
