"""Sentences on columns that differ in one choice, from blocks that are written out by hand."""

from __future__ import annotations

from heatproof import variants
from heatproof.summary import Block, Cell, Column

METHODS = ("a", "b", "c")


def column(metric, values, better="higher"):
    cells = {m: Cell(v, v - 0.1, v + 0.1, cases=4, images=4) for m, v in zip(METHODS, values, strict=True)}
    return Column((metric, "srg"), {"better": better}, cells, METHODS, ())


def block(*columns):
    return Block("net", "classifier", 4, 4, 1, columns, 1, METHODS, (), (), {})


def run(**settings):
    return {"metrics": [{"name": n, "use": "deletion", "settings": s} for n, s in settings.items()]}


MEAN, BLUR, NOISE = ({"baseline": b, "sign": "signed", "steps": 4} for b in ("mean", "blur", "noise"))


def test_a_ranking_that_holds_on_every_baseline_is_said_to():
    found = variants.held(
        block(column("d", (3.0, 2.0, 1.0)), column("e", (0.9, 0.5, 0.1))), run(d=MEAN, e={**BLUR, "steps": 2})
    )
    assert found == ["d.srg on mean and blur: the ranking held (Kendall's W 1.00; a first on mean and blur)"]


def test_a_ranking_that_turns_is_said_to_and_who_leads_where():
    found = variants.held(
        block(column("d", (3.0, 2.0, 1.0)), column("e", (0.1, 0.5, 0.9)), column("f", (0.9, 0.5, 0.1))),
        run(d=MEAN, e=BLUR, f=NOISE),
    )
    w = "0.11"  # 12 S / (m^2 (n^3 - n)) = 12 * 2 / (9 * 24): rank sums 5, 6, 7
    told = f"the ranking did not hold (Kendall's W {w}; a first on mean and noise; c first on blur)"
    assert found == [f"d.srg on mean, blur and noise: {told}"]


def test_lower_is_better_turns_the_values():
    found = variants.held(
        block(column("d", (1.0, 2.0, 3.0), "lower"), column("e", (0.1, 0.5, 0.9), "lower")),
        run(d=MEAN, e=BLUR),
    )
    assert "the ranking held" in found[0]
    assert "a first on mean and blur" in found[0]


def test_columns_that_differ_in_more_than_the_baseline_are_not_compared():
    two = block(column("d", (3.0, 2.0, 1.0)), column("e", (0.1, 0.5, 0.9)))
    assert variants.held(two, run(d=MEAN, e={**BLUR, "sign": "abs"})) == []
    assert variants.held(block(column("d", (3.0, 2.0, 1.0))), run(d=MEAN)) == []


def test_the_gap_of_a_known_bug_is_told_method_by_method():
    columns = column("d", (3.0, 2.0, 1.0)), column("d (as released)", (3.5, 2.0, 2.5))
    made = run(d={"as_released": False}) | {}
    made["metrics"].append({"name": "d (as released)", "use": "deletion", "settings": {"as_released": True}})
    (found,) = variants.moved(block(*columns), made)
    assert found.startswith(
        "d.srg as released and corrected (gap): a 3.50 and 3.00 (0.50), b 2.00 and 2.00 (0.00)"
    )
    assert found.endswith("c 2.50 and 1.00 (1.50); another order")
