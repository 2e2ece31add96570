"""METEOR: its alignment against every alignment there is, its score against a twin, and how far the Java program is."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.captions import aligning
from heatproof.captions.aligning import Pair, align, chunks
from heatproof.captions.meteor import EARLY, Settings, corpus_meteor, meteor, read_synonyms, stemmer
from heatproof.errors import Refused

FIRST = Settings(stem=lambda word: word[0])  # words of one letter's beginning are of one stem
# all stages, and words that weigh less: "ape" and "ant" are of one stem, "ape" and "cow" mean the same
ALL = Settings(
    stem=lambda word: word[0], synonyms={"ape": {"cow"}, "bat": {"ant"}}, function_words={"bee", "ant"}
)
words = st.lists(st.sampled_from("ant ape bee bat cow".split()), max_size=5)


def runs(pairs):
    """Chunks by their definition: maximal groups that are adjacent, and in the same order, in both texts."""
    rest, count = sorted(pairs), 0
    while rest:
        i, j = rest.pop(0)
        while (i + 1, j + 1) in rest:
            rest.remove((i + 1, j + 1))
            i, j = i + 1, j + 1
        count += 1
    return count


def every(a, b, how):
    """All one-to-one alignments of two texts, each as {(i, j): stage}."""
    slots = [*range(len(b)), *[None] * len(a)]
    for places in set(permutations(slots, len(a))):
        pairs = {(i, j): how.stage(a[i], b[j]) for i, j in enumerate(places) if j is not None}
        if None not in pairs.values():
            yield pairs


def best(a, b, how):
    def goodness(pairs):
        return (
            len(pairs),
            -runs(pairs),
            -sum(pairs.values()),
            -sum(abs(i - j) for i, j in pairs),
        )

    return max(every(a, b, how), key=goodness, default={}), goodness


def twin(a, b, how):
    """One reference, from the formula: with two stages the best alignments all have the same stages."""
    pairs, _ = best(a, b, how)
    if not pairs:
        return 0.0
    m = sum(how.weights[stage] for stage in pairs.values())
    p, r = m / len(a), m / len(b)
    mean = 1 / (how.alpha / r + (1 - how.alpha) / p)
    c = 0 if how.unbroken and len(pairs) == len(a) == len(b) and runs(pairs) == 1 else runs(pairs)
    return mean * (1 - how.gamma * (c / len(pairs)) ** how.beta)


@settings(max_examples=80, deadline=None)
@given(words, words)
def test_the_alignment_is_the_best_of_all(a, b):
    pairs, goodness = best(a, b, FIRST)
    options = [
        [Pair(i, j, FIRST.stage(x, y)) for j, y in enumerate(b) if FIRST.stage(x, y) is not None]
        for i, x in enumerate(a)
    ]
    found = align(options)
    assert goodness({(p.i, p.j): p.stage for p in found}) == goodness(pairs)
    assert chunks(found) == runs({(p.i, p.j) for p in found})


@settings(max_examples=60, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=2))
def test_the_score_against_the_twin(said, references):
    some = [" ".join(r) for r in references]
    for how in (FIRST, Settings(), EARLY):
        wanted = max(twin(said, r, how) for r in references)
        assert meteor([" ".join(said)], [some], how) == pytest.approx([wanted], abs=1e-12)


class Told:
    """The stages of ``ALL``, said again."""

    @staticmethod
    def stage(a, b):
        alike = {a, b} in ({"ape", "cow"}, {"bat", "ant"})
        return 0 if a == b else 1 if a[0] == b[0] else 2 if alike else None


def twins(a, b, how):
    """From the formula alone, the score by each of the alignments that are best: stages and function words may tell them apart."""
    found = list(every(a, b, Told))
    top, goodness = best(a, b, Told)
    for pairs in found:
        if not pairs or goodness(pairs) != goodness(top):
            continue

        def weight(word):
            return 0.25 if word in how.function_words else 0.75

        worth = dict(enumerate((1.0, 0.6, 0.8)))
        p = sum(worth[s] * weight(a[i]) for (i, _), s in pairs.items()) / sum(map(weight, a))
        r = sum(worth[s] * weight(b[j]) for (_, j), s in pairs.items()) / sum(map(weight, b))
        mean = p * r / (0.85 * p + 0.15 * r)
        c = 0 if len(pairs) == len(a) == len(b) and runs(pairs) == 1 else runs(pairs)
        yield mean * (1 - 0.6 * (c / len(pairs)) ** 0.2)


@settings(max_examples=40, deadline=None)
@given(words, words)
def test_all_stages_and_function_words_against_every_alignment(a, b):
    (score,) = meteor([" ".join(a)], [[" ".join(b)]], ALL)
    wanted = list(twins(a, b, ALL)) or [0.0]
    assert min(abs(score - one) for one in wanted) < 1e-12


def test_a_word_list_is_read_a_line_a_set(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("Dog, puppy,  hound, hot dog\ncar, auto , van\nvan, hound\n\nalone\n")
    found = read_synonyms(file)
    assert found["dog"] == {"dog", "puppy", "hound"}
    assert found["hound"] == {"dog", "puppy", "hound", "van"}
    assert "hot dog" not in found
    assert "alone" not in found
    how = Settings(synonyms=found)
    assert meteor(["hound"], [["dog"]], how) == pytest.approx([0.8])
    assert meteor(["van"], [["dog"]], how) == [0.0]  # a set each with hound, none together
    (tmp_path / "empty.txt").write_text("alone\n")
    with pytest.raises(Refused, match=r"empty.txt has no line of two words .*: dog, puppy, hound"):
        read_synonyms(tmp_path / "empty.txt")
    with pytest.raises(Refused, match=r"METEOR: synonyms: there is no file .*none.txt; a line of it is"):
        read_synonyms(tmp_path / "none.txt")


def test_the_list_of_chair_serves(data):
    found = read_synonyms(data / "annotations" / "coco" / "chair_synonyms.txt")
    how = Settings(synonyms=found)
    plainly, more = (meteor(["a puppy runs"], [["a dog runs"]], one)[0] for one in (Settings(), how))
    # two of three words in two runs; and all three, in one run that makes both texts whole
    assert plainly == pytest.approx(2 / 3 * 0.4)
    assert more == pytest.approx(2.8 / 3)


def test_fewest_runs_among_the_most_pairs():
    """The second "the" is left for the run that needs it."""
    a, b = "the cat saw the dog".split(), "saw the dog the cat".split()
    pairs, _ = best(a, b, Settings())
    assert runs(pairs) == 2
    score = meteor([" ".join(a)], [[" ".join(b)]])[0]
    assert score == pytest.approx(1 - 0.6 * (2 / 5) ** 0.2)


def test_many_repeated_words_are_aligned_whole_and_a_small_memory_still_gives_an_alignment(monkeypatch):
    said, reference = "a b c " * 5, "c b a " * 5
    assert meteor([said], [[said]]) == [1.0]
    full = meteor([said], [[reference]])[0]
    monkeypatch.setattr(aligning, "STATES", 3)
    less = meteor([said], [[reference]])[0]
    assert 0 < less <= full


def test_content_words_weigh_three_times_as_much_as_function_words():
    how = Settings(function_words={"the", "a"})
    # P: the dog of (a, dog), 0.75 of 1; R: the dog of (the, dog)
    assert meteor(["a dog"], [["the dog"]], how) == pytest.approx([0.75 * (1 - 0.6)])
    assert meteor(["the cat"], [["the dog"]], how) == pytest.approx([0.25 * (1 - 0.6)])
    assert meteor(["the cat"], [["the dog"]]) == pytest.approx([0.5 * (1 - 0.6)])


def test_each_stage_is_worth_its_weight_and_is_left_out_unless_given():
    penalty = 1 - 0.6 * 1
    stem, synonym = Settings(stem=stemmer()), Settings(synonyms={"puppy": {"dog"}})
    assert meteor(["dogs"], [["dog"]]) == [0.0]
    assert meteor(["dogs"], [["dog"]], stem) == pytest.approx([0.6])
    assert meteor(["dome"], [["dog"]], stem) == [0.0]
    assert meteor(["dogs run"], [["a dog"]], stem) == pytest.approx([0.3 * penalty])
    for said, other in (("puppy", "dog"), ("dog", "puppy")):  # both directions
        assert meteor([said], [[other]], synonym) == pytest.approx([0.8])
    assert meteor(["puppy"], [["dogs"]], synonym) == [0.0]


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("running", "run"), ("dogs", "dog"), ("skies", "sky"), ("dying", "die"), ("consistency", "consist"),
        ("consigned", "consign"), ("knackeries", "knackeri"), ("happily", "happili"), ("news", "news"), ("child", "child"),
    ],
)  # fmt: skip
def test_stems_are_those_of_the_snowball_page(word, stem):
    assert stemmer()(word) == stem


def test_without_the_stemmer_the_answer_says_what_to_type(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    stemmer.cache_clear()
    with pytest.raises(Refused, match="pip install snowballstemmer"):
        stemmer()


def test_edges_and_neighbours():
    said = ["a red dog", "", "dog", "a cat", "a cat sat"]
    references = [["a dog", "the red dog"], ["a dog"], [""], ["a cat sat", "the cat"], ["sat a cat"]]
    whole = meteor(said, references)
    assert whole[1:3] == [0.0, 0.0]
    assert meteor(said[::-1], references[::-1])[::-1] == whole
    assert [meteor([a], [b])[0] for a, b in zip(said, references, strict=True)] == whole
    assert corpus_meteor(said[::-1], references[::-1]) == pytest.approx(
        corpus_meteor(said, references), abs=1e-15
    )
    assert corpus_meteor(said[:1], references[:1]) == whole[0]
    assert math.isnan(meteor(["a"], [[]])[0])
    assert math.isnan(corpus_meteor(["a", "b"], [["a"], []]))
    assert math.isnan(corpus_meteor([], []))


@pytest.mark.slow
def test_how_far_the_java_program_is(published):
    """It knows function words, synonyms and paraphrases: no tolerance is promised, the distance is held."""
    for name, said, references, told in published:
        exact, stems = (
            corpus_meteor(said, references, how) for how in (Settings(), Settings(stem=stemmer()))
        )
        if name == "human":
            assert exact == stems == told["METEOR"] == 1.0
        else:
            assert 0.008 < exact - told["METEOR"] < 0.011, name
            assert 0.013 < stems - told["METEOR"] < 0.015, name
