"""The one door to a net: fixed rows, named sites, counted work; the verbs that all families share.

A net is told as *towers* (``image``, ``text``), each a list of stages run one after the other; what a stage
puts out is a *site*. Everything passes through ``_run``: it cuts the rows into blocks of a fixed number,
because the last bits of a matrix product depend on how many rows it has (law 1), lets watchers see each site,
and counts whole-forward equivalents for the case that each row belongs to (law 10).
"""

from __future__ import annotations

import copy
import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from heatproof import geometry
from heatproof.contract import Case, Sample, Unsuited
from heatproof.models.meter import Bill, Memo, Meter
from heatproof.models.watching import PARTS, PASSING, Watch

OUTPUTS = (
    "out_proj",
    "o_proj",
    "out",
    "projection",
)  # what CLIP, ViT, the house and BLIP call an attention's output layer
LAST = "image.last"  # of transformers: the last block's output, of which the score reads one token
Context = dict[str, Tensor]  # what a row needs besides the activation: token ids, targets, embeddings


@dataclass(frozen=True)
class Stage:
    """One step of a tower: ``run(x, context) -> x``; ``site`` names its output, None where none may look.

    ``brief`` is the same for the one token of a row that the score reads, [N, 1, D], where that is less work.
    """

    site: str | None
    run: Callable[[Tensor, Context], Tensor]
    brief: Callable[[Tensor, Context], Tensor] | None = None


@dataclass(eq=False)
class Model:
    """What classifier, dual encoder and captioner have in common; see ``contract.Model`` for the verbs.

    A family sets ``family`` and ``space`` and gives ``_towers`` (the net as stages), ``_context`` (what a case's
    row needs) and ``ask``.
    """

    name: str
    net: nn.Module
    frame: geometry.Frame
    card: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 8  # forwarded at a time, always exactly so many (law 1)
    device: str = "cpu"

    family = ""
    space = ""
    extra_tokens = 1  # class and register tokens before the patches

    def __post_init__(self) -> None:
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # torch's types do not know it here
        self.net = self.net.to(self.device, **layout).eval().requires_grad_(False)
        self.meter, self.memo = Meter(), Memo()
        self._watches: dict[str, Watch] = {}
        self._twins: dict[str, Model] = {}
        self._hash: str | None = None
        self.towers = self._towers()
        self.sites = self._kinds()
        self._shares: dict[str, list[float]] = {}

    # ------------------------------------------------------------------ what a family gives

    def _towers(self) -> dict[str, list[Stage]]:
        raise NotImplementedError

    def _context(self, cases: Sequence[Case], choices: bool = False) -> Context:
        """What each case's row needs to be scored; ``choices`` asks for the rivals as well."""
        raise NotImplementedError

    def _example(self, tower: str) -> tuple[Tensor, Context]:
        """One block of rows to weigh the tower's stages with."""
        raise NotImplementedError

    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]:
        """The questions that a target policy puts about each sample."""
        raise NotImplementedError

    # ------------------------------------------------------------------ identity

    @property
    def hash(self) -> str:
        """Of the weights and what else fixes the function; a twin has its own."""
        if self._hash is None:
            seal = blake2b(digest_size=16)
            for name, tensor in sorted(self.net.state_dict().items()):
                seal.update(name.encode() + str(tuple(tensor.shape)).encode())
                seal.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            seal.update(repr((self.family, self.frame, self.rows, self._identity())).encode())
            self._hash = seal.hexdigest()
        return self._hash

    def _identity(self) -> object:
        config: Any = getattr(self.net, "config", None)
        told = {} if config is None else dict(config.to_diff_dict())
        told.pop("transformers_version", None)  # whoever saved it last; the library at work is in the key
        return type(self.net).__name__, json.dumps(told, sort_keys=True, default=str)

    def twin(self, edit: Callable[[nn.Module], None], name: str) -> Model:
        """A copy whose net was edited in place by ``edit``; the original stays as it is (law 5).

        Kept under its name, which must tell the edit apart from any other of this model.
        """
        if name in self._twins:
            return self._twins[name]
        other = copy.copy(self)
        other.net = copy.deepcopy(self.net)
        edit(other.net)
        other.name = f"{self.name}~{name}"
        other.net.eval().requires_grad_(False)
        # meter and memo are shared: a twin's work is paid by whoever asked for it, and kept under its own hash
        other._watches, other._twins, other._hash = {}, {}, None
        other.towers = other._towers()
        other.sites = other._kinds()
        self._twins[name] = other
        return other

    # ------------------------------------------------------------------ sites

    def _kinds(self) -> dict[str, int]:
        """Every kind of site and how many there are: ``{"image.block": 3, "image.attention": 4}``."""
        names = [s.site for stages in self.towers.values() for s in stages if s.site]
        return dict(Counter(name.split(" ")[0] for name in [*names, *self._inner_sites()]))

    def _inner_sites(self) -> list[str]:
        return []

    def site(self, kind: str, index: int = -1) -> str:
        """The name of one site, counted from 0, or from the end where negative.

        Raises Unsuited, naming the sites there are, if the model has none of the kind.
        """
        count = self.sites.get(kind, 0)
        if not -count <= index < count:
            there = ", ".join(f"{k} (0 to {n - 1})" for k, n in self.sites.items())
            near = difflib.get_close_matches(kind, self.sites, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and not count else ""
            raise Unsuited(f"{self.name} has no site {kind!r} {index}; it has {there}{hint}")
        return f"{kind} {index % count}"

    def _find(self, site: str) -> tuple[str, int]:
        if site == LAST and "image.attention" in self.sites:
            return "image", len(self.towers["image"]) - 2  # above it: what reads a token, and the score
        for tower, stages in self.towers.items():
            for i, stage in enumerate(stages):
                if stage.site == site:
                    return tower, i + 1
        raise Unsuited(f"{self.name} cannot be cut at {site!r}; it can at {', '.join(self.sites)}")

    @contextmanager
    def watch(self, site: str) -> Iterator[Watch]:
        """See a site during the next ``score``: its ``value`` [N, ...] is on the way from input to score.

        An attention site has parts beside its probabilities: "image.attention 0.query", key, value, mixed.
        """
        kind, _, index = site.partition(" ")
        index, _, part = index.partition(".")
        self.site(kind, int(index))
        if part and (part not in PARTS or not kind.endswith(".attention")):
            raise Unsuited(f"{kind} has no part {part!r}; attention has {', '.join(PARTS)}")
        if site in self._watches:
            raise RuntimeError(f"{site!r} of {self.name} is watched already")
        watch = self._watches[site] = Watch(site)
        try:
            yield watch
        finally:
            del self._watches[site]

    def grid(self, tokens: Tensor) -> Tensor:
        """Token values [T] or [T, D] on the image grid, [h, w] or [D, h, w]; special tokens dropped."""
        return geometry.fold(tokens, self.extra_tokens)

    def join(self, site: str, mixed: Tensor) -> Tensor:
        """One case's heads [heads, T, d] through the output layer of an attention site: what it adds, [T, D].

        A case at a time, so that no product depends on its neighbours (law 1).
        """
        module = next(m for m in self.net.modules() if getattr(m, "heatproof_site", "") == site)
        layer = next(getattr(module, name) for name in OUTPUTS if hasattr(module, name))
        found: Tensor = layer(mixed.transpose(0, 1).flatten(1))
        return found

    # ------------------------------------------------------------------ the door

    def _run(
        self,
        tower: str,
        x: Tensor,
        cases: Sequence[Case],
        context: Context,
        start: int = 0,
        stop: int | None = None,
        *,
        brief: bool = False,
    ) -> Tensor:
        """Stages ``start`` to ``stop`` of a tower over N rows, in blocks of ``rows``, ragged ends padded."""
        stages = self.towers[tower][start:stop]
        total = x.shape[0]
        if total != len(cases):
            raise ValueError(f"{total} rows for {len(cases)} cases: one case a row is needed")
        if total == 0:
            raise ValueError("no rows to run")
        watches = {s: w for s, w in self._watches.items() if s.startswith(f"{tower}.")}
        for watch in watches.values():
            watch.begin()
        brief = brief and not watches  # who watches sees every token
        share = sum(self._weights(tower, brief=brief)[start:stop])
        parts = []
        for first in range(0, total, self.rows):
            block = x[first : first + self.rows]
            kept = block.shape[0]
            side = {k: self._fill(v[first : first + self.rows]) for k, v in context.items()}
            out = self._fill(block)
            taps = {
                site: partial(watch.tap, start=first, kept=kept, total=total)
                for site, watch in watches.items()
            }
            token = PASSING.set(taps)
            try:
                for stage in stages:
                    out = (stage.brief if brief and stage.brief else stage.run)(out, side)
                    if stage.site in taps:
                        out = taps[stage.site](out)
            finally:
                PASSING.reset(token)
            self._count(out, cases[first : first + kept], share)
            parts.append(out[:kept])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _fill(self, block: Tensor) -> Tensor:
        block = block.to(self.device)
        missing = self.rows - block.shape[0]
        if missing:
            block = torch.cat([block, block[-1:].detach().expand(missing, *block.shape[1:])])
        # images and feature maps in one layout whatever made them; convolutions on a CPU are quicker in it
        return block.contiguous(memory_format=torch.channels_last) if block.ndim == 4 else block

    def _count(self, out: Tensor, cases: Sequence[Case], share: float) -> None:
        payers = [case.charge or case.id for case in cases]
        self.meter.run += share * len(payers)
        for payer in payers:
            self.meter.forward[payer] += share
        if out.requires_grad:

            def backward(_: Tensor) -> None:
                self.meter.run += share * len(payers)
                for payer in payers:
                    self.meter.backward[payer] += share

            out.register_hook(backward)

    def _weights(self, tower: str, *, brief: bool = False) -> list[float]:
        """What each stage costs as a share of the whole model's forward, by floating-point operations."""
        if tower not in self._shares:
            flops: list[int] = []
            less: list[int] = []
            with torch.no_grad():
                x, context = self._example(tower)
                for stage in self.towers[tower]:
                    for spent, run in ((less, stage.brief or stage.run), (flops, stage.run)):
                        with FlopCounterMode(display=False) as counter:
                            out = run(x, context)
                        spent.append(counter.get_total_flops())
                    x = out
            whole = sum(flops) or 1
            self._shares[tower] = [f / whole for f in flops]
            self._shares[f"{tower} brief"] = [f / whole for f in less]
        return self._shares[f"{tower} brief" if brief else tower]

    def stack(self, cases: Sequence[Case]) -> Tensor:
        """The cases' pixels in one tensor [N, C, H, W]."""
        return torch.stack([case.pixels for case in cases]).to(self.device)

    # ------------------------------------------------------------------ the verbs

    def score(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, C, H, W] -> [N]: the score of each case's target, differentiable in the pixels."""
        return self._run("image", pixels, cases, self._context(cases))

    def scores(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """[N, C, H, W] -> [N, K]: the scores of each case's choices, the target among them."""
        return self._run("image", pixels, cases, self._context(cases, choices=True))

    def upto(self, site: str, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        """The activation at a site; what lies above it is not run. Text sites read the cases' tokens."""
        tower, stop = self._find(site)
        return self._run(tower, self._input(tower, pixels, cases), cases, self._context(cases), 0, stop)

    def above(self, site: str, activation: Tensor, cases: Sequence[Case], *, brief: bool = False) -> Tensor:
        """From an activation at a site to the score [N]; what lies below it is not run.

        ``brief``: the last block is run for the token alone that the score reads, where the model knows how; the same
        score but for rounding.
        """
        tower, start = self._find(site)
        return self._run(tower, activation, cases, self._context(cases), start, brief=brief)

    def _input(self, tower: str, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        return pixels

    def score_text(self, keep: Tensor, cases: Sequence[Case], removal: str = "attention") -> Tensor:
        raise Unsuited(f"{self.name} is a {self.family}: it reads no text")

    def embed(self, pixels: Tensor, cases: Sequence[Case]) -> Tensor:
        raise Unsuited(f"{self.name} is a {self.family}: it embeds images in no space of texts")

    def embed_text(self, cases: Sequence[Case]) -> Tensor:
        raise Unsuited(f"{self.name} is a {self.family}: it embeds no texts")

    def write(self, pixels: Tensor, cases: Sequence[Case]) -> list[Any]:
        raise Unsuited(f"{self.name} is a {self.family}: it writes no captions")

    def recall(
        self, what: str, cases: Sequence[Case], compute: Callable[[list[Case]], Sequence[Any]]
    ) -> list[Any]:
        """What ``compute`` gives for each case, computed once a chunk and model; paid for by every asker."""
        memo, keys = self.memo, [(self.hash, what, case.id) for case in cases]
        values = {key: memo.kept[key] for key in keys if key in memo.kept}
        missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in values}
        if missing:
            # what is kept may be used under autograd later, which inference tensors forbid
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                self.meter.aside() as spent,
                memo.inside() as asked,
            ):
                found = compute(list(missing.values()))
            # several things that one case pays for share what it spent
            shares = Counter(case.charge or case.id for case in missing.values())
            for (key, case), value in zip(missing.items(), found, strict=True):
                payer = case.charge or case.id
                needs, n = frozenset(need for need, who in asked if who == payer), shares[payer]
                memo.keep(key, value, Bill(spent.forward[payer] / n, spent.backward[payer] / n, needs))
                values[key] = value
        for key, case in zip(keys, cases, strict=True):
            memo.pay(key, case.charge or case.id, self.meter)
        return [values[key] for key in keys]

    @contextmanager
    def part(self) -> Iterator[Meter]:
        """The work of one part (an explainer, a metric): what it costs alone, by case."""
        with self.memo.alone(), self.meter.aside() as spent:
            yield spent

    def clean(self, cases: Sequence[Case]) -> Tensor:
        """[N]: the scores of the untouched images, from the chunk's memo."""

        def compute(some: list[Case]) -> Sequence[Tensor]:
            with torch.no_grad():
                return list(self.score(self.stack(some), some))

        return torch.stack(self.recall("clean", cases, compute))
