"""``heatproof captions``: what a captioner says of images, and each word of it explained, as one page."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import heatproof
from heatproof import captionpage, checks, geometry, ordering
from heatproof.bench import Bench
from heatproof.captionpage import Answers, Told, Word
from heatproof.contract import Case, Explanation, Sample, Trial, Unsuited
from heatproof.errors import Refused
from heatproof.metrics.hallucination import Hallucination
from heatproof.metrics.image_lift import ImageLift
from heatproof.metrics.maps import Undefined
from heatproof.models.base import Model
from heatproof.records import write_whole
from heatproof.spec import Part, Spec
from heatproof.store import Store

MEANT = {
    "references": ("a reference caption has this word", "none of them has it, as it stands"),
    "objects": ("what it names is in the image", "it is not"),
}


def write(
    raw: dict[str, Any], cwd: Path, out: Path | None = None, gamma: float = 0.7, device: str = "cpu"
) -> list[Path]:
    """Write ``captions.html`` of what was asked (``ordering.benchmark``); the path written."""
    if gamma <= 0:
        raise Refused(f"--gamma: found {gamma:g}, accepted is a power above 0, as 0.7")
    asked = ordering.passing(raw, cwd, "captions")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.sqlite"
        Store(path, write=True).close()
        bench = Bench(asked, path, device)
        try:
            model, key = bench.model(0)
            accept(model, "captions")
            truth = truth_of(bench.samples)
            told = [_told(bench, model, key, place, truth, gamma) for place in range(len(bench.samples))]
        finally:
            bench.store.close()
    name = f"{ordering.called(raw['models'][0])}-{ordering.called(raw['dataset'])}"
    page = (out or asked.workspace / "reports" / name) / "captions.html"
    write_whole(page, captionpage.html(asked.title, told, _run(asked, truth, gamma)))
    return [page]


def accept(model: Model, where: str) -> None:
    """Refuse what writes no captions."""
    if model.family != "captioner":
        raise Refused(
            f"{where}: {model.name} is a {model.family}, accepted are captioners, as small_captioner; "
            "what there is: heatproof list models"
        )


def truth_of(samples: Sequence[Sample]) -> str:
    """What tells true object words: the annotated things where there are any, else the reference captions."""
    return "objects" if any(s.objects for s in samples) else "references"


def _run(asked: Spec, truth: str, gamma: float) -> dict[str, Any]:
    grounded, hallucinated = MEANT[truth]
    return {
        "heatproof": heatproof.__version__,
        "model": asked.models[0].name,
        "dataset": asked.dataset.name,
        "licence": type(asked.dataset.made).card.licence,
        "gamma": gamma,
        "grounded": grounded,
        "hallucinated": hallucinated,
        "outlined": truth == "objects",
        "explainers": [
            (p.name, ", ".join(f"{k} = {v}" for k, v in p.entry.items() if k not in ("use", "as")))
            for p in asked.explainers
        ],
    }


def _told(bench: Bench, model: Model, key: str, place: int, truth: str, gamma: float) -> Told:
    sample = bench.samples[place]
    ((whole,),) = bench.ask(model, [sample], "written")
    if whole.pixels.ndim != 3:
        raise Refused(f"captions: {model.name} reads features of regions: there is no image to draw on")
    cases = [
        dataclasses.replace(c, other=lambda: bench.other(model, place))
        for c in about_words(whole, bench.ask(model, [sample], "said objects")[0])
    ]
    answers = [_answers(bench, model, key, part, cases, gamma) for part in bench.spec.explainers if cases]
    lifts = ImageLift().measure([Trial(model, case) for case in cases])
    logps = model.clean(cases).tolist() if cases else []
    rows = zip(cases, logps, lifts, strict=True)
    words = [_word(case, logp, lift.values["lift"].number or 0.0, truth) for case, logp, lift in rows]
    model.memo.clear()
    # maps and evidence are in the model's geometry, which may have cut the photograph
    return Told(sample.id, model.frame.picture(whole.pixels), words, answers, sample.captions)


def about_words(whole: Case, objects: Sequence[Case]) -> list[Case]:
    """A case of each word of a caption: of those that name an object, with its evidence, as ``objects`` has them.

    ``about`` is the object that a word names, nothing where it names none.
    """
    known = {case.target: case for case in objects}
    said = range(len(whole.spoken) - 1)
    return [known.get(t) or dataclasses.replace(whole, id=f"{whole.id}.w{t}", target=t) for t in said]


def _answers(bench: Bench, model: Model, key: str, part: Part, cases: list[Case], gamma: float) -> Answers:
    before, net = [case.pixels.clone() for case in cases], checks.condition(model.net)
    try:
        extra = (bench.fitted(part, model, key)[0],) if hasattr(part.made, "fit") else ()
        found = checks.explanations(part, cases, before, part.made.explain(model, cases, *extra))
    except Unsuited as reason:
        return Answers(part.name, unsuited=str(reason))
    finally:
        checks.left_as_found(part, net, checks.condition(model.net))
    found = [checks.detached(one) for one in found]
    return Answers(
        part.name,
        [_map(one, gamma) for one in found],
        [
            None if one.text is None else one.text[: case.target + 1].double().numpy()
            for one, case in zip(found, cases, strict=True)
        ],
    )


def _map(found: Explanation, gamma: float) -> Any:
    """The power of each channel, then their sum, as Sun et al. draw it; None where there is no map."""
    if found.image is None:
        return None
    powered = torch.from_numpy(captionpage.signed_power(found.image.double().numpy(), gamma))
    return geometry.read(powered).double().numpy()


def _word(case: Case, logp: float, lift: float, truth: str) -> Word:
    said = case.spoken[case.target + 1]
    evidence = case.mask.numpy() if case.mask is not None and case.mask.any() else None
    if not case.about:
        return Word(said, logp, lift, "", "names no object that the model knows")
    try:
        true = Hallucination(truth=truth).true(case)
    except Undefined as why:
        return Word(said, logp, lift, "", str(why), evidence)
    return Word(said, logp, lift, "grounded" if true else "hallucinated", MEANT[truth][not true], evidence)
