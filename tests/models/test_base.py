"""The one door to a net, for every family: law 1 with ``==``, law 5 after a crash, sites, twins, memo and costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from heatproof import Explanation, Unsuited
from heatproof.contract import Trial
from heatproof.metrics.deletion import Deletion
from heatproof.models.base import Model

NAMES = ("resnet", "vit", "clip", "captioner")
CHUNKS = {"ones": 1, "threes": 3, "all": 8}


@pytest.fixture(params=NAMES)
def asked(request, families):
    model, cases = families[request.param]
    assert len(cases) == 8
    yield model, cases
    model.memo.clear()


def cuttable(model: Model) -> list[str]:
    """Sites of the image tower that ``upto`` and ``above`` can cut at."""
    return [stage.site for stage in model.towers["image"] if stage.site]


def in_chunks(compute, cases, step, *, backwards=False):
    """``compute`` over the cases in chunks, its rows put back into the cases' order."""
    order = cases[::-1] if backwards else cases
    rows = [row for first in range(0, len(order), step) for row in compute(order[first : first + step])]
    return torch.stack(rows[::-1] if backwards else rows)


def gradients(model, site):
    def compute(cases):
        with model.watch(site) as seen:
            score = model.score(model.stack(cases), cases)
            (grad,) = torch.autograd.grad(score.sum(), seen.value)
        return torch.cat([seen.value.detach().flatten(1), grad.flatten(1)], 1)

    return compute


def pixel_gradients(model):
    def compute(cases):
        pixels = model.stack(cases).requires_grad_()
        return torch.autograd.grad(model.score(pixels, cases).sum(), pixels)[0]

    return compute


def verbs(model):
    """Everything a model can be asked, as rows by case."""
    asked = {
        "score": lambda cases: model.score(model.stack(cases), cases),
        "pixel gradients": pixel_gradients(model),
        "clean": model.clean,
    }
    for site in (cuttable(model)[0], cuttable(model)[-1]):
        asked[f"gradients at {site}"] = gradients(model, site)
        asked[f"upto {site}"] = lambda cases, s=site: model.upto(s, model.stack(cases), cases)
        asked[f"above {site}"] = lambda cases, s=site: model.above(
            s, model.upto(s, model.stack(cases), cases), cases
        )
    if "image.attention" in model.sites:
        asked["attention"] = gradients(model, "image.attention 1")
    if model.family == "dual":
        asked["embed"] = lambda cases: model.embed(model.stack(cases), cases)
        asked["embed_text"] = model.embed_text
    if model.family != "classifier":
        asked["score_text"] = lambda cases: model.score_text(
            torch.tensor([[1.0, 1.0, 0.0, 1.0]]).repeat(len(cases), 1), cases, "unknown"
        )
    return asked


def test_a_row_is_the_same_alone_among_others_and_reversed(asked):
    model, cases = asked
    for verb, compute in verbs(model).items():
        model.memo.clear()
        whole = in_chunks(compute, cases, 8)
        assert whole.flatten(1).unique(dim=0).shape[0] > 1 if whole.ndim > 1 else whole.unique().numel() > 1
        for how, step in CHUNKS.items():
            for backwards in (False, True):
                model.memo.clear()
                found = in_chunks(compute, cases, step, backwards=backwards)
                assert torch.equal(found, whole), (verb, how, backwards)


def test_a_row_of_a_matrix_product_does_not_depend_on_its_place():
    """In a fresh process: MKL reads its settings at the first product (see ``heatproof/__init__.py``)."""
    asked = """
import heatproof, torch
torch.set_num_threads(1)
row = torch.randn(17, 64, generator=torch.Generator().manual_seed(0))
weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
found = (row.expand(24, 17, 64).reshape(-1, 64) @ weight).view(24, 17, 10)
assert all(torch.equal(found[0], other) for other in found)
"""
    subprocess.run([sys.executable, "-P", "-c", asked], check=True)


def test_a_plain_forward_in_other_sizes_is_not_the_same(families):
    """Why the rows are fixed: without padding the last bits depend on the batch (if not, this law is idle here)."""
    same = []
    for name in ("resnet", "vit"):
        model, cases = families[name]
        x = model.stack(cases)
        with torch.no_grad():
            whole, ones = model.net(x).logits, torch.cat([model.net(row[None]).logits for row in x])
        assert torch.allclose(whole, ones, atol=1e-5)
        same.append(torch.equal(whole, ones))
    if all(same):
        pytest.skip("this machine's matrix products do not depend on the batch")


def test_upto_and_above_make_score(asked):
    model, cases = asked
    pixels = model.stack(cases)
    whole = model.score(pixels, cases)
    for site in cuttable(model):
        assert torch.equal(model.above(site, model.upto(site, pixels, cases), cases), whole), site


def test_watch_gives_the_activation_and_the_gradient_of_plain_autograd(asked):
    """Held against cutting the net in two and differentiating the upper half."""
    model, cases = asked
    for site in cuttable(model):
        lower = model.upto(site, model.stack(cases), cases).detach().requires_grad_()
        (expected,) = torch.autograd.grad(model.above(site, lower, cases).sum(), lower)
        with model.watch(site) as seen:
            score = model.score(model.stack(cases), cases)
            (found,) = torch.autograd.grad(score.sum(), seen.value)
        assert torch.equal(seen.value, lower)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8), site
        assert found.abs().sum() > 0, site


def test_several_sites_are_watched_at_once(asked):
    model, cases = asked
    first, last = cuttable(model)[0], cuttable(model)[-1]
    alone = [gradients(model, site)(cases) for site in (first, last)]
    with model.watch(first) as a, model.watch(last) as b:
        score = model.score(model.stack(cases), cases)
        grads = torch.autograd.grad(score.sum(), [a.value, b.value])
    for seen, grad, expected in zip((a, b), grads, alone, strict=True):
        assert torch.equal(torch.cat([seen.value.flatten(1), grad.flatten(1)], 1), expected)


def test_one_site_is_not_watched_twice_and_nothing_seen_is_said(asked):
    model, _ = asked
    site = cuttable(model)[0]
    with model.watch(site) as seen:
        with pytest.raises(RuntimeError, match="watched already"), model.watch(site):
            pass
        with pytest.raises(RuntimeError, match=r"call model.score first"):
            _ = seen.value


def state(model):
    """Everything of a net that a careless part could leave changed."""
    return {
        "weights": {name: t.clone() for name, t in model.net.state_dict().items()},
        "modes": [m.training for m in model.net.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.net.modules()
        ],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.net.parameters()],
        "watches": dict(model._watches),
        "hash": model.hash,
    }


def same_state(a, b):
    assert a["weights"].keys() == b["weights"].keys()
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
    assert {k: v for k, v in a.items() if k != "weights"} == {k: v for k, v in b.items() if k != "weights"}


def test_the_model_is_left_as_found_also_when_an_exception_flies(asked, monkeypatch):
    model, cases = asked
    before = state(model)
    gradients(model, cuttable(model)[0])(cases)
    model.twin(lambda net: [p.data.zero_() for p in net.parameters()], "zero").score(
        model.stack(cases), cases
    )

    def broken(*_):
        raise RuntimeError("in the middle of a forward")

    stages = [*model.towers["image"][:-1], type(model.towers["image"][0])(None, broken)]
    monkeypatch.setitem(model.towers, "image", stages)
    with pytest.raises(RuntimeError, match="middle"), model.watch(cuttable(model)[0]):
        model.score(model.stack(cases), cases)
    monkeypatch.undo()
    same_state(state(model), before)
    model._hash = None
    assert model.hash == before["hash"]


def test_a_twin_has_other_weights_its_own_hash_and_its_own_memo(asked):
    model, cases = asked
    clean = model.clean(cases)

    def halve(net):
        for parameter in net.parameters():
            parameter.data.mul_(0.5)

    twin = model.twin(halve, "half")
    assert twin.name == f"{model.name}~half"
    assert twin.hash != model.hash
    assert not torch.equal(twin.clean(cases), clean)
    assert torch.equal(model.score(model.stack(cases), cases), clean)
    same = model.twin(lambda net: None, "same")
    assert same.hash == model.hash
    assert torch.equal(same.clean(cases), clean)


def test_the_hash_is_of_every_weight_and_of_the_geometry(asked):
    model, _ = asked
    last = list(model.net.state_dict())[-1]

    def nudge(net):
        tensor = net.state_dict()[last]
        tensor.view(-1)[0] += 1

    assert model.twin(nudge, "one number").hash != model.hash
    twin = model.twin(lambda net: None, "frame")
    twin.frame, twin._hash = type(model.frame)(model.frame.size, mean=(0.4, 0.5, 0.5)), None
    assert twin.hash != model.hash


def test_unknown_sites_are_unsuited_and_name_what_there_is(asked):
    model, _ = asked
    kind = next(k for k in model.sites if k.startswith("image."))
    with pytest.raises(Unsuited, match=f"did you mean '{kind}'"):
        model.site(kind + "s")
    with pytest.raises(
        Unsuited, match=rf"no site '{kind}' 99; it has .*{kind} \(0 to {model.sites[kind] - 1}\)"
    ):
        model.site(kind, 99)
    assert model.site(kind) == f"{kind} {model.sites[kind] - 1}"
    assert model.site(kind, 0) == f"{kind} 0"


def test_rows_and_cases_must_be_as_many(asked):
    model, cases = asked
    with pytest.raises(ValueError, match="8 rows for 3 cases"):
        model.score(model.stack(cases), cases[:3])


# ---------------------------------------------------------------- counting


def rows_of(model, module):
    """An independent count: the rows that a hook on the net's own module saw go by."""
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    return seen, handle


def entrance(model):
    """The first module of the image tower: it sees every row once."""
    return {
        "resnet": lambda net: net.resnet.embedder,
        "vit": lambda net: net.vit.embeddings,
        "clip": lambda net: net.vision_model.embeddings,
        "captioner": lambda net: net.encoder[0],
    }[model.name](model.net)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_forwards_are_counted_by_row_and_padding_is_not(asked, count):
    model, cases = asked
    model.clean(cases)  # the text side of the dual encoder is in the memo now, and the stages are weighed
    seen, handle = rows_of(model, entrance(model))
    try:
        with model.part() as spent:
            model.score(torch.cat([model.stack(cases[:count])] * 5), cases[:count] * 5)
    finally:
        handle.remove()
    passes = -(-count * 5 // model.rows)
    assert seen == [model.rows] * passes
    text = {"dual": 1}.get(model.family, 0)  # one look at the text, from the memo, paid all the same
    assert sum(spent.forward.values()) == pytest.approx(count * (5 + text))
    assert set(spent.forward) == {c.id for c in cases[:count]}


def test_backwards_are_counted_and_half_a_net_is_half_a_forward(asked):
    model, cases = asked
    model.clean(cases)
    with model.part() as spent:
        gradients(model, cuttable(model)[0])(cases)
    assert sum(spent.backward.values()) == pytest.approx(len(cases))
    site = cuttable(model)[-1]
    with model.part() as below:
        x = model.upto(site, model.stack(cases), cases)
    text = {"dual": len(cases)}.get(model.family, 0)
    with model.part() as above:
        model.above(site, x, cases)
    assert 0 < sum(below.forward.values()) - text < len(cases)
    assert sum(below.forward.values()) + sum(above.forward.values()) == pytest.approx(len(cases) + 2 * text)


def test_every_part_pays_for_what_the_memo_gives_it(asked):
    model, cases = asked
    model.memo.clear()
    bills = []
    for _ in range(2):
        with model.part() as spent:
            model.clean(cases)
            model.clean(cases)  # asked twice, paid once
        bills.append(dict(spent.forward))
    assert bills[0] == bills[1]
    assert sum(bills[0].values()) >= len(cases)


def test_what_two_remembered_things_both_need_is_paid_once(asked):
    """Deletion and insertion at S steps cost 2 S images and, of a dual encoder, one look at the text."""
    model, cases = asked
    model.memo.clear()
    maps = [Explanation(image=torch.arange(4.0).reshape(2, 2)) for _ in cases]
    trials = [Trial(model, case, None, answer) for case, answer in zip(cases, maps, strict=True)]
    with model.part() as spent:
        Deletion(steps=5).measure(trials)
    text = {"dual": 1}.get(model.family, 0)
    assert [spent.forward[case.id] for case in cases] == pytest.approx([10 + text] * len(cases))


def test_another_part_pays_again_and_another_payer_too(asked):
    model, cases = asked
    model.memo.clear()
    case, other = cases[0], dataclasses.replace(cases[0], charge="someone else")
    with model.part() as alone:
        model.clean([case])
    with model.part() as both:
        model.clean([case])
        model.clean([other])
    assert both.forward[case.id] == both.forward["someone else"] == alone.forward[case.id] > 0


def test_without_memo_the_same_numbers_and_the_same_bill(asked, monkeypatch):
    model, cases = asked

    def ask():
        model.memo.clear()
        with model.part() as spent:
            clean = model.clean(cases)
            grads = gradients(model, cuttable(model)[0])(cases)
        return clean, grads, dict(spent.forward), dict(spent.backward)

    kept = ask()
    monkeypatch.setattr(model.memo, "on", False)
    run = model.meter.run
    bare = ask()
    assert not model.memo.kept
    assert torch.equal(kept[0], bare[0])
    assert torch.equal(kept[1], bare[1])
    assert kept[2:] == bare[2:]
    assert model.meter.run > run


def test_what_the_memo_keeps_can_be_differentiated_later(asked):
    model, cases = asked
    model.memo.clear()
    with torch.inference_mode():
        (kept,) = model.recall(
            "kept", cases[:1], lambda some: [model.score(model.stack(some), some).detach()]
        )
    (kept * torch.ones(1, requires_grad=True)).sum().backward()


def test_write_says_captions_or_is_unsuited(asked):
    model, cases = asked
    if model.family == "captioner":
        said = model.write(model.stack(cases), cases)
        assert [model.write(model.stack([c]), [c])[0] for c in cases] == said
        assert all(isinstance(text, str) for text in said)
    else:
        with pytest.raises(Unsuited, match="writes no captions"):
            model.write(model.stack(cases), cases)
