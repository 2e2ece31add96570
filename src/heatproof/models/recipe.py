"""A model that this project trained itself, by the name of its recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from heatproof.contract import Refused
from heatproof.models.base import Model


@dataclass(frozen=True)
class Recipe:
    """``recipes/NAME.toml`` with its weights in ``recipes/weights/NAME``.

    ``folder`` has what a net needs and the house does not ship (the data folder, as for ``imagenet``).
    """

    name: str
    file: str
    rows: int = 8
    folder: str = ""

    def load(self, name: str, device: str = "cpu") -> Model:
        folder = Path(self.file).parent / "weights" / self.name
        config = folder / "config.json"
        if not config.exists():
            raise Refused(f"model {self.name}: {folder} holds no weights; type: heatproof train {self.name}")
        kind = (json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["captioner"])[0]
        if kind == "CLIPModel":
            from heatproof.models.hf_clip import HfClip

            return HfClip(str(folder), rows=self.rows).load(name, device)
        if kind == "MobileNetClip":
            from heatproof.models.mobilenet_clip import MobileNetClip

            return MobileNetClip(str(folder), self.folder, rows=self.rows).load(name, device)
        if kind.endswith("ForImageClassification"):
            from heatproof.models.hf_classifier import HfClassifier

            return HfClassifier(str(folder), rows=self.rows).load(name, device)
        from heatproof.models.own_captioner import OwnCaptioner

        return OwnCaptioner(str(folder), rows=self.rows, folder=self.folder).load(name, device)
