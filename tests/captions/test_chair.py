"""CHAIR: phrases, plurals and rules one by one, and the authors' list against real captions and instances."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import pytest

from heatproof.captions.chair import Mention, chair, hallucinated, mentions, present, read_synonyms
from heatproof.errors import Refused

LIST = """person, man, woman, child, baby, passenger
car, taxi
motorcycle,  motor bike, scooter
bird, goose
dog, puppy
bear
hot dog
chair, seat
couch, sofa
dining table, table, desk
toilet
knife, knive, pocketknife
cow, calf
mouse
wine glass
oven, stove, stove top oven
tie, bow, bow tie
train, locomotive
cell phone, phone, iPhone
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text(LIST)
    return path


@pytest.fixture
def words(file):
    return read_synonyms(file)


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A dog eats a hot dog.", ["dog", "hot dog"]),
        ("hot dogs", ["hot dog"]),
        ("two puppies and their puppy", ["dog", "dog"]),
        ("men, women and children", ["person"] * 3),
        ("geese and mice", ["bird", "mouse"]),
        ("knives on tables", ["knife", "dining table"]),
        ("a dining table with wine glasses", ["dining table", "wine glass"]),
        ("pocketknives for calves", ["knife", "cow"]),
        ("couches, taxis", ["couch", "car"]),
        ("a baby bear", ["bear"]),
        ("a baby and a bear", ["person", "bear"]),
        ("a passenger train", ["train"]),
        ("a passenger in a train", ["person", "train"]),
        ("a toilet seat", ["toilet"]),
        ("the seat of a toilet", ["toilet"]),
        ("a seat", ["chair"]),
        ("a bow tie", ["tie"]),
        ("a stove top oven", ["oven"]),
        ("a motor bike and an iPhone", ["motorcycle", "cell phone"]),
        ("a hot-dog", ["hot dog"]),
        ("a dogma carries bearings", []),
        ("glass", []),
        ("", []),
    ],
)
def test_what_a_caption_names(words, caption, wanted):
    assert [m.thing for m in mentions(caption, words)] == wanted


def test_the_words_said_stand_beside_the_objects_in_the_singular(words):
    assert mentions("Puppies on sofas", words) == [Mention("puppy", "dog"), Mention("sofa", "couch")]


def test_what_is_not_there(words):
    said, wrong = hallucinated("a man, a puppy and a car", {"person", "dog"}, words)
    assert [m.thing for m in said] == ["person", "dog", "car"]
    assert wrong == [Mention("car", "car")]
    there = present(words, ["person", "table"], ["two puppies"])
    assert there == {"person", "dining table", "dog"}
    with pytest.raises(Refused, match="labels: found 'zebra'"):
        present(words, ["zebra"])


def test_mentions_are_pooled_and_captions_counted(words):
    said = ["a man and a dog", "a dog, a dog and a car", "nothing", "a car"]
    there = [{"person", "dog"}, {"car"}, set(), {"car"}]
    assert chair(said, there, words) == (2 / 6, 1 / 4)
    assert chair(said[::-1], there[::-1], words) == chair(said, there, words)
    nothing = chair(["nothing"], [set()], words)
    assert math.isnan(nothing.i)
    assert nothing.s == 0.0
    assert all(map(math.isnan, chair([], [], words)))
    with pytest.raises(ValueError, match="1 captions, but references of 2 images"):
        chair(["a"], [set(), set()], words)


def test_as_released_the_list_loses_what_stands_behind_two_spaces_or_has_a_capital(file):
    found = read_synonyms(file, as_released=True)
    assert [m.thing for m in mentions("a motor bike, an iPhone and a scooter", found)] == ["motorcycle"]


def test_a_bad_list_is_refused_by_its_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("dog, puppy\nseal, puppy\n")
    with pytest.raises(Refused, match=r"list.txt: line 2: 'puppy' is 'dog' already, and 'seal' here"):
        read_synonyms(path)
    with pytest.raises(Refused, match="there is no file"):
        read_synonyms(tmp_path / "none.txt")


def plural(phrase):
    *before, last = phrase.split()
    if last in ("man", "woman", "policeman", "serviceman"):
        last = last[:-2] + "en"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    else:
        last += "s"
    return " ".join([*before, last])


def test_every_phrase_of_the_authors_list_is_found_in_singular_and_plural(data):
    words = read_synonyms(data / "annotations/coco/chair_synonyms.txt")
    assert len(set(words.values())) == 80
    for phrase, thing in words.items():
        for said in (phrase, plural(phrase)):
            assert {m.thing for m in mentions(f"the {said} here", words)} == {thing}, said


def test_people_hallucinate_little_and_nothing_where_their_captions_are_truth(data):
    words = read_synonyms(data / "annotations/coco/chair_synonyms.txt")
    folder = data / "annotations/coco_mini"
    instances = json.loads((folder / "instances_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in instances["categories"]}
    labels, captions = defaultdict(set), defaultdict(list)
    for one in instances["annotations"]:
        labels[one["image_id"]].add(names[one["category_id"]])
    for one in json.loads((folder / "captions_val2017.json").read_text())["annotations"]:
        captions[one["image_id"]].append(one["caption"])
    pairs = [(image, text) for image, some in captions.items() for text in some]
    whole = [present(words, labels[image], captions[image]) for image, _ in pairs]
    assert chair([text for _, text in pairs], whole, words) == (0.0, 0.0)
    by_labels = chair(
        [text for _, text in pairs], [present(words, labels[image]) for image, _ in pairs], words
    )
    print(by_labels, len(pairs))
    assert 0.01 < by_labels.i < 0.2
