"""BLEU against a slow twin written from the paper, and against published scores."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.captions.bleu import bleu, corpus_bleu

sentence = st.lists(st.sampled_from("a red blue ball cup".split()), max_size=8).map(" ".join)
image = st.tuples(sentence, st.lists(sentence, min_size=1, max_size=3))


def twin(said, references, tiny=0.0, small=0.0):
    """Order by order, gram by gram, with lists; exp(1 - r/c) and the geometric mean as they stand in the paper."""

    def grams(text, n):
        words = text.split()
        return [words[i : i + n] for i in range(len(words) - n + 1)]

    c = r = 0
    for text, some in zip(said, references, strict=True):
        here = len(text.split())
        lengths = sorted((len(other.split()) for other in some), key=lambda n: (abs(n - here), n))
        c, r = c + here, r + lengths[0]
    if r == 0 and not small:
        brevity = 1.0 if c else 0.0
    elif c + tiny == 0:
        brevity = 0.0
    else:
        ratio = (c + tiny) / (r + small)
        brevity = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
    precisions = []
    for n in (1, 2, 3, 4):
        right = told = 0
        for text, some in zip(said, references, strict=True):
            mine = grams(text, n)
            told += len(mine)
            for gram in {tuple(g) for g in mine}:
                right += min(mine.count(list(gram)), max(grams(other, n).count(list(gram)) for other in some))
        precisions.append((right + tiny) / (told + small) if told + small else 0.0)
    return [brevity * math.prod(precisions[:n]) ** (1 / n) for n in (1, 2, 3, 4)]


@settings(max_examples=80, deadline=None)
@given(st.lists(image, min_size=1, max_size=4))
def test_against_the_twin(images):
    said, references = [one for one, _ in images], [some for _, some in images]
    assert corpus_bleu(said, references) == pytest.approx(twin(said, references), abs=1e-12)
    coco = corpus_bleu(said, references, "coco")
    assert coco == pytest.approx(twin(said, references, 1e-15, 1e-9), abs=1e-12)
    for text, some, found in zip(said, references, bleu(said, references), strict=True):
        assert found == pytest.approx(twin([text], [some]), abs=1e-12)
        assert found == corpus_bleu([text], [some])


def test_a_caption_by_itself_does_not_depend_on_its_neighbours():
    said = ["a red ball", "", "the blue cup is here", "a a a", "cup"]
    references = [["a red ball"], ["a"], ["the cup is here", "blue cup"], ["a ball"], ["cup", "a cup"]]
    whole = bleu(said, references)
    assert bleu(said[::-1], references[::-1]) == whole[::-1]
    assert [bleu([a], [b])[0] for a, b in zip(said, references, strict=True)] == whole
    assert bleu(said[:3], references[:3]) + bleu(said[3:], references[3:]) == whole
    assert corpus_bleu(said[::-1], references[::-1]) == corpus_bleu(said, references)


def test_of_two_lengths_as_near_the_shorter_counts():
    assert bleu(["a b c d"], [["a b c d e", "x y z"]])[0][0] == 1.0
    assert bleu(["a b c d"], [["a b c d e"]])[0][0] == pytest.approx(math.exp(-1 / 4))


def test_what_has_no_value_and_what_is_zero():
    assert bleu(["", "a dog"], [["a dog"], []])[0] == (0.0,) * 4
    assert all(map(math.isnan, bleu(["a dog"], [[]])[0]))
    assert all(map(math.isnan, corpus_bleu(["a dog", "a cat"], [["a dog"], []])))
    assert all(map(math.isnan, corpus_bleu([], [])))
    assert bleu(["a dog"], [["a dog"]])[0] == (1.0, 1.0, 0.0, 0.0)  # it says no run of three
    assert 0 < bleu(["a dog runs"], [["a dog sleeps"]], "coco")[0][3] < 1e-3
    with pytest.raises(ValueError, match="smooth: found 'nist', accepted are none, coco"):
        bleu(["a"], [["a"]], "nist")
    with pytest.raises(ValueError, match="2 captions, but references of 1 images"):
        corpus_bleu(["a", "b"], [["a"]])


@pytest.mark.parametrize("smooth", ["none", "coco"])
def test_published_scores(published, smooth):
    for name, said, references, told in published:
        found = corpus_bleu(said, references, smooth)
        wanted = [told[f"Bleu_{n}"] for n in (1, 2, 3, 4)]
        assert found == pytest.approx(wanted, abs=1e-11), name
