"""Caption quality: how much a captioner's own captions are like what people said of the images (quality)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from heatproof.captions import bleu, cider, meteor, rouge
from heatproof.captions.files import digest
from heatproof.captions.stop_words import STOP_WORDS
from heatproof.captions.tokens import Gram, plain
from heatproof.contract import Case, Measure, Model, Score, Trial, Value

NOBODY = "no reference captions"
ORDERS = (1, 2, 3, 4)


class Counts(Mapping[Gram, int]):
    """N-gram counts by a hash of the n-gram, as they are stored: tensors "grams" int64 [M] and "counts" int64 [M].

    >>> counts = Counts.of(cider.Frequencies.of([["a ball"], ["a fish"]]).counts)
    >>> counts["a",], counts.get(("red",), 0), len(counts)
    (2, 0, 5)
    """

    def __init__(self, grams: Tensor, counts: Tensor) -> None:
        self.known = dict(zip(grams.tolist(), counts.tolist(), strict=True))

    @classmethod
    def of(cls, counts: Mapping[Gram, int]) -> Counts:
        return cls(torch.tensor([_number(g) for g in counts]), torch.tensor(list(counts.values())))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"grams": torch.tensor(list(self.known)), "counts": torch.tensor(list(self.known.values()))}

    def __getitem__(self, gram: Gram) -> int:
        return int(self.known[_number(gram)])

    def __iter__(self) -> Iterator[Gram]:
        raise TypeError("the n-grams themselves are not stored")

    def __len__(self) -> int:
        return len(self.known)


def _number(gram: Gram) -> int:
    return int.from_bytes(blake2b(" ".join(gram).encode(), digest_size=8).digest(), "big", signed=True)


@lru_cache(maxsize=4)
def _listed(path: str, digest: str) -> Mapping[str, frozenset[str]]:
    return meteor.read_synonyms(Path(path))


@dataclass(frozen=True)
class CaptionQuality:
    """BLEU-1 to 4, ROUGE-L, CIDEr-D and METEOR of the captions that the model writes, against the image's references.

    Texts are lower-cased and split at everything that is no letter, digit or underscore, as the published small captioners of
    Flickr8k are scored; no PTB tokeniser. ``cider_d`` (Vedantam et al. 2015; what tables call "CIDEr") weighs n-grams by their document frequencies in the references of **the spec's fit
    split**, so that an image's score does not depend on the others; published tables take those of the test set itself: name the same data set
    as `fit` for theirs. ``bleu_n`` (Papineni et al. 2002) sums counts over images before it divides; an image's own number is
    its own BLEU. ``rouge_l`` (Lin 2004) with beta 1.2. ``meteor`` (Denkowski and Lavie 2014) with English 1.5 weights of the stages exact (1),
    ``stem`` (0.6) and ``synonyms`` (0.8): a file, a line a set of words that mean the same, with commas between. ``function_words``: words of an
    English stop list weigh 0.25 and all others 0.75; METEOR's own list is another. None of the three unless asked for, and never
    paraphrases or WordNet: near the Java program's, and no more.

    CIDEr-D 0 to 10, the others 0 to 1; higher is better. Undefined: an image without references; a fit split of fewer than two images.
    Known criticism: n-gram overlap agrees with people at about tau-c 0.3 (BLEU, ROUGE) to 0.44 (CIDEr-D) on Flickr8k-Expert, and pays for safe sentences.
    """

    stem: bool = False
    synonyms: str = ""
    function_words: bool = False
    digest: str = field(init=False)  # of the list's bytes: part of the key

    asks: ClassVar[dict[str, str]] = {"captioner": "written"}
    learns: ClassVar[dict[str, str]] = {
        "captioner": "reference 0"
    }  # of what people said: nothing is written for it

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("cider_d", "higher", "quality"),
        *(Measure(f"bleu_{n}", "higher", "quality", reduce="bleu") for n in ORDERS),
        Measure("rouge_l", "higher", "quality"),
        Measure("meteor", "higher", "quality"),
    )

    def __post_init__(self) -> None:
        if self.synonyms:
            meteor.read_synonyms(Path(self.synonyms))  # what is wrong with it is said now
        object.__setattr__(self, "digest", digest([Path(self.synonyms)] if self.synonyms else []))

    def fit(self, model: Model, feed: Iterable[Sequence[Case]]) -> dict[str, Tensor]:
        """In how many images of the fit split each n-gram is said, and of how many: "grams", "counts" and "images"."""
        told = [[plain(text) for text in case.references] for cases in feed for case in cases]
        found = cider.Frequencies.of(told)
        return {**Counts.of(found.counts).tensors, "images": torch.tensor(found.images)}

    def measure(self, trials: Sequence[Trial], fitted: Mapping[str, Tensor]) -> list[Score]:
        corpus = cider.Frequencies(Counts(fitted["grams"], fitted["counts"]), int(fitted["images"]))
        how = meteor.Settings(
            stem=meteor.stemmer() if self.stem else None,
            synonyms=_listed(self.synonyms, self.digest) if self.synonyms else {},
            function_words=STOP_WORDS if self.function_words else frozenset(),
        )
        return [self._score(trial.case, corpus, how) for trial in trials]

    def _score(self, case: Case, corpus: cider.Frequencies, how: meteor.Settings) -> Score:
        if not case.references:
            return Score({m.name: Value.undefined(NOBODY) for m in self.measures})
        said, told = [plain(" ".join(case.spoken[1:]))], [[plain(text) for text in case.references]]
        found, all_, words, wanted = bleu.counts(said[0], told[0])
        own = bleu.bleu(said, told)[0]
        values = {
            f"bleu_{n}": Value.of(own[n - 1], num=found[:n], den=all_[:n], words=words, wanted=wanted)
            for n in ORDERS
        }
        few = "a fit split of fewer than two images gives no n-gram a weight"
        values["cider_d"] = Value.of(cider.cider_d(said, told, corpus)[0], few)
        values["rouge_l"] = Value.of(rouge.rouge_l(said, told)[0])
        values["meteor"] = Value.of(meteor.meteor(said, told, how)[0])
        return Score({m.name: values[m.name] for m in self.measures})
