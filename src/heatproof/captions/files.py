"""The bytes of files that a score is computed with, as a part of its key."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

# what a model's folder is read from; the rest of it moves no number
KINDS = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth", ".npz")
PIECE = 1 << 24


def digest(paths: Iterable[Path]) -> str:
    """A hash of files by name and bytes; of a folder, of the files in it that a model is read from (``KINDS``)."""
    seal = blake2b(digest_size=16)
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in KINDS) if path.is_dir() else [path]
        for file in inside:
            seal.update(file.name.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
            with file.open("rb") as stream:
                while piece := stream.read(PIECE):
                    seal.update(piece)
    return seal.hexdigest()
