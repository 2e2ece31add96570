"""Random logit: which other question is asked, in all three families, and how alike the answers are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.contract import Explanation, Refused, Unsuited
from heatproof.metrics import random_logit, similarity
from heatproof.metrics.random_logit import RandomLogit


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score, times ``by``."""

    by: float = 1.0

    def explain(self, model, cases):
        pixels = model.stack(cases).requires_grad_()
        (grad,) = torch.autograd.grad(model.score(pixels, cases).sum(), pixels)
        return [Explanation(image=self.by * g) for g in grad]


@dataclass(frozen=True)
class Noise:
    """The case's own random numbers, whatever is asked."""

    def explain(self, model, cases):
        return [Explanation(image=torch.rand(8, 8, generator=c.generator("noise"))) for c in cases]


def batch(toys, explainer, count=6, size=(14, 18)):
    model = toys.curved()
    chance = torch.Generator().manual_seed(8)
    cases = [toys.case(f"s{i}", torch.randn(3, *size, generator=chance), i % 3) for i in range(count)]
    return toys.trials(model, cases, explainer.explain(model, cases), explainer)


def drawn(trial):
    """The other choice, drawn as the card says."""
    there = [k for k in range(3) if k != trial.case.target]
    return there[int(torch.randint(len(there), (1,), generator=trial.case.generator("another choice")))]


@pytest.mark.parametrize("flip", [False, True])
def test_it_is_the_map_of_another_class_and_the_numbers_are_scipys_and_scikit_images(toys, flip, capsys):
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    trials, worst = batch(toys, Gradient()), 0.0
    model = trials[0].model
    for trial, score in zip(trials, RandomLogit(flip=flip, window=11).measure(trials), strict=True):
        (other,) = Gradient().explain(model, [replace(trial.case, target=drawn(trial))])
        one, two = (e.image.sum(0).double().numpy() for e in (trial.explanation, other))
        rho = scipy.stats.spearmanr(one.ravel(), two.ravel()).statistic
        one, two = (heat / (heat**2).mean() ** 0.5 for heat in (one, two))
        alike = []
        for other in (two, -two) if flip else (two,):
            low = min(one.min(), other.min())  # signed maps are lifted
            how = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 2.0}
            alike.append(theirs(one - low, other - low, **how))
        found = score.values
        worst = max(worst, abs(found["spearman"].number - rho), abs(found["ssim"].number - max(alike)))
    with capsys.disabled():
        print(f" [random logit: largest deviation {worst:.1e}]", end="")
    assert worst < 1e-5  # maps are float32


def test_the_authors_settings_are_their_formula(toys):
    """Sixt et al.: between the 1st and 99th percentile, window 5, the higher of the map and its negative."""
    trials = batch(toys, Gradient())
    for trial, score in zip(trials, RandomLogit(scale="percentile").measure(trials), strict=True):
        (other,) = Gradient().explain(trial.model, [replace(trial.case, target=drawn(trial))])
        found = []
        for sign in (1, -1):
            planes = []
            for heat in (trial.explanation.image.sum(0), sign * other.image.sum(0)):
                low, high = torch.quantile(heat.double(), torch.tensor([0.01, 0.99]).double())
                planes.append(((heat.double() - low) / (high - low)).clamp(0, 1))
            found.append(similarity.ssim(*planes, window=5, span=1.0))
        assert score.values["ssim"].number == pytest.approx(max(found), abs=1e-5)


def test_what_does_not_look_at_the_question_has_one(toys):
    for score in RandomLogit().measure(batch(toys, Noise())):
        assert [v.number for v in score.values.values()] == pytest.approx([1.0, 1.0])


def test_every_other_choice_is_drawn_and_never_the_target(toys):
    found = Counter()
    for i in range(300):
        case = toys.case(f"s{i}", target=1, choices=(0, 1, 5))
        (trial,) = toys.trials(toys.curved(), [case], [torch.eye(4)])
        found[RandomLogit()._other(trial)] += 1
    assert set(found) == {0, 5}
    assert min(found.values()) > 110


def test_one_more_explanation_is_its_cost(toys):
    trials = batch(toys, Gradient())
    model = trials[0].model
    model.score(model.stack([trials[0].case]), [trials[0].case])
    with torch.inference_mode(), model.part() as spent:
        RandomLogit().measure(trials)
    assert dict(spent.forward) == dict(spent.backward) == {t.case.id: pytest.approx(1) for t in trials}


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_a_positive_factor_changes_nothing(toys, by):
    one, other = (RandomLogit().measure(batch(toys, Gradient(g), 2)) for g in (1.0, by))
    for a, b in zip(one, other, strict=True):
        for name in a.values:
            assert b.values[name].number == pytest.approx(a.values[name].number, abs=1e-5)


def test_a_dual_encoder_reads_the_other_prompt(toys):
    model = toys.dual()
    prompts = ("red ball", "ball on grass")
    case = replace(toys.worded("s0", prompts[0], torch.randn(3, 4, 4)), choices=prompts)
    asked = random_logit.asked_of(case, prompts[1], model)
    wanted = toys.worded("s0", prompts[1], case.pixels)
    assert (asked.target, asked.words, asked.spoken) == (prompts[1], wanted.words, wanted.spoken)
    assert asked.tokens.equal(wanted.tokens)
    pixels = model.stack([case, case])
    assert model.score(pixels[:1], [asked]).equal(model.score(pixels[:1], [wanted]))
    assert (asked.charge, asked.evidence_text) == ("s0", None)
    trials = toys.trials(model, [case], Gradient().explain(model, [case]), Gradient())
    (score,) = RandomLogit().measure(trials)
    assert score.values["ssim"].reason == "a map is constant"  # this pair sees mean colours alone
    with pytest.raises(Unsuited, match=r"case s0 has no other choice.*the prompts of the policy"):
        RandomLogit().measure(toys.trials(model, [replace(case, choices=())], [torch.eye(4)], Gradient()))


def test_the_small_families_are_asked_about_what_is_there_instead(families):
    for name in ("resnet", "clip", "captioner"):
        model, cases = families[name]
        case = cases[0]
        if name == "clip":
            texts = ("a red ball on the grass", "a red star on the grass")
            case = replace(case, choices=(case.target, *(t for t in texts if t != case.target)))
        rivals = random_logit.rivals(case, model)
        assert len(rivals) == 1
        asked = random_logit.asked_of(case, rivals[0], model)
        pixels = model.stack([case])
        all_, other = model.scores(pixels, [case])[0], model.score(pixels, [asked])[0]
        assert float((all_ - other).abs().min()) < 1e-5
        assert float((all_ - model.score(pixels, [case])[0]).abs().min()) < 1e-5
        assert abs(float(other - model.score(pixels, [case])[0])) > 1e-6
        trials = [
            type_(model, case, Gradient(), e)
            for type_, e in [(__import__("heatproof").Trial, Gradient().explain(model, [case])[0])]
        ]
        (score,) = RandomLogit().measure(trials)
        assert all(v.defined for v in score.values.values()), (name, score)


def test_undefined_and_unsuited(toys):
    trials = batch(toys, Gradient())
    model, case = trials[0].model, trials[0].case
    for heat, why in (
        (None, "no image map"),
        (torch.full((4, 4), float("nan")), "NaN or infinity in the map"),
        (torch.ones(14, 18), "a map is constant"),
        (torch.eye(4), "the map of the other choice has another shape"),
    ):
        (score,) = RandomLogit().measure(toys.trials(model, [case], [heat], Gradient()))
        assert {(v.number, v.reason) for v in score.values.values()} == {(None, why)}
    with pytest.raises(Unsuited, match="no explainer"):
        RandomLogit().measure(toys.trials(model, [case], [torch.eye(4)]))

    class Fitted(Gradient):
        def fit(self, model, feed):
            return {}

    with pytest.raises(Unsuited, match="was fitted"):
        RandomLogit().measure(toys.trials(model, [case], [torch.eye(4)], Fitted()))
    with pytest.raises(Unsuited, match="no other choice"):
        RandomLogit().measure(
            toys.trials(model, [replace(case, choices=(case.target,))], [torch.eye(4)], Gradient())
        )
    for wrong in ({"window": 4}, {"sign": "both"}, {"scale": "l2"}, {"upsample": "none"}):
        with pytest.raises(Refused):
            RandomLogit(**wrong)
