"""The working store: one SQLite file, one writer, every entry under the key of its content (law 8).

Readers in other processes see whole transactions only, so a kill at any moment loses at most the chunk in
flight (law 9).
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heatproof.contract import Explanation, Refused

SCHEMA = """
CREATE TABLE IF NOT EXISTS maps (key TEXT PRIMARY KEY, map BLOB, forwards REAL, backwards REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, cell TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fits (key TEXT PRIMARY KEY, fit BLOB) WITHOUT ROWID;
"""


@dataclass
class News:
    """What one chunk adds to the store, written in one transaction."""

    maps: dict[str, tuple[bytes, float, float]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    fits: dict[str, bytes] = field(default_factory=dict)


class Store:
    """Open a store for reading, or as its one writer."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # autocommit off the module's own rules: transactions are spelled out in `add`
            self.db = sqlite3.connect(path, isolation_level=None, timeout=60)
            if write:
                self.db.execute("PRAGMA journal_mode=WAL")
                self.db.execute("PRAGMA synchronous=NORMAL")
                self.db.executescript(SCHEMA)
        except (sqlite3.DatabaseError, OSError) as error:
            raise Refused(
                f"{path}: cannot be opened as the working store ({error}). Frozen results are not in it: "
                "where it is broken, delete it and run the same command again"
            ) from error

    def close(self) -> None:
        self.db.close()

    def add(self, news: News) -> None:
        """All of a chunk or nothing; a key that is there already keeps its entry."""
        db = self.db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT OR IGNORE INTO maps VALUES (?, ?, ?, ?)",
                [(key, *entry) for key, entry in news.maps.items()],
            )
            db.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?)",
                [(key, json.dumps(cell, sort_keys=True)) for key, cell in news.scores.items()],
            )
            db.executemany("INSERT OR IGNORE INTO fits VALUES (?, ?)", list(news.fits.items()))
            db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise Refused(
                f"{self.path}: cannot be written ({error}); what was finished before is kept. "
                "Make room, then run the same command again"
            ) from error

    def scores(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {k: json.loads(cell) for k, cell in self._fetch("scores", "cell", keys)}

    def maps(self, keys: Sequence[str]) -> dict[str, tuple[Explanation, float, float]]:
        found = self._fetch("maps", "map, forwards, backwards", keys)
        return {key: (unpack(blob), f, b) for key, blob, f, b in found}

    def fit(self, key: str) -> dict[str, torch.Tensor] | None:
        row = self.db.execute("SELECT fit FROM fits WHERE key = ?", (key,)).fetchone()
        return None if row is None else unpack_tensors(row[0])

    def _fetch(self, table: str, columns: str, keys: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        for first in range(0, len(keys), 500):
            some = keys[first : first + 500]
            marks = ",".join("?" * len(some))
            yield from self.db.execute(
                f"SELECT key, {columns} FROM {table} WHERE key IN ({marks})",
                list(some),
            )


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{name: t.detach().cpu().numpy() for name, t in tensors.items()})  # type: ignore[arg-type]
    return out.getvalue()


def unpack_tensors(blob: bytes) -> dict[str, torch.Tensor]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def pack(explanation: Explanation) -> bytes:
    """An explanation and its views as one npz; texts and concepts as a JSON entry."""
    tensors: dict[str, torch.Tensor] = {}
    texts: dict[str, Any] = {}

    def walk(part: Explanation, at: str) -> None:
        for name in ("image", "text", "pairs"):
            tensor = getattr(part, name)
            if tensor is not None:
                tensors[f"{at}{name}"] = tensor
        texts[at] = {
            "concepts": None if part.concepts is None else dict(part.concepts),
            "sentence": part.sentence,
            "views": list(part.views),
        }
        for view, inner in part.views.items():
            walk(inner, f"{at}{view}/")

    walk(explanation, "/")
    note = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    return pack_tensors({**tensors, "note": torch.from_numpy(note.copy())})


def unpack(blob: bytes) -> Explanation:
    tensors = unpack_tensors(blob)
    texts = json.loads(tensors.pop("note").numpy().tobytes())

    def build(at: str) -> Explanation:
        note = texts[at]
        return Explanation(
            image=tensors.get(f"{at}image"),
            text=tensors.get(f"{at}text"),
            pairs=tensors.get(f"{at}pairs"),
            concepts=note["concepts"],
            sentence=note["sentence"],
            views={view: build(f"{at}{view}/") for view in note["views"]},
        )

    return build("/")
