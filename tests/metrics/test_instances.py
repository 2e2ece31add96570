"""Views of a case and their values; law 1 and no forward for the metrics that judge by them."""

from __future__ import annotations

import pytest
import torch

from heatproof.contract import Metric, Value
from heatproof.metrics import instances
from heatproof.metrics.maps import Undefined
from heatproof.metrics.mosaic import GridPointing
from heatproof.metrics.pointing import Pointing
from heatproof.metrics.segmentation import Segmentation

METRICS = [
    Segmentation(),
    Segmentation(
        upsample="none", sign="signed", instances="any", threshold=0.4, thresholds=(0.1, 0.6), k=0.2
    ),
    Segmentation(upsample="bicubic", sign="abs", pool="l2", instances="instance"),
    Pointing(tolerance=2.0),
    Pointing(tolerance=1.5, instances="any", upsample="none"),
    Pointing(tolerance=0, instances="instance", sign="abs", upsample="nearest"),
    GridPointing(),
    GridPointing(smooth=3, sign="abs", upsample="none"),
]


def world(toys):
    """Cases that differ in every way a case can, and maps tied, constant, fp16, unpooled, missing or broken."""
    chance = torch.Generator().manual_seed(4)
    cases, heats = [], []
    for i in range(16):
        high, wide = ((6, 10), (9, 5), (16, 16))[i % 3]
        evidence = torch.rand(3, high, wide, generator=chance) < 0.1
        evidence[0, : high // 2, : wide // 2] = True
        cases.append(
            toys.case(
                f"s{i}",
                pixels=torch.randn(1 + 2 * (i % 2), high, wide, generator=chance),
                evidence=None if i == 3 else evidence[: 0 if i == 4 else 1 + i % 3],
                ignore=torch.rand(high, wide, generator=chance) < 0.2 if i % 2 else None,
            )
        )
        heat = torch.randn(3, high, wide, generator=chance)
        kinds = (
            heat,
            heat.sum(0),
            heat.half(),
            heat.sum(0).sign(),
            torch.ones(2, 3),
            None,
            heat * float("nan"),
        )
        heats.append(torch.randn(2, 4, generator=chance) if i > 12 else kinds[i % 7])
    return cases, heats


def asked(toys, metric, chunk, order):
    cases, heats = world(toys)
    pairs, found = list(zip(cases, heats, strict=True))[::order], {}
    for first in range(0, len(pairs), chunk):
        some = pairs[first : first + chunk]
        scores = metric.measure(toys.trials(None, *zip(*some, strict=True)))
        found |= {case.id: score for (case, _), score in zip(some, scores, strict=True)}
    return found


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_chunks_and_order_change_nothing(toys, metric):
    expected = asked(toys, metric, 16, 1)
    for chunk in (1, 3, 16):
        for order in (1, -1):
            found = asked(toys, metric, chunk, order)
            assert {n: s.values for n, s in found.items()} == {n: s.values for n, s in expected.items()}
    numbers = [v.number for s in expected.values() for v in s.values.values() if v.defined]
    assert len(set(numbers)) > 3  # the comparison above was of something


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_every_declared_value_is_there_and_in_range_or_has_a_reason(toys, metric):
    assert isinstance(metric, Metric)
    assert metric.measure([]) == []
    assert type(metric)(**vars(metric)) == metric
    assert hash(metric) == hash(type(metric)(**vars(metric)))
    for score in asked(toys, metric, 16, 1).values():
        assert list(score.values) == [m.name for m in metric.measures]
        for value in score.values.values():
            assert value.defined != bool(value.reason), value
            assert not value.defined or (type(value.number) is float and 0 <= value.number <= 1)
    broken = asked(toys, metric, 16, 1)
    for case, reason in {"s5": "no image map", "s6": "NaN or infinity in the map"}.items():
        assert {(v.number, v.reason) for v in broken[case].values.values()} == {(None, reason)}


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_no_model_is_asked(toys, metric):
    model = toys.curved()
    cases = [
        toys.case(f"s{i}", pixels=torch.randn(3, 8, 8), evidence=torch.eye(8).bool()[None]) for i in range(3)
    ]
    with model.part() as spent:
        metric.measure(toys.trials(model, cases, [torch.rand(4, 4)] * 3))
    assert (dict(spent.forward), dict(spent.backward), spent.run) == ({}, {}, 0.0)


# ---------------------------------------------------------------- views and values


def test_views(toys):
    planes = torch.zeros(3, 2, 3, dtype=torch.bool)
    planes[0, 0, :2] = planes[1, 0, 1:] = True  # they share a pixel; the third is empty
    ignore = torch.zeros(2, 3, dtype=torch.bool)
    ignore[1, 0] = True
    case = toys.case(pixels=torch.zeros(1, 2, 3), evidence=planes, ignore=ignore)
    ((mask, counted),) = instances.views(case, (2, 3), "union")
    assert mask.int().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert counted.int().tolist() == [[1, 1, 1], [0, 1, 1]]
    for how in ("any", "instance"):
        found = instances.views(case, (2, 3), how)
        assert [mask.int().tolist() for mask, _ in found] == [[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]]]
        assert [counted.int().tolist() for _, counted in found] == [
            [[1, 1, 0], [0, 1, 1]],
            [[0, 1, 1], [0, 1, 1]],
        ]


def test_one_instance_is_its_union(toys):
    case = toys.case(evidence=torch.eye(4).bool()[None], ignore=torch.eye(4).bool().flip(0))
    views = [instances.views(case, (4, 4), how) for how in instances.INSTANCES]
    for other in views[1:]:
        assert all(torch.equal(a, b) for a, b in zip(*(v[0] for v in (views[0], other)), strict=True))


def test_no_view_is_left(toys):
    planes = torch.zeros(1, 2, 2, dtype=torch.bool)
    planes[0, 0, 0] = True
    with pytest.raises(Undefined, match="no evidence left outside ignored regions"):
        instances.views(toys.case(evidence=planes, ignore=planes[0]), (2, 2), "any")
    with pytest.raises(Undefined, match="evidence everywhere"):
        instances.views(toys.case(evidence=planes, ignore=~planes[0]), (2, 2), "any")


def test_values_of_views_that_have_none_are_left_out():
    some, gone = Value(0.25, parts={"num": [1, 2]}), Value.undefined("cold")
    found = [{"a": gone, "b": gone}, {"a": some, "b": Value.undefined("later")}]
    for how in ("any", "instance"):
        assert instances.merged(found, how) == {"a": some, "b": gone}
