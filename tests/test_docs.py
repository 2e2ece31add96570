"""What the docs say is what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from heatproof import catalogue

ROOT = Path(__file__).resolve().parents[1]
METRICS = """# Metrics

A card a metric: what each value is, its settings and their defaults with sources, its range, when it is undefined, what it
measures, what it does not, and what is held against it. Written by the code itself, and renewed by
`heatproof list metrics --long`; a test holds the two together.
"""


EXPLAINERS = """# Explainers

A card a method: what its map is, where it is defined, its settings with the published defaults and their source, and what is
known against it. Controls know nothing of the model, or only what they say. Written by the code itself, and renewed by
`heatproof list explainers --long`; a test holds the two together.
"""


@pytest.mark.parametrize(("what", "head"), [("metrics", METRICS), ("explainers", EXPLAINERS)])
def test_the_cards_are_the_codes_own(tmp_path, what, head):
    """To renew: the head above, then what `heatproof list ... --long` prints."""
    wanted = head + "\n".join(catalogue.cards(what, tmp_path)) + "\n"
    assert (ROOT / "docs" / f"{what}.md").read_text(encoding="utf-8") == wanted


LAWS = sorted((ROOT / "docs" / "laws").glob("*.md"))
EXCEPTIONS = {"rescaling": "EXCEPT", "flips": "EXCEPT", "undefined": "SILENT"}  # the table of a law's test


def test_every_law_has_a_page_and_every_page_a_test():
    tested = {
        p.stem.removeprefix("test_").replace("_", "-") for p in (ROOT / "tests" / "laws").glob("test_*.py")
    }
    assert {p.stem for p in LAWS} == tested | {"pathologies"}


@pytest.mark.parametrize("page", LAWS, ids=lambda p: p.stem)
def test_a_laws_page_names_its_test_and_the_exceptions_that_the_test_makes(page):
    text = page.read_text(encoding="utf-8")
    if page.stem == "pathologies":
        known = (ROOT / "tests" / "test_conformance.py").read_text(encoding="utf-8")
        named = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `PATHO")]
        assert len(named) == known.count('"PATHO-')
        assert all(f'"{name}"' in known for name in named)
        return
    test = f"tests/laws/test_{page.stem.replace('-', '_')}.py"
    assert test in text
    made = runpy.run_path(str(ROOT / test)).get(EXCEPTIONS.get(page.stem, ""), {})
    said = {
        k: why if isinstance(why, str) else f"{', '.join(why[0].split())}: {why[1]}"
        for k, why in made.items()
    }
    wanted = [f"- `{name}`: {why}" for name, why in said.items()]
    assert [line for line in text.splitlines() if line.startswith("- `")] == wanted
