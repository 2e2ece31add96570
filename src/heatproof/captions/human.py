"""Do people agree? Expert ratings of Flickr8k's captions, and how a metric ranks beside them.

Hodosh, Young, Hockenmaier, "Framing Image Description as a Ranking Task", JAIR 47, 2013; the protocol is that of Anderson et al.,
"SPICE", ECCV 2016, https://arxiv.org/abs/1607.08822, as Hessel et al. (https://arxiv.org/abs/2104.08718) have it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from heatproof.captions.bleu import bleu
from heatproof.captions.cider import Frequencies, cider, cider_d
from heatproof.captions.meteor import Settings, meteor, stemmer
from heatproof.captions.rouge import rouge_l
from heatproof.captions.tokens import plain
from heatproof.errors import Refused

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]


@dataclass(frozen=True)
class Judged:
    """A caption of some image put beside ``image``: three experts' ratings, 1 (unrelated) to 4, and the image's own captions."""

    image: str
    caption: str
    ratings: tuple[int, ...]
    references: tuple[str, ...]


def read_expert(folder: Path) -> list[Judged]:
    """The pairs of ExpertAnnotations.txt with the texts of Flickr8k.token.txt, both in ``folder``, as written.

    Pairs whose caption is one of the image's own are left out (158 of 5,822): a metric would see its answer among the references.
    Raises Refused, naming file and line, for a file that is missing, a line of another form, a caption that is not there.
    """
    texts: dict[str, str] = {}
    own: dict[str, list[str]] = defaultdict(list)
    for _, (key, text) in _rows(folder / "Flickr8k.token.txt", 2):
        texts[key] = text
        own[key.split("#")[0]].append(text)
    found = []
    for where, (image, key, *ratings) in _rows(folder / "ExpertAnnotations.txt", 5):
        if key not in texts or image not in own:
            raise Refused(f"{where}: Flickr8k.token.txt has no caption {key!r}, or none of {image!r}")
        if key.split("#")[0] != image:
            found.append(Judged(image, texts[key], tuple(map(int, ratings)), tuple(own[image])))
    return found


def _rows(path: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    if not path.is_file():
        raise Refused(f"Flickr8k-Expert: there is no file {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        row = line.rstrip("\r").split("\t")
        if len(row) == width:
            yield f"{path}: line {number}", row
        elif line.strip():
            raise Refused(
                f"{path}: line {number}: found {line[:60]!r}, accepted are {width} fields with tabs between"
            )


def tau_c(scores: Sequence[float], judged: Sequence[Judged]) -> float:
    """Kendall's tau-c of a metric's scores, one a pair, with every rating by itself: -1 to 1, as published (there times 100).

    A pair stands once for each of its ratings; tau-c (Stuart 1953) because few ratings tie many pairs. NaN: a score that is
    NaN, or scores or ratings that are all the same.

    >>> pairs = [Judged("a", "", (1, 1, 2), ()), Judged("b", "", (3, 4, 4), ())]
    >>> tau_c([0.1, 0.9], pairs), tau_c([0.5, 0.5], pairs)
    (1.0, nan)
    """
    from scipy.stats import kendalltau

    a = [score for score, pair in zip(scores, judged, strict=True) for _ in pair.ratings]
    b = [rating for pair in judged for rating in pair.ratings]
    if any(map(math.isnan, a)) or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(kendalltau(a, b, variant="c").statistic)


def agreement(
    judged: Sequence[Judged], metrics: dict[str, Metric] | None = None, tokenise: Callable[[str], str] = plain
) -> dict[str, float]:
    """Kendall's tau-c with the ratings, a metric a name; ``metrics``: those to ask, None all of ``usual``."""
    images = {pair.image: [tokenise(text) for text in pair.references] for pair in judged}
    said = [tokenise(pair.caption) for pair in judged]
    references = [images[pair.image] for pair in judged]
    asked = usual(Frequencies.of(list(images.values()))) if metrics is None else metrics
    return {name: tau_c(metric(said, references), judged) for name, metric in asked.items()}


def usual(corpus: Frequencies) -> dict[str, Metric]:
    """The metrics of this package, CIDEr with the document frequencies of ``corpus``."""
    return {
        "BLEU-1": lambda said, references: [scores[0] for scores in bleu(said, references)],
        "BLEU-4": lambda said, references: [scores[3] for scores in bleu(said, references)],
        "BLEU-4, coco": lambda said, references: [scores[3] for scores in bleu(said, references, "coco")],
        "ROUGE-L": rouge_l,
        "METEOR, exact": meteor,
        "METEOR, stem": lambda said, references: meteor(said, references, Settings(stem=stemmer())),
        "CIDEr": lambda said, references: cider(said, references, corpus),
        "CIDEr-D": lambda said, references: cider_d(said, references, corpus),
    }
