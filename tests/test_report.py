"""The page: self-contained, well formed, and saying what the tables say."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from heatproof import report, tables, words
from heatproof.summary import summarise

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic.py"))))
VOID = {"meta", "link", "img", "br"}
FAILURE = {
    "model": "small_cnn",
    "explainer": "lrp",
    "metric": "deletion",
    "case": "im003-1",
    "error": "RuntimeError: shapes",
    "traceback": "Traceback (most recent call last):\n<b>boom</b>",
}


class Page(HTMLParser):
    """Text, attributes and balance of a page."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.links, self.images = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "poster", "data"):
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for n, v in attrs if n in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "main" in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return synthetic.make(
        folder, undefined=0.01, unsuited=(("small_cnn", "attention"),), strip=True, failures=[FAILURE]
    )


@pytest.fixture(scope="module")
def html(result):
    return report.html(result)


def test_the_page_is_well_formed_and_needs_no_network(html):
    page = Page(html)
    assert page.open == []
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\(|@import|<script", html)


def test_the_first_screen_says_badge_counts_and_the_sentence(result, html):
    text = Page(html).words
    summary = summarise(result)
    order = [
        "instrument",
        "tests the harness, ranks no method",
        "Synthetic: maps with a known truth",
        words.counts(summary),
        words.headline(summary),
        "asked about “disc”",
        "deletion.srg",
        "Read with care",
        "Every number",
        "Definitions",
        "Where the numbers come from",
        "Failures",
    ]
    place = 0
    for part in order:
        place = text.find(part, place)
        assert place >= 0, part


def test_every_cell_of_the_table_is_on_the_page(result, html):
    text = Page(html).words
    summary = summarise(result)
    for block in summary.blocks:
        assert words.sentence(block) in text
        for column in block.columns:
            for name in column.valued(column.cells):
                assert f"{column.text(column.cells[name].value)}" in text
                assert column.spread(name) in text
    assert len(re.findall(r"– a\b", text)) == 5  # the unsuited row of small_cnn
    assert "a attention: small_cnn has no attention" in text


def test_strips_hold_a_picture_a_map_and_the_tokens(html):
    rows = re.findall(r'<section class="strip">(.*?)</section>', html, re.S)
    assert [row.count("data:image/jpeg;base64,") for row in rows] == [1 + 4 + 1, 1 + 5 + 1]
    assert 'class="tokens"' not in rows[0]
    assert rows[1].count('class="tokens"') == 7
    assert [row.count('class="control"') for row in rows] == [1, 1]


def test_charts_have_a_dot_a_method_and_a_band_of_controls(result, html):
    charts = re.findall(r'<section class="chart"[^>]*>(.*?)</section>', html, re.S)
    assert len(charts) == 2 + 2  # two headline columns, two kinds of curve
    panels = re.findall(r"<svg.*?</svg>", charts[0], re.S)
    assert [p.count('class="dot"') for p in panels] == [4 + 2, 5 + 2]
    assert all(p.count('class="band"') == 1 for p in panels)
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', "".join(panels))]
    assert all(60 <= x <= 280 for x in xs)


def test_chips_name_suspects_undefined_cells_and_dashes(html):
    listed = re.search(r'<ul class="chips">.*?</ul>', html, re.S)[0]
    chips = Page(f"<main>{listed}</main>").words
    assert "⚑ localization.mass on small_cnn: gradcam and lrp better than the evidence itself" in chips
    assert re.search(r"⚑ \d more suspect: deletion.deletion on small_cnn", chips)
    assert re.search(r"\d+ undefined: empty mask", chips)
    assert "– attention on small_cnn: small_cnn has no attention" in chips
    assert "1 failed, see below" in chips


def test_a_suspect_headline_is_said_with_its_controls(tmp_path):
    made = synthetic.make(tmp_path, images=4, models={"m": "classifier"})
    assert "⚑ deletion.srg on m: " in Page(report.html(made)).words


def test_no_suspect_is_said_too(tmp_path):
    made = synthetic.make(tmp_path, measures={"deletion": synthetic.MEASURES["deletion"][:1]})
    assert "no suspect column" in report.html(made)


def test_foreign_words_are_escaped(result, html):
    assert "&lt;b&gt;boom&lt;/b&gt;" in html
    odd = replace(result, run={**result.run, "title": "<script>alert(1)</script>"})
    assert "<script>" not in report.html(odd)


def test_history_and_leaks_are_shown(result):
    card = {**result.run["dataset"]["card"], "leaks": "probably training images"}
    run = {
        **result.run,
        "dataset": {**result.run["dataset"], "card": card},
        "history": [{"date": "2026-02-03T00:00:00", "reason": "the tie rule was wrong"}],
    }
    text = Page(report.html(replace(result, run=run))).words
    assert "known leak: probably training images" in text
    assert "frozen 2026-02-03 the tie rule was wrong" in text


def test_a_bare_run_json_still_draws(tmp_path):
    made = synthetic.make(tmp_path)
    bare = replace(made, run={"name": "synthetic"})
    page = Page(report.html(bare))
    assert page.open == []
    assert "deletion.deletion" in page.words  # without a headline the first column leads


def test_a_single_photograph_still_draws(tmp_path):
    page = Page(report.html(synthetic.make(tmp_path, images=1, asked=1)))
    assert page.open == []
    assert "nan" not in page.words


def test_write_leaves_everything_beside_the_page(result, tmp_path):
    paths = report.write(result, tmp_path)
    assert paths[0] == tmp_path / "index.html"
    assert sorted(p.name for p in paths) == sorted(p.name for p in tmp_path.iterdir())
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == tables.markdown(result)
    before = paths[0].read_bytes()
    assert report.write(result, tmp_path)[0].read_bytes() == before
