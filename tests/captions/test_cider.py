"""CIDEr and CIDEr-D against slow twins written from the paper, and against published scores."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.captions.cider import Frequencies, cider, cider_d

sentence = st.lists(st.sampled_from("a red blue ball cup".split()), max_size=9).map(" ".join)
some_images = st.lists(
    st.tuples(sentence, st.lists(sentence, min_size=1, max_size=3)), min_size=2, max_size=4
)


def twin(said, references, corpus, *, d):
    """Term by term, formula by formula; lists instead of counters."""

    def grams(text, n):
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram, text, n):
        images = sum(any(gram in grams(reference, n) for reference in some) for some in corpus)
        return grams(text, n).count(gram) * math.log(len(corpus) / max(1, images))

    scores = []
    for caption, some in zip(said, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for reference in some:
                mine = {g: weight(g, caption, n) for g in grams(caption, n)}
                theirs = {g: weight(g, reference, n) for g in grams(reference, n)}
                dot = sum((min(mine[g], w) if d else mine[g]) * w for g, w in theirs.items() if g in mine)
                norm = math.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
                apart = len(caption.split()) - len(reference.split())
                if norm:
                    total += dot / norm * (math.exp(-(apart**2) / (2 * 6.0**2)) if d else 1.0)
        scores.append(10 / 4 * total / len(some))
    return scores


@settings(max_examples=60, deadline=None)
@given(some_images)
def test_against_the_twins(images):
    said, references = [one for one, _ in images], [some for _, some in images]
    assert cider_d(said, references) == pytest.approx(twin(said, references, references, d=True), abs=1e-9)
    assert cider(said, references) == pytest.approx(twin(said, references, references, d=False), abs=1e-9)
    corpus = [["a red ball", "the ball"], ["a cup"], ["a blue cup"]]
    found = cider_d(said, references, Frequencies.of(corpus))
    assert found == pytest.approx(twin(said, references, corpus, d=True), abs=1e-9)


SAID = ["a red ball on the mat", "a cup", "", "two blue cups here now", "a zebra"]
REFERENCES = [
    ["a red ball on the mat", "a ball"],
    ["a cup", "the cup"],
    ["a fish"],
    ["blue cups"],
    ["a horse"],
]


@pytest.mark.parametrize("metric", [cider, cider_d])
def test_with_a_fixed_corpus_no_score_depends_on_its_neighbours(metric):
    """Law 1, with ==; without one it does, and the docstring says so."""
    corpus = Frequencies.of([*REFERENCES, ["a tree"]])
    whole = metric(SAID, REFERENCES, corpus)
    for size in (1, 3):
        parts = [metric(SAID[k : k + size], REFERENCES[k : k + size], corpus) for k in range(0, 5, size)]
        assert [score for part in parts for score in part] == whole
    assert metric(SAID[::-1], REFERENCES[::-1], corpus)[::-1] == whole
    assert metric(SAID[:3], REFERENCES[:3]) != metric(SAID, REFERENCES)[:3]
    assert metric(SAID, REFERENCES) == metric(SAID, REFERENCES, Frequencies.of(REFERENCES))


def test_its_own_reference_scores_ten_and_nothing_shared_scores_zero():
    references = [["a red ball on the mat"], ["two blue cups here now"], ["one big old green tree"]]
    for metric in (cider, cider_d):
        assert metric([some[0] for some in references], references) == pytest.approx([10, 10, 10])
        assert metric(["zebra"] * 3, references) == [0, 0, 0]
        assert metric([""] * 3, references) == [0, 0, 0]


def test_saying_a_word_again_pays_only_in_the_plain_form():
    references = [["ball on a mat"], ["a cup"], ["a fish"]]
    once, again = (f"{'ball ' * n}mat" for n in (1, 5))
    gain = {}
    for metric in (cider, cider_d):
        gain[metric] = [metric([said, "", ""], references)[0] for said in (once, again)]
    assert gain[cider][1] > 0.7 * gain[cider][0]
    assert gain[cider_d][1] < 0.5 * gain[cider_d][0]


def test_what_has_no_value():
    for metric in (cider, cider_d):
        assert math.isnan(metric(["a ball"], [["a ball"]])[0])  # one image: no n-gram has a weight
        found = metric(["a ball", "a cup"], [["a ball"], []])
        assert found[0] > 0
        assert math.isnan(found[1])
        assert metric([], []) == []
        with pytest.raises(ValueError, match="2 captions, but references of 1 images"):
            metric(["a", "b"], [["a"]])


def test_published_cider_is_cider_d(published):
    """The plain form is far from what is published under that name."""
    for name, said, references, told in published:
        found = cider_d(said, references)
        assert sum(found) / len(found) == pytest.approx(told["CIDEr"], abs=1e-4), name
        plain = cider(said, references)
        assert sum(plain) / len(plain) > told["CIDEr"] + 0.1, name
