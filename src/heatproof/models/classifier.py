"""Image classifiers: the score is the logit of one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heatproof.contract import Case, Refused, Sample
from heatproof.models import asking
from heatproof.models.base import Context, Model, Stage

POLICIES = ("label", "predicted", "objects", "largest object")


def _read_targets(logits: Tensor, context: Context) -> Tensor:
    return logits.gather(1, context["targets"]).squeeze(1)


@dataclass(eq=False)
class Classifier(Model):
    """A net that ends in logits [N, classes].

    ``stages`` tells the net as stages; ``labels`` maps a name of the data set to the classes that mean it
    (several where the net is finer than the data set: the highest of them is the target).
    Target policies: "label" (the sample's own label), "predicted" (whatever the net says), "objects" (one case
    for every annotated category that the net knows), "largest object" (of those the one with the largest box).
    """

    stages: Callable[[nn.Module], list[Stage]] = field(kw_only=True)
    labels: Mapping[str, tuple[int, ...]] = field(kw_only=True)
    channels: int = 3

    family = "classifier"
    space = "logit"

    def _towers(self) -> dict[str, list[Stage]]:
        return {"image": [*self.stages(self.net), Stage(None, _read_targets)]}

    def _inner_sites(self) -> list[str]:
        return inner_sites(self.net)

    def _example(self, tower: str) -> tuple[Tensor, Context]:
        size = self.frame.size
        x = torch.zeros(self.rows, self.channels, size, size, device=self.device)
        return x, {"targets": torch.zeros(self.rows, 1, dtype=torch.long, device=self.device)}

    @property
    def classes(self) -> int:
        return 1 + max(max(members) for members in self.labels.values())

    def _context(self, cases: Sequence[Case], choices: bool = False) -> Context:
        wanted = [(case.choices or range(self.classes)) if choices else [case.target] for case in cases]
        return {"targets": torch.tensor([list(row) for row in wanted])}

    def ask(self, samples: Sequence[Sample], policy: str) -> list[list[Case]]:
        """One list of cases a sample, by the target policy."""
        if policy not in POLICIES:
            raise asking.unknown_policy(policy, self.family, POLICIES)
        seen = [asking.pixels(sample, self.frame) for sample in samples]
        images = [image for image, _ in seen]
        undecided = policy == "predicted" or any(len(members) > 1 for members in self.labels.values())
        logits = self.logits(torch.stack(images)) if undecided else [None] * len(samples)
        return [
            [
                Case(
                    id=asking.case_id(sample.id, name),
                    sample=sample.id,
                    about=name,
                    pixels=image,
                    target=self._target(row, name),
                    **asking.evidence(sample, [name], self.frame, source),
                )
                for name in self._names(sample, policy, row)
            ]
            for sample, (image, source), row in zip(samples, seen, logits, strict=True)
        ]

    def _names(self, sample: Sample, policy: str, logits: Tensor | None) -> list[str]:
        if policy == "label":
            if sample.label is None or sample.label not in self.labels:
                raise Refused(
                    f"sample {sample.id}: label {sample.label!r} is none that {self.name} knows "
                    f"(it knows {len(self.labels)}: {', '.join(sorted(self.labels)[:8])}, ...)"
                )
            return [sample.label]
        if policy == "predicted" and logits is not None:
            best = int(logits.argmax())
            return [next(name for name, members in self.labels.items() if best in members)]
        things = [o for o in sample.objects if not o.ignore and o.name in self.labels]
        if policy == "largest object":
            things = sorted(things, key=lambda o: -(o.box[2] - o.box[0]) * (o.box[3] - o.box[1]))[:1]
        return list(dict.fromkeys(o.name for o in things))

    def _target(self, logits: Tensor | None, name: str) -> int:
        members = self.labels[name]
        if len(members) == 1 or logits is None:
            return members[0]
        return members[int(logits[list(members)].argmax())]

    def logits(self, pixels: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, classes], without gradient."""
        cases = [Case("", "", "", row, 0) for row in pixels]
        with torch.no_grad():
            return self.scores(pixels, cases)


def inner_sites(net: nn.Module, tower: str = "image") -> list[str]:
    """The attention sites that ``huggingface.tell_sites`` gave to a tower's modules."""
    names = [getattr(module, "heatproof_site", "") for module in net.modules()]
    return [name for name in names if name.startswith(f"{tower}.attention ")]
