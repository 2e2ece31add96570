"""Conceptual Captions: web photographs by their addresses, one caption each; downloaded once, dead links on record."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from filelock import FileLock

from heatproof import seeds
from heatproof.contract import Card, Refused, Sample
from heatproof.photographs import Lazy, decode
from heatproof.records import write_whole

HEADS = (
    "url",
    "path",
    "image",
    "file",
)  # what the second column may be called, where there is a first line of names
LARGEST = 32 * 1024 * 1024  # bytes of one image
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later
NO_NETWORK = 20  # links in a row of which none answers: the fault is here
ASKING = (
    "Mozilla/5.0 (compatible; heatproof)"  # some hosts answer no program that does not look like a browser
)


class Pair(NamedTuple):
    """A line of the table: its number from 1, the caption, and where the image is (a URL, or a path)."""

    line: int
    caption: str
    where: str

    @property
    def name(self) -> str:
        """Of the sample, and of the file that keeps what was downloaded."""
        return f"{self.line:08d}-{blake2b(self.where.encode(), digest_size=4).hexdigest()}"


@dataclass(frozen=True)
class Conceptual:
    """Pairs of a TSV: caption, tab, URL or path (relative to the TSV). ``sample`` of them, 0 for all that can be had.

    Pairs are drawn in an order of ``seed`` and downloaded into ``images``, ``workers`` at a time, each asked up to
    ``tries`` times, ``pause`` seconds and then twice as long apart, ``timeout`` seconds each. What gives no whole image
    is written to dead_links.tsv there (line, where, why), and the next pair is drawn; neither it nor what was
    downloaded is asked for again, so that the same folder always gives the same samples, in the table's order, without
    a network. To ask again for a dead link, delete its line. Where fewer than ``sample`` live, a warning says how many.

    Raises Refused: no such table, no pair that lives, or a network that went silent (nobody is dead of that).
    """

    table: str
    images: str
    sample: int = 0
    seed: int = 0
    tries: int = 3
    timeout: float = 20.0
    pause: float = 1.0
    workers: int = 16

    card: ClassVar[Card] = Card(
        source="https://ai.google.com/research/ConceptualCaptions/download, train or validation TSV",
        revision="the table given; what of it lives is in the folder's dead_links.tsv",
        licence="the table: free for any use, as is; every photograph has its own owner and licence",
        cite="Sharma, Ding, Goodman, Soricut. Conceptual Captions. ACL 2018",
        leaks="CLIP and its like were trained on web pairs, these probably among them; links die, "
        "so that no two downloads are the same set",
    )

    def __post_init__(self) -> None:
        least = {"sample": 0, "tries": 1, "timeout": 0.01, "pause": 0, "workers": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise Refused(f"conceptual: {name}: found {getattr(self, name)}, accepted is {low} or more")

    def samples(self) -> Sequence[Sample]:
        """The living pairs, by line; downloads what is not there yet."""
        pairs = read_table(Path(self.table))
        folder = Path(self.images)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # several processes of one run ask at once: they must get the same
            live = self._live(pairs, DeadLinks(folder / "dead_links.tsv"))
        return Lazy([(pair,) for pair in sorted(live)], self._sample)

    def _live(self, pairs: Sequence[Pair], dead: DeadLinks) -> list[Pair]:
        """As many as are wanted, in the order of the draw."""
        order = np.random.default_rng(seeds.number(self.seed, "conceptual")).permutation(len(pairs))
        wanted = self.sample or len(pairs)
        live: list[Pair] = []
        waiting = [pairs[k] for k in order if pairs[k] not in dead]
        silent: dict[
            Pair, Failure
        ] = {}  # since the last answer; not on record yet: perhaps the network is down
        with ThreadPoolExecutor(self.workers) as threads:
            while waiting and len(live) < wanted:
                now = min(self.workers, wanted - len(live))
                some, waiting = waiting[:now], waiting[now:]
                found = dict(zip(some, threads.map(self.fetch, some), strict=True))
                live += [pair for pair, failure in found.items() if failure is None]
                failures = {pair: failure for pair, failure in found.items() if failure is not None}
                mute = {pair: failure for pair, failure in failures.items() if failure.silent}
                if len(mute) < len(some):  # somebody answered, so that those before were asked in vain
                    dead.add(silent | {pair: failures[pair] for pair in failures if pair not in mute})
                    silent = {}
                silent |= mute
                if len(silent) >= NO_NETWORK:
                    pair, failure = next(iter(silent.items()))
                    raise Refused(
                        f"conceptual: {len(silent)} links in a row do not answer; is there a network? The same "
                        f"command goes on from here. The first of them: {pair.where}: {failure.why}"
                    )
        dead.add(silent)
        if not live:
            raise Refused(f"{self.table}: none of {len(pairs)} images can be had; see {dead.path}")
        if len(live) < self.sample:
            warnings.warn(
                f"conceptual: {len(live)} of the {self.sample} pairs asked for are alive; see {dead.path}",
                stacklevel=3,
            )
        return live

    def _sample(self, pair: Pair) -> Sample:
        return Sample(id=pair.name, read=partial(_read, self._file(pair)), captions=(pair.caption,))

    def _file(self, pair: Pair) -> Path:
        if "://" in pair.where:
            return Path(self.images) / pair.name
        return Path(self.table).parent / pair.where

    def fetch(self, pair: Pair) -> Failure | None:
        """Have the pair's image in its file, whole; why not, where it cannot be had."""
        file = self._file(pair)
        if "://" not in pair.where:
            return _spoilt(file)
        if file.is_file() and _spoilt(file) is None:
            return None
        if not pair.where.lower().startswith(("http://", "https://")):
            return Failure("neither http nor https", False)
        failure = Failure("never asked", True)
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            raw, failure = download(pair.where, self.timeout)
            if raw is not None:
                _write(file, raw)
                return None
            if not failure.again:
                break
        return failure


class Failure(NamedTuple):
    """Why an image cannot be had; ``again``: it may be there a moment later; ``silent``: no host answered."""

    why: str
    again: bool
    silent: bool = False


def download(url: str, timeout: float) -> tuple[bytes | None, Failure]:
    """The bytes of a whole image, redirects followed; or None and why not. Nothing is raised for what a host does."""
    headers = {"User-Agent": ASKING, "Accept": "image/*,*/*;q=0.5"}
    end = time.monotonic() + timeout
    try:
        request = urllib.request.Request(_quoted(url), headers=headers)  # noqa: S310 - fetch lets http and https pass alone
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - so do redirects
            parts, size = [], 0
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > LARGEST:
                    return None, Failure(f"more than {LARGEST} bytes", False)
                if time.monotonic() > end:
                    return None, Failure(f"not whole after {timeout:g} s", True)
            told = answer.headers.get("Content-Length")
            if told and told.isdigit() and size < int(told):
                return None, Failure(f"truncated: {size} of {told} bytes", True)
        raw = b"".join(parts)
        decode(raw)
    except urllib.error.HTTPError as error:
        return None, Failure(f"HTTP {error.code}", error.code in AGAIN)
    except (TimeoutError, ConnectionError, socket.gaierror) as error:
        return None, Failure(f"no answer: {error or type(error).__name__}", True, True)
    except urllib.error.URLError as error:
        return None, Failure(f"no answer: {error.reason}", True, True)
    except http.client.HTTPException as error:
        return None, Failure(f"no HTTP: {type(error).__name__}", True)
    except (OSError, ValueError) as error:  # no image, a truncated one, or no URL at all
        return None, Failure(f"no whole image: {error}", False)
    return raw, Failure("", False)


def _quoted(url: str) -> str:
    """What browsers send for spaces and letters beyond ASCII; escapes that are there stay."""
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


class DeadLinks:
    """``dead_links.tsv``: line of the table, where, why; each written whole, and known the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], str] = {}
        if path.is_file():
            for row in path.read_text(encoding="utf-8").split("\n"):
                line, _, rest = row.partition("\t")
                where, _, why = rest.partition("\t")
                if line.isdigit():
                    self.rows[line, where] = why

    def __contains__(self, pair: Pair) -> bool:
        return (str(pair.line), pair.where) in self.rows

    def add(self, failures: dict[Pair, Failure]) -> None:
        if not failures:
            return
        for pair, failure in failures.items():
            self.rows[str(pair.line), pair.where] = " ".join(failure.why.split())
        rows = sorted(((int(line), where, why) for (line, where), why in self.rows.items()))
        _write(self.path, "".join(f"{line}\t{where}\t{why}\n" for line, where, why in rows))


def read_table(path: Path) -> list[Pair]:
    """The pairs of a TSV; a first line of column names is none. A line without a second column has nowhere to go."""
    if not path.is_file():
        raise Refused(f"conceptual: there is no table {path}")
    pairs = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, row in enumerate(file, 1):
            caption, _, rest = row.partition("\t")
            where = rest.partition("\t")[0].strip()
            if row.strip() and not (line == 1 and where.lower() in HEADS):
                pairs.append(Pair(line, caption.strip(), where))
    if not pairs:
        raise Refused(f"{path}: no pairs; accepted is one a line: caption, tab, URL or path")
    return pairs


def _spoilt(file: Path) -> Failure | None:
    """Why a file holds no whole image; None where it does."""
    try:
        if not file.is_file():
            return Failure("no such file", False)
        decode(file.read_bytes())
    except OSError as error:
        return Failure(f"no whole image: {error}", False)
    return None


def _write(file: Path, content: bytes | str) -> None:
    try:
        write_whole(file, content)
    except OSError as error:
        raise Refused(f"conceptual: {file} cannot be written: {error.strerror}") from error


def _read(file: Path) -> np.ndarray:
    try:
        return decode(file.read_bytes())
    except OSError as error:
        raise Refused(f"{file}: no whole image any more: {error}") from error
