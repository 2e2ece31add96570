"""COCO in and out: what is exported comes back equal, and each fault is named with file and field."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof import shelf
from heatproof.contract import Object, Refused, Sample
from heatproof.export import export_coco, export_scenes
from heatproof.geometry import Frame
from heatproof.models.asking import evidence, named

HOUSE = shelf.house() / "datasets"
Coco = shelf.load(HOUSE / "coco.py").Coco
Scenes = shelf.load(HOUSE / "scenes.py").Scenes


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    export_scenes(folder, sample=6, split="val", masked=0.4)
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(exported, tmp_path / "broken"))


def read(folder, images="images", captions="captions.json"):
    return Coco(
        str(folder / images), str(folder / "instances.json"), str(folder / captions) if captions else ""
    ).samples()


def edit(path: Path, change) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def same(one: Sample, other: Sample) -> None:
    assert (one.read() == other.read()).all()
    assert (one.id, one.label, one.captions, one.rationales) == (
        other.id,
        other.label,
        other.captions,
        other.rationales,
    )
    for a, b in zip(one.objects, other.objects, strict=True):
        assert (a.name, a.box, a.ignore) == (b.name, b.box, b.ignore)
        assert (a.mask is None) == (b.mask is None)
        assert a.mask is None or (a.mask == b.mask).all()


def test_scenes_come_back_equal(exported):
    scenes = Scenes(split="val", sample=6, masked=0.4).samples()
    assert {thing.mask is None for scene in scenes for thing in scene.objects} == {True, False}
    for one, other in zip(read(exported), scenes, strict=True):
        same(one, other)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_opens_it(exported):
    from pycocotools.coco import COCO

    coco = COCO(str(exported / "instances.json"))
    scenes = Scenes(split="val", sample=6).samples()
    for number, scene in enumerate(scenes, start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        for told, thing in zip(annotations, scene.objects, strict=True):
            assert coco.loadCats(told["category_id"])[0]["name"] == thing.name
            if "segmentation" in told:
                assert (coco.annToMask(told).astype(bool) == thing.mask).all()
                assert told["area"] == thing.mask.sum()
    captions = COCO(str(exported / "captions.json"))
    assert [a["caption"] for a in captions.loadAnns(captions.getAnnIds(imgIds=1))] == list(scenes[0].captions)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), ignore=st.booleans())
def test_any_mask_round_trips(tmp_path_factory, data, ignore):
    high, wide = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=high * wide, max_size=high * wide)))
    mask = mask.reshape(high, wide)
    picture = np.zeros((high, wide, 3), np.uint8)
    thing = Object("thing", (0.0, 0.0, float(wide), float(high)), mask, ignore)
    sample = Sample("one", lambda: picture, objects=(thing,))
    folder = tmp_path_factory.mktemp("any")
    export_coco(folder, [sample])
    same(read(folder)[0], sample)


def test_polygons_and_uncompressed_run_lengths(folder):
    def change(told):
        told["annotations"] = told["annotations"][:3]
        for thing in told["annotations"]:
            thing["image_id"] = 1
        told["annotations"][0]["segmentation"] = [[10, 20, 30, 20, 30, 50, 10, 50], [0, 0, 4, 0, 4, 4, 0, 4]]
        runs = [5 * 112 + 7, 3, 112 * 112 - 5 * 112 - 10]  # three pixels of column 5
        told["annotations"][1]["segmentation"] = {"size": [112, 112], "counts": runs}
        told["annotations"][2]["iscrowd"] = 1

    edit(folder / "instances.json", change)
    square, column, crowd = read(folder)[0].objects
    assert square.mask.sum() == 20 * 30 + 16
    assert square.mask[20:50, 10:30].all()
    assert np.argwhere(column.mask).tolist() == [[7, 5], [8, 5], [9, 5]]
    assert [thing.ignore for thing in (square, column, crowd)] == [False, False, True]


def test_images_in_a_zip_and_one_folder_deeper(folder):
    with zipfile.ZipFile(folder / "val.zip", "w") as pack:
        for path in (folder / "images").iterdir():
            pack.write(path, f"val2017/{path.name}")
    for one, other in zip(read(folder, "val.zip"), read(folder), strict=True):
        same(one, other)


def test_captions_are_optional_and_samples_are_sliced(folder):
    samples = read(folder, captions="")
    assert samples[0].captions == ()
    assert [sample.id for sample in samples[1:3]] == ["val-0-00001", "val-0-00002"]
    assert samples[-1].id == "val-0-00005"
    with pytest.raises(IndexError):
        samples[6]


FAULTS = {
    "annotations[2].image_id is 99": lambda told: told["annotations"][2].update(image_id=99),
    "annotations[1].category_id is 77": lambda told: told["annotations"][1].update(category_id=77),
    "images[3] has no height": lambda told: told["images"][3].pop("height"),
    "annotations[0] has no bbox": lambda told: told["annotations"][0].pop("bbox"),
    "categories missing": lambda told: told.pop("categories"),
    "some ids occur twice": lambda told: told["images"][1].update(id=1),
    "val-0-00009.png": lambda told: told["images"][2].update(file_name="val-0-00009.png"),
}


@pytest.mark.parametrize("told", FAULTS)
def test_a_broken_file_is_named(folder, told):
    edit(folder / "instances.json", FAULTS[told])
    with pytest.raises(Refused) as error:
        read(folder)
    assert told in str(error.value)
    assert "instances.json" in str(error.value)


def test_a_dangling_caption_is_named(folder):
    edit(folder / "captions.json", lambda told: told["annotations"][4].update(image_id="x7"))
    with pytest.raises(Refused, match=r"captions.json: annotations\[4\].image_id is 'x7'"):
        read(folder)


def test_no_json_and_no_images(folder):
    (folder / "instances.json").write_text('{"images": [')
    with pytest.raises(Refused, match=r"instances.json: not valid JSON: .*line 1"):
        read(folder)
    (folder / "instances.json").unlink()
    with pytest.raises(Refused, match="there is no file"):
        read(folder)


def test_no_zip(folder):
    with pytest.raises(Refused, match="no zip and no folder"):
        read(folder, "nowhere")
    (folder / "bad.zip").write_bytes(b"PK nonsense")
    with pytest.raises(Refused, match="not a zip file"):
        read(folder, "bad.zip")


def test_a_truncated_image_is_named_when_read(folder):
    path = folder / "images" / "val-0-00001.png"
    path.write_bytes(path.read_bytes()[:900])
    samples = read(folder)
    samples[0].read()
    with pytest.raises(Refused, match=r"val-0-00001\.png is truncated or damaged"):
        samples[1].read()


def test_an_image_of_another_size_is_named(folder):
    edit(folder / "instances.json", lambda told: told["images"][0].update(height=111))
    edit(folder / "instances.json", lambda told: told.update(annotations=[]))
    with pytest.raises(Refused, match="is 112 x 112 pixels, its entry says 112 x 111"):
        read(folder)[0].read()


def test_a_mask_that_does_not_fit_is_named(folder):
    runs = {"size": [10, 10], "counts": [0, 100]}
    edit(folder / "instances.json", lambda told: told["annotations"][0].update(segmentation=runs))
    with pytest.raises(Refused, match="annotation id 1: segmentation is 10 x 10 pixels, its image 112 x 112"):
        read(folder)[0]


def test_export_refuses_unknown_knobs_and_files(tmp_path):
    with pytest.raises(Refused, match="no knob 'clutte'; did you mean 'clutter'"):
        export_scenes(tmp_path, clutte=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="is a file"):
        export_scenes(tmp_path / "file", sample=1)


def test_real_photographs(data):
    notes = data / "annotations" / "coco_mini"
    samples = Coco(
        str(data / "images" / "coco_mini_val2017.zip"),
        str(notes / "instances_val2017.json"),
        str(notes / "captions_val2017.json"),
    ).samples()
    things = [thing for sample in samples for thing in sample.objects]
    assert (len(samples), len(things), sum(thing.ignore for thing in things)) == (79, 624, 5)
    assert all(thing.mask.any() for thing in things)
    assert all(len(sample.captions) >= 5 for sample in samples)
    for sample in samples[:3]:
        high, wide, _ = sample.read().shape
        assert all(thing.mask.shape == (high, wide) for thing in sample.objects)


def test_a_thing_may_be_called_otherwise(folder):
    """A question about a "sphere" finds every ball, and a word that the list has not finds nothing."""
    (folder / "words.txt").write_text("ball, sphere, orb\ncup, mug\n")
    told = Coco(str(folder / "images"), str(folder / "instances.json"), synonyms=str(folder / "words.txt"))
    sample = next(s for s in told.samples() if "ball" in [o.name for o in s.objects])
    size = sample.read().shape[:2]
    frame = Frame(size[0])
    found = [
        evidence(sample, names, frame, size)["evidence"]
        for names in (["ball"], ["orb"], ["orb", "mug"], ["globe"])
    ]
    assert found[0].any()
    assert torch.equal(found[0], found[1])
    assert len(found[3]) == 0
    others = sum(o.name in ("ball", "cup") for o in sample.objects if not o.ignore)
    assert len(found[2]) == others
    rows = named(sample, ["orb", "ball"], ["a", "orb", "balls", "cup"])
    assert rows.any(1).tolist() == [False, True, True, False]
    with pytest.raises(Refused, match="there is no file"):
        Coco(str(folder / "images"), str(folder / "instances.json"), synonyms="nowhere.txt").samples()
