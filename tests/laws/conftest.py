"""A small world in which every metric on the shelf can be asked, found by its file: a new one is under the laws at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from heatproof import shelf
from heatproof.contract import Case, Explanation, Score, Trial, Without
from heatproof.geometry import Frame
from heatproof.metrics.agreement import TRUTH
from heatproof.models.base import Stage
from heatproof.models.captioner import Captioner
from heatproof.models.classifier import Classifier
from heatproof.models.dual import Dual
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig
from heatproof.models.words import WordList
from heatproof.shelf import Place

PLACE = Place(Path.cwd(), Path.cwd())
SHELF = sorted(use for path in PLACE.files("metrics").values() for use in shelf.uses("metrics", path))
# the laws are about maps: a metric of the model itself looks at none
USES = [use for use in SHELF if not hasattr(shelf.find("metrics", use, PLACE, "laws"), "asks")]
# what the world is too small for at its default, and what else must be said to make a metric
SETTINGS: dict[str, dict[str, Any]] = {
    "deletion": {"steps": 5},
    "flipping": {"steps": 5},
    "pointing": {"tolerance": 2.0},
    "fidelity:FaithfulnessCorrelation": {"subsets": 12, "share": 0.2},
    "fidelity:MuFidelity": {"subsets": 12, "cells": 2, "share": 0.5},
    "fidelity:SensitivityN": {"subsets": 12},
    "fidelity:Monotonicity": {"cells": 2},
    "infidelity": {"samples": 12},
    "irof": {"cells": 2},
    "mprt:SmoothMprt": {"samples": 3},
    "patch_ablation": {"side": 2, "patches": 3},
    "prefix_ablation": {"count": 2, "least": 3},
    "roar": {"shares": (0.2, 0.6), "epochs": 2},
    "roar:Kar": {"shares": (0.5,), "epochs": 2},
    "roar_pairs": {"epochs": 2, "batch": 3},
    "robustness:Sensitivity": {"samples": 3},
}
WORDS = WordList(
    {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "red", "ball", "on", "grass"])}
)


class Eye(nn.Module):
    """A bent convolution without padding, its mean, and a matrix; ``even``: it does not know left from right."""

    def __init__(self, channels: int, out: int, even: bool) -> None:
        super().__init__()
        self.config = PretrainedConfig(projection_dim=out)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.mix, self.last = nn.Conv2d(channels, 6, 3), nn.Linear(6, out)
            self.ear, self.table = nn.Linear(5, out), nn.Embedding(8, 5)
        if even:
            with torch.no_grad():
                self.mix.weight += self.mix.weight.flip(-1)

    def see(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x).square().mean((2, 3)))  # type: ignore[no-any-return]


def stages(net: Any) -> list[Stage]:
    return [Stage("image.conv 0", lambda x, c: net.mix(x)), Stage(None, lambda x, c: net.see(x))]


def speaker(even: bool) -> Any:
    """A captioner whose encoder is bent and whose attention does not know left from right."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        look, pool = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        config = MultiHeadConfig(8, 6, embed=5, hidden=8, heads=2)
        net = MultiHeadCaptioner(nn.Sequential(look, pool), config)
    if even:
        with torch.no_grad():
            look.weight += look.weight.flip(-1)
    return net


def bag(net: Any, ids: Tensor, context: dict[str, Tensor]) -> Tensor:
    real = (ids != WORDS.pad) * context["seen"] * context["gain"]
    return (net.table(ids) * real[..., None]).sum(1)


@dataclass(frozen=True)
class Slope:
    """The gradient, times ``by``: a map that depends on the model and the image, and has the image's shape."""

    by: float = 1.0

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        words = [None if case.tokens is None else self.by * case.tokens.float() for case in cases]
        return [Explanation(image=self.by * g, text=w) for g, w in zip(grad, words, strict=True)]


@dataclass(frozen=True)
class World:
    """One metric, the model that suits it, and cases with all that can be annotated."""

    use: str
    channels: int = 3
    size: tuple[int, int] = (6, 8)
    even: bool = False

    @property
    def cls(self) -> type:
        return shelf.find("metrics", self.use, PLACE, "laws")

    def metric(self, **more: Any) -> Any:
        needed = {"of": Slope()} if self.use == "concord" else {}
        return self.cls(**{**SETTINGS.get(self.use, {}), **needed, **more})

    def takes(self, field: str) -> bool:
        return field in {f.name for f in dataclasses.fields(self.cls)}

    @property
    def of_text(self) -> bool:
        return self.use in ("text_deletion", "rationale", "prefix_ablation")

    @property
    def of_speech(self) -> bool:
        """Whether the metric is of a captioner's words."""
        return self.use in ("patch_ablation", "prefix_ablation", "hallucination")

    @property
    def of_pairs(self) -> bool:
        """Whether the metric is of images and captions alike."""
        return self.use in ("retrieval", "roar_pairs", "word_pointing")

    @property
    def of_evidence(self) -> bool:
        return self.use in (
            "correctness",
            "localization",
            "mosaic",
            "pointing",
            "segmentation",
            "agreement",
            "word_pointing",
        )

    @property
    def asks(self) -> bool:
        """Whether the metric asks the explainer again, so that the map must be a real explainer's."""
        return self.use.split(":")[0] in ("randomisation", "mprt", "robustness", "random_logit")

    def model(self) -> Any:
        frame = Frame(self.size[0], mean=(0.0,) * self.channels, std=(1.0,) * self.channels)
        if self.of_speech:
            return Captioner("speaks", speaker(self.even), frame, words=WORDS, objects=("ball",), length=9)
        if self.of_text or self.of_pairs:
            return Dual(
                "pair",
                Eye(self.channels, 4, self.even),
                frame,
                image_stages=lambda net: [*stages(net)],
                text_stages=lambda net: [Stage(None, lambda x, c: net.ear(bag(net, x, c)))],
                tokenizer=WORDS,
                text_length=9,
            )
        labels = {"a": (0,), "b": (1,), "c": (2,)}
        net = Eye(self.channels, 3, self.even)
        model = Classifier("eye", net, frame, stages=stages, labels=labels, channels=self.channels)
        model.card = {"truth": TRUTH}
        return model

    def cases(self, count: int = 2, flip: bool = False) -> list[Case]:
        return [self._case(i, flip) for i in range(count)]

    def _case(self, i: int, flip: bool) -> Case:
        high, wide = self.size
        chance = torch.Generator().manual_seed(7 + i)
        pixels = torch.randn(self.channels, high, wide, generator=chance)
        planes = torch.zeros(3, high, wide, dtype=torch.bool)
        # the last is a whole cell of a 2 x 2 mosaic; the others lie beside it
        planes[0, 1:4, 1:3], planes[1, : high // 2, wide - 2 :], planes[2, high // 2 :, : wide // 2] = 1, 1, 1
        evidence = planes[2:] if self.use == "mosaic" else planes[:2]
        boxes = torch.tensor([[1.0, 1, 3, 4], [wide - 2.0, 0, wide, high // 2]])
        ignore = torch.zeros(high, wide, dtype=torch.bool)
        ignore[-1, (3 + i) % wide] = self.use != "mosaic"
        if flip:
            pixels, planes, evidence, ignore = (x.flip(-1) for x in (pixels, planes, evidence, ignore))
            boxes = torch.stack([wide - boxes[:, 2], boxes[:, 1], wide - boxes[:, 0], boxes[:, 3]], 1)
        text = ("red ball on grass", "ball on red grass")[i % 2]
        ids, words, spoken = WORDS(text, 9)
        things = tuple(
            Without(f"t{k}", plane, lambda p=plane, x=pixels: x.masked_fill(p, 0.0))
            for k, plane in enumerate(planes)
        )
        more: dict[str, Any] = {}
        if self.of_text or self.of_pairs or self.of_speech:
            end = -1 if self.of_speech else None  # a captioner's tokens stop before the end
            more = {
                "tokens": torch.tensor(ids[:end]),
                "words": tuple(words[:end]),
                "spoken": tuple(spoken[:end]),
            }
            more["references"] = ("a red ball",)
        elif self.use == "random_logit":
            more = {"choices": (0, 1, 2)}
        if self.use == "word_pointing":  # the second and the fifth token name a plane each
            more["named"] = torch.tensor([[k == 1, k == 4] for k in range(len(ids))])
        return Case(
            f"s{i}", f"s{i}", "thing", pixels, 3 if self.of_speech else text if "tokens" in more else i % 3, evidence=evidence, boxes=boxes,
            ignore=ignore, without=things, evidence_text=torch.tensor([k == 2 for k in range(len(ids))]), **more,
        )  # fmt: skip

    def answer(self, heat: Tensor | None, words: Tensor | None = None) -> Explanation:
        """A map for the image or, where the metric is of text, relevance for its six tokens."""
        words = words[:5] if self.of_speech and words is not None else words  # no end among a captioner's
        if self.of_pairs or (self.of_speech and not self.of_text):
            return Explanation(image=heat, text=words)
        return Explanation(text=words) if self.of_text else Explanation(image=heat)

    def maps(self, seed: int, size: tuple[int, ...] = (3, 4), count: int = 2) -> list[Explanation]:
        """Maps without ties, of either sign, on a grid of their own, and relevance for six tokens."""
        chance = torch.Generator().manual_seed(seed)
        return [
            self.answer(torch.randn(*size, generator=chance), torch.randn(6, generator=chance))
            for _ in range(count)
        ]

    @staticmethod
    def same(one: Any, other: Any, *, rel: float = 1e-4, abs_: float = 1e-6, but: Any = ()) -> None:
        """Every value the same to a tolerance, and undefined in the same places."""
        for a, b in zip(one, other, strict=True):
            for name in set(a) - set(but):
                assert (a[name] is None) == (b[name] is None), (name, a, b)
                if a[name] is not None:
                    assert b[name] == pytest.approx(a[name], rel=rel, abs=abs_), name

    def slope(self, by: float = 1.0) -> Slope:
        return Slope(by)

    def scores(
        self, metric: Any, cases: Sequence[Case], answers: Sequence[Explanation] | Slope
    ) -> list[Score]:
        return self.measure(metric, self.model(), cases, answers)

    def measure(
        self, metric: Any, model: Any, cases: Sequence[Case], answers: Sequence[Explanation] | Slope
    ) -> list[Score]:
        explainer = answers if isinstance(answers, Slope) else Slope()
        given = explainer.explain(model, cases) if isinstance(answers, Slope) else answers
        trials = [Trial(model, c, explainer, e) for c, e in zip(cases, given, strict=True)]
        # what is learned is learned of the same cases, whatever is asked
        extra = [metric.fit(model, iter([self.cases(6)]), Slope())] if hasattr(metric, "fit") else []
        with torch.inference_mode():
            return list(metric.measure(trials, *extra))

    def numbers(self, *asked: Any) -> list[dict[str, float | None]]:
        return [{n: v.number for n, v in score.values.items()} for score in self.scores(*asked)]


@pytest.fixture
def world() -> type[World]:
    return World


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for ``use`` is run for every metric on the shelf, or those that its module's SUITS takes."""
    if "use" in metafunc.fixturenames:
        suits = getattr(metafunc.module, "SUITS", {}).get(metafunc.function.__name__, lambda world: True)
        metafunc.parametrize("use", [use for use in USES if suits(World(use))])
