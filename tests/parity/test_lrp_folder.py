"""The folder of the captioners' arrays as a whole: its set-up, its small files, and that no array is left out."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import shelf
from heatproof.contract import Case, Trial
from heatproof.metrics.correctness import inside
from heatproof.metrics.maps import box_planes
from heatproof.metrics.object_words import ObjectWords
from heatproof.metrics.patch_ablation import hottest_patches

folder = shelf.load(Path(__file__).with_name("folder.py"))
read, every, whole, apart = folder.read, folder.every, folder.whole, folder.apart
pytestmark = folder.present


@whole("setup")
def test_the_set_up_is_what_it_says(name: str) -> None:
    with every(name) as setup:
        model, words = folder.model_of("aoa"), folder.words_of()
        assert apart(model.frame.image(setup["image_uint8"])[None], setup["image"]) < folder.SINGLE
        said = [words.bos, *(words.ids[str(word)] for word in setup["caption_words"])]
        assert said == setup["caption_encode"].tolist()
        stops = {words.ids[str(word)] for word in setup["stop_words"] if str(word) in words.ids}
        specials = {words.pad, words.unknown, words.bos, words.eos}
        assert stops | specials == set(setup["excluded_ids"].tolist())
        assert len(words.ids) == len(setup["vocab"])
        for net in map(folder.net_of, folder.NETS):
            assert net.embedding.weight.shape == (len(setup["vocab"]), int(setup["embed_dim"]))
            assert net.output.in_features == int(setup["hidden_dim"])
            convs = [m.out_channels for m in net.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
            assert convs == np.repeat(setup["conv_channels"], setup["convs_per_stage"]).tolist()
        assert 0 <= int(setup["aoa_explained_head"]) < int(setup["num_heads"]) == model.net.heads


@whole("gridtd_state", "aoa_state")
def test_every_weight_of_the_release_has_its_place(name: str) -> None:
    net = folder.net_of(name.partition("_")[0])
    with every(name) as weights:
        net.load_released({key: torch.from_numpy(value) for key, value in weights.items()})
        assert len(net.state_dict()) == len(weights)


@whole("metrics")
def test_patches_that_are_taken_away_and_boxes_that_are_scored(name: str) -> None:
    with every(name) as arrays:
        gone = hottest_patches(torch.from_numpy(arrays["R"]), 8, 20, torch.Generator())
        assert (gone.numpy() == (arrays["mask"] == 0)).all()
        heat, boxes = torch.from_numpy(arrays["rel"]), torch.from_numpy(arrays["boxes"])
        planes, cuts = box_planes(boxes, tuple(heat.shape)), arrays["thresholds"].tolist()
        for released, key in ((False, "fresh_copy"), (True, "as_released_per_box")):
            found = inside(heat, planes, cuts, as_released=released)
            assert np.abs(found.numpy() - arrays[f"correctness_{key}"]).max() < folder.EXACT, key


@whole("hallucination")
def test_words_that_are_said_and_words_that_are_there(name: str) -> None:
    with every(name) as told:
        metric = ObjectWords(words=tuple(map(str, told["words"])), as_released=True)
        asked = zip(told["predictions"], told["references"], strict=True)
        trials = [Trial(None, case_of(str(said), [str(r) for r in refs if r])) for said, refs in asked]
        scores = metric.measure(trials)
        for measure in metric.measures:
            rows = [score.values[measure.name] for score in scores]
            found = mean_share([row.parts for row in rows])
            assert found == pytest.approx(float(told[f"mean_{measure.name}"]), abs=1e-12), measure.name


def case_of(said: str, references: list[str]) -> Case:
    spoken = ("", *said.split())
    return Case(said, said, "", torch.zeros(1), 0, spoken=spoken, references=tuple(references))


def mean_share(parts) -> float:
    """Of each word over the images; a word of which there is nothing has 0."""
    above, below = (np.array([part[key] for part in parts]).sum(0) for key in ("num", "den"))
    return float(np.where(below > 0, above / np.maximum(below, 1), 0.0).mean())


def test_no_array_of_the_folder_is_left_out() -> None:
    """Each file has a test that fails where it leaves a key unread."""
    for path in Path(__file__).parent.glob("test_*.py"):
        if "folder.whole" in path.read_text(encoding="utf-8"):
            runpy.run_path(str(path))  # alone, this file knows of its own claims only
    there = {path.stem for path in folder.FOLDER.glob("*.npz")}
    assert there == folder.CLAIMED


def test_a_key_that_nobody_reads_is_told() -> None:
    with pytest.raises(AssertionError, match=r"beam.npz has keys that no test reads: aoa_beam3"):  # noqa: PT012
        with every("beam") as arrays:
            for key in set(arrays) - {"aoa_beam3_zero_image_ids"}:
                arrays[key]
