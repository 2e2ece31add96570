"""Fine-tuning a trained captioner: by cross-entropy, by LRP inference, by CIDEr, or by both at once.

Sun, Lapuschkin, Samek, Binder 2022 (https://arxiv.org/abs/2001.01037): after the training with cross-entropy come some more
steps in which the words are read a second time, by relevance (``heatproof.lrp.inference``), and the cross-entropy of that
reading is lowered too. Its control has the same steps with the first reading alone. The self-critical forms (Rennie et al. 2017,
https://arxiv.org/abs/1612.00563) raise the CIDEr-D of captions drawn from the first or the second reading above that of
the greedy caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heatproof.captions.cider import Frequencies, cider_d
from heatproof.captions.stop_words import STOP_WORDS
from heatproof.contract import Refused
from heatproof.lrp.inference import cross_entropy, losses, read_twice
from heatproof.models.adaptive import AdaptiveCaptioner
from heatproof.training.hearing import hear
from heatproof.training.recipe import Recipe


class Tune:
    """``inner`` is the task that trained the captioner: its data, its judgement, its files; the loss is ours.

    Stop words and specials are never weighed. ``[tune] released`` brings back what the released
    code does otherwise: without dropout, and with a sentinel that reads the new state, in the adaptive net; CIDEr with
    document frequencies of the batch, and captions without their end.
    """

    def __init__(self, recipe: Recipe, inner: Any) -> None:
        self.recipe, self.inner = recipe, inner
        self.net = inner.net
        self.learner: nn.Module = inner.net
        self.trunk: nn.Module | None = inner.trunk
        self.how = recipe.tune
        folder = recipe.folder / "weights" / recipe.start
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise Refused(f"{recipe.name}: {folder} holds no weights; type: heatproof train {recipe.start}")
        self.net.load_state_dict(load_file(weights))
        inner.spread = 1.0  # folded into the weights
        ids = inner.words.ids
        silent = [i for word, i in ids.items() if word in STOP_WORDS or word.startswith("<")]
        self.without = torch.tensor(silent)
        by_relevance = self.how.released and self.how.by_relevance  # the control is not theirs to be odd in
        self.quirky = by_relevance and isinstance(self.net, AdaptiveCaptioner)
        if self.quirky:
            self.net.dropout.p = 0.0
        self.curve: list[dict[str, float]] = []

    def look(self, path: Path, quiet: bool = False) -> Any:
        return self.inner.look(path, quiet)

    def learn(self, seen: Any, quiet: bool = False) -> None:
        self.inner.learn(seen, quiet)
        self.inner.spread = 1.0
        told = self.inner.texts.flatten(1, -2).tolist() if self.how.rewards else []
        self.corpus = Frequencies.of([[self._spelt(row) for row in some] for some in told])

    def progress(self) -> float:
        """The inner task's figure on what it is judged by, of the plain reading."""
        figure: float = self.inner.progress()
        return figure

    def save(self, out: Path) -> None:
        self.inner.save(out)

    def judge(self, quiet: bool = False) -> dict[str, Any]:
        return {**self.inner.judge(quiet), "curve": self.curve}

    # ------------------------------------------------------------------ the losses

    def loss(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """What the recipe's ``[tune] by`` asks: see the module."""
        self.net.newest = self.quirky  # only here: what it writes, it writes as it was trained to
        try:
            return self._rewarded(rows, dice) if self.how.rewards else self._read(rows, dice)
        finally:
            self.net.newest = False

    def _read(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        features, texts = self.inner.batch(rows, dice, self.recipe.settings.texts)
        heard = hear(self.net, self.net.look(features), texts, self.inner.words.pad)
        if not self.how.by_relevance:
            return cross_entropy(self.net.say(heard.mixed), heard.wanted, self.inner.ignored)
        spoken = heard.mixed - heard.context
        found = read_twice(self.net, heard.context, spoken, self.without, self.how.temperature)
        return sum(losses(found, heard.wanted, self.inner.ignored), start=torch.zeros(()))

    def _rewarded(self, rows: Tensor, dice: torch.Generator) -> Tensor:
        """-(CIDEr-D of a drawn caption - that of the greedy one) times its log-probability, mean over the words drawn."""
        features, told = self.inner.batch(rows, dice, self.inner.texts.shape[1])
        times = self.recipe.settings.texts
        self.net.eval()
        with torch.no_grad():
            greedy, _, _ = self.write(features, None)
        self.net.train()
        drawn, chances, said = self.write(features.repeat_interleave(times, 0), dice)
        references = [[self._spelt(row) for row in some] for some in told.tolist()]
        corpus = Frequencies.of(references) if self.how.released else self.corpus
        base = cider_d([self._spelt(row) for row in greedy.tolist()], references, corpus)
        many = [some for some in references for _ in range(times)]
        scores = cider_d([self._spelt(row) for row in drawn.tolist()], many, corpus)
        gain = torch.tensor(scores) - torch.tensor(base).repeat_interleave(times)
        return -(gain[:, None] * chances * said).sum() / said.sum()

    def write(self, features: Tensor, dice: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """A caption of each image [N, T], its end among its words, then padded; each word's log-probability; where words are.

        Without dice the plain reading's likeliest word is said next; else words are drawn, by relevance if the recipe says so.
        """
        net, words = self.net, self.inner.words
        cells = net.look(features)
        state, word = net.start(cells.whole), torch.full((len(features),), words.bos)
        written, chances, said, over = [], [], [], torch.zeros(len(features), dtype=torch.bool)
        for _ in range(self.inner.length - 1):
            state, _ = net.advance(state, cells, net.embedding(word))
            mixed = net.mix(state)
            if dice is not None and self.how.by_relevance:
                heard = state.context, mixed - state.context
                logits = read_twice(net, *heard, self.without, self.how.temperature).weighted
            else:
                logits = net.say(mixed)
            likely = torch.log_softmax(logits.float(), 1)
            if dice is None:
                word = likely.argmax(1)
            else:
                word = torch.multinomial(likely.detach().exp(), 1, generator=dice).squeeze(1)
            word = word.masked_fill(over, words.pad)
            written.append(word)
            said.append(~over)
            chances.append(likely.gather(1, word[:, None]).squeeze(1))
            over = over | (word == words.eos)
            if over.all():
                break
        return torch.stack(written, 1), torch.stack(chances, 1), torch.stack(said, 1)

    def _spelt(self, ids: list[int]) -> str:
        """Ids as words for CIDEr-D: from after <start> up to <end>, which is one of them, so that to break off costs."""
        words = self.inner.words
        said = [i for i in ids if i not in (words.bos, words.pad)]
        end = said.index(words.eos) if words.eos in said else len(said)
        return " ".join(map(str, said[:end] if self.how.released else [*said[:end], *said[end : end + 1]]))
