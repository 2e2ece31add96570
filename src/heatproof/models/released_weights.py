"""Checkpoints of Sun et al.'s released code: what net their names and shapes tell, and its weights."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from heatproof.contract import Refused
from heatproof.errors import listed
from heatproof.models.captioner_nets import CaptionNet

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "weights")
EXCHANGED = {"decoder_k_proj": "value", "decoder_v_proj": "key"}


def _table(*_: object) -> dict[Any, Any]:
    """In place of a defaultdict, which torch fills with nothing."""
    return {}


class Unread:
    """In place of what a checkpoint holds beside weights: their optimiser as an object, their scores as numpy's."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


UNREAD = (
    *(f"torch.optim.{kind}" for kind in ("adam.Adam", "adamw.AdamW", "sgd.SGD")),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)


def read(file: Path, name: str) -> dict[str, Tensor]:
    """A checkpoint's weights by name, without "module."; only tensors are unpickled, nothing in it is run."""
    if not file.is_file():
        raise Refused(f"model {name}: there is no file {file}")
    passed: list[Any] = [dict, (_table, "collections.defaultdict"), *((Unread, unread) for unread in UNREAD)]
    try:
        with safe_globals(passed):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise Refused(f"model {name}: {file} cannot be read: {str(error).splitlines()[0]}") from error
    for holder in HOLDERS:
        if isinstance(held, Mapping) and isinstance(held.get(holder), Mapping):
            held = held[holder]
            break
    weights = held if isinstance(held, Mapping) else {}
    found = {str(k).removeprefix("module."): v for k, v in weights.items() if isinstance(v, Tensor)}
    if not found:
        raise Refused(
            f"model {name}: {file} holds no weights; accepted are a dict of tensors, or one under {', '.join(HOLDERS)}"
        )
    return found


def recognise(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The config that ``own_captioner.build`` takes, without what shapes do not tell."""

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise Refused(f"{where} has no {key}; {_nearest(key, weights)}")
        return weights[key].shape

    adaptive = any(key.startswith("AdaLSTM.") for key in weights)
    vocabulary, embed = shape("embedding.weight")
    projector = shape("img_projector.weight")
    sizes = {"vocabulary": vocabulary, "embed": embed, "hidden": projector[0], "channels": projector[1]}
    if adaptive:
        sizes["cells"] = shape("AdaAttention.W_v_proj.weight")[0]
        speaks = any(key.startswith("LanguageLSTM.") for key in weights)
        architecture = "adaptive" if speaks else "single"
    else:
        shape("decoder_k_proj.weight")
        architecture = "multi_head"
    encoder = {"kind": "regions"} if len(projector) == 2 else _vgg(weights, where)
    return {"architecture": architecture, "encoder": encoder, "decoder": sizes}


def _vgg(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Stages from the numbers of convolutions: two apart within a stage (a ReLU between), three where a maximum is taken too."""
    prefix = "img_encoder.encoder."
    names = [key.removeprefix(prefix).removesuffix(".weight") for key in weights if key.startswith(prefix)]
    places = sorted({int(n) for n in names if n.isdigit()})
    gaps = [b - a for a, b in pairwise(places)]
    others = [n for n in names if not n.removesuffix(".bias").isdigit()]
    if not places or places[0] or others or set(gaps) - {2, 3}:
        what = f"has {prefix}{others[0]}" if others else f"numbers its layers {places}"
        raise Refused(
            f"{where}: its encoder {what}; accepted is a VGG without batch norm, as torchvision numbers it"
        )
    stages: list[list[int]] = [[]]
    for place, gap in zip(places, [2, *gaps], strict=True):
        if gap == 3:
            stages.append([])
        stages[-1].append(weights[f"{prefix}{place}.weight"].shape[0])
    if any(len(set(stage)) > 1 for stage in stages):
        raise Refused(f"{where}: its encoder changes channels within a stage: {stages}; accepted is a VGG")
    return {"kind": "vgg", "channels": [s[0] for s in stages], "convolutions": [len(s) for s in stages]}


def fill(net: CaptionNet, weights: Mapping[str, Tensor], where: str, *, exchanged: bool = False) -> None:
    """Load them all; raises Refused, naming keys that are missing or too many, and what they are near to."""
    names = net.released() | (EXCHANGED if exchanged and "decoder_k_proj" in net.RELEASED else {})
    there = {here: old for old, here in names.items()}
    wanted = {".".join([there[k.rpartition(".")[0]], k.rpartition(".")[2]]) for k in net.state_dict()}
    missing, strange = sorted(wanted - set(weights)), sorted(set(weights) - wanted)
    if missing or strange:
        parts = [f"has no {listed(missing)}"] if missing else []
        parts += [f"has {listed(strange)} besides"] if strange else []
        near = _nearest(strange[0], missing or wanted) if strange else _nearest(missing[0], weights)
        raise Refused(f"{where} {' and '.join(parts)}; {near}")
    try:
        net.load_released(weights, names)
    except RuntimeError as error:
        raise Refused(f"{where}: {' '.join(str(error).split())}") from error


def _nearest(key: str, there: Any) -> str:
    near = difflib.get_close_matches(key, sorted(there), n=2, cutoff=0.5)
    return f"nearest to {key}: {', '.join(near)}" if near else f"nothing there is near to {key}"
