"""Quarters: so many things, each in a quarter of its own, named once in the caption."""

from __future__ import annotations

import numpy as np
import pytest

from heatproof import shelf
from heatproof.contract import Refused
from heatproof.training.vocabulary import scene_words

Quarters = shelf.load(shelf.house() / "datasets" / "quarters.py").Quarters


@pytest.mark.parametrize("things", [1, 2, 3, 4])
def test_each_thing_has_a_quarter_and_a_word(things):
    known, places = scene_words(), set()
    for sample in Quarters(things=things, sample=24).samples():
        (caption,) = sample.captions
        words = caption.split()
        assert set(words) <= set(known.ids)
        assert len(words) <= 18  # the small CLIP reads 20 tokens, two of them its own
        names = [thing.name for thing in sample.objects]
        assert len(set(names)) == things
        assert [w for w in words if w in names] == names
        quarters = []
        for thing in sample.objects:
            rows, columns = np.nonzero(thing.mask)
            quarters.append((rows.mean() > 56, columns.mean() > 56))
            assert (((rows > 55.5) == quarters[-1][0]) & ((columns > 55.5) == quarters[-1][1])).all()
            changed = (thing.without() != sample.read()).any(2)
            assert not changed[~thing.mask].any()
        assert len(set(quarters)) == things
        places.add(quarters[0])
    assert len(places) == 4  # the first word's thing stands anywhere


def test_wrong_settings_are_refused():
    for settings, said in (
        ({"things": 5}, "1 to 4"),
        ({"split": "tset"}, "train, val, test"),
        ({"sample": 0}, "1 or more"),
    ):
        with pytest.raises(Refused, match=said):
            Quarters(**settings)
