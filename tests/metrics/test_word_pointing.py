"""Word pointing: against a loop over pixels; one map for all words is chance; what cannot be judged says why."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Case, Explanation, Refused, Trial, Unsuited
from heatproof.metrics.word_pointing import WordPointing, words_of

WORDS = (-1, 0, 1, 1, 2, 3, -1)  # "<s> a ki-te and ball </s>", two tokens for the kite
DUAL = SimpleNamespace(family="dual", name="pair")
NAMED = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 0]], dtype=torch.bool)


def case(planes: torch.Tensor | None = None, named: torch.Tensor | None = NAMED, **more) -> Case:
    if planes is None:
        planes = torch.zeros(2, 4, 4, dtype=torch.bool)
        planes[0, :2, :2], planes[1, 2:, 1:] = True, True
    return Case("c", "s", "x", torch.zeros(3, 4, 4), "x", words=WORDS, evidence=planes, named=named, **more)


def asked(explanation: Explanation | None, about: Case | None = None, **settings_):
    return WordPointing(**settings_).measure([Trial(DUAL, about or case(), "method", explanation)])[0].values


def slow(pairs: np.ndarray, about: Case) -> tuple[float, float]:
    """Pixel by pixel, on a grid as large as the image."""
    hits, shares = [], []
    planes = about.evidence.numpy()
    for plane, tokens in ((0, (2, 3)), (1, (5,))):
        sums, counts = [0.0, 0.0], [0, 0]
        for y in range(4):
            for x in range(4):
                value = max(0.0, sum(pairs[4 * y + x, t] for t in tokens))
                for k in range(2):
                    if planes[k, y, x]:
                        sums[k] += value
                        counts[k] += 1
        means = [s / c for s, c in zip(sums, counts, strict=True)]
        hits.append(float(means[plane] == max(means)) / means.count(max(means)))
        shares.append(sums[plane] / sum(sums))
    return sum(hits) / 2, sum(shares) / 2


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_it_is_the_slow_twin(seed):
    pairs = torch.randn(16, len(WORDS), generator=torch.Generator().manual_seed(seed))
    found = asked(Explanation(pairs=pairs))
    expected = slow(pairs.double().numpy(), case())
    assert found["word_pointing"].number == expected[0]
    assert found["word_mass"].number == pytest.approx(expected[1], rel=1e-6)


def test_a_map_a_word_finds_both_and_the_other_way_round_none():
    pairs = torch.zeros(4, len(WORDS))
    pairs[0, 2:4], pairs[3, 5] = 1.0, 1.0
    found = asked(Explanation(pairs=pairs), upsample="nearest")
    assert found["word_pointing"].number == 1.0
    swapped = pairs[:, [0, 1, 5, 5, 4, 2, 6]]
    found = asked(Explanation(pairs=swapped), upsample="nearest")
    assert (found["word_pointing"].number, found["word_mass"].number) == (0.0, 0.0)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_one_map_for_all_words_is_chance(seed):
    image = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).abs()
    assert asked(Explanation(image=image))["word_pointing"].number == 0.5
    assert asked(Explanation(image=torch.ones(4, 4)))["word_pointing"].number == 0.5  # and a tie is shared


def test_two_of_one_name_are_one_thing():
    planes = torch.zeros(3, 4, 4, dtype=torch.bool)
    planes[0, 0], planes[1, 3], planes[2, 1] = True, True, True
    named = torch.zeros(len(WORDS), 3, dtype=torch.bool)
    named[2:4, :2], named[5, 2] = True, True
    pairs = torch.zeros(16, len(WORDS))
    pairs[12:, 2], pairs[4:8, 5] = 1.0, 1.0  # the second of the two, and the other thing
    assert asked(Explanation(pairs=pairs), case(planes, named))["word_pointing"].number == 1.0
    assert words_of(named, WORDS)[1].tolist() == [True, True, False]


def test_what_is_ignored_takes_no_part():
    about = case(ignore=torch.ones(4, 4, dtype=torch.bool).tril(-9))
    pairs = torch.randn(16, len(WORDS), generator=torch.Generator().manual_seed(1))
    assert asked(Explanation(pairs=pairs), about) == asked(Explanation(pairs=pairs))
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[:2, :2] = True
    assert "fewer than two things" in asked(Explanation(pairs=pairs), case(ignore=hidden))["word_mass"].reason


@pytest.mark.parametrize(
    ("explanation", "about", "reason"),
    [
        (None, case(), "no image map"),
        (Explanation(), case(), "no image map"),
        (Explanation(pairs=torch.full((16, 7), torch.nan)), case(), "NaN or infinity in the map"),
        (Explanation(image=torch.ones(4, 4)), case(named=None), "nothing annotated that the text names"),
        (Explanation(image=torch.ones(4, 4)), case(named=torch.zeros(7, 2).bool()), "fewer than two things"),
    ],
)
def test_undefined_says_why(explanation, about, reason):
    found = asked(explanation, about)
    assert {reason in v.reason and not v.defined for v in found.values()} == {True}


def test_cold_maps_and_wrong_shapes():
    cold = asked(Explanation(image=-torch.ones(4, 4)))
    assert cold["word_pointing"].number == 0.5
    assert cold["word_mass"].reason == "no relevance of the sign positive on any named thing"
    with pytest.raises(ValueError, match=r"pairs of shape \[16, 3\], accepted is \[h\*w, 7\]"):
        asked(Explanation(pairs=torch.ones(16, 3)))
    with pytest.raises(Refused, match="did you mean 'positive'"):
        WordPointing(sign="positiv")


def test_it_is_of_dual_encoders():
    with pytest.raises(Unsuited, match="cnn reads no caption"):
        WordPointing().measure([Trial(SimpleNamespace(family="classifier", name="cnn"), case())])
