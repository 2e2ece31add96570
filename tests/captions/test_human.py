"""Human judgements: tau-c against its formula, the files read strictly, and the published agreement of five metrics."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.captions.human import Judged, agreement, read_expert, tau_c
from heatproof.errors import Refused


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.tuples(*[st.integers(1, 4)] * 3)), min_size=2, max_size=9))
def test_tau_c_against_its_formula(pairs):
    """2 (P - Q) / (n^2 (m - 1) / m), m the smaller number of different values."""
    a = [score for score, ratings in pairs for _ in ratings]
    b = [rating for _, ratings in pairs for rating in ratings]
    n, m = len(a), min(len(set(a)), len(set(b)))
    found = tau_c([float(score) for score, _ in pairs], [Judged("", "", ratings, ()) for _, ratings in pairs])
    if m < 2:
        assert math.isnan(found)
        return
    order = [(a[i] - a[j]) * (b[i] - b[j]) for i in range(n) for j in range(i)]
    both = sum((x > 0) - (x < 0) for x in order)
    assert found == pytest.approx(2 * both / (n**2 * (m - 1) / m), abs=1e-12)


def test_a_score_without_a_value_leaves_none():
    pairs = [Judged("a", "", (1, 2), ()), Judged("b", "", (3, 4), ())]
    assert math.isnan(tau_c([math.nan, 1.0], pairs))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        tau_c([1.0], pairs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog .\na.jpg#1\tTwo dogs .\nb.jpg#0\tA cat .\n")
    (tmp_path / "ExpertAnnotations.txt").write_text("a.jpg\tb.jpg#0\t1\t1\t2\na.jpg\ta.jpg#1\t4\t4\t4\n")
    return tmp_path


def test_an_image_s_own_caption_is_no_candidate(folder):
    assert read_expert(folder) == [Judged("a.jpg", "A cat .", (1, 1, 2), ("A dog .", "Two dogs ."))]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "ExpertAnnotations.txt",
            "a.jpg\tb.jpg#0\t1\n",
            r"line 1: found 'a.jpg\\tb.jpg#0\\t1', accepted are 5 fields",
        ),
        (
            "ExpertAnnotations.txt",
            "a.jpg\tc.jpg#0\t1\t1\t1\n",
            "line 1: Flickr8k.token.txt has no caption 'c.jpg#0'",
        ),
        ("Flickr8k.token.txt", "a dog\n", "line 1: found 'a dog', accepted are 2 fields"),
    ],
)
def test_bad_files_are_refused_by_line(folder, file, text, said):
    (folder / file).write_text(text)
    with pytest.raises(Refused, match=said):
        read_expert(folder)
    (folder / file).unlink()
    with pytest.raises(Refused, match="there is no file"):
        read_expert(folder)


# Hessel et al. 2021, table 1; METEOR there is the Java program's, with synonyms and paraphrases: 41.8
PUBLISHED = {"BLEU-1": 32.3, "BLEU-4, coco": 30.8, "ROUGE-L": 32.3, "CIDEr-D": 43.9}


@pytest.mark.slow
def test_published_agreement_with_experts(data):
    pairs = read_expert(data / "annotations/flickr8k")
    assert len(pairs) == 5664
    found = agreement(pairs)
    print({name: round(100 * tau, 2) for name, tau in found.items()})
    assert {name: 100 * found[name] for name in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.1)
    # what the stages and the plain form do to it, held so that it does not move unseen
    held = {"METEOR, exact": 30.26, "METEOR, stem": 33.44, "CIDEr": 44.15, "BLEU-4": 3.39}
    assert {name: 100 * found[name] for name in held} == pytest.approx(held, abs=0.01)
