"""Parts of an attention site, the tokens after the last block, and what an attention adds to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatproof import Unsuited

TRANSFORMERS = ("vit", "clip")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_is_mixed_are_values_by_probability(name, families):
    model, cases = families[name]
    parts = ("query", "key", "value", "mixed")
    site = model.site("image.attention", 1)
    with model.watch(site) as whole:
        watches = {part: model.watch(f"{site}.{part}") for part in parts}
        seen = {part: watch.__enter__() for part, watch in watches.items()}
        try:
            score = model.score(model.stack(cases), cases)
            grads = torch.autograd.grad(score.sum(), [whole.value, *(seen[p].value for p in parts)])
        finally:
            for watch in watches.values():
                watch.__exit__(None, None, None)
    value = {part: watch.value.detach() for part, watch in seen.items()}
    logits = value["query"] @ value["key"].transpose(2, 3) / value["key"].shape[-1] ** 0.5
    torch.testing.assert_close(logits.softmax(-1), whole.value.detach())
    torch.testing.assert_close(whole.value.detach() @ value["value"], value["mixed"])
    # the chain rule, part by part
    torch.testing.assert_close(grads[0], grads[4] @ value["value"].transpose(2, 3), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        grads[3], whole.value.detach().transpose(2, 3) @ grads[4], rtol=1e-3, atol=1e-6
    )
    assert not model._watches


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_last_tokens_and_what_reads_them(name, families):
    model, cases = families[name]
    score = model.score(model.stack(cases), cases)
    tokens = model.upto("image.last", model.stack(cases), cases)
    assert torch.equal(model.above("image.last", tokens, cases), score)
    assert torch.equal(model.above("image.last", tokens[:, :1], cases), score), "one token is read"
    with pytest.raises(Unsuited):
        families["resnet"][0].upto("image.last", families["resnet"][0].stack(cases), cases)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_joined_are_what_the_attention_adds(name, families):
    model, (case, *_) = families[name]
    site = model.site("image.attention", 0)
    module = next(m for m in model.net.modules() if getattr(m, "heatproof_site", "") == site)
    added = []
    hook = module.register_forward_hook(lambda _, __, out: added.append(out[0][0]))
    try:
        with torch.no_grad(), model.watch(f"{site}.mixed") as seen:
            model.score(model.stack([case]), [case])
    finally:
        hook.remove()
    np.testing.assert_allclose(
        model.join(site, seen.value[0]).detach().numpy(), added[0].numpy(), rtol=1e-4, atol=1e-6
    )


def test_no_such_part(families):
    model, _ = families["vit"]
    with pytest.raises(Unsuited, match="no part 'values'; attention has query, key, value, mixed"):
        model.watch("image.attention 0.values").__enter__()
    with pytest.raises(Unsuited, match="no part 'value'"):
        model.watch("image.block 0.value").__enter__()
