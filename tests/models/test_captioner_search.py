"""What a captioner writes: greedy, with beams, with diverse groups of them; against one image and one beam at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatproof import shelf
from heatproof.contract import Refused
from heatproof.geometry import Frame
from heatproof.models.captioner_nets import CaptionNet, Cells
from heatproof.models.captioner_search import diverse, search
from heatproof.models.own_captioner import OwnCaptioner, save
from heatproof.models.words import WordList

NETS = shelf.load(Path(__file__).with_name("captioners.py"))
KINDS, WORDS, LENGTH, SPECIAL = NETS.KINDS, NETS.WORDS, NETS.LENGTH, NETS.SPECIAL
net_of, model_of, cases_of = NETS.net_of, NETS.model_of, NETS.cases_of


def slow_search(net: CaptionNet, features: Tensor, words: WordList, length: int, width: int) -> list[int]:
    """One image, beams as a list of (sum, ids, state)."""
    cells = net.look(features)
    beams, done = [(0.0, [words.bos], net.start(cells.whole))], []
    for _ in range(length):
        grown = []
        for total, ids, state in beams:
            after, logits, _ = net.step(state, cells, torch.tensor(ids[-1:]))
            grown += [
                (total + float(chance), [*ids, word], after)
                for word, chance in enumerate(torch.log_softmax(logits, 1)[0])
            ]
        beams = sorted(grown, key=lambda beam: -beam[0])[: width - len(done)]
        done += [beam for beam in beams if beam[1][-1] == words.eos]
        beams = [beam for beam in beams if beam[1][-1] != words.eos]
        if not beams:
            break
    ids = max(done or beams, key=lambda beam: beam[0])[1][1:]
    return [i for i in ids if i != words.eos][: length - 1]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.0, 3.0, 6.0]), st.sampled_from(KINDS))
def test_search_agrees_with_one_image_and_one_beam_at_a_time(seed, width, ending, kind) -> None:
    net, words = net_of(kind, seed).double(), WordList(WORDS)
    with torch.no_grad():  # several beams end, and not in the order of their sums
        net.output.bias[words.eos] = ending
    features = 3 * torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        found = search(net, features, words, LENGTH, width).tolist()
        for row, said in zip(features, found, strict=True):
            expected = slow_search(net, row[None], words, LENGTH, width)
            assert said == expected + [words.pad] * (LENGTH - 1 - len(expected))


class Nothing(NamedTuple):
    """The state of a net that remembers nothing."""

    rows: Tensor


class Chain(NamedTuple):
    """A net of words alone: the last word gives the chances of the next."""

    chances: Tensor

    def look(self, features: Tensor) -> Cells:
        return Cells(features, features, features)

    def start(self, like: Tensor) -> Nothing:
        return Nothing(like)

    def step(self, state, cells: Cells, word: Tensor):
        return state, self.chances[word].log(), state


def test_a_beam_that_ended_leaves_one_beam_less() -> None:
    # "a" ends with 0.13 and retires; "a c f" (0.136) then goes on alone, and "a c g" (0.134, and sure to end) is lost
    words = WordList({w: i for i, w in enumerate([*SPECIAL, *"a b c f g p q r s".split()])})
    after = {
        "<start>": {"a": 0.8, "b": 0.2},
        "a": {"c": 0.34, "<end>": 0.1625, "p": 0.125, "q": 0.125, "r": 0.125, "s": 0.1225},
        "b": {"p": 0.5, "q": 0.5},
        "c": {"f": 0.502, "g": 0.498},
        "f": {w: 0.1 for w in "a b c f g p q r s <end>".split()},
        "g": {"<end>": 1.0},
    }
    chances = torch.zeros(len(words.ids), len(words.ids))
    for word, spread in after.items():
        for other, chance in spread.items():
            chances[words.ids[word], words.ids[other]] = chance
    chances[chances.sum(1) == 0] = 1.0
    for width, expected in ((1, "a c f"), (2, "a"), (3, "a c g")):
        (found,) = search(Chain(chances), torch.zeros(1, 1), words, 4, width).tolist()
        assert words.text(found) == expected.split(), width


def test_greedy_takes_the_likeliest_word_each_step() -> None:
    model = model_of("adaptive", beam=1)
    cases = cases_of(model)
    for case, text in zip(cases, model.write(model.stack(cases), cases), strict=True):
        ids = [WORDS["<start>"]]
        for _ in range(LENGTH - 1):
            with torch.no_grad():
                word = int(model.net(case.pixels[None], torch.tensor([ids]))[0, -1].argmax())
            if word == WORDS["<end>"]:
                break
            ids.append(word)
        assert text.split() == model.words.text(ids)


# ---------------------------------------------------------------- diverse


def slow_diverse(
    net: CaptionNet, features: Tensor, words: WordList, length: int, width: int, groups: int, diversity: float
) -> list[list[int]]:
    """One image: for each group its beams as a list of (sum, ids, state), one group after the other at every step."""
    cells = net.look(features)
    beams = [[(0.0, [words.bos], net.start(cells.whole))] for _ in range(groups)]
    done: list[list] = [[] for _ in range(groups)]
    for _ in range(length):
        used: Counter[int] = Counter()
        for g in range(groups):
            grown = []
            for total, ids, state in beams[g]:
                after, logits, _ = net.step(state, cells, torch.tensor(ids[-1:]))
                for word, chance in enumerate(torch.log_softmax(logits, 1)[0]):
                    plain = total + float(chance)
                    grown.append((plain - diversity * used[word], (plain, [*ids, word], after)))
            best = [beam for _, beam in sorted(grown, key=lambda pair: -pair[0])[: width - len(done[g])]]
            used.update(ids[-1] for _, ids, _ in best)
            done[g] += [beam for beam in best if beam[1][-1] == words.eos]
            beams[g] = [beam for beam in best if beam[1][-1] != words.eos]
    found = [
        (not ended, max(ended or rest, key=lambda beam: beam[0]))
        for ended, rest in zip(done, beams, strict=True)
    ]
    found.sort(key=lambda pair: (pair[0], -pair[1][0]))
    return [[i for i in ids[1:] if i != words.eos][: length - 1] for _, (_, ids, _) in found]


@settings(max_examples=10, deadline=None)
@example(391, 1, 2, 3.0, 0.0, "adaptive")  # the second group ends at once and comes first
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 3.0, 6.0]),
    st.sampled_from(KINDS),
)
def test_diverse_agrees_with_one_group_at_a_time(seed, width, groups, diversity, ending, kind) -> None:
    net, words = net_of(kind, seed).double(), WordList(WORDS)
    with torch.no_grad():
        net.output.bias[words.eos] = ending
    features = 3 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        found = diverse(net, features, words, LENGTH, width, groups, diversity).tolist()
        for row, said in zip(features, found, strict=True):
            expected = slow_diverse(net, row[None], words, LENGTH, width, groups, diversity)
            assert said == [ids + [words.pad] * (LENGTH - 1 - len(ids)) for ids in expected]


def test_groups_differ_by_diversity_alone() -> None:
    net, words = net_of("multi_head").double(), WordList(WORDS)
    features = 3 * torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        one = search(net, features, words, LENGTH, 2)
        same = diverse(net, features, words, LENGTH, 2, 3, 0.0)
        far = diverse(net, features, words, LENGTH, 1, 3, 1e6)
    assert torch.equal(same, one[:, None].expand_as(same))
    for column in far[..., :2].unbind(2):  # the first words of three beams that never agree
        assert all(len(set(row)) == 3 for row in column.tolist())


def test_what_was_said_costs_the_next_group_at_that_step_only() -> None:
    # "a" is likeliest and said by group one; group two takes "b", and then "c" with its full chance, though "a" was penalised
    words = WordList({w: i for i, w in enumerate([*SPECIAL, *"a b c".split()])})
    chances = torch.full((7, 7), 1e-9)
    for word, spread in {
        "<start>": {"a": 0.55, "b": 0.45},
        "a": {"c": 1.0},
        "b": {"c": 1.0},
        "c": {"<end>": 1.0},
    }.items():
        for other, chance in spread.items():
            chances[words.ids[word], words.ids[other]] = chance
    first, second = diverse(Chain(chances), torch.zeros(1, 1), words, 5, 1, 2, 0.5)[0].tolist()
    assert (words.text(first), words.text(second)) == (["a", "c"], ["b", "c"])
    first, second = diverse(Chain(chances), torch.zeros(1, 1), words, 5, 1, 2, 0.1)[0].tolist()
    assert words.text(first) == words.text(second) == ["a", "c"]


def test_variants_do_not_depend_on_neighbours() -> None:
    model = model_of("adaptive", groups=3, diversity=2.0)
    cases = cases_of(model)
    pixels = model.stack(cases)
    whole = model.variants(pixels, cases)
    assert len({text for each in whole for text in each}) > len({each[0] for each in whole})
    assert model.write(pixels, cases) == [each[0] for each in whole]
    for size in (1, 3):
        parts = [
            model.variants(pixels[i : i + size], cases[i : i + size]) for i in range(0, len(cases), size)
        ]
        assert [each for part in parts for each in part] == whole
    assert model.variants(pixels.flip(0), cases[::-1]) == whole[::-1]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_writing_reach_the_captioner(kind: str, tmp_path: Path) -> None:
    config = NETS.config_of(kind)
    save(tmp_path, net_of(kind), config=config, words=WORDS, frame=Frame(32), card={})
    plain = OwnCaptioner(str(tmp_path)).load("mine")
    assert (plain.beam, plain.groups, plain.endings) == (3, 1, ())
    told = OwnCaptioner(str(tmp_path), search="diverse", groups=2, diversity=0.7, strip_endings=True).load(
        "mine"
    )
    assert (told.beam, told.groups, told.diversity) == (3, 2, 0.7)
    assert ("and" in told.endings) == (kind == "adaptive")
    assert {"with", "the"} < set(told.endings)
    hashes = [
        model.hash for model in (plain, told, replace(told, diversity=0.8), replace(plain, endings=("a",)))
    ]
    assert len(set(hashes)) == 4
    assert replace(plain, diversity=0.8).hash == plain.hash  # nothing reads it
    with pytest.raises(Refused, match="model mine: groups: found 0, accepted are 1, 2"):
        OwnCaptioner(str(tmp_path), groups=0).load("mine")


def test_endings_are_taken_off_what_is_written_and_asked() -> None:
    plain = model_of("adaptive")
    cases = cases_of(plain)
    texts = plain.write(plain.stack(cases), cases)
    last = tuple({text.split()[-1] for text in texts})[:1]
    model = replace(plain, endings=last)
    found = model.write(model.stack(cases), cases)
    for text, short in zip(texts, found, strict=True):
        words = text.split()
        while words and words[-1] in last:
            words.pop()
        assert short.split() == (words or text.split())
    assert found != texts
    samples = [NETS.sample_of(i) for i in range(3)]
    for (long,), (short,) in zip(plain.ask(samples, "written"), model.ask(samples, "written"), strict=True):
        assert short.spoken[-1] not in last or set(short.spoken[1:]) <= set(last)
        assert torch.equal(short.tokens, long.tokens[: len(short.tokens)])
        assert len(short.tokens) == len(short.spoken)
