"""Classifiers against the plain net, their target policies, and evidence in the model's own geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from heatproof import Object, Refused, Sample, Unsuited
from heatproof.models import hf_classifier
from heatproof.models.classifier import Classifier


@pytest.fixture(params=["resnet", "vit"])
def asked(request, families):
    return families[request.param]


def sample(*objects: Object, label: str | None = "star", size=(64, 32)) -> Sample:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    return Sample("dir/one", lambda: image, label, objects=objects)


def relabelled(model, labels):
    found = Classifier(
        model.name,
        model.net,
        model.frame,
        stages=hf_classifier.STAGES[type(model.net).__name__],
        labels=labels,
    )
    found.memo.on = False
    return found


def test_score_is_the_logit_that_transformers_gives(asked):
    model, cases = asked
    with torch.no_grad():
        logits = model.net(pixel_values=model.stack(cases)).logits
    score = model.score(model.stack(cases), cases)
    assert torch.allclose(score, logits[range(8), [c.target for c in cases]], atol=1e-6)
    assert torch.allclose(model.logits(model.stack(cases)), logits, atol=1e-6)
    assert {c.target for c in cases} == {0, 1}


def test_scores_are_over_the_choices_or_over_every_class(asked):
    model, cases = asked
    logits = model.logits(model.stack(cases))
    chosen = [replace(c, choices=(1, 0)) for c in cases]
    assert torch.equal(model.scores(model.stack(cases), chosen), logits[:, [1, 0]])
    assert logits.shape == (8, model.classes)


def test_policies_ask_what_they_say(asked):
    model, _ = asked
    ball, star = (Object(n, (0, 0, s, s)) for n, s in (("ball", 4.0), ("star", 8.0)))
    crowd = Object("ball", (0, 0, 30, 30), ignore=True)
    one = sample(star, ball, ball, crowd, Object("zebra", (0, 0, 40, 40)))

    def about(policy, some=one):
        return [(c.about, c.target) for c in model.ask([some], policy)[0]]

    assert about("label") == [("star", 1)]
    assert sorted(about("objects")) == [("ball", 0), ("star", 1)]
    assert about("largest object") == [("star", 1)]
    best = int(model.logits(model.stack(model.ask([one], "label")[0]))[0].argmax())
    assert about("predicted") == [(("ball", "star")[best], best)]
    assert about("objects", sample()) == []


def test_a_name_of_several_classes_means_the_highest_of_them(asked):
    model, _ = asked
    one = sample()
    logits = model.logits(model.ask([one], "label")[0][0].pixels[None])[0]
    both = relabelled(model, {"thing": (0, 1)})
    (case,) = both.ask([replace(one, label="thing")], "label")[0]
    assert case.target == int(logits.argmax())


def test_unknown_policy_and_label_are_refused_with_what_there_is(asked):
    model, _ = asked
    with pytest.raises(Refused, match=r"targets.classifier: found 'labels', accepted are 'label'"):
        model.ask([sample()], "labels")
    with pytest.raises(Refused, match=r"sample dir/one: label 'ball s' .* ball, star"):
        model.ask([sample(label="ball s")], "label")
    with pytest.raises(Refused, match=r"read\(\) gave float64 \[4, 4\], accepted is uint8 \[H, W, 3\]"):
        model.ask([Sample("x", lambda: np.zeros((4, 4)), "star")], "label")


def test_evidence_is_of_the_asked_name_in_the_models_geometry(asked):
    """A photograph twice as high as wide is squashed: the drawn square must become a flat rectangle."""
    model, _ = asked
    mask = np.zeros((64, 32), bool)
    mask[16:48, 8:24] = True
    things = (
        Object("star", (8.0, 16.0, 24.0, 48.0), mask),
        Object("star", (0.0, 0.0, 4.0, 8.0)),  # a box alone counts as filled
        Object("ball", (0, 0, 32, 64), np.ones((64, 32), bool)),
        Object("star", (24.0, 48.0, 32.0, 64.0), ignore=True),
    )
    (case,) = model.ask([sample(*things)], "label")[0]
    expected = torch.zeros(2, 32, 32, dtype=torch.bool)
    expected[0, 8:24, 8:24] = True
    expected[1, 0:4, 0:4] = True
    assert torch.equal(case.evidence, expected)
    assert case.boxes.tolist() == [[8, 8, 24, 24], [0, 0, 4, 4]]
    assert case.ignore.sum() == 8 * 8
    assert case.ignore[24:, 24:].all()
    assert case.cut == 0
    assert case.id == "dir-one.star"


def test_no_annotation_and_no_such_object_are_told_apart(asked):
    model, _ = asked
    (bare,) = model.ask([sample()], "label")[0]
    (other,) = model.ask([sample(Object("ball", (0, 0, 9, 9)))], "label")[0]
    assert bare.evidence is None
    assert bare.mask is None
    assert other.evidence.shape == (0, 32, 32)
    assert not other.mask.any()


def test_attention_is_a_site_whose_rows_sum_to_one(families):
    model, cases = families["vit"]
    with model.watch("image.attention 0") as seen:
        model.score(model.stack(cases), cases)
    assert seen.value.shape == (8, 2, 17, 17)
    assert torch.allclose(seen.value.sum(-1), torch.ones(8, 2, 17))
    with torch.no_grad():
        model.net.set_attn_implementation("eager")
        try:
            plain = model.net(model.stack(cases), output_attentions=True).attentions[0]
        finally:
            model.net.config._attn_implementation = "heatproof"
    assert torch.allclose(seen.value, plain, atol=1e-6)


def test_the_heads_own_block_is_no_site(families):
    model, _ = families["vit"]
    assert model.sites == {"image.embed": 1, "image.block": 2, "image.attention": 3}
    tokens = torch.arange(17.0)
    assert model.grid(tokens).tolist() == (torch.arange(16.0) + 1).reshape(4, 4).tolist()


def test_no_text_and_no_embedding(asked):
    model, cases = asked
    for ask in (
        lambda: model.score_text(torch.ones(1, 1), cases[:1]),
        lambda: model.embed(model.stack(cases), cases),
        lambda: model.embed_text(cases),
    ):
        with pytest.raises(Unsuited, match="is a classifier"):
            ask()


def test_a_net_without_stages_is_refused_by_name(tiny, tmp_path):
    import transformers as t

    config = t.ConvNextConfig(num_stages=2, hidden_sizes=[4, 4], depths=[1, 1])
    t.ConvNextForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    with pytest.raises(Refused, match=r"model x: found ConvNextForImageClassification, accepted are ResNet"):
        hf_classifier.HfClassifier(str(tmp_path)).load("x")
