"""What the docs say is what the code says."""

from __future__ import annotations

from pathlib import Path

from heatproof import catalogue

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Metrics

A card a metric: what each value is, its settings and their defaults with sources, its range, when it is undefined, what it
measures, what it does not, and what is held against it. Written by the code itself, and renewed by
`heatproof list metrics --long`; a test holds the two together.
"""


def test_the_cards_of_the_metrics_are_the_codes_own(tmp_path):
    """To renew: the head above, then what `heatproof list metrics --long` prints."""
    wanted = HEAD + "\n".join(catalogue.cards(tmp_path)) + "\n"
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == wanted
