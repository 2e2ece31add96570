"""Random numbers belong to names, never to the order of the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatproof import seeds

NAMES = st.lists(
    st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=6), max_size=4
)


@given(NAMES, NAMES)
def test_other_names_other_numbers(a, b):
    assert (seeds.number(*a) == seeds.number(*b)) == ("\x1f".join(a) == "\x1f".join(b))
    assert 0 <= seeds.number(*a) < 2**63


def test_the_numbers_are_the_same_on_every_machine():
    """Frozen: were they to change, every stored number that used one would be wrong."""
    assert seeds.number(0, "s1.ball", "rise") == 5507567325623908775
    drawn = torch.randint(1000, (4,), generator=seeds.generator(3, "case", "part"))
    assert (
        drawn.tolist() == torch.randint(1000, (4,), generator=seeds.generator("3", "case", "part")).tolist()
    )
    assert drawn.tolist() != torch.randint(1000, (4,), generator=seeds.generator(4, "case", "part")).tolist()


def draws() -> tuple[list[float], list[float]]:
    return torch.rand(3).tolist(), np.random.rand(3).tolist()


def test_foreign_code_is_seeded_inside_and_the_world_outside_goes_on_as_before():
    torch.manual_seed(1)
    np.random.seed(1)
    undisturbed = draws()
    torch.manual_seed(1)
    np.random.seed(1)
    with seeds.forked(0, "case"):
        first = draws()
    assert draws() == undisturbed
    with seeds.forked(0, "case"):
        assert draws() == first
    with seeds.forked(1, "case"):
        assert draws() != first


def test_the_world_outside_is_restored_after_an_exception():
    torch.manual_seed(1)
    np.random.seed(1)
    undisturbed = draws()
    torch.manual_seed(1)
    np.random.seed(1)

    def crash() -> None:
        with seeds.forked(0, "case"):
            draws()
            raise RuntimeError("foreign")

    with pytest.raises(RuntimeError, match="foreign"):
        crash()
    assert draws() == undisturbed
