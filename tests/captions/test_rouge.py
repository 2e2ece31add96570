"""ROUGE-L against a slow twin written from the paper, and against published scores."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.captions.rouge import rouge_l, subsequence

words = st.lists(st.sampled_from("a red blue ball".split()), max_size=7)


def common(a, b):
    """The longest of all subsequences of a that b has too, by trying every one."""
    there = {c for n in range(len(b) + 1) for c in combinations(b, n)}
    return max(len(c) for n in range(len(a) + 1) for c in combinations(a, n) if c in there)


def twin(text, some, beta=1.2):
    said = text.split()
    p = max(common(said, r.split()) / max(1, len(said)) for r in some)
    r = max(common(said, r.split()) / max(1, len(r.split())) for r in some)
    return (1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0


@settings(max_examples=60, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=3))
def test_against_the_twin(said, references):
    text, some = " ".join(said), [" ".join(r) for r in references]
    assert subsequence(said, references[0]) == common(tuple(said), tuple(references[0]))
    assert rouge_l([text], [some]) == pytest.approx([twin(text, some)], abs=1e-12)
    assert rouge_l([text], [some], beta=0.5) == pytest.approx([twin(text, some, 0.5)], abs=1e-12)


def test_precision_and_recall_are_highest_over_all_references_each_by_itself():
    """As Lin and Och have it: no single reference gives this 1."""
    assert rouge_l(["a b"], [["a b c d", "a"]]) == [1.0]
    assert rouge_l(["a b"], [["a b c d"]])[0] < 1


def test_edges_and_neighbours():
    said = ["a dog", "", "a dog", "dog a", "cat"]
    references = [["a dog"], ["a dog"], [], ["a dog"], ["", "a dog"]]
    found = rouge_l(said, references)
    assert found[:2] == [1.0, 0.0]
    assert math.isnan(found[2])
    assert found[3:] == [0.5, 0.0]
    kept = [0, 1, 3, 4]
    assert [rouge_l([said[i]], [references[i]])[0] for i in kept] == [found[i] for i in kept]
    with pytest.raises(ValueError, match="1 captions, but references of 2 images"):
        rouge_l(["a"], [["a"], ["b"]])


def test_published_scores(published):
    for name, said, references, told in published:
        found = rouge_l(said, references)
        assert sum(found) / len(found) == pytest.approx(told["ROUGE_L"], abs=1e-4), name
