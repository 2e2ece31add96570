"""Image lift on a captioner of which it is known what it sees: one word needs the image, another is said whatever it shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from heatproof.contract import Refused, Sample, Trial
from heatproof.geometry import Frame
from heatproof.metrics.image_lift import ImageLift
from heatproof.models.captioner import Captioner
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig
from heatproof.models.words import WordList

WORDS = WordList(
    {w: k for k, w in enumerate(["<pad>", "<unk>", "<start>", "<end>", "lamp", "rug", "box", "and", "a"])}
)
LAMP, RUG, BOX, AND = (WORDS.ids[w] for w in ("lamp", "rug", "box", "and"))


def planted(hard: float = 8.0) -> Captioner:
    """Says "lamp" or "box", as the image is bright or dark, then "and", then "rug", whatever the image: the image is heard
    at the first word alone."""
    sizes = MultiHeadConfig(9, 3, embed=4, hidden=6, heads=1)
    net = MultiHeadCaptioner(nn.Sequential(nn.Identity(), nn.Identity()), sizes)
    for value in net.parameters():
        nn.init.zeros_(value)
    with torch.no_grad():
        for k, some in enumerate(([WORDS.bos], [LAMP, BOX], [AND], [RUG])):
            net.embedding.weight[some, k] = 1.0  # the last word alone is remembered, in a place of its own
        lstm = net.language_lstm
        lstm.bias_ih[:6] = lstm.bias_ih[18:] = 30.0  # in and out stand open, forget is shut
        lstm.bias_ih[6:12] = -30.0
        for k in range(4):
            lstm.weight_ih[12 + k, k] = 30.0
        for place, sign in ((4, 1.0), (5, -1.0)):  # bright, dark
            net.project.weight[place, 0] = sign
            net.value.weight[place, place] = net.linear.weight[place, place] = 1.0
            net.gate.weight[place, 0], net.gate.bias[place] = 60.0, -30.0  # heard after <start> alone
        out = net.output.weight
        out[LAMP, 4] = out[BOX, 5] = hard
        for before, after in ((1, AND), (2, RUG), (3, WORDS.eos)):
            out[after, before] = 30.0
        out[[LAMP, BOX], 0] = 5.0
    frame = Frame(4)  # mid-grey is 0, neither bright nor dark
    return Captioner("planted", net, frame, words=WORDS, objects=("lamp", "rug", "box"), length=6)


@pytest.fixture(scope="module")
def asked():
    model = planted()
    dice = np.random.default_rng(0)
    samples = []
    for k in range(24):
        bright = bool(dice.integers(2))
        image = np.full((4, 4, 3), 230 if bright else 20, np.uint8)
        told = "a lamp" if bright else "a box"
        told += " and a rug" if k % 8 == 0 else ""  # a rug is there now and then, and is said always
        samples.append(Sample(f"s{k}", lambda i=image: i, captions=(told,)))
    cases = [case for some in model.ask(samples, "said objects") for case in some]
    return model, cases


def test_it_writes_what_it_was_wired_to(asked):
    _, cases = asked
    said = {" ".join(case.spoken[1:]) for case in cases}
    assert said == {"lamp and rug", "box and rug"}
    assert len(cases) == 48


def test_the_words_lift_and_its_prior_are_the_nets_own(asked):
    model, cases = asked
    found = ImageLift().measure([Trial(model, c) for c in cases])
    for case, score in zip(cases, found, strict=True):
        ids = case.tokens[: case.target + 1][None]
        word = int(case.tokens[case.target + 1])
        with torch.no_grad():
            with_, without = (
                float(model.net(x[None], ids)[0, -1].log_softmax(0)[word])
                for x in (case.pixels, torch.zeros_like(case.pixels))
            )
        assert score.values["lift"].number == pytest.approx(with_ - without, abs=1e-5)
        assert score.values["prior"].number == pytest.approx(without, abs=1e-5)


def test_a_word_that_the_image_is_ignored_for_is_told_apart(asked):
    model, cases = asked
    found = ImageLift().measure([Trial(model, c) for c in cases])
    lifts = [s.values["lift"].number for s in found]
    ignored = [c.about == "rug" for c in cases]
    assert max(abs(v) for v, i in zip(lifts, ignored, strict=True) if i) < 1e-3
    assert roc_auc_score([not i for i in ignored], lifts) > 0.95
    labels = [s.values["grounded"].parts["label"] for s in found]
    assert (
        roc_auc_score(labels, [s.values["grounded"].parts["score"] for s in found]) > 0.85
    )  # 3 rugs of 24 are there


def test_neighbours_do_not_matter_and_settings_are_checked(asked):
    model, cases = asked
    whole = [s.values for s in ImageLift().measure([Trial(model, c) for c in cases])]
    model.memo.clear()
    assert [s.values for s in ImageLift().measure([Trial(model, c) for c in cases[::-1]])][::-1] == whole
    for k in (0, 5):
        model.memo.clear()
        assert ImageLift().measure([Trial(model, cases[k])])[0].values == whole[k]
    (score,) = ImageLift(truth="objects").measure([Trial(model, cases[0])])
    assert score.values["grounded"].reason == "nothing annotated"
    with pytest.raises(Refused, match="did you mean 'black'"):
        ImageLift(blank="blck")
