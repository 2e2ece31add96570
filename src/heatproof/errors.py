"""The two answers that are no crash, this pair does not suit and this request cannot be served, and how names are listed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# Why a value is undefined: the explainer gave nothing of the kind that the metric reads.
NO_IMAGE, NO_TEXT = "no image map", "no text relevance"


class Unsuited(Exception):
    """An explainer or metric cannot serve this model; the reason becomes a dash in the table."""


class Refused(Exception):
    """The user asked for something that cannot be done; the text names file, field, found, accepted."""


def unknown(where: str, what: str, found: str, accepted: Iterable[str], hint: str = "") -> Refused:
    """The one form of 'no such name': place, what was found, the nearest, what there is.

    >>> print(unknown("demo.toml: metrics", "metric", "deletoin", ["deletion", "localization"]))
    demo.toml: metrics: no metric 'deletoin'; did you mean 'deletion'? There are: deletion, localization
    """
    names = sorted(accepted)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    tail = f". {hint}" if hint else ""
    return Refused(f"{where}: no {what} {found!r}{guess} There are: {', '.join(names) or 'none'}{tail}")


def listed(names: Sequence[str], most: int = 3) -> str:
    """``a, b and c``; above ``most`` names the rest is counted."""
    shown = list(names) if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
