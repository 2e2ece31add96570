"""``heatproof new explainer``: a method of one's own to begin with, and a benchmark of it beside it. No torch here.

What is written works as it is: the file passes ``heatproof check``, the spec runs on the small models that came with
the package, and only the lines inside ``explain`` wait for a better idea.
"""

from __future__ import annotations

import importlib.util
import keyword
from dataclasses import dataclass
from pathlib import Path

from heatproof.errors import Refused
from heatproof.records import write_whole
from heatproof.shelf import house

FILE = '''"""{name}: activation times gradient at one layer, summed over channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heatproof import Explanation
from heatproof.contract import Case


@dataclass(frozen=True)
class {name}:
    """What the map means, in one sentence: this line stands beside the name in every report.

    ``layer``: the {place} that is read, from 0, or from the end where negative.
    Every setting is part of a number's key: another value is another row of the table.
    """

    layer: int = {layer}

    def explain(self, model: Any, cases: Sequence[Case]) -> list[Explanation]:
        site = model.site("{kind}", self.layer)  # a model without one gets a dash, with this reason
        with model.watch(site) as seen:
            score = model.score(model.stack(cases), cases)  # [N]: {score}
            (grads,) = torch.autograd.grad(score.sum(), seen.value)
        found = []
{body}
        return found
'''

PLANE = """        for value, grad in zip(seen.value.detach(), grads, strict=True):  # one by one: no neighbour counts
            heat = (value * grad).sum(0)  # [h, w]: signed, on the layer's own grid; nothing is resized here
            found.append(Explanation(image=heat))"""
BOTH = """        rows = zip(cases, seen.value.detach(), grads, strict=True)
        for case, value, grad in rows:  # one by one: no neighbour counts
            heat = model.grid(value * grad).sum(0)  # [h, w]: patches without the class token, signed, not resized
            text = None if case.tokens is None else self.words(model, case)
            found.append(Explanation(image=heat, text=text))"""
WORDS = '''
    def words(self, model: Any, case: Case) -> torch.Tensor:
        """[T]: how far the score falls without each token of the caption; special tokens always stay."""
        count = len(case.tokens)
        keep = torch.ones(count + 1, count)
        for token in range(count):
            keep[token + 1, token] = float(case.words[token] < 0)  # the first row keeps every token
        with torch.no_grad():
            scores = model.score_text(keep, [case] * (count + 1)).cpu()
        return scores[0] - scores[1:]
'''

SPEC = """# {stem}.toml: {name} beside five methods of the house on generated scenes.  heatproof run {stem}.toml

title    = "{name} and five methods on generated scenes"
kind     = "instrument"                 # made images, small model: tests the harness, ranks no method
seed     = 0
dataset  = {{ use = "scenes", split = "test", sample = 24 }}    # no significance without photographs enough: 24 to begin
headline = {headline}
models   = ["{model}"]

explainers = [
  {{ use = "./{stem}.py:{name}", as = "{stem}" }},
{baselines}
]

controls = [
  "random", "centre", "edges",          # never look at the model: what they reach, a metric gives away
  {{ use = "swapped", of = ["{stem}"] }}, # your own map, of another image
  {{ use = "blurred", of = ["{stem}"] }}, # your own map, blurred: does the metric pay for blur?
  "oracle",                             # the mask itself
]

metrics = [
  {{ use = "deletion", steps = 6, baseline = "mean" }},         # faithfulness: does the score follow the map?
  "localization",                       # plausibility: is the object hot?
{metrics}
  "randomisation",                      # sanity: does the map change with the weights?
]

[targets]
{target}
"""


@dataclass(frozen=True)
class Kind:
    """What a family of models changes in the two files."""

    model: str
    kind: str
    place: str
    layer: int
    score: str
    body: str
    headline: str
    baselines: tuple[str, ...]
    metrics: str
    target: str
    more: str = ""


IG = '{ use = "captum_suite:IntegratedGradients", steps = 16, as = "ig-16" }'
OCCLUSION = '{ use = "captum_suite:Occlusion", window = 0.25, stride = 0.125, as = "occlusion" }'
RISE = '{ use = "rise", masks = 128, as = "rise-128" }'
PIXELS = '["deletion.srg", "localization.mass"]'
FAMILIES = {
    "classifier": Kind(
        model="small_cnn",
        kind="image.conv",
        place="convolution",
        layer=-2,
        score="the logit of each case's class",
        body=PLANE,
        headline=PIXELS,
        baselines=('"gradcam"', '"lrp"', IG, OCCLUSION, RISE),
        metrics='  "road",                               # the same with neighbours filled in, most and least relevant first',
        target='classifier = "label"                    # the true class, whether or not the model says it',
    ),
    "clip": Kind(
        model="small_clip",
        kind="image.block",
        place="transformer block",
        layer=-2,
        score="the cosine of each case's image and caption",
        body=BOTH,
        more=WORDS,
        headline='["deletion.srg", "text_deletion.text_srg"]',
        baselines=('"gradcam"', '"chefer"', '"grad_eclip"', IG, RISE),
        metrics='  "text_deletion",                      # the same of the words',
        target='dual = "caption 0"                      # the first caption',
    ),
    "captioner": Kind(
        model="small_captioner",
        kind="image.conv",
        place="convolution",
        layer=-2,
        score="the log-probability of the word at case.target",
        body=PLANE,
        headline=PIXELS,
        baselines=('"gradcam"', '"lrp"', '"attention"', IG, OCCLUSION),
        metrics='  "correctness",                        # relevance inside the boxes over thresholds',
        target='captioner = "first said object"         # the first object word that the model itself said',
    ),
}  # fmt: skip


def new_explainer(file: Path, family: str) -> list[Path]:
    """Write an explainer and its benchmark; the two paths. Nothing that is there is ever written over."""
    stem, kind = file.stem, FAMILIES[family]
    if file.suffix != ".py" or not stem.isidentifier() or keyword.iskeyword(stem) or stem.startswith("_"):
        raise Refused(f"heatproof new explainer {file}: accepted is the name of a Python file, as mine.py")
    spec = file.with_suffix(".toml")
    for path in (file, spec):
        if path.exists():
            raise Refused(f"heatproof new explainer: {path} is there already, and is not written over")
    name = "".join(word[:1].upper() + word[1:] for word in stem.split("_"))
    taken = importlib.util.find_spec(stem) is not None or (house() / "explainers" / file.name).exists()
    if taken or stem == "occlusion" or name in ("Any", "Case", "Explanation", "Sequence"):
        raise Refused(f"heatproof new explainer {file}: {stem!r} is taken; give the file a name of its own")
    code = FILE.format(
        name=name, place=kind.place, layer=kind.layer, kind=kind.kind, score=kind.score, body=kind.body
    )
    told = SPEC.format(
        stem=stem,
        name=name,
        headline=kind.headline,
        model=kind.model,
        baselines="\n".join(f"  {line}," for line in kind.baselines),
        metrics=kind.metrics,
        target=kind.target,
    )
    write_whole(file, code + kind.more)
    write_whole(spec, told)
    return [file, spec]
