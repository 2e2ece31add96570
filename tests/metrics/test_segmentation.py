"""Segmentation against scikit-learn, loops written from the formulas, and the protocol of Chefer et al."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from heatproof import geometry
from heatproof.contract import Refused
from heatproof.metrics import segmentation as seg
from heatproof.metrics.segmentation import Segmentation
from heatproof.records import Record
from heatproof.reducers import Numbering, reduce

SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
VECTORS = Path(os.environ.get("HEATPROOF_CONFORMANCE", SHARED)) / "vectors.json"
RANKED = ("auc", "ap", "top_k", "ap_two_class")
AT_SHARES = ("iou_mean", "iou_best", "ap_pooled")
AT_ONE = ("dice", "pixel_accuracy", "miou")
FEW = st.sampled_from([0.0, 0.25, 1.0, 2.0, -1.0])


@st.composite
def scenes(draw, elements=FEW):
    """A map and a mask of one size; the mask neither empty nor everything."""
    size = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    heat = draw(arrays(np.float32, size, elements=elements))
    mask = draw(arrays(bool, size))
    mask.flat[0], mask.flat[-1] = True, False
    return torch.tensor(heat), torch.tensor(mask)


def judged(toys, heat, evidence, metric=None, channels=1, **more):
    evidence = evidence[None] if evidence.ndim == 2 else evidence
    case = toys.case(pixels=torch.zeros(channels, *evidence.shape[1:]), evidence=evidence, **more)
    (score,) = (metric or Segmentation()).measure(toys.trials(None, [case], [heat]))
    return score.values


def ask(toys, *told, **more):
    return {name: value.number for name, value in judged(toys, *told, **more).items()}


# ---------------------------------------------------------------- slow twin


def precision_of(scores: list[float], labels: list[bool]) -> float:
    """Average precision: over the distinct scores downwards, precision times the recall that each adds."""
    area, recall = 0.0, 0.0
    for cut in sorted(set(scores), reverse=True):
        above = [label for score, label in zip(scores, labels, strict=True) if score >= cut]
        now = sum(above) / sum(labels)
        area += (now - recall) * sum(above) / len(above)
        recall = now
    return area


def slow(
    heat: list[float], mask: list[bool], threshold: float | str, thresholds, k: float
) -> dict[str, float]:
    """Every value, pixel by pixel, from lists of heat and truth whose heat is equal or far apart."""
    n, size = len(heat), sum(mask)
    pairs = [
        (h, g) for h, a in zip(heat, mask, strict=True) if a for g, b in zip(heat, mask, strict=True) if not b
    ]
    count = max(1, math.floor(k * n + 0.5))
    edge = sorted(heat, reverse=True)[count - 1]
    sure = [m for h, m in zip(heat, mask, strict=True) if h > edge]
    tied = [m for h, m in zip(heat, mask, strict=True) if h == edge]
    low, top = min(heat), max(heat)
    found = {
        "auc": sum(1.0 if h > g else 0.5 if h == g else 0.0 for h, g in pairs) / len(pairs),
        "ap": precision_of(heat, mask),
        "top_k": (sum(sure) + (count - len(sure)) * sum(tied) / len(tied)) / count,
        "ap_two_class": precision_of(
            [h - low for h in heat] + [top - h for h in heat], mask + [not m for m in mask]
        ),
    }

    def crossed(hot):
        both = sum(h and m for h, m in zip(hot, mask, strict=True))
        return both, sum(hot)

    if top > 0:
        ious, area, before = [], 0.0, 0
        for t in sorted(thresholds, reverse=True):
            both, hot = crossed([h >= t * top for h in heat])
            ious.append(both / (hot + size - both))
            area += (both - before) / size * both / hot
            before = both
        area += (size - before) / size * size / n
        found |= {"iou_mean": sum(ious) / len(ious), "iou_best": max(ious), "ap_pooled": area}
    mean = sum(heat) / n
    region = (
        [h > mean for h in heat] if threshold == "mean" else [h >= threshold * top and top > 0 for h in heat]
    )
    if any(region) and (top > low if threshold == "mean" else top > 0):
        both, hot = crossed(region)
        right = sum(h == m for h, m in zip(region, mask, strict=True))
        found["dice"] = 2 * both / (hot + size)
        found["pixel_accuracy"] = right / n
        found["miou"] = (both / (hot + size - both) + (right - both) / (n - both)) / 2
    return found


@settings(deadline=None)
@given(
    scenes(),
    st.sampled_from(["mean", 0.2, 0.5, 1.0]),
    st.sampled_from([(0.25, 0.5, 0.75), (0.1,)]),
    st.sampled_from([0.02, 0.3, 1.0]),
    st.sampled_from(["positive", "signed", "abs"]),
)
def test_it_is_the_slow_twin(toys, scene, threshold, thresholds, k, sign):
    heat, mask = scene
    metric = Segmentation(threshold=threshold, thresholds=thresholds, k=k, sign=sign)
    flat = geometry.read(heat, sign=sign).flatten().tolist()
    expected = slow(flat, mask.flatten().tolist(), threshold, thresholds, k)
    found = ask(toys, heat, mask, metric)
    assert list(found) == [m.name for m in Segmentation.measures]
    assert {n: v for n, v in found.items() if v is not None} == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------- held against others


def test_ranks_are_those_of_scikit_learn():
    chance = np.random.default_rng(0)
    worst = dict.fromkeys(
        ("auc tied", "ap tied", "two class tied", "auc smooth", "ap smooth", "two class smooth"), 0.0
    )
    for i in range(60):
        mask = chance.random((23, 31)) < chance.uniform(0.01, 0.9)
        mask[0, 0], mask[-1, -1] = True, False
        tied = i % 2 == 0
        heat = chance.integers(0, 2 + i, mask.shape) / 64 if tied else chance.normal(size=mask.shape)
        heat = heat.astype(np.float32)
        h, m = torch.tensor(heat), torch.tensor(mask)
        both = np.concatenate(
            [heat.ravel().astype(float) - heat.min(), heat.max() - heat.ravel().astype(float)]
        )
        labels = np.concatenate([mask.ravel(), ~mask.ravel()])
        for name, ours, theirs in (
            ("auc", seg.roc_auc(h, m), roc_auc_score(mask.ravel(), heat.ravel())),
            ("ap", seg.average_precision(h, m), average_precision_score(mask.ravel(), heat.ravel())),
            ("two class", seg.two_class_precision(h, m), average_precision_score(labels, both)),
        ):
            kind = f"{name} {'tied' if tied else 'smooth'}"
            worst[kind] = max(worst[kind], abs(ours - theirs))
    print("largest deviation from scikit-learn:", worst)
    assert max(v for kind, v in worst.items() if "tied" in kind) < 1e-12
    # on a smooth map values nearer than 1e-6 of its range are tied here and not there
    assert max(worst.values()) < 1e-4


@pytest.mark.parametrize("name", ["quantus-all_in_gt_zeros_2d", "quantus-half_in_gt_zeros_2d"])
def test_expected_values_of_quantus(toys, name):
    if not VECTORS.is_file():
        pytest.skip(f"HEATPROOF_CONFORMANCE: no vectors at {VECTORS}")
    entry = next(e for e in json.loads(VECTORS.read_text(encoding="utf-8")) if e["id"] == name)
    planes = torch.zeros(2, *entry["shape"], dtype=torch.bool)
    for plane, (top, bottom, left, right) in zip(
        planes, (entry["mask_rc"], entry["attribution_one_inside_rc"]), strict=True
    ):
        plane[top:bottom, left:right] = True
    found = ask(toys, planes[1].float(), planes[0])["auc"]
    print(f"{name}: deviation of auc {abs(found - entry['expect']['roc_auc'])}")
    assert found == pytest.approx(entry["expect"]["roc_auc"], abs=1e-12)


def chefer(heats, masks):
    """Pixel accuracy, mIoU, mAP and mF1 as their evaluation defines them, on whole images, class by class."""
    correct = labelled = 0
    inter, union = np.zeros(2), np.zeros(2)
    aps, f1s = [], []
    for heat, mask in zip(heats, masks, strict=True):
        scaled = (heat.astype(float) - heat.min()) / (float(heat.max()) - heat.min())
        said = scaled > scaled.mean()
        correct, labelled = correct + (said == mask).sum(), labelled + mask.size
        for which, plane in enumerate((False, True)):
            inter[which] += ((said == plane) & (mask == plane)).sum()
            union[which] += ((said == plane) | (mask == plane)).sum()
        labels = np.concatenate([~mask.ravel(), mask.ravel()])
        aps.append(average_precision_score(labels, np.concatenate([1 - scaled.ravel(), scaled.ravel()])))
        f1s.append(f1_score(mask.ravel(), said.ravel()))
    return {
        "pixel_accuracy": correct / labelled,
        "miou": (inter / union).mean(),
        "ap_two_class": np.mean(aps),
        "dice": np.mean(f1s),
    }


def test_the_protocol_of_chefer_et_al_through_the_reducers(toys):
    chance = np.random.default_rng(3)
    heats = [chance.integers(-50, 200, (12, 18)).astype(np.float32) for _ in range(9)]
    for heat in heats:
        heat[0, :2] = (
            -50,
            206,
        )  # a range of 256, so that their scaling to 0..1 rounds nothing and breaks no tie
    masks = [chance.random((12, 18)) < share for share in np.linspace(0.1, 0.8, 9)]
    metric = Segmentation(sign="signed")
    rows = []
    for i, (heat, mask) in enumerate(zip(heats, masks, strict=True)):
        values = judged(toys, torch.tensor(heat), torch.tensor(mask), metric)
        rows += [
            Record("b", "m", "f", 0, "e", "method", f"s{i}", f"s{i}-c", "cat", "seg", name, v.number, v.parts)
            for name, v in values.items()
        ]
    how = {m.name: m.reduce for m in metric.measures}
    found = {}
    for name, reducer in how.items():
        column = [r for r in rows if r.name == name]
        found[name] = reduce(reducer, Numbering.of(column).rows(column, reducer))
    expected = chefer(heats, masks)
    print("deviation from the protocol:", {n: abs(found[n] - v) for n, v in expected.items()})
    assert {n: found[n] for n in expected} == pytest.approx(expected, abs=1e-12)
    assert found["miou"] != pytest.approx(np.mean([r.value for r in rows if r.name == "miou"]), abs=1e-6)


def test_the_pooled_precision_is_that_of_all_pixels_at_the_thresholds(toys):
    chance = np.random.default_rng(5)
    heats = [chance.integers(1, 5, (9, 7)).astype(np.float32) for _ in range(6)]
    for heat in heats:
        heat[0, 0] = 4
    masks = [chance.random((9, 7)) < 0.4 for _ in heats]
    rows = [
        Record("b", "m", "f", 0, "e", "method", f"s{i}", "c", "cat", "seg", "ap_pooled", v.number, v.parts)
        for i, v in enumerate(
            judged(toys, torch.tensor(h), torch.tensor(m))["ap_pooled"]
            for h, m in zip(heats, masks, strict=True)
        )
    ]
    found = reduce("pooled_precision", Numbering.of(rows).rows(rows, "pooled_precision"))
    pixels = [np.concatenate([x.ravel() for x in some]) for some in (masks, heats)]
    assert found == pytest.approx(average_precision_score(*pixels), abs=1e-12)


# ---------------------------------------------------------------- properties


@settings(deadline=None)
@given(scenes(st.floats(-4, 4, width=16)), st.integers(-8, 8), st.sampled_from(["mean", 0.5]))
def test_range_and_positive_rescaling(toys, scene, power, threshold):
    heat, mask = scene
    metric = Segmentation(threshold=threshold)
    found = ask(toys, heat, mask, metric)
    assert all(v is None or 0 <= v <= 1 for v in found.values())
    assert ask(toys, heat * 2.0**power, mask, metric) == found
    for name, value in ask(toys, heat * 3.7, mask, metric).items():
        assert (value is None) == (found[name] is None)


@settings(deadline=None)
@given(scenes(FEW), st.sampled_from([3.7, 0.1]))
def test_any_positive_factor_on_values_that_are_far_apart(toys, scene, factor):
    heat, mask = scene
    metric = Segmentation(thresholds=(0.1, 0.3, 0.7), threshold=0.3)
    expected, found = ask(toys, heat, mask, metric), ask(toys, heat * factor, mask, metric)
    assert found == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 6), st.integers(2, 6), st.data())
def test_flipping_image_and_map_together_changes_nothing(toys, chance, high, wide, data):
    heat = torch.tensor(chance.sample(range(100), high * wide)).float().reshape(high, wide)  # no ties
    mask = torch.tensor(data.draw(arrays(bool, (high, wide))))
    mask[0, 0], mask[-1, -1] = True, False
    for how in (lambda x: x.flip(0), lambda x: x.flip(1)):
        assert ask(toys, how(heat), how(mask)) == pytest.approx(ask(toys, heat, mask), abs=1e-12)


def test_exactly_k_pixels_are_looked_at_whatever_the_ties(toys):
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:1] = True
    heat = torch.zeros(10, 10)
    heat[0, :4] = 1.0
    assert ask(toys, heat, mask, Segmentation(k=0.04))["top_k"] == 1.0
    assert ask(toys, heat, mask, Segmentation(k=0.1))["top_k"] == pytest.approx((4 + 6 * 6 / 96) / 10)
    assert ask(toys, heat, mask, Segmentation(k=1e-9))["top_k"] == 1.0  # one pixel at least
    assert ask(toys, heat, mask, Segmentation(k=1.0))["top_k"] == 0.1


def test_fp16_channels_and_grids(toys):
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4, :6] = True
    small = torch.tensor([[1.0, -2.0], [0.25, 0.0]])
    plain = ask(toys, small, mask)
    assert ask(toys, small.half(), mask) == plain
    assert ask(toys, torch.stack([small, small]), mask, channels=3) == plain
    assert ask(toys, geometry.read(small, (8, 12)), mask) == plain
    native = ask(toys, small, mask, Segmentation(upsample="none"))
    assert native == {**dict.fromkeys(plain, 1.0), "iou_mean": pytest.approx((14 + 5 / 2) / 19)}


# ---------------------------------------------------------------- instances and ignored regions


def two_squares():
    planes = torch.zeros(2, 4, 6, dtype=torch.bool)
    planes[0, :2, :2] = planes[1, 2:, 4:] = True
    return planes


def test_instances_are_judged_together_or_alone(toys):
    planes = two_squares()
    heat = planes[0].float()  # finds one of two
    union, best, mean = (
        ask(toys, heat, planes, Segmentation(instances=how)) for how in ("union", "any", "instance")
    )
    assert (union["iou_mean"], union["auc"], union["dice"]) == (0.5, 0.75, 2 / 3)
    assert best == dict.fromkeys(best, 1.0)
    # the second alone: 20 pixels count, its own 4 among them, and 0 is the heat of all
    assert mean["auc"] == (1 + 0.5) / 2
    assert mean["ap"] == pytest.approx((1 + 4 / 20) / 2)
    assert mean["iou_mean"] == 1.0  # where there is no heat left, the second has no IoU
    whole = ask(toys, planes.any(0).float(), planes, Segmentation(instances="instance"))
    assert whole == dict.fromkeys(whole, 1.0)  # finding the other is no fault


@settings(deadline=None, max_examples=40)
@given(scenes(), st.data(), st.sampled_from(["any", "instance"]))
def test_instances_are_the_twin_on_what_counts_for_each(toys, scene, data, how):
    heat, first = scene
    second = torch.tensor(data.draw(arrays(bool, tuple(first.shape))))
    planes = torch.stack([first, second])
    hot = heat.clamp(min=0)
    alone = []
    for mask, other in ((first, second), (second, first)):
        counted = mask | ~other
        if mask.any() and not mask[counted].all():
            told = slow(hot[counted].tolist(), mask[counted].tolist(), "mean", seg.THRESHOLDS, 0.02)
            alone.append(told)
    found = ask(toys, heat, planes, Segmentation(instances=how))
    for name, value in found.items():
        numbers = [told[name] for told in alone if name in told]
        if not numbers:
            assert value is None
        else:
            assert value == pytest.approx(
                max(numbers) if how == "any" else sum(numbers) / len(numbers), abs=1e-12
            )


def test_counts_are_summed_over_instances_and_taken_from_the_best(toys):
    planes = two_squares()
    heat = torch.ones(4, 6)
    heat[:2, :2] = 3.0
    heat[3, 5] = 3.0
    parts = {
        how: judged(toys, heat, planes, Segmentation(instances=how))["pixel_accuracy"].parts
        for how in ("union", "any", "instance")
    }
    assert parts == {
        "union": {"num": 21, "den": 24},
        "any": {"num": 20, "den": 20},
        "instance": {"num": 20 + 17, "den": 40},
    }
    found = judged(toys, heat, planes, Segmentation(instances="instance"))["miou"]
    assert found.parts == {"num": [4 + 1, 16 + 16], "den": [4 + 4, 16 + 19]}


def test_ignored_pixels_take_no_part(toys):
    heat = torch.tensor([[9.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    ignore = torch.tensor([[True, False, False], [False, False, False]])
    found = ask(toys, heat, mask, ignore=ignore)
    expected = slow([1.0, 3.0, 0.0, 0.0, 0.0], [True, *[False] * 4], "mean", seg.THRESHOLDS, 0.02)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["auc"] == 0.75


# ---------------------------------------------------------------- what has no number


@pytest.mark.parametrize(
    ("heat", "evidence", "reason"),
    [
        (None, "some", "no image map"),
        (torch.tensor([[0.0, math.nan]]), "some", "NaN or infinity in the map"),
        (torch.ones(2, 2), None, "nothing annotated"),
        (torch.ones(2, 2), torch.zeros(0, 4, 4, dtype=torch.bool), "no evidence in the image"),
        (torch.ones(2, 2), torch.zeros(1, 4, 4, dtype=torch.bool), "no evidence in the image"),
        (torch.ones(2, 2), torch.ones(1, 4, 4, dtype=torch.bool), "evidence everywhere"),
    ],
)
@pytest.mark.parametrize("how", ["union", "any", "instance"])
def test_undefined_is_never_a_number(toys, heat, evidence, reason, how):
    if isinstance(evidence, str):
        evidence = torch.zeros(1, 4, 4, dtype=torch.bool)
        evidence[0, 0, 0] = True
    (score,) = Segmentation(instances=how).measure(toys.trials(None, [toys.case(evidence=evidence)], [heat]))
    assert list(score.values) == [m.name for m in Segmentation.measures]
    assert {(v.number, v.reason) for v in score.values.values()} == {(None, reason)}


@pytest.mark.parametrize(("level", "cold"), [(0.0, True), (-3.0, True), (0.1, False)])
def test_a_constant_map_has_the_values_that_a_tie_rule_gives(toys, level, cold):
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0] = True
    values = judged(toys, torch.full((3, 3), level), mask)
    found = {n: v.number for n, v in values.items()}
    assert [found[n] for n in RANKED] == pytest.approx([0.5, 0.2, 0.2, 0.5])
    assert [found[n] for n in AT_ONE] == [None] * 3
    assert {values[n].reason for n in AT_ONE} == {"a constant map has no region above its mean"}
    assert [found[n] for n in AT_SHARES] == ([None] * 3 if cold else pytest.approx([0.2] * 3))
    if cold:
        assert {values[n].reason for n in AT_SHARES} == {"no positive relevance"}
        values = judged(toys, torch.full((3, 3), level), mask, Segmentation(threshold=0.5))
        assert {values[n].reason for n in AT_ONE} == {"no positive relevance"}


def test_a_mask_too_small_for_the_maps_own_grid_is_undefined(toys):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 0] = True
    values = judged(toys, torch.ones(2, 2), mask, Segmentation(upsample="none"))
    assert {v.reason for v in values.values()} == {
        "no evidence left outside ignored regions, on the map's grid"
    }


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sign": "plus"}, "segmentation: no sign 'plus'"),
        ({"instances": "best"}, "segmentation: no instances 'best'"),
        ({"threshold": "median"}, "segmentation: no threshold 'median'"),
        ({"threshold": 0.0}, "found threshold 0.0"),
        ({"thresholds": ()}, "accepted are shares above 0 and up to 1"),
        ({"thresholds": (0.5, 0.2)}, "thresholds ascending"),
        ({"thresholds": (0.5, 1.2)}, "thresholds ascending"),
        ({"k": 0.0}, "found threshold 'mean'"),
        ({"k": 1.5}, "and k 1.5"),
    ],
)
def test_wrong_settings_are_refused(setting, said):
    with pytest.raises(Refused, match=said):
        Segmentation(**setting)
