"""Karpathy's layout, COCO's captions, and boxes of three kinds: tiny files in the exact formats, each fault named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heatproof import Refused, shelf, spec
from heatproof.contract import Sample
from heatproof.geometry import Frame
from heatproof.models.asking import evidence

Karpathy = shelf.load(shelf.house() / "datasets" / "karpathy.py").Karpathy
Coco = shelf.load(shelf.house() / "datasets" / "coco.py").Coco

SIZES = {
    "a.jpg": (40, 30),
    "b.jpg": (20, 10),
    "c.jpg": (8, 6),
    "d.jpg": (8, 6),
    "e.jpg": (5, 4),
}  # width, height


def entry(name: str, imgid: int, split: str, *said: str, **more: object) -> dict:
    sentences = [
        {"tokens": text.lower().split(), "raw": text, "imgid": imgid, "sentid": 5 * imgid + k}
        for k, text in enumerate(said)
    ]
    sentids = [one["sentid"] for one in sentences]
    return {
        "filename": name,
        "imgid": imgid,
        "split": split,
        "sentids": sentids,
        "sentences": sentences,
        **more,
    }


LAYOUT = {
    "dataset": "flickr30k",
    "images": [
        entry("b.jpg", 4, "test", " A Dog runs . ", "Two dogs ."),
        entry("a.jpg", 2, "test", "A man 's hat .", cocoid=77, filepath="val2014"),
        entry("c.jpg", 0, "train", "one"),
        entry("d.jpg", 1, "restval", "two"),
        entry("e.jpg", 3, "val", "three"),
    ],
}
INSTANCES = {
    "images": [
        {"id": 77, "file_name": "000000000077.jpg", "width": 40, "height": 30},
        {"id": 5, "file_name": "b.jpg", "width": 20, "height": 10},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 77, "category_id": 1, "bbox": [2, 3, 10, 20], "segmentation": [[2, 3, 12, 3, 12, 23, 2, 23]]},
        {"id": 2, "image_id": 5, "category_id": 18, "bbox": [0, 0, 4, 5], "iscrowd": 1},
        {"id": 3, "image_id": 5, "category_id": 18, "bbox": [6, 1, 2.5, 3]},
    ],
}  # fmt: skip
BOXES = {
    "a.jpg": {
        "categories": {"person": "1", "hat": "0"},
        "bbox": {"1": [[1, 2, 30, 20], [3, 3, 5, 5]], "0": [[0, 0, 9, 9]]},
        "shape": [40, 30],
        "resize_ratio": [224 / 40, 224 / 30],
    }
}
SENTENCES = (
    "[/EN#12/people A man] in [/EN#13/clothing/other the red hat] holds [/EN#0/notvisual it] .\n"
    "[/EN#12/people The man 's , brother] sees [/EN#14/scene a street] .\n"
    "[/EN#12/people A man] waves .\n"
)
ANNOTATIONS = """<annotation>
  <filename>a.jpg</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
  <object><name>12</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>21</xmax><ymax>30</ymax></bndbox></object>
  <object><name>12</name><name>13</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object>
  <object><name>14</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
"""
HIM, HAT = (1, 2, 20, 29), (0, 0, 4, 8)  # 1 less than above


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path)


def written(folder: Path) -> Path:
    for name, (wide, high) in SIZES.items():
        place = folder / "images" / ("val2014" if name == "a.jpg" else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((high, wide, 3), 90, np.uint8)).save(place / name)
    for name, told in {"dataset": LAYOUT, "instances": INSTANCES, "boxes": BOXES}.items():
        (folder / f"{name}.json").write_text(json.dumps(told))
    for kind, ending, text in (("Sentences", "txt", SENTENCES), ("Annotations", "xml", ANNOTATIONS)):
        (folder / "entities" / kind).mkdir(parents=True)
        for name in ("a", "b"):
            bare = (
                text
                if name == "a"
                else "A Dog runs .\n"
                if ending == "txt"
                else "<annotation><size><width>20</width><height>10</height></size></annotation>"
            )
            (folder / "entities" / kind / f"{name}.{ending}").write_text(bare)
    return folder


def made(folder: Path, **given: object):
    images = str(folder / given.pop("images", "images"))
    captions = str(folder / given.pop("captions", "dataset.json"))
    paths = {k: str(folder / str(given.pop(k))) for k in ("instances", "boxes", "entities") if k in given}
    return Karpathy(images, captions, **paths, **given)


def read(folder: Path, **given: object) -> list[Sample]:
    return list(made(folder, **given).samples())


def told(sample: Sample) -> list[tuple]:
    return [(o.name, o.box, o.ignore, None if o.mask is None else int(o.mask.sum())) for o in sample.objects]


def edit(path: Path, change) -> None:
    page = json.loads(path.read_text())
    change(page)
    path.write_text(json.dumps(page))


def test_a_split_by_imgid_with_its_sentences_as_written(folder):
    first, second = samples = read(folder)
    assert [s.id for s in samples] == ["a", "b"]
    assert second.captions == ("A Dog runs .", "Two dogs .")
    assert (first.captions, first.read().shape) == (("A man 's hat .",), (30, 40, 3))
    assert [told(s) for s in samples] == [[], []]
    assert [s.id for s in read(folder, split="val+train+restval")] == ["c", "d", "e"]
    # COCO's captions may be printed, Flickr's not
    assert [s.extras for s in samples] == [{}, {"captions": "unpublished"}]


def test_images_in_a_zip(folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as pack:
        for path in (folder / "images").rglob("*.jpg"):
            pack.write(path, f"top/{path.name}")
    assert [s.digest() for s in read(folder, images="all.zip")] == [s.digest() for s in read(folder)]


def test_instances_are_found_by_name_or_by_cocoid(folder):
    first, second = read(folder, instances="instances.json")
    assert told(first) == [("person", (2.0, 3.0, 12.0, 23.0), False, 200)]
    assert told(second) == [
        ("dog", (0.0, 0.0, 4.0, 5.0), True, None),
        ("dog", (6.0, 1.0, 8.5, 4.0), False, None),
    ]


def test_the_authors_boxes(folder):
    first, second = read(folder, boxes="boxes.json")
    assert told(first) == [
        ("hat", (0.0, 0.0, 9.0, 9.0), False, None),
        ("person", (1.0, 2.0, 30.0, 20.0), False, None),
        ("person", (3.0, 3.0, 5.0, 5.0), False, None),
    ]
    assert second.objects == ()


def test_entities_by_phrase_and_by_word(folder):
    first, second = read(folder, entities="entities")
    assert [(o.name, o.box) for o in first.objects] == [
        ("man", HIM), ("man", HAT), ("red hat", HAT), ("man brother", HIM), ("man brother", HAT)
    ]  # fmt: skip
    assert second.objects == ()
    (by_word, _) = read(folder, entities="entities", by="word")
    assert [(o.name, o.box) for o in by_word.objects] == [
        ("man", HIM), ("man", HAT), ("red", HAT), ("hat", HAT), ("brother", HIM), ("brother", HAT)
    ]  # fmt: skip
    # a captioner's word has boxes where it is the whole phrase, or by word
    frame = Frame(40)
    assert [len(evidence(s, ["hat"], frame, (30, 40))["boxes"]) for s in (first, by_word)] == [0, 1]


def test_cocos_own_captions_split_as_the_authors_do(folder):
    ids = [9, 3, 7, 5, 1]
    page = {
        "images": [{"id": k, "file_name": name} for k, name in zip(ids, SIZES, strict=True)],
        "annotations": [
            {"id": 10 * k + j, "image_id": k, "caption": f"{k} {j}\n"} for j in (0, 1) for k in reversed(ids)
        ],
    }
    (folder / "captions.json").write_text(json.dumps(page))
    parts = {
        split: read(folder, captions="captions.json", split=split, first=3) for split in ("train", "val")
    }
    order = dict(zip(sorted(ids), "ebdca", strict=True))  # files by ascending id
    assert [s.id for s in parts["train"]] == ["e", "b", "d"] == [order[k] for k in (1, 3, 5)]
    assert [s.id for s in parts["val"]] == ["c", "a"]
    assert parts["val"][1].captions == ("9 0", "9 1")
    # no more than the training split: val2017, which is the test split and what `coco` reads too
    ours = read(folder, captions="captions.json", first=5)
    for name, (wide, high) in SIZES.items():
        next(entry for entry in page["images"] if entry["file_name"] == name).update(width=wide, height=high)
    (folder / "instances.json").write_text(json.dumps({**page, "annotations": [], "categories": []}))
    whole = Coco(*(str(folder / name) for name in ("images", "instances.json", "captions.json"))).samples()
    assert [s.digest() for s in ours] == [s.digest() for s in whole]
    with pytest.raises(Refused, match=r"split: found 'val', accepted for .*captions\.json are test"):
        read(folder, captions="captions.json", split="val")


@settings(max_examples=15, deadline=None)
@given(chance=st.randoms(use_true_random=False), kind=st.sampled_from(["instances", "boxes", ""]))
def test_the_order_of_keys_and_of_entries_changes_nothing(tmp_path_factory, chance, kind):
    folder = written(tmp_path_factory.mktemp("order"))
    given_ = {kind: f"{kind}.json"} if kind else {}
    before = [s.digest() for s in read(folder, **given_)]

    def mixed(page, inner=False):
        if isinstance(page, dict):
            pairs = [
                (k, mixed(v, inner or k in ("sentences", "annotations", "bbox"))) for k, v in page.items()
            ]
            chance.shuffle(pairs)
            return dict(pairs)
        if isinstance(page, list):  # captions and boxes keep their order, images and categories need none
            page = [mixed(one, inner) for one in page]
            if page and isinstance(page[0], dict) and not inner:
                chance.shuffle(page)
        return page

    for path in folder.glob("*.json"):
        path.write_text(json.dumps(mixed(json.loads(path.read_text()))))
    assert [s.digest() for s in read(folder, **given_)] == before


FAULTS = {
    r"dataset\.json: image b\.jpg has no sentences": lambda page: page["images"][0].update(sentences=[]),
    r"dataset\.json: image b\.jpg: sentences\[1\] has no raw": lambda page: page["images"][0]["sentences"][1].pop("raw"),
    r"dataset\.json: images\[1\] has no imgid": lambda page: page["images"][1].pop("imgid"),
    r"dataset\.json: images: 2 have the imgid 4": lambda page: page["images"][1].update(imgid=4),
    r"dataset\.json: images: 2 have the filename b": lambda page: page["images"][1].update(filename="b.jpg"),
    r"1 of 2 images of .*dataset\.json are not there: z\.jpg": lambda page: page["images"][0].update(filename="z.jpg"),
    r"dataset\.json: images missing; accepted is Karpathy's layout": lambda page: page.pop("images"),
}  # fmt: skip


@pytest.mark.parametrize("why", FAULTS)
def test_a_fault_of_the_layout_is_named(folder, why):
    edit(folder / "dataset.json", FAULTS[why])
    with pytest.raises(Refused, match=why):
        read(folder)


def test_what_is_not_there_is_named(folder):
    with pytest.raises(
        Refused, match=r"split: found 'dev', accepted for .*dataset\.json are test, train, restval, val"
    ):
        read(folder, split="train+dev")
    with pytest.raises(Refused, match=r"karpathy: there is no file .*none\.json"):
        read(folder, captions="none.json")
    with pytest.raises(Refused, match="karpathy: images: there is no zip and no folder"):
        read(folder, images="none")
    with pytest.raises(Refused, match="found boxes and entities, accepted is one of them"):
        read(folder, boxes="boxes.json", entities="entities")
    with pytest.raises(
        Refused, match=r"entities.*Sentences.* has 2 of 2 images of .*dataset\.json not: a, b; accepted"
    ):
        read(folder, entities="images")
    (folder / "entities" / "Annotations" / "b.xml").unlink()
    with pytest.raises(Refused, match=r"Annotations.* has 1 of 2 images .* not: b;"):
        read(folder, entities="entities")


def test_a_fault_of_the_boxes_is_named(folder):
    edit(folder / "boxes.json", lambda page: page["a.jpg"]["categories"].update(cat="7"))
    with pytest.raises(
        Refused, match=r"boxes\.json: a\.jpg: categories: cat is '7', there are boxes of 0, 1"
    ):
        read(folder, boxes="boxes.json")
    edit(folder / "boxes.json", lambda page: page["a.jpg"].pop("bbox"))
    with pytest.raises(Refused, match=r"boxes\.json: a\.jpg\[0\] has no bbox"):
        read(folder, boxes="boxes.json")
    edit(folder / "boxes.json", lambda page: page.pop("a.jpg"))
    with pytest.raises(Refused, match=r"none of 2 images of .* has an entry"):
        read(folder, boxes="boxes.json")
    edit(folder / "instances.json", lambda page: page["images"][1].update(file_name="other.jpg"))
    with pytest.raises(
        Refused, match=r"instances\.json: images: 1 of 2 images of .* not listed by name or cocoid: b\.jpg"
    ):
        read(folder, instances="instances.json")


def test_what_is_read_late_is_named_then(folder):
    lazily = made(folder, entities="entities").samples()
    (folder / "entities" / "Annotations" / "a.xml").write_text(ANNOTATIONS.replace("<xmin>2<", "<xmin>two<"))
    with pytest.raises(Refused, match=r"a\.xml: could not convert string to float: 'two'; accepted are size"):
        lazily[0]
    (folder / "entities" / "Annotations" / "a.xml").write_text(ANNOTATIONS[:-20])
    with pytest.raises(Refused, match=r"a\.xml: unclosed token: line 6"):
        lazily[0]
    (folder / "entities" / "Annotations" / "a.xml").write_text(ANNOTATIONS.replace(">40<", ">41<"))
    with pytest.raises(Refused, match="is 40 x 30 pixels, its entry says 41 x 30"):
        lazily[0].read()
    (folder / "entities" / "Sentences" / "a.txt").write_text("fine\n[/EN#12/people A man waves\n")
    with pytest.raises(
        Refused, match=r"a\.txt: line 2: found '\[/EN#12/people A man waves', accepted are phrases"
    ):
        lazily[0]


def test_a_spec_reads_it(folder):
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "one.toml").write_text(
        'title = "t"\nmodels = ["small_captioner"]\nexplainers = ["attention"]\nmetrics = ["correctness"]\n'
        f'dataset = {{ use = "karpathy", images = "{folder}/images", captions = "{folder}/dataset.json", by = "words" }}\n'
    )
    with pytest.raises(
        Refused, match=r"karpathy\.by: found 'words', accepted is Literal\['phrase', 'word'\]"
    ):
        spec.read(str(folder / "benchmarks" / "one.toml"), folder)
    asked = spec.read(str(folder / "benchmarks" / "one.toml"), folder, sets=["dataset.by=word"])
    assert [s.id for s in asked.dataset.made.samples()] == ["a", "b"]
