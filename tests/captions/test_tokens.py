"""Tokenisation: what two ways make of the same text."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from heatproof import captions
from heatproof.captions.tokens import grams, paired, plain, treebank_like


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("A dog .", "a dog", "a dog"),
        ("Isn't it the boys' T-shirt?", "isn t it the boys t shirt", "is n't it the boys t-shirt"),
        ("  a\tdog\nruns  ", "a dog runs", "a dog runs"),
        ("1,000 black-and-white dogs", "1 000 black and white dogs", "1,000 black-and-white dogs"),
        ("can't; they've, we'll", "can t they ve we ll", "ca n't they 've we 'll"),
        ("Ein Käse_brot", "ein käse_brot", "ein käse_brot"),
        ("?!", "", ""),
    ],
)
def test_two_ways(text, one, other):
    assert plain(text) == one
    assert treebank_like(text) == other
    assert plain(plain(text)) == plain(text)


def test_grams_are_all_runs_of_one_to_four_words():
    words = "a b a b c a b".split()
    slow = [tuple(words[i:j]) for i in range(7) for j in range(i + 1, 8) if j - i <= 4]
    found = grams(" ".join(words))
    assert sorted(found.elements()) == sorted(slow)
    assert found["a", "b"] == 3
    assert not grams("")


def test_one_text_in_place_of_several_is_refused():
    with pytest.raises(TypeError, match=r"references\[1\]: found the text 'a dog', accepted is a list"):
        paired(["a", "b"], [["a"], "a dog"])


def test_the_package_needs_no_torch():
    names = [f"heatproof.captions.{module.name}" for module in pkgutil.iter_modules(captions.__path__)]
    assert len(names) > 7
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
