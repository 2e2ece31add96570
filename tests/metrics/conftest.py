"""Models with closed-form answers behind the real contract, and cases and trials to ask them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from heatproof.contract import Case, Explanation, Trial
from heatproof.geometry import Frame
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier
from heatproof.models.dual import Dual
from heatproof.models.words import WordList

WORDS = WordList(
    {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "red", "ball", "on", "grass"])}
)


class Sums(nn.Module):
    """Two logits: the sum of all numbers of the image, and its negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 2, 1, bias=False)
        with torch.no_grad():
            self.mix.weight[0], self.mix.weight[1] = 1.0, -1.0


class Bends(nn.Module):
    """Three logits of a random convolution: nothing about it is round or linear."""

    def __init__(self, channels: int, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.mix = nn.Conv2d(channels, width, 3, padding=1)
            self.last = nn.Linear(width, 3)


def _summing(net: nn.Module) -> list[Stage]:
    return [
        Stage("image.conv 0", lambda x, c: net.mix(x)),
        Stage(None, lambda x, c: x.sum((2, 3))),
    ]


def _bending(net: nn.Module) -> list[Stage]:
    return [
        Stage("image.conv 0", lambda x, c: torch.tanh(net.mix(x))),
        Stage(None, lambda x, c: net.last(x.square().mean((2, 3)))),
    ]


def linear(channels: int = 1) -> Classifier:
    """The score is the sum of the image; ``black`` is 0."""
    frame = Frame(4, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Classifier(
        "sums", Sums(channels), frame, stages=_summing, labels={"sum": (0,), "minus": (1,)}, channels=channels
    )


def curved(channels: int = 3, width: int = 6) -> Classifier:
    """A small random net over three classes."""
    labels = {"a": (0,), "b": (1,), "c": (2,)}
    net = Bends(channels, width)
    return Classifier("bends", net, Frame(8), stages=_bending, labels=labels, channels=channels)


class Pair(nn.Module):
    """Image: the mean colour through a matrix. Text: the sum of the token vectors through a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(projection_dim=4)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.eye, self.ear = nn.Linear(3, 4), nn.Linear(5, 4)
            self.table = nn.Embedding(8, 5)


def dual() -> Dual:
    """A random pair of towers whose text is a bag of the tokens that are seen."""
    return Dual(
        "pair",
        Pair(),
        Frame(4),
        image_stages=lambda net: [Stage(None, lambda x, c: net.eye(x.mean((2, 3))))],
        text_stages=lambda net: [Stage(None, lambda x, c: net.ear(_bag(net, x, c)))],
        tokenizer=WORDS,
        text_length=9,
    )


def _bag(net: nn.Module, ids: Tensor, context: dict[str, Tensor]) -> Tensor:
    real = (ids != WORDS.pad) * context["seen"] * context["gain"]
    return (net.table(ids) * real[..., None]).sum(1)


def case(name: str = "case", pixels: Tensor | None = None, target: Any = 0, **more: Any) -> Case:
    pixels = torch.zeros(1, 4, 4) if pixels is None else pixels
    return Case(name, name.partition(".")[0], "thing", pixels, target, **more)


def worded(name: str, text: str, pixels: Tensor, target: Any = None) -> Case:
    ids, words, spoken = WORDS(text, 9)
    return Case(
        name, name, text, pixels, text if target is None else target,
        tokens=torch.tensor(ids), words=tuple(words), spoken=tuple(spoken),
    )  # fmt: skip


def trials(model: Any, cases: Sequence[Case], heats: Sequence[Any], explainer: Any = None) -> list[Trial]:
    """A trial a case; a heat is an image map, None for no map, or a whole Explanation."""
    answers = [h if isinstance(h, Explanation) else Explanation(image=h) for h in heats]
    return [Trial(model, c, explainer, e) for c, e in zip(cases, answers, strict=True)]


def numbers(metric: Any, *asked: Any) -> list[dict[str, float | None]]:
    """What a metric says of trials: value name -> number or None."""
    return [
        {name: value.number for name, value in score.values.items()}
        for score in metric.measure(trials(*asked))
    ]


@dataclass(frozen=True)
class Toys:
    """The helpers above, for tests to ask for as a fixture."""

    linear: Callable[..., Classifier] = staticmethod(linear)
    curved: Callable[..., Classifier] = staticmethod(curved)
    dual: Callable[..., Dual] = staticmethod(dual)
    case: Callable[..., Case] = staticmethod(case)
    worded: Callable[..., Case] = staticmethod(worded)
    trials: Callable[..., list[Trial]] = staticmethod(trials)
    numbers: Callable[..., list[dict[str, float | None]]] = staticmethod(numbers)


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()
