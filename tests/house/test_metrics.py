"""Every metric there is, without a list: it declares what it gives, in order, the same whatever the neighbours."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import torch

from heatproof import Explanation, Score, Trial, Unsuited, Value, checks, shelf
from heatproof.contract import Explainer
from heatproof.reducers import REDUCERS
from heatproof.shelf import Place

PLACE = Place(Path.cwd(), Path.cwd())
USES = sorted(use for path in PLACE.files("metrics").values() for use in shelf.uses("metrics", path))
MODELS = ("resnet", "vit", "clip", "captioner")
BETTER = {"higher", "lower"}
MEASURES = {"faithfulness", "plausibility", "robustness", "sanity", "complexity", "quality"}
MOST = 6


@dataclasses.dataclass(frozen=True)
class Patches:
    """Maps of several kinds: native grid, unpooled, tied, with text where there is text."""

    def explain(self, model, cases):
        found = []
        for case in cases:
            image = torch.randn(3, 8, 8, generator=case.generator("patches"))
            if case.sample.endswith("1"):
                image = image.mean(0).sign()  # many ties
            text = None
            if case.tokens is not None:
                text = torch.randn(len(case.tokens), generator=case.generator("words"))
            found.append(Explanation(image=image, text=text))
        return found


SHORT: dict[str, dict[str, typing.Any]] = {  # the captions here have few words
    "prefix_ablation": {"count": 1, "least": 1},
    "clip_score": {"judge": "small_clip", "prompt": ""},
}


@pytest.fixture(scope="module", autouse=True)
def encoder(tmp_path_factory):
    """What a metric judges texts with that must be told where to find it: an untrained BERT."""
    import transformers as t

    top, words = (
        tmp_path_factory.mktemp("bert"),
        "[PAD] [UNK] [CLS] [SEP] [MASK] a red ball star on the grass",
    )
    (top / "vocab.txt").write_text("\n".join(words.split()))
    t.BertTokenizer(str(top / "vocab.txt")).save_pretrained(top)
    config = t.BertConfig(
        vocab_size=len(words.split()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t.BertModel(config).save_pretrained(top)
    SHORT["bert_score"] = {"model": str(top)}


def make(use: str) -> typing.Any:
    cls = shelf.find("metrics", use, PLACE, "tests/house")
    given = dict(SHORT.get(use, {}))
    given |= {f.name: MOST for f in dataclasses.fields(cls) if type(f.default) is int and f.default > MOST}
    hints = typing.get_type_hints(cls)
    partners = [f.name for f in dataclasses.fields(cls) if hints[f.name] is Explainer]
    return cls(**given, **{name: Patches() for name in partners})


def learned(made, explainer, model, cases) -> list:
    """What a metric that learns from an explainer's maps is given beside the trials."""
    of = () if checks.of_model(made) else (explainer,)
    return [made.fit(model, iter([list(cases)]), *of)] if hasattr(made, "fit") else []


def plain(score: Score) -> typing.Any:
    return checks.cell(score, (0.0, 0.0))


@pytest.mark.parametrize("use", USES)
def test_what_is_declared_can_be_read_and_reduced(use):
    made = make(use)
    assert dataclasses.is_dataclass(made)
    assert type(made).__dataclass_params__.frozen
    assert (type(made).__doc__ or "").strip()
    declared = list(made.measures)
    assert declared
    assert len({m.name for m in declared}) == len(declared)
    for measure in declared:
        assert measure.better in BETTER
        assert measure.measures in MEASURES
        assert measure.reduce in REDUCERS, f"{measure.name} is reduced by {measure.reduce!r}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use", USES)
def test_scores_come_in_order_and_do_not_depend_on_neighbours(use, name, families):
    model, cases = families[name]
    made, explainer = make(use), Patches()
    if model.family not in getattr(made, "asks", {model.family: ""}):
        return  # of other models: the runner says so
    before = checks.condition(model.net)

    def measure(some):
        model.memo.clear()
        told = explainer.explain(model, some)
        with torch.inference_mode():
            return list(
                made.measure([Trial(model, c, explainer, e) for c, e in zip(some, told, strict=True)], *extra)
            )

    try:
        extra = learned(made, explainer, model, cases)
        whole = measure(cases)
    except Unsuited as unsuited:
        reason = str(unsuited)
        assert len(reason) > 10
        return
    declared = {m.name for m in made.measures}
    assert len(whole) == len(cases)
    for score in whole:
        assert set(score.values) <= declared
        for value in score.values.values():
            assert isinstance(value, Value)
            assert value.defined or value.reason
        for x, y in score.curves.values():
            assert len(x) == len(y)
    assert any(v.defined for score in whole for v in score.values.values()), "is undefined on every case"
    assert plain(measure(cases[5:6])[0]) == plain(whole[5])
    assert [plain(s) for s in measure(cases[::-1])[::-1]] == [plain(s) for s in whole]
    assert checks.condition(model.net) == before


@pytest.mark.parametrize("use", USES)
def test_a_broken_map_is_undefined_with_a_reason_and_never_a_number_of_it(use, families):
    """Law 4: NaN in the map must not come out as zero, nor as NaN."""
    model, cases = families["clip"]
    made, case = make(use), cases[0]
    if checks.of_model(made):
        return  # it looks at no map
    text = torch.full((len(case.tokens),), float("nan"))
    broken = Explanation(image=torch.full((4, 4), float("nan")), text=text)

    @dataclasses.dataclass(frozen=True)
    class Broken:
        def explain(self, model, cases):
            return [broken] * len(cases)

    model.memo.clear()
    try:
        extra = learned(made, Patches(), model, cases)
        with torch.inference_mode():
            (score,) = made.measure([Trial(model, case, Broken(), broken)], *extra)
    except Unsuited:
        return
    for name, value in score.values.items():
        of_the_map = name not in {"clean", "blank"}
        assert not (value.defined and of_the_map), (name, value)
        assert value.defined or value.reason
