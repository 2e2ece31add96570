"""COCO instances and captions: photographs with masks, boxes, crowds and five captions each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from heatproof.captions.chair import read_synonyms
from heatproof.contract import Card, Sample
from heatproof.photographs import Files, Instances, Lazy, by_image, check_rows, read_json


@dataclass(frozen=True)
class Coco:
    """Images in a zip or a folder, and the instances (and captions) files of COCO's object format.

    Masks may be polygons or run lengths, compressed or not; a crowd becomes an object to be ignored.
    An image entry may carry ``label`` and ``rationales``, as ``heatproof export scenes`` writes them.
    ``synonyms``, a file of CHAIR's format (a line an object, what else it is called behind it), lets a question about a "man" find the
    boxes of every person. Samples come in the order of their ids; masks are decoded and pixels read only when asked for.

    Raises Refused, naming file and field: a file that is missing or no JSON, an image that is listed
    but not there, an annotation of an image or a category that does not exist, a mask that cannot be decoded;
    and, when pixels are read, an image that is truncated or of another size than the file says.
    """

    images: str
    instances: str
    captions: str = ""
    synonyms: str = ""

    card: ClassVar[Card] = Card(
        source="https://cocodataset.org, object instances and captions",
        revision="the files given",
        licence="annotations CC-BY-4.0; every photograph has its own licence, see images[].license",
        cite="Lin et al. Microsoft COCO: Common Objects in Context. ECCV 2014. arXiv 1405.0312",
        leaks="web-trained models may have seen the photographs and their captions",
    )

    def samples(self) -> Sequence[Sample]:
        """Every listed image, by ascending id."""
        told = Instances(Path(self.instances), "coco", self._also())
        files = Files(Path(self.images), "coco")
        files.check([entry["file_name"] for entry in told.entries.values()], self.instances)
        spoken = self._captions(told.entries)
        rows = [(key, spoken.get(key, ())) for key in sorted(told.entries)]
        return Lazy(rows, partial(_sample, files, told))

    def _also(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = defaultdict(list)
        for word, name in (read_synonyms(Path(self.synonyms)) if self.synonyms else {}).items():
            if word != name:
                found[name].append(word)
        return {name: tuple(words) for name, words in found.items()}

    def _captions(self, entries: Iterable[Any]) -> dict[Any, tuple[str, ...]]:
        if not self.captions:
            return {}
        told = read_json(Path(self.captions), "coco", ("annotations",), "COCO's object format")
        check_rows(told["annotations"], "annotations", ("image_id", "caption"), self.captions)
        own = [entry["id"] for entry in told.get("images", ())] or entries
        said = by_image(told["annotations"], own, self.captions)
        return {key: tuple(str(one["caption"]).strip() for one in each) for key, each in said.items()}


def _sample(files: Files, told: Instances, key: Any, said: tuple[str, ...]) -> Sample:
    entry = told.entries[key]
    return Sample(
        id=Path(entry["file_name"]).stem,
        read=partial(files.read, entry["file_name"], told.size(key)),
        label=entry.get("label"),
        captions=said,
        objects=told.objects(key),
        rationales=tuple(entry.get("rationales", ())),
    )
