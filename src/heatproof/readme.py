"""A benchmark's headline table inside another Markdown file, between markers: for a README that stays true."""

from __future__ import annotations

import re

from heatproof import tables, words
from heatproof.errors import Refused
from heatproof.records import Result
from heatproof.summary import summarise


def filled(text: str, result: Result) -> str:
    """``text`` with the block ``<!-- table: NAME --> ... <!-- end -->`` rewritten from the result."""
    start = f"<!-- table: {result.name} -->"
    block = re.compile(re.escape(start) + r"\n.*?<!-- end -->", re.DOTALL)
    if not block.search(text):
        raise Refused(f"there is no block to fill: write two lines, {start} and <!-- end -->")
    return block.sub(lambda _: f"{start}\n{_table(result)}\n<!-- end -->", text)


def _table(result: Result) -> str:
    summary = summarise(result)
    lines = [words.counts(summary) + "."]
    for block in summary.blocks:
        lines += ["", f"**{block.model}** ({block.family}). {words.sentence(block)}", ""]
        table = tables.grids(summary, block)[0]
        lines += tables.markdown_grid(table)
        lines += [f"- {remark}" for remark in words.remarks(summary, block, table.columns)]
    return "\n".join(lines)
