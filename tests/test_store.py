"""The working store: whole transactions, first entry wins, what is read is what was written, faults in one line."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
import torch

from heatproof import Explanation, Refused
from heatproof.store import News, Store, pack, pack_tensors, unpack

CELL = {"values": {"srg": {"value": 0.1, "status": "value", "reason": "", "parts": {}}}, "curves": {}}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "x.sqlite", write=True)
    yield store
    store.close()


def explanation() -> Explanation:
    view = Explanation(image=torch.rand(2, 2), sentence="it is round", concepts={"round": 0.25})
    return Explanation(
        image=torch.randn(3, 4, 5).half(),
        text=torch.randn(7),
        pairs=torch.randn(4, 7),
        views={"head 0": view, "head 1": replace(view, views={"deeper": Explanation(text=torch.ones(1))})},
    )


def same(a: Explanation, b: Explanation) -> bool:
    tensors = all(
        (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))
        for x, y in ((a.image, b.image), (a.text, b.text), (a.pairs, b.pairs))
    )
    texts = (a.concepts, a.sentence, list(a.views)) == (b.concepts, b.sentence, list(b.views))
    return tensors and texts and all(same(a.views[k], b.views[k]) for k in a.views)


def test_explanations_come_back_with_every_bit(store):
    told = explanation()
    assert same(unpack(pack(told)), told)
    store.add(News(maps={"k": (pack(told), 2.5, 1.0)}))
    found, forwards, backwards = store.maps(["k", "absent"])["k"]
    assert same(found, told)
    assert (forwards, backwards) == (2.5, 1.0)


def test_scores_and_fits_come_back(store):
    store.add(News(scores={"k": CELL}, fits={"f": pack_tensors({"mean": torch.arange(3.0)})}))
    assert store.scores(["k", "absent"]) == {"k": CELL}
    assert torch.equal(store.fit("f")["mean"], torch.arange(3.0))
    assert store.fit("absent") is None


def test_many_keys_are_asked_in_several_questions(store):
    store.add(News(scores={str(i): {**CELL, "n": i} for i in range(1203)}))
    found = store.scores([str(i) for i in range(1300)])
    assert [found[str(i)]["n"] for i in range(1203)] == list(range(1203))


def test_the_first_entry_of_a_key_stays(store):
    store.add(News(scores={"k": CELL}))
    store.add(News(scores={"k": {"values": {}}}))
    assert store.scores(["k"]) == {"k": CELL}


def test_a_reader_sees_whole_chunks_only(store, tmp_path):
    reader = Store(tmp_path / "x.sqlite")
    store.db.execute("BEGIN IMMEDIATE")
    store.db.execute("INSERT INTO scores VALUES ('half', '{}')")
    assert reader.scores(["half"]) == {}
    store.db.execute("ROLLBACK")
    store.add(News(scores={"whole": CELL}))
    assert reader.scores(["whole", "half"]) == {"whole": CELL}
    reader.close()


def test_a_full_disk_is_one_line_and_what_was_there_is_kept(store):
    store.add(News(scores={"k": CELL}))
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = store.db.execute("PRAGMA page_count").fetchone()
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Refused, match=r"x.sqlite: cannot be written \(database or disk is full\).*Make room"):
        store.add(News(scores={f"n{i}": {"text": "x" * 5000} for i in range(20)}, maps={"m": (b"1", 0, 0)}))
    assert not store.db.in_transaction
    assert store.scores(["k", "n0"]) == {"k": CELL}
    assert store.maps(["m"]) == {}
    store.db.execute("PRAGMA max_page_count = 100000")
    store.add(News(scores={"n0": CELL}))
    assert store.scores(["n0"])


def test_a_broken_store_is_one_line(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"this is no database, but it is long enough to be looked at" * 40)
    with pytest.raises(Refused, match=r"x.sqlite: .*not a database.*delete"):
        Store(tmp_path / "x.sqlite", write=True)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="file"):
        Store(tmp_path / "file" / "x.sqlite", write=True)


def test_stores_of_one_run_are_plain_sqlite(store):
    tables = {name for (name,) in store.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"maps", "scores", "fits"}
    assert isinstance(store.db, sqlite3.Connection)
