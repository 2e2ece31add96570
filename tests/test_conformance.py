"""Expected values from other projects' own test-suites, and the pathologies found in them (see `source`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from captum.attr import IntegratedGradients
from captum.testing.helpers.basic_models import BasicModel2
from torch import nn

from heatproof.contract import Case, Explanation, Trial
from heatproof.geometry import Frame
from heatproof.metrics import deletion, fidelity, localization, ranking, similarity
from heatproof.metrics.complexity import Complexity
from heatproof.metrics.confidence import Confidence
from heatproof.metrics.correctness import Correctness
from heatproof.metrics.deletion import Deletion
from heatproof.metrics.fidelity import MuFidelity
from heatproof.metrics.infidelity import infidelity
from heatproof.metrics.localization import Localization
from heatproof.metrics.segmentation import Segmentation
from heatproof.models.base import Stage
from heatproof.models.classifier import Classifier

FILE = (
    Path(
        os.environ.get(
            "HEATPROOF_CONFORMANCE", Path(__file__).resolve().parents[2] / "shared" / "conformance"
        )
    )
    / "vectors.json"
)


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict]:
    if not FILE.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {FILE}")
    return {entry["id"]: entry for entry in json.loads(FILE.read_text(encoding="utf-8"))}


def sums() -> Classifier:
    """The score is the sum of the image."""
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(net.weight)
    stages = lambda net: [Stage(None, lambda x, c: net(x).sum((2, 3)))]
    frame = Frame(4, mean=(0.0,), std=(1.0,))
    return Classifier("sums", net, frame, stages=stages, labels={"sum": (0,)}, channels=1)


def trial(
    model,
    heat: torch.Tensor,
    mask: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    name="case",
):
    size = heat.shape[-2:] if mask is None else mask.shape
    pixels = (torch.zeros(size) if image is None else image)[None]
    case = Case(name, name, "thing", pixels, 0, evidence=None if mask is None else mask[None])
    return Trial(model, case, None, Explanation(image=heat))


def region(shape, rows_columns) -> torch.Tensor:
    top, bottom, left, right = rows_columns
    mask = torch.zeros(*shape, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def asked(metric, *trials):
    return [{n: v.number for n, v in s.values.items()} for s in metric.measure(list(trials))]


def expected(entry: dict) -> dict[str, float]:
    return {name: value for name, value in entry["expect"].items() if name != "atol"}


def torchcam_delins(entry):
    image = torch.tensor(entry["input"])
    (score,) = Deletion(steps=entry["steps"], baseline="black").measure([trial(sums(), image, image=image)])
    want = expected(entry)
    for name in ("deletion", "insertion"):
        assert score.curves[name][0] == pytest.approx(want["fractions"], abs=1e-6)
        assert score.curves[name][1] == pytest.approx(want[name], abs=1e-6)
        assert score.values[name].number == pytest.approx(want[f"{name}_auc"], abs=1e-6)


def torchcam_average_drop(entry):
    case = trial(sums(), torch.tensor(entry["attribution"]).float(), image=torch.tensor(entry["input"]))
    (found,) = asked(Confidence(output="native"), case)
    want = expected(entry)
    # the published number carries the 1e-7 that torch-cam adds to the denominator
    assert found["image_drop"] == pytest.approx(want["avg_drop"], abs=1e-6)
    assert found["image_increase"] == want["conf_increase"]


def quantus_ground_truth(entry):
    mask = region(entry["shape"], entry["mask_rc"])
    heat = region(entry["shape"], entry["attribution_one_inside_rc"]).float()
    (found,) = asked(Localization(), trial(None, heat, mask))
    found |= asked(Segmentation(), trial(None, heat, mask))[0]
    names = {"relevance_mass_accuracy": "mass", "relevance_rank_accuracy": "rank", "roc_auc": "auc"}
    for name, value in expected(entry).items():
        assert found[names[name]] == pytest.approx(value, abs=1e-6)


def quantus_top_k(entry):
    mask = region(entry["shape"], entry["mask_rc"])
    heat = torch.rand(*entry["shape"], generator=torch.Generator().manual_seed(0)) * 0.1
    heat[mask] = 1.0
    found = localization.top_k_intersection(heat, mask, entry["k"])
    assert found == pytest.approx(expected(entry)["top_k_intersection"], abs=1e-6)


def quantus_similarity(entry):
    a, b, want = torch.tensor(entry["a"]).float(), torch.tensor(entry["b"]).float(), expected(entry)
    ours = {"spearman": ranking.spearman, "pearson": fidelity.pearson, "kendall_tau": similarity.kendall_tau}
    ours |= {"euclidean": similarity.euclidean, "manhattan": similarity.manhattan}
    ours |= {"mse": similarity.mean_squared_error}
    assert set(want) == set(ours)
    for name, value in want.items():
        assert ours[name](a, b) == pytest.approx(value, abs=1e-6)


def gini(entry):
    heat = torch.zeros(4, 4)
    if entry["id"] == "gini-onehot16":
        heat[1, 2] = 1.0
    else:
        heat = torch.tensor(entry["v"]).float().reshape(4, 4)
    (found,) = asked(Complexity(), trial(None, heat))
    names = {"gini": "gini", "entropy_nats": "entropy"}
    for name, value in expected(entry).items():
        assert found[names[name]] == pytest.approx(value, abs=1e-6)


def mu_fidelity(entry):
    image = torch.rand(20, 21, generator=torch.Generator().manual_seed(0))
    want = expected(entry)
    for sign, name in ((1, "mu_fidelity_pos"), (-1, "mu_fidelity_neg")):
        for metric in (MuFidelity(baseline="black"), MuFidelity(cells=0, baseline="black")):
            (found,) = asked(metric, trial(sums(), sign * image, image=image))
            assert found["mu_fidelity"] == pytest.approx(want[name], abs=1e-6)


def captum_infidelity(entry):
    net, x = BasicModel2(), [torch.tensor([[v]]) for v in entry["inputs"]]
    step = [torch.tensor([[v]]) for v in entry["perturbation"]]
    phi = [heat / v for heat, v in zip(IntegratedGradients(net).attribute(tuple(x)), x, strict=True)]
    dot = float(sum(p * s for p, s in zip(phi, step, strict=True)))
    drop = float(net(*x) - net(*(v - s for v, s in zip(x, step, strict=True))))
    found = infidelity([dot], [drop])
    assert found == pytest.approx(expected(entry)["infidelity"], abs=entry["expect"]["atol"])
    assert found == pytest.approx(
        (0.5 * (0.0009 - 0.0121)) ** 2, rel=0.02
    )  # half of the path has slopes 1 and -1


def empty_mask(entry):
    (found,) = asked(Localization(), trial(None, torch.eye(8), torch.zeros(8, 8, dtype=torch.bool)))
    assert entry["expect"] == {"pointing_game": "nan/excluded"}
    assert set(found.values()) == {None}


def constant_map(entry):
    assert "mask_area/image_area" in next(iter(entry["expect"].values()))
    name = "pointing" if "pointing_game" in entry["expect"] else "rank"
    top, bottom, dot = (
        region((224, 224), (0, 112, 0, 224)),
        region((224, 224), (112, 224, 0, 224)),
        (9, 10, 9, 10),
    )
    for mask in (top, bottom, region((224, 224), dot)):
        (found,) = asked(Localization(), trial(None, torch.full((7, 7), 0.3), mask))
        assert found[name] == pytest.approx(float(mask.float().mean()), abs=1e-12)
    (found,) = asked(Localization(), trial(None, top.float(), region((224, 224), dot)))
    assert found[name] == pytest.approx(1 / (112 * 224), abs=1e-12)  # a half-image plateau around one pixel


def sparse_map(entry):
    heat = torch.zeros(32, 32)
    heat[10:17, 3:10] = 1.0
    plan = deletion.Plan.of(heat, 5, 1, torch.Generator().manual_seed(0))
    first = next(deletion.masked(torch.ones(1, 32, 32), torch.zeros(1, 32, 32), plan))
    gone = first[0] == 0  # the top fifth, as percentile 80 asks
    assert int(gone.sum()) == entry["expect"]["removed_pixels"]
    assert bool(gone[heat > 0].all())


def batch_invariance(entry):
    assert "metric(batch) == concat" in entry["expect"]
    chance, model = torch.Generator().manual_seed(0), sums()
    trials = []
    for i in range(9):
        image, heat = torch.rand(6, 7, generator=chance), torch.randn(3, 4, generator=chance)
        mask = torch.rand(6, 7, generator=chance) < 0.3
        case = Case(
            f"c{i}", f"c{i}", "x", image[None], 0, evidence=mask[None], boxes=torch.tensor([[1.0, 1, 4, 5]])
        )
        trials.append(Trial(model, case, None, Explanation(image=heat)))
    for metric in (
        Localization(),
        Deletion(steps=6),
        Correctness(),
    ):  # all of them: tests/metrics/test_laws.py
        alone = [asked(metric, t)[0] for t in trials]
        assert asked(metric, *trials) == alone
        assert asked(metric, *trials[::-1]) == alone[::-1]


def step_invariance(entry):
    assert "quadrature error" in entry["expect"]
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    areas = {
        steps: asked(Deletion(steps=steps), trial(sums(), image, image=image))[0]["deletion"]
        for steps in (4, 16, 64, 1024)
    }
    order = image.flatten().sort(descending=True).values.double()
    exact = float((order.sum() - order.cumsum(0)).sum() / 1024 + order.sum() / 2048)
    for steps, found in areas.items():  # trapezoids miss h^2/12 of the change in slope, here from -1024 to 0
        assert found == pytest.approx(exact + 1024 / 12 / steps**2, rel=0.02 / steps**2 + 1e-5)


ENTRIES = {
    "torchcam-delins-2steps": torchcam_delins,
    "torchcam-avgdrop": torchcam_average_drop,
    "quantus-all_in_gt_zeros_2d": quantus_ground_truth,
    "quantus-half_in_gt_zeros_2d": quantus_ground_truth,
    "quantus-topk-10000": quantus_top_k,
    "quantus-sim-half": quantus_similarity,
    "gini-onehot16": gini,
    "gini-uniform16": gini,
    "xplique-mufidelity-sum": mu_fidelity,
    "captum-infidelity-basic2": captum_infidelity,
    "PATHO-pg-empty-mask": empty_mask,
    "PATHO-pg-constant-map": constant_map,
    "PATHO-rra-constant-map": constant_map,
    "PATHO-road-sparse-cam": sparse_map,
    "PATHO-batch-invariance": batch_invariance,
    "PATHO-auc-step-invariance": step_invariance,
}


def test_every_entry_runs(vectors):
    assert set(vectors) == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_entry(vectors, name):
    ENTRIES[name](vectors[name])
