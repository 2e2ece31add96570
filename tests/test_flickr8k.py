"""Flickr8k: a small copy of its files, each fault named; and the real one where it is at hand."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatproof import Refused, shelf

Flickr8k = shelf.load(shelf.house() / "datasets" / "flickr8k.py").Flickr8k
NAMES = ("b_2.jpg", "a_1.jpg", "c_3.jpg")


@pytest.fixture
def folder(tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as pack:
        for k, name in enumerate(NAMES):
            out = io.BytesIO()
            Image.fromarray(np.full((8, 6, 3), 40 * k, np.uint8)).save(out, "PNG")
            pack.writestr(f"Flicker8k_Dataset/{name}", out.getvalue())
    text = tmp_path / "text"
    text.mkdir()
    lines = [f"{name}#{k}\t{name[0]} says {k} ." for k in (1, 0, 2, 4, 3) for name in NAMES]
    (text / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (text / "Flickr_8k.testImages.txt").write_text("b_2.jpg\na_1.jpg\n")
    (text / "Flickr_8k.devImages.txt").write_text("c_3.jpg\n")
    return tmp_path


def read(folder: Path, split: str = "test", images: str = "images.zip"):
    return Flickr8k(str(folder / images), str(folder / "text"), split).samples()


def test_a_split_in_its_own_order(folder):
    samples = read(folder)
    assert [s.id for s in samples] == ["b_2", "a_1"]
    assert samples[0].captions == tuple(f"b says {k} ." for k in range(5))
    assert samples[1].read().tolist() == np.full((8, 6, 3), 40, np.uint8).tolist()
    assert [s.id for s in samples[1:]] == ["a_1"]
    assert [s.id for s in read(folder, "dev")] == ["c_3"]
    assert not samples[0].objects
    assert samples[0].label is None


def test_the_photographs_in_a_folder(folder):
    with zipfile.ZipFile(folder / "images.zip") as pack:
        pack.extractall(folder / "out")
    assert [s.digest() for s in read(folder, images="out")] == [s.digest() for s in read(folder)]


def test_each_fault_is_named(folder):
    with pytest.raises(Refused, match="split: found 'val', accepted are train, dev, test"):
        read(folder, "val")
    with pytest.raises(Refused, match=r"there is no file .*Flickr_8k\.trainImages\.txt"):
        read(folder, "train")
    with pytest.raises(Refused, match="flickr8k: images: there is no zip"):
        read(folder, images="none.zip")
    listed = folder / "text" / "Flickr_8k.testImages.txt"
    listed.write_text("b_2.jpg\nz.jpg\n")
    with pytest.raises(Refused, match=r"no caption of 1 photographs .*z\.jpg"):
        read(folder)
    tokens = folder / "text" / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text() + "z.jpg#0\tnowhere\n")
    with pytest.raises(Refused, match=r"1 of 2 images of Flickr_8k\.testImages\.txt are not there: z\.jpg"):
        read(folder)
    tokens.write_text(tokens.read_text() + "no number\there\n")
    with pytest.raises(Refused, match="line 17: found 'no number"):
        read(folder)


def test_a_torn_photograph_is_named_when_read(folder):
    with zipfile.ZipFile(folder / "images.zip") as pack:
        pack.extractall(folder / "out")
    file = next((folder / "out").rglob("b_2.jpg"))
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(Refused, match=r"b_2\.jpg is truncated or damaged"):
        read(folder, images="out")[0].read()


@pytest.mark.parametrize(("split", "count"), [("train", 6000), ("dev", 1000), ("test", 1000)])
def test_the_real_one(data, split, count):
    images = data / "images" / f"flickr8k_{split}_224.zip"
    if not images.is_file():
        pytest.skip(f"no Flickr8k at {images}")
    samples = Flickr8k(str(images), str(data / "annotations" / "flickr8k"), split).samples()
    assert len(samples) == len({s.id for s in samples}) == count
    assert {len(s.captions) for s in samples} == {5}
    assert samples[count // 2].read().shape == (224, 224, 3)
    if split == "test":
        assert samples[0].id == "3385593926_d3e9c21170"
