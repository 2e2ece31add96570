"""Five captioners' outputs on Flickr8k, with what their authors published of them."""

from __future__ import annotations

import csv
from collections import defaultdict

import pytest

from heatproof.captions.tokens import plain


@pytest.fixture(scope="session")
def published(data):
    """(architecture, captions, references, {name: published score}) of the five, tokenised as their authors did."""
    references = defaultdict(list)
    with (data / "annotations/flickr8k/Flickr8k.token.txt").open(encoding="utf-8") as file:
        for line in file:
            name, text = line.rstrip("\n").split("\t")
            references[name.split("#")[0]].append(plain(text))
    folder = data / "captions/where_image2"
    images = (folder / "imgs_flickr8k.txt").read_text().split()
    found = []
    with (folder / "published_scores.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["dataset_name"] == "flickr8k" and row["run"] == "1":
                lines = (folder / f"flickr8k_{row['architecture']}_1.txt").read_text().splitlines()
                told = {
                    k: float(row[k])
                    for k in ("CIDEr", "METEOR", "ROUGE_L", *(f"Bleu_{n}" for n in (1, 2, 3, 4)))
                }
                said = [plain(line) for line in lines]
                found.append((row["architecture"], said, [references[name] for name in images], told))
    assert len(found) == 5
    return found
