"""CIDEr-D against a slow twin written from the paper, and against published scores."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.training.cider import cider_d

sentence = st.lists(st.sampled_from("a red blue ball cup".split()), max_size=9).map(" ".join)


def twin(said, references):
    """Term by term, formula by formula; lists instead of counters."""

    def grams(text, n):
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram, text, n):
        images = sum(any(gram in grams(reference, n) for reference in some) for some in references)
        return grams(text, n).count(gram) * math.log(len(references) / max(1, images))

    scores = []
    for caption, some in zip(said, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for reference in some:
                mine = {g: weight(g, caption, n) for g in grams(caption, n)}
                theirs = {g: weight(g, reference, n) for g in grams(reference, n)}
                dot = sum(min(mine.get(g, 0), w) * w for g, w in theirs.items() if g in mine)
                norm = math.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
                apart = len(caption.split()) - len(reference.split())
                if norm:
                    total += dot / norm * math.exp(-(apart**2) / (2 * 6.0**2))
        scores.append(10 / 4 * total / len(some))
    return scores


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sentence, st.lists(sentence, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_against_the_twin(images):
    said, references = [one for one, _ in images], [some for _, some in images]
    assert cider_d(said, references) == pytest.approx(twin(said, references), abs=1e-9)


def test_its_own_reference_scores_ten_and_nothing_shared_scores_zero():
    references = [["a red ball on the mat"], ["two blue cups here now"], ["one big old green tree"]]
    assert cider_d([some[0] for some in references], references) == pytest.approx([10, 10, 10])
    assert cider_d(["zebra"] * 3, references) == [0, 0, 0]
    assert cider_d([""] * 3, references) == [0, 0, 0]


def test_as_many_captions_as_images():
    with pytest.raises(ValueError, match="2 captions, but references of 1 images"):
        cider_d(["a", "b"], [["a"]])


def test_published_scores(data):
    """The outputs of five captioners on Flickr8k, and the CIDEr their authors published."""
    references = defaultdict(list)

    def clean(text):
        return " ".join(re.sub(r"[^\w ]", " ", text.lower()).split())

    with (data / "annotations/flickr8k/Flickr8k.token.txt").open(encoding="utf-8") as file:
        for line in file:
            name, text = line.rstrip("\n").split("\t")
            references[name.split("#")[0]].append(clean(text))
    folder = data / "captions/where_image2"
    images = (folder / "imgs_flickr8k.txt").read_text().split()
    with (folder / "published_scores.tsv").open(newline="") as file:
        rows = [
            r
            for r in csv.DictReader(file, delimiter="\t")
            if r["dataset_name"] == "flickr8k" and r["run"] == "1"
        ]
    checked = 0
    for row in rows:
        path = folder / f"flickr8k_{row['architecture']}_1.txt"
        if path.exists():
            said = [clean(line) for line in path.read_text().splitlines()]
            found = cider_d(said, [references[name] for name in images])
            assert sum(found) / len(found) == pytest.approx(float(row["CIDEr"]), abs=1e-4)
            checked += 1
    assert checked == 5
