"""The project's own captioners: a folder with config.json, words.json, model.safetensors and a card.

``config.json`` is the whole net and what the captioner is asked about::

    {"architecture": "adaptive",                      # or "multi_head", or "single": adaptive without a second LSTM
     "encoder": {"kind": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64], ...},
     "decoder": {"embed": 64, "hidden": 64, "cells": 49, "channels": 64, "vocabulary": 80},
     "length": 16,                                    # longest caption, <start> included
     "objects": ["ball", "boat"]}                     # the names it knows as objects

``encoder`` holds a ``transformers`` ResNetConfig's fields, or ``{"kind": "vgg", "channels", "convolutions"}``, or just the
kind of a frozen trunk, "squeezenet", "mobilenet" or "vgg16" (``models/trunks.py``): then model.safetensors is without it,
and it is read from the data folder. With ``{"kind": "regions"}`` the net reads region features in place of pixels
(``models/regions.py``), [36, 2048] unless preprocessor_config.json has other ``"regions": {"count", "width"}``. Weights may be float16; the net computes in float32 with what they say.
``words.json`` maps words to ids, <pad>, <unk>, <start> and <end> among them; ``preprocessor_config.json`` is the
image geometry in the form of Hugging Face's processors, ``do_flip_channel_order`` for BGR.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from heatproof.contract import Refused
from heatproof.errors import unknown
from heatproof.geometry import Frame
from heatproof.models.adaptive import AdaptiveCaptioner, AdaptiveConfig, SingleCaptioner
from heatproof.models.captioner import Captioner
from heatproof.models.captioner_nets import CaptionNet
from heatproof.models.encoders import resnet_trunk, vgg
from heatproof.models.hf_classifier import frame_of
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig
from heatproof.models.region_captioners import (
    RegionAdaptive,
    RegionAdaptiveConfig,
    RegionMultiHead,
    RegionMultiHeadConfig,
)
from heatproof.models.regions import Regions
from heatproof.models.trunks import TRUNKS
from heatproof.models.words import WordList
from heatproof.models.writing import Writing
from heatproof.records import write_whole

FILES = ("config.json", "words.json", "preprocessor_config.json", "model.safetensors", "card.json")
NETS: dict[str, Callable[..., CaptionNet]] = {
    "adaptive": lambda encoder, sizes: AdaptiveCaptioner(encoder, AdaptiveConfig(**sizes)),
    "multi_head": lambda encoder, sizes: MultiHeadCaptioner(encoder, MultiHeadConfig(**sizes)),
    "single": lambda encoder, sizes: SingleCaptioner(encoder, AdaptiveConfig(**sizes)),
}
OVER_REGIONS: dict[str, Callable[..., CaptionNet]] = {
    "adaptive": lambda encoder, sizes: RegionAdaptive(encoder, RegionAdaptiveConfig(**sizes)),
    "multi_head": lambda encoder, sizes: RegionMultiHead(encoder, RegionMultiHeadConfig(**sizes)),
}
ENCODERS: dict[str, Callable[..., nn.Sequential]] = {
    "resnet": lambda **sizes: resnet_trunk(sizes),
    "vgg": vgg,
    "regions": nn.Sequential,
    **{kind: trunk.fresh for kind, trunk in TRUNKS.items()},
}


@dataclass(frozen=True)
class OwnCaptioner(Writing):
    """``name`` is the folder; how it writes is told in ``models/writing.py``.

    ``folder`` has the weights of a trunk that is not shipped (the data folder, as for ``imagenet``), ``regions`` the region
    features of a net that reads these.
    """

    name: str
    rows: int = 8
    folder: str = ""
    regions: str = ""

    def load(self, name: str, device: str = "cpu") -> Captioner:
        """The captioner; raises Refused where a file is missing or does not fit."""
        from safetensors.torch import load_file

        folder = Path(self.name)
        missing = [file for file in FILES if not (folder / file).is_file()]
        if missing:
            raise Refused(
                f"model {name}: {folder} has no {', '.join(missing)}; "
                f"a captioner's folder has {', '.join(FILES)}"
            )
        config = _read(folder / "config.json")
        words = WordList(_read(folder / "words.json"))
        net = build(config, str(folder / "config.json"))
        kind = config["encoder"].get("kind")
        trunk = TRUNKS.get(kind)
        frozen = trunk.read(self.folder, name).state_dict() if trunk else {}
        own = {f"encoder.{key}": value for key, value in frozen.items()}
        try:
            net.load_state_dict({**own, **load_file(folder / "model.safetensors")})
        except Exception as error:  # torn files and wrong shapes come as several kinds
            why = " ".join(str(error).split())
            raise Refused(f"model {name}: {folder / 'model.safetensors'}: {why}") from error
        return Captioner(
            name,
            net,
            self._frame(_read(folder / "preprocessor_config.json"), regions=kind == "regions"),
            card=_read(folder / "card.json"),
            rows=self.rows,
            device=device,
            words=words,
            objects=tuple(config["objects"]),
            length=config["length"],
            **self.writing(name, net),
        )

    def _frame(self, page: dict[str, Any], *, regions: bool) -> Frame:
        if regions:
            return Regions(folder=self.regions, **page.get("regions", {}))
        return replace(frame_of(page), channels="bgr" if page.get("do_flip_channel_order") else "rgb")


def build(config: Mapping[str, Any], where: str = "config") -> CaptionNet:
    """The net that a config tells, with fresh weights.

    >>> encoder = {"kind": "vgg", "channels": [4, 6], "convolutions": [1, 1]}
    >>> sizes = {"vocabulary": 9, "channels": 6, "embed": 4, "hidden": 8, "heads": 2}
    >>> type(build({"architecture": "multi_head", "encoder": encoder, "decoder": sizes})).__name__
    'MultiHeadCaptioner'
    """
    absent = [key for key in ("architecture", "encoder", "decoder") if key not in config]
    if absent:
        raise Refused(f"{where}: {', '.join(absent)} missing")
    sizes = dict(config["encoder"])
    kind, architecture = sizes.pop("kind", "resnet"), config["architecture"]
    nets = OVER_REGIONS if kind == "regions" else NETS
    if architecture not in nets:
        raise unknown(f"{where}: architecture", "captioner", architecture, nets)
    if kind not in ENCODERS:
        raise unknown(f"{where}: encoder.kind", "encoder", kind, ENCODERS)
    try:
        return nets[architecture](ENCODERS[kind](**sizes), dict(config["decoder"]))
    except (TypeError, ValueError) as error:
        raise Refused(f"{where}: {error}") from error


def save(
    folder: Path,
    net: CaptionNet,
    *,
    config: Mapping[str, Any],
    words: Mapping[str, int],
    frame: Frame,
    card: Mapping[str, Any],
) -> None:
    """Write the folder that ``OwnCaptioner`` reads, without a frozen trunk; each file whole or not at all."""
    from safetensors.torch import save as packed

    left_out = "encoder." if config["encoder"].get("kind") in TRUNKS else ()
    weights = {
        k: v.detach().cpu().contiguous() for k, v in net.state_dict().items() if not k.startswith(left_out)
    }
    pages = {
        "config.json": config,
        "words.json": words,
        "preprocessor_config.json": {"regions": {"count": frame.count, "width": frame.width}}
        if isinstance(frame, Regions)
        else {
            "size": {"height": frame.size, "width": frame.size},
            "image_mean": list(frame.mean),
            "image_std": list(frame.std),
            "rescale_factor": frame.scale,
            **({"do_flip_channel_order": True} if frame.channels == "bgr" else {}),
            "resample": {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[frame.resample],
        },
        "card.json": card,
    }
    write_whole(folder / "model.safetensors", packed(weights))
    for name, page in pages.items():
        write_whole(folder / name, json.dumps(page, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
