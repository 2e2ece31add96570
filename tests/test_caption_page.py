"""`heatproof captions`: the page says what the captioner says, word by word, and what is drawn is what was explained."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from heatproof import captioning, captionpage, ordering, report, shelf
from heatproof.captionpage import Answers, Told, Word
from heatproof.cli import cli
from heatproof.contract import Explanation, Object, Sample
from heatproof.models.recipe import Recipe
from heatproof.shelf import Place, house

SCENES = '{ use = "scenes", partner = 0.5 }'
ASKED = (
    "captions",
    "small_captioner",
    SCENES,
    "--explainer",
    "lrp",
    "--explainer",
    "gradcam",
    "--explainer",
    "rollout",
)


class Page(HTMLParser):
    """The page as a reader meets it: photographs with their heads, and rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.told: list[dict] = []
        self.rows: list[list[dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        if tag == "section":
            self.told.append({"heads": [], "rows": []})
        elif tag == "tr" and self.told:
            self.told[-1]["rows"].append([])
        elif tag == "th" and named.get("scope") == "col":
            self.told[-1]["heads"].append([named.get("class"), ""])
        elif tag in ("td", "th") and self.told:
            self.told[-1]["rows"][-1].append({"text": "", "tints": [], "images": 0})
        elif tag == "span" and "style" in named:
            self.told[-1]["rows"][-1][-1]["tints"].append(named["style"])
        elif tag == "img" and self.told and self.told[-1]["rows"]:
            self.told[-1]["rows"][-1][-1]["images"] += 1

    def handle_data(self, data):
        if not self.told or not data.strip():
            return
        here = self.told[-1]
        if len(here["rows"]) == 1:
            if here["heads"]:
                here["heads"][-1][1] += f" {data.strip()}"
        elif here["rows"]:
            here["rows"][-1][-1]["text"] += f" {data.strip()}"


def type_(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[str, Page]:
    out = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        code, said = type_(*ASKED, "--images", "2")
    assert (code, said.strip()) == (0, "reports/small_captioner-scenes/captions.html"), said
    assert [p.name for p in out.iterdir()] == ["reports"]  # nothing is left beside
    text = (out / said.strip()).read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def model():
    return Recipe("small_captioner", str(house() / "recipes" / "small_captioner.toml")).load(
        "small_captioner"
    )


@pytest.fixture(scope="module")
def samples():
    return shelf.find("datasets", "scenes", Place(Path(), Path()), "")(sample=2, partner=0.5).samples()


def test_it_holds_all_it_needs_and_runs_nothing(page):
    text, told = page
    names = {tag for tag, _ in told.tags}
    assert not names & {"script", "iframe", "object"}
    links = [v for _, a in told.tags for k, v in a.items() if k in ("src", "href")]
    assert len(links) > 20
    assert all(str(link).startswith("data:") for link in links)
    assert not re.search(r"url\(|@import", text)
    images = [a for tag, a in told.tags if tag == "img"]
    assert all(a["alt"] for a in images)
    assert len({a["alt"] for a in images}) > 10
    assert "prefers-color-scheme: dark" in text
    assert str(Path.home()) not in text


def test_every_word_has_its_probability_its_lift_and_its_truth(page, model, samples):
    """Held against the net itself, a word at a time, and against what is in the scene."""
    _, told = page
    assert len(told.told) == 2
    furthest = 0.0
    for sample, shown in zip(samples, told.told, strict=True):
        ((case,),) = model.ask([sample], "written")
        ids = case.tokens[None]
        with torch.no_grad():
            seen, blind = (
                model.net(x[None], ids)[0].log_softmax(1)
                for x in (case.pixels, torch.zeros_like(case.pixels))
            )
        assert len(shown["heads"]) == len(case.spoken) - 1
        there = {thing.name for thing in sample.objects}
        for t, (standing, head) in enumerate(shown["heads"]):
            word, k = case.spoken[t + 1], int(case.tokens[t + 1])
            assert head.split()[0] == word
            mark = {"grounded": "✓", "hallucinated": "✗", "": ""}[standing]
            assert mark in head
            wanted = "" if word not in model.objects else "grounded" if word in there else "hallucinated"
            assert standing == wanted
            p, lift = re.search(r"p (?:< )?([\d.]+) · lift ([+-][\d.]+)", head).groups()
            furthest = max(furthest, abs(float(p) - float(seen[t, k].exp())))
            assert float(p) == pytest.approx(float(seen[t, k].exp()), abs=0.0051)
            assert float(lift) == pytest.approx(float(seen[t, k] - blind[t, k]), abs=0.0501)
    assert furthest > 0  # shown in two digits


def test_a_row_has_a_map_a_word_and_the_words_before_it_where_the_method_tells(page):
    for shown in page[1].told:
        _, lrp, cam, rollout = shown["rows"]
        words = [head.split()[0] for _, head in shown["heads"]]
        assert [c["images"] for c in lrp[1:]] == [c["images"] for c in cam[1:]] == [1] * len(words)
        for t, cell in enumerate(lrp[1:]):
            assert cell["text"].split() == ["<start>", *words[:t]]
            strongest = max(float(s.rsplit(",", 1)[1].rstrip(") ")) for s in cell["tints"])
            assert strongest == 0.75
        assert not any(c["text"] for c in cam[1:])
        assert len(rollout) == 2  # one cell, which says why
        assert "small_captioner" in rollout[1]["text"]


def test_the_words_before_are_tinted_by_their_relevance(page, model, samples):
    lrp = shelf.find("explainers", "lrp", Place(Path(), Path()), "")()
    for sample, shown in zip(samples, page[1].told, strict=True):
        ((whole,),) = model.ask([sample], "written")
        for t, cell in enumerate(shown["rows"][1][1:]):
            (found,) = lrp.explain(model, [dataclasses.replace(whole, target=t)])
            before = found.text[: t + 1].tolist()
            top = max(map(abs, before))
            for tint, value in zip(cell["tints"], before, strict=True):
                warm = "230, 84, 30" in tint
                assert warm == (value > 0)
                assert float(tint.rsplit(",", 1)[1].rstrip(") ")) == pytest.approx(
                    0.75 * abs(value) / top, abs=0.0051
                )


def test_what_stands_beside_an_image_changes_nothing_of_it(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type_(*ASKED, "--images", "1", "--out", "elsewhere") == (0, "elsewhere/captions.html\n")
    first, second = (
        re.findall(r'<section class="told">.*?</section>', text, re.S)[0]
        for text in (page[0], Path("elsewhere/captions.html").read_text())
    )
    assert first == second


def test_the_power_is_of_each_channel_and_then_they_are_summed():
    """Sun et al.'s figures, value by value."""
    heat = torch.tensor(np.random.default_rng(0).normal(size=(3, 4, 5)))
    found = captioning._map(Explanation(image=heat), 0.7)
    top = max(abs(v) for v in heat.flatten().tolist())
    for y in range(4):
        for x in range(5):
            each = [float(heat[c, y, x]) / top for c in range(3)]
            assert found[y, x] == pytest.approx(
                sum(abs(v) ** 0.7 * (1 if v > 0 else -1) for v in each), abs=1e-6
            )
    assert captioning._map(Explanation(text=torch.ones(3)), 0.7) is None
    assert not captionpage.signed_power(np.zeros((2, 2)), 0.7).any()


def test_warm_and_cool_stand_where_the_map_is_positive_and_negative():
    """Also for who cannot tell red from green: red is above blue in the one and below it in the other."""
    grey = np.full((8, 8, 3), 128, np.uint8)
    heat = np.zeros((8, 8))
    heat[:, :4], heat[:, 4:] = 1.0, -0.5
    word = Word("ball", -0.1, 2.0, "grounded", "it is")
    told = Told("s0", grey, [word], [Answers("mine", [heat], [np.array([-2.0])])], ["a ball"])
    text = captionpage.html("t", [told], {"gamma": 1})
    picture = re.findall(r'data:image/jpeg;base64,([^"]+)', text)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
    left, right = pixels[98, 20], pixels[98, -20]
    assert left[0] - left[2] > 60
    assert right[2] - right[0] > 60
    assert "rgba(40, 120, 190, 0.75)" in text  # the one word before speaks against it


def test_maps_lie_on_what_the_model_saw_of_the_photograph(model):
    """A frame that crops shows its cut, with the evidence there, not the whole photograph."""
    image = np.zeros((60, 180, 3), np.uint8)
    image[:, 60:120] = (250, 40, 40)
    wide = Sample("wide", lambda: image, objects=(Object("key", (0.0, 0.0, 60.0, 60.0)),))
    cutting = copy.copy(model)
    cutting.frame = dataclasses.replace(model.frame, mode="crop")
    spec = SimpleNamespace(explainers=())
    bench = SimpleNamespace(samples=[wide], spec=spec, ask=lambda m, some, policy: m.ask(some, policy))
    told = captioning._told(bench, cutting, "", 0, "objects", 1.0)
    size = model.frame.size
    assert told.image.shape == (size, size, 3)
    assert np.abs(told.image[:, 4:-4].astype(int) - (250, 40, 40)).max() <= 2
    assert " ".join(word.text for word in told.words) == " ".join(
        cutting.write(cutting.stack(whole := cutting.ask([wide], "written")[0]), whole)
    )


def test_text_is_escaped_and_a_silent_captioner_has_a_page():
    told = [Told("<b>", np.zeros((4, 4, 3), np.uint8), [], [], ["<script>x</script>"])]
    text = captionpage.html("<i>", told, {"gamma": 1})
    assert "<script>" not in text
    assert "(nothing)" in text
    assert report.tinted(["a"], None) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small_cnn", "scenes"], "captions: small_cnn is a classifier, accepted are captioners"),
        (
            ["small_captionr", "scenes"],
            "captions: models: no model 'small_captionr'; did you mean 'small_captioner'?",
        ),
        (["small_captioner", "scnes"], "captions: dataset: no dataset 'scnes'; did you mean 'scenes'?"),
        (["small_captioner", "flickr8k"], "write an inline table with images and text, as '{ use ="),
        (
            ["small_captioner", "{ use = scenes }"],
            "DATA: found '{ use = scenes }', accepted is a name or an inline",
        ),
        (
            ["small_captioner", '{ use = "scenes", partnr = 1 }'],
            "no setting 'partnr'; did you mean 'partner'?",
        ),
        (["small_captioner", "scenes", "--explainer", "lrpp"], "no explainer 'lrpp'; did you mean 'lrp'?"),
        (["small_captioner", "scenes", "--data", "a=b"], "--data a: nothing of what was typed says {a}"),
        (["small_captioner", "scenes", "--data", "a"], "--data a: found no '='; write NAME=DIR"),
        (
            ["small_captioner", '{ use = "coco", images = "{x}" }'],
            "Type: --data x=DIR, or set HEATPROOF_DATA_X",
        ),
        (["small_captioner", "scenes", "--gamma", "0"], "--gamma: found 0, accepted is a power above 0"),
    ],
)
def test_what_cannot_be_is_said_with_what_to_type(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEATPROOF_DATA", raising=False)
    code, out = type_("captions", *words)
    assert code == 2
    assert said in out
    assert not list(tmp_path.iterdir())


def test_what_is_typed_is_what_a_spec_would_say(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATPROOF_DATA", str(tmp_path / "all"))
    data = '{ use = "flickr8k", images = "{shared}/a \\"b\\".zip", text = "{text}" }'
    raw = ordering.benchmark("./mine.py:Mine", data, ["lrp"], 5, [f"shared={tmp_path}"])
    assert tomllib.loads(ordering.toml(raw)) == raw
    assert raw["data"] == {"shared": str(tmp_path), "text": str(tmp_path / "all")}
    assert raw["dataset"]["sample"] == 5
    assert ordering.benchmark("a", '{ use = "scenes", sample = 3 }', [], 5)["dataset"]["sample"] == 3
    assert raw["title"] == "Mine on flickr8k"
    monkeypatch.setenv("HEATPROOF_DATA_TEXT", str(tmp_path / "own"))
    assert ordering.benchmark("a", data, ["lrp"])["data"]["text"] == str(tmp_path / "own")


def test_help_shows_one_to_type():
    code, said = type_("captions", "--help")
    assert code == 0
    assert "heatproof captions small_captioner scenes" in said
