"""Karpathy's splits of COCO, Flickr8k and Flickr30k: photographs, their captions, and what boxes there are of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree as ET

from heatproof.contract import Card, Object, Refused, Sample
from heatproof.photographs import Files, Instances, Lazy, Size, Table, by_image, check_rows, few, read_json

Box = tuple[float, float, float, float]
Known = tuple[
    tuple[Object, ...], Size | None
]  # what is annotated in an image, and the size that it is told to have
PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S+) ([^\[\]]+)\]")
LEFT_OUT = ("a", "an", "the", "'s")


@dataclass(frozen=True)
class Karpathy:
    """The images of one ``split``, by ascending imgid, with their sentences as written; several splits are joined by "+".

    ``captions`` is dataset_coco.json, dataset_flickr30k.json or another of that layout. COCO's own file of captions is read
    too, split as Sun et al. (arXiv 2001.01037) split COCO2017: of captions_train2017.json the ``first`` 110,000 ids are
    train and the rest val; a file of no more than ``first`` is test. ``images`` is a zip or a folder.

    Boxes come from one of three, or none:

    - ``instances``: COCO's object format; images are found by file name, else by cocoid
    - ``boxes``: Sun et al.'s COCOvalEntities.json, {file: {categories: {name: id}, bbox: {id: [[x0, y0, x1, y1], ...]}}};
      crowds are in it and are not marked. An image without an entry has no objects
    - ``entities``: the folder of Flickr30k Entities with Sentences/ and Annotations/. An object is named by a phrase of the
      sentences, lower-cased, without a, an, the and 's; ``by`` "word" makes one of every word of the phrase in its
      place, by which a captioner's word finds its boxes. Coordinates are 1 less than in the file

    A sample's id is its file's name. JSON is read at once, Entities and pixels when a sample is asked for them.

    Raises Refused, naming file and field: no such file, split or field, an image that is not there, twice there or not
    annotated, no caption, a box of no entity; and later what cannot be read, or is of another size than told.
    """

    images: str
    captions: str
    split: str = "test"
    instances: str = ""
    boxes: str = ""
    entities: str = ""
    by: Literal["phrase", "word"] = "phrase"
    first: int = 110_000

    card: ClassVar[Card] = Card(
        source="https://cs.stanford.edu/people/karpathy/deepimagesent, dataset_coco.json, dataset_flickr8k.json, "
        "dataset_flickr30k.json; https://github.com/BryanPlummer/flickr30k_entities",
        revision="the files given",
        licence="COCO's annotations CC-BY-4.0, Flickr30k non-commercial research; every photograph has its own owner",
        cite="Karpathy, Fei-Fei. Deep Visual-Semantic Alignments. CVPR 2015. arXiv 1412.2306; "
        "Plummer et al. Flickr30k Entities. ICCV 2015. arXiv 1505.04870",
        leaks="web-trained models may have seen the photographs and their captions; the split of COCO2014 and that of "
        "COCO2017 put the same photograph on different sides; boxes of Entities are of what the captions name",
    )

    def samples(self) -> Sequence[Sample]:
        """The split's images, each with its captions and objects."""
        given = [name for name in ("instances", "boxes", "entities") if getattr(self, name)]
        if len(given) > 1:
            raise Refused(f"karpathy: found {' and '.join(given)}, accepted is one of them")
        rows = self._rows()
        files = Files(Path(self.images), "karpathy")
        names = [_name(row, files) for row in rows]
        files.check(names, self.captions)
        known = getattr(self, f"_{given[0]}")(rows) if given else _nothing
        return Lazy(list(zip(rows, names, strict=True)), partial(_sample, files, known))

    def _rows(self) -> list[Table]:
        """The split's entries in Karpathy's layout, checked."""
        told = read_json(Path(self.captions), "karpathy", ("images",), "Karpathy's layout or COCO's captions")
        if "annotations" in told:
            told = _laid_out(told, self.captions, self.first)
        check_rows(told["images"], "images", ("filename", "imgid", "split", "sentences"), self.captions)
        there = dict.fromkeys(row["split"] for row in told["images"])
        wanted = self.split.split("+")
        strange = [split for split in wanted if split not in there]
        if strange:
            raise Refused(
                f"karpathy: split: found {strange[0]!r}, accepted for {self.captions} are {', '.join(there)}"
            )
        rows = [row for row in told["images"] if row["split"] in wanted]
        rows.sort(key=lambda row: int(row["imgid"]))
        for field, of in (("imgid", lambda row: row["imgid"]), ("filename", _id)):
            ((most, count),) = Counter(map(of, rows)).most_common(1)
            if count > 1:
                raise Refused(f"{self.captions}: images: {count} have the {field} {most}")
        for row in rows:
            if not row["sentences"]:
                raise Refused(f"{self.captions}: image {row['filename']} has no sentences, needed is one")
            check_rows(row["sentences"], f"image {row['filename']}: sentences", ("raw",), self.captions)
        return rows

    # ---------------------------------------------------------------- what is annotated: row -> objects and size

    def _instances(self, rows: Sequence[Table]) -> Callable[[Table], Known]:
        told = Instances(Path(self.instances), "karpathy")
        by_name = {entry["file_name"]: key for key, entry in told.entries.items()}
        keys = {row["imgid"]: by_name.get(row["filename"], row.get("cocoid")) for row in rows}
        absent = [row["filename"] for row in rows if keys[row["imgid"]] not in told.entries]
        if absent:
            raise Refused(
                f"{self.instances}: images: {len(absent)} of {len(rows)} images of {self.captions} are not listed "
                f"by name or cocoid: {few(absent)}"
            )
        return lambda row: (told.objects(keys[row["imgid"]]), told.size(keys[row["imgid"]]))

    def _boxes(self, rows: Sequence[Table]) -> Callable[[Table], Known]:
        told = read_json(Path(self.boxes), "karpathy")
        listed = [row["filename"] for row in rows if row["filename"] in told]
        if not listed:
            raise Refused(f"{self.boxes}: none of {len(rows)} images of {self.captions} has an entry")
        for name in listed:
            check_rows([told[name]], name, ("categories", "bbox"), self.boxes)
            for category, key in told[name]["categories"].items():
                if key not in told[name]["bbox"]:
                    raise Refused(
                        f"{self.boxes}: {name}: categories: {category} is {key!r}, there are boxes of "
                        f"{few(told[name]['bbox'])}"
                    )
        return lambda row: _boxed(told.get(row["filename"]))

    def _entities(self, rows: Sequence[Table]) -> Callable[[Table], Known]:
        folder = Path(self.entities)
        for kind in ("Sentences/*.txt", "Annotations/*.xml"):
            there = {path.stem for path in folder.glob(kind)}
            absent = [_id(row) for row in rows if _id(row) not in there]
            if absent:
                raise Refused(
                    f"karpathy: entities: {folder / kind} has {len(absent)} of {len(rows)} images of {self.captions} not: "
                    f"{few(absent)}; accepted is the folder of Flickr30k Entities, unpacked"
                )
        return lambda row: _told(folder, _id(row), self.by)


def _laid_out(told: Table, file: str, first: int) -> dict[str, Any]:
    """COCO's captions in Karpathy's layout, with Sun et al.'s splits."""
    check_rows(told["images"], "images", ("id", "file_name"), file)
    check_rows(told["annotations"], "annotations", ("image_id", "caption"), file)
    said = by_image(told["annotations"], [entry["id"] for entry in told["images"]], file)
    entries = sorted(told["images"], key=lambda entry: int(entry["id"]))
    splits = ["test"] * len(entries)
    if len(entries) > first:
        splits = ["train"] * first + ["val"] * (len(entries) - first)
    rows = [
        {
            "filename": entry["file_name"],
            "imgid": entry["id"],
            "cocoid": entry["id"],
            "split": split,
            "sentences": [{"raw": one["caption"]} for one in said.get(entry["id"], ())],
        }
        for entry, split in zip(entries, splits, strict=True)
    ]
    return {"images": rows}


def _id(row: Table) -> str:
    return Path(row["filename"]).stem


def _name(row: Table, files: Files) -> str:
    """Under its folder (train2014, val2014) where it lies so, else by its bare name."""
    whole = f"{row.get('filepath', '')}/{row['filename']}"
    return whole if whole in files.members else str(row["filename"])


def _sample(files: Files, known: Callable[[Table], Known], row: Table, name: str) -> Sample:
    objects, size = known(row)
    return Sample(
        id=_id(row),
        read=partial(files.read, name, size),
        captions=tuple(str(sentence["raw"]).strip() for sentence in row["sentences"]),
        objects=objects,
        # results are published; COCO's captions may be, Flickr's may not
        extras={} if "cocoid" in row else {"captions": "unpublished"},
    )


def _nothing(_: Table) -> Known:
    return (), None


def _boxed(told: Table | None) -> Known:
    """An entry of COCOvalEntities.json; names in their own order, whatever that of the file is."""
    if told is None:
        return (), None
    objects = [
        Object(name, (float(x0), float(y0), float(x1), float(y1)))
        for name, key in sorted(told["categories"].items())
        for x0, y0, x1, y1 in told["bbox"][key]
    ]
    wide_high = told.get("shape")
    return tuple(objects), (int(wide_high[1]), int(wide_high[0])) if wide_high else None


def _told(folder: Path, stem: str, by: str) -> Known:
    """The boxes of every name of every entity, in the order of the sentences; each box once a name."""
    boxes, size = _drawn(folder / "Annotations" / f"{stem}.xml")
    found: dict[tuple[str, Box], Object] = {}
    for key, name in _phrases(folder / "Sentences" / f"{stem}.txt"):
        for one in name.split() if by == "word" else [name]:
            for box in boxes.get(key, ()):
                found.setdefault((one, box), Object(one, box))
    return tuple(found.values()), size


def _phrases(file: Path) -> Iterator[tuple[str, str]]:
    """Entity and name of every phrase "[/EN#12/people A man]" of the sentences."""
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        phrases = PHRASE.findall(line)
        if len(phrases) != line.count("[/EN#"):
            raise Refused(
                f"{file}: line {number}: found {line[:60]!r}, accepted are phrases [/EN#ID/TYPE WORDS]"
            )
        for key, text in phrases:
            words = [word for word in text.lower().split() if word not in LEFT_OUT and re.search(r"\w", word)]
            if words:
                yield key, " ".join(words)


def _drawn(file: Path) -> tuple[Mapping[str, list[Box]], Size]:
    """Boxes by entity, and the image's size; scenes, and what has no box, are left out."""
    try:
        page = ET.parse(file).getroot()  # noqa: S314  the user's own file, and expat bounds what entities grow to
        high, wide = (int(page.findtext(f"size/{side}", "")) for side in ("height", "width"))
        boxes: dict[str, list[Box]] = {}
        for thing in page.iter("object"):
            box = thing.find("bndbox")
            if box is None:
                continue
            x0, y0, x1, y1 = (float(box.findtext(side, "")) - 1 for side in ("xmin", "ymin", "xmax", "ymax"))
            for name in thing.findall("name"):
                boxes.setdefault(str(name.text).strip(), []).append((x0, y0, x1, y1))
    except (ET.ParseError, ValueError) as error:
        raise Refused(
            f"{file}: {error}; accepted are size with width and height, and objects with name and bndbox"
        ) from error
    return boxes, (high, wide)
