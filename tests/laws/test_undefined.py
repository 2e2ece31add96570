"""There is no number where there is nothing to measure: docs/laws/undefined.md."""

from __future__ import annotations

from dataclasses import replace

import torch

# values that a constant map has no number for: no tie rule gives one
SILENT = {
    "concord": ("spearman kendall ssim", "what is constant has neither ranks nor a structure"),
    "confidence": ("image_drop image_increase image_gain", "it cannot be scaled from 0 to 1"),
    "counterfactual": ("spearman kendall", "equal masses have no ranks"),
    "fidelity:FaithfulnessCorrelation": ("faithfulness_correlation", "equal sums have no correlation"),
    "fidelity:MuFidelity": ("mu_fidelity", "equal sums have no correlation"),
    "fidelity:SensitivityN": ("sensitivity_n", "equal sums have no correlation"),
    "segmentation": ("dice miou pixel_accuracy", "nothing is above its mean, so nothing is segmented"),
}
OF_TEXT = {"words", "words_kendall"}  # of a model that reads no text

SUITS = {
    "test_where_nothing_is_annotated_there_is_nothing_to_find": lambda world: world.of_evidence,
    "test_a_constant_map_has_a_number_only_by_a_tie_rule": lambda world: not world.asks,
}


def test_no_map_and_a_broken_map_have_no_number_and_say_why(world, use):
    here = world(use)
    nan = torch.full((3, 4), float("nan")), torch.full((6,), float("nan"))
    for answer, image, text in (
        (here.answer(None), "no image map", "no text relevance"),
        (here.answer(*nan), "NaN or infinity in the map", "NaN or infinity in the text relevance"),
    ):
        for score in here.scores(here.metric(), here.cases(), [answer] * 2):
            for name, value in score.values.items():
                why = text if here.of_text or name.endswith("_oc") else image  # oc: captions corrupted
                if name.startswith("words"):  # a value of the text, which this model does not read
                    assert value.number is None
                else:
                    assert (value.number, value.reason) == (None, why), name


def test_where_nothing_is_annotated_there_is_nothing_to_find(world, use):
    here = world(use)
    none = [replace(c, evidence=None, boxes=None) for c in here.cases()]
    empty = [replace(c, evidence=c.evidence[:0], boxes=torch.zeros(0, 4)) for c in here.cases()]
    for cases in (none, empty):
        for score in here.scores(here.metric(), cases, here.maps(2)):
            assert all(v.number is None and v.reason for v in score.values.values())


def test_a_constant_map_has_a_number_only_by_a_tie_rule(world, use):
    here = world(use)
    metric = here.metric()
    answers = [here.answer(torch.ones(3, 4), torch.ones(6))] * 2
    for found in here.numbers(metric, here.cases(), answers):
        silent = {name for name, number in found.items() if number is None}
        assert silent - OF_TEXT == set(SILENT.get(use, ("",))[0].split())
