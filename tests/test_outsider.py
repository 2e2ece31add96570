"""From an empty folder to a paper: new explainer, check, and each fault that a method can have, by its line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from heatproof import spec
from heatproof.cli import cli

FAMILIES = {"classifier": "small_cnn", "clip": "small_clip", "captioner": "small_captioner"}
TOP = """import random
from dataclasses import dataclass

import numpy as np
import torch

from heatproof import Explanation, Unsuited

KEPT = []


@dataclass(frozen=True)
class Mine:
    \"\"\"Gradient times activation.\"\"\"

    gain: float = 1.0

    def explain(self, model, cases):
"""
BOTTOM = """        site = model.site("image.conv")
        with model.watch(site) as seen:
            score = model.score(model.stack(cases), cases)
            (grads,) = torch.autograd.grad(score.sum(), seen.value)
        maps = [(g * v).sum(0) * self.gain for g, v in zip(grads, seen.value.detach(), strict=True)]
"""
END = "        return [Explanation(image=m) for m in maps]\n"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, outside any repository; one model, to be quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("heatproof.checking.MODELS", ("small_cnn",))
    return tmp_path


@pytest.fixture
def type_() -> Callable[..., tuple[int, str]]:
    def typed(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [str(w) for w in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, done.output

    return typed


def fault(folder: Path, *, before: str = "", after: str = "", end: str = END, bottom: str = BOTTOM) -> int:
    """Write mine.py with something planted; the line of the planted text that ends in a '# here'."""
    text = TOP + before + bottom + after + end
    (folder / "mine.py").write_text(text)
    places = [i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# here")]
    return places[0] if places else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_passes_the_check_and_its_spec_is_whole(empty, type_, family, monkeypatch):
    monkeypatch.setattr("heatproof.checking.MODELS", ("small_vit", FAMILIES[family]))
    assert type_("new", "explainer", "my_idea.py", "--for", family) == (0, "my_idea.py\nmy_idea.toml\n")
    text = (empty / "my_idea.py").read_text()
    assert max(map(len, text.splitlines())) <= 120
    assert len([line for line in text.splitlines() if line.strip()]) <= 36
    assert ast.get_docstring(ast.parse(text))
    code, out = type_("check", "my_idea.py:MyIdea")
    assert code == 0, out
    assert f"right  {FAMILIES[family]}: image [" in out
    assert "nothing is wrong" in out
    asked = spec.read("my_idea.toml", empty)
    methods = [p.name for p in asked.explainers if p.role == "method"]
    assert methods[0] == "my_idea"
    assert len(methods) == 6
    assert [p.name for p in asked.models] == [FAMILIES[family]]
    assert {"random", "centre", "edges", "oracle", "swapped(my_idea)"} <= {p.name for p in asked.explainers}


def test_nothing_is_written_over_and_names_that_would_hide_others_are_refused(empty, type_):
    (empty / "mine.toml").write_text("kept")
    code, out = type_("new", "explainer", "mine.py")
    assert code == 2
    assert "mine.toml is there already" in out
    assert not (empty / "mine.py").exists()
    assert (empty / "mine.toml").read_text() == "kept"
    for name in ("torch.py", "gradcam.py", "my-idea.py", "mine.txt", "class.py", "case.py", "occlusion.py"):
        assert type_("new", "explainer", name)[0] == 2
    assert [p.name for p in empty.iterdir()] == ["mine.toml"]


FAULTS = {
    "torch": ({"before": "        noise = torch.rand(3)  # here\n"}, "global random generator of torch"),
    "numpy": ({"before": "        noise = np.random.rand(3)  # here\n"}, "global random generator of numpy"),
    "random": ({"before": "        noise = random.random()  # here\n"}, "global random generator of random"),
    "hook": (
        {
            "before": "        first = next(model.net.modules())\n"
            "        first.register_forward_hook(lambda *_: None).remove()\n"
            "        first.register_forward_hook(lambda *_: None)  # here\n"
        },
        "leaves a hook",
    ),
    "watch": ({"before": '        KEPT.append(model.watch("image.conv 0"))\n        KEPT[-1].__enter__()  # here\n'}, "leaves a hook"),
    "pixels": (
        {"before": "        for case in cases:\n            case.pixels.flip(-1)\n            case.pixels.mul_(2)  # here\n"},
        "edits the images in place",
    ),
    "weights": (
        {"before": "        next(model.net.parameters()).data.mul_(1.5)  # here\n"},
        "leaves the weights changed",
    ),
    "mode": ({"before": "        next(m for m in model.net.modules() if isinstance(m, torch.nn.ReLU)).train()  # here\n"}, "leaves the net in another mode"),
    "gradients": (
        {"before": "        model.net.requires_grad_(True)  # here\n"},
        "leaves gradients on the net's parameters",
    ),
    "autograd": ({"after": "        torch.set_grad_enabled(False)  # here\n"}, "leaves autograd switched"),
    "batch": (
        {
            "after": "        top = max(float(m.abs().max()) for m in maps)\n        maps = [m / top for m in maps]\n",
        },
        "not the same alone as among 8",
    ),
    "order": ({"after": "        maps = [m + i for i, m in enumerate(maps)]\n"}, "in another order as among 8"),
    "net": (
        {"after": "        maps[0] = maps[0] + model.net(model.stack(cases)).logits.max()  # here\n"},
        "reached by the model's verbs alone",
    ),
    "clock": (
        {"after": "        dice = np.random.default_rng()  # here\n        maps = [m * dice.random() for m in maps]\n"},
        "not repeatable: asked twice, 8 of 8 answers differ",
    ),
    "nan": (
        {"after": "        maps = [m / m.abs().max() for m in maps]\n        maps = [(m - 9).sqrt() for m in maps]  # here\n"},
        "NaN in 8 of 8 answers",
    ),
    "infinity": ({"after": "        maps = [m / 0.0 for m in maps]  # here\n"}, "infinity in 8 of 8 answers"),
    "shape": (
        {"end": "        return [Explanation(image=m[None, None]) for m in maps]  # here\n"},
        "image has shape [1, 1, 7, 7], accepted is [h, w] or [C, h, w]",
    ),
    "large": (
        {"end": "        return [Explanation(image=torch.zeros(300, 300)) for m in maps]  # here\n"},
        "image has shape [300, 300], larger than the case's [3, 112, 112]",
    ),
    "text": (
        {"end": "        return [Explanation(text=torch.zeros(3)) for m in maps]  # here\n"},
        "text has shape [3], accepted is [0]",
    ),
    "empty": ({"end": "        return [Explanation() for m in maps]  # here\n"}, "an empty answer"),
    "few": ({"end": "        return [Explanation(image=maps[0])]  # here\n"}, "gave 1 explanations for 8 cases"),
    "tensor": ({"end": "        return maps\n"}, "gave Tensor, accepted is heatproof.Explanation"),
    "raises": ({"before": "        cases[0].nothing  # here\n"}, "raises AttributeError"),
    "alone": (
        {"after": "        torch.stack(maps).squeeze()[:, 6, 6]  # here\n"},
        "raises IndexError when asked alone",
    ),
    "mute": ({"before": '        raise Unsuited("no")  # here\n'}, "Unsuited without a reason"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_said_with_its_line(empty, type_, name):
    planted, wanted = FAULTS[name]
    line = fault(empty, **planted)
    code, out = type_("check", "mine.py:Mine")
    assert code == 1, out
    wrong = [told for told in out.splitlines() if told.startswith("wrong")]
    assert len(wrong) == 1, out
    assert wanted in wrong[0]
    assert not line or wrong[0].startswith(f"wrong  mine.py:{line}: small_cnn: "), out
    assert out.splitlines()[-1] == "1 wrong"


def test_several_faults_are_said_side_by_side(empty, type_):
    planted = ["torch.manual_seed(3)", "model.net.requires_grad_(True)", "[c.pixels.zero_() for c in cases]"]
    fault(empty, before="".join(f"        {line}\n" for line in planted))
    code, out = type_("check", "mine.py")
    assert code == 1
    text = (empty / "mine.py").read_text().splitlines()
    wrong = [told for told in out.splitlines() if told.startswith("wrong")]
    places = {told.split(": ")[2][:12]: text[int(told.split(":")[1]) - 1].strip() for told in wrong}
    assert places == {"reads the gl": planted[0], "leaves gradi": planted[1], "edits the im": planted[2]}


def test_a_sound_one_is_right_and_a_draw_of_the_case_is_no_fault(empty, type_):
    fault(
        empty,
        after='        noise = [torch.rand(7, 7, generator=c.generator("noise")) for c in cases]\n'
        "        maps = [m + n for m, n in zip(maps, noise, strict=True)]\n",
    )
    code, out = type_("check", "mine.py:Mine")
    assert (code, "wrong  " in out) == (0, False)
    assert out.splitlines()[1:] == [
        "right  a frozen dataclass with a docstring",
        "right  small_cnn: image [7, 7], 1 + 1 forwards and backwards a case",
        "right  small_cnn: the same again, alone, among three, in another order as among 8",
        "right  small_cnn: leaves model, images and generators as found",
        "nothing is wrong",
    ]


def test_what_is_odd_but_no_fault_is_a_warning_and_unsuited_a_dash(empty, type_):
    fault(empty, end="        return [Explanation(image=torch.ones(7, 7)) for m in maps]\n")
    code, out = type_("check", "mine.py:Mine")
    assert code == 0
    assert "warn   small_cnn: draws the same map whatever the case, one value everywhere" in out
    fault(empty, end="        maps[2] = None\n        return [Explanation(image=m) for m in maps]\n")
    (empty / "gap.py").write_text((empty / "mine.py").read_text())
    assert "warn   small_cnn: an empty answer in 1 of 8 cases" in type_("check", "gap.py")[1]
    (empty / "other").mkdir()
    fault(empty / "other", before='        raise Unsuited("needs a sense of smell")\n')
    code, out = type_("check", "other/mine.py:Mine")
    assert code == 0
    assert "dash   small_cnn: needs a sense of smell" in out
    assert "warn   suits none of the small models" in out


def test_a_class_that_breaks_the_form(empty, type_):
    text = TOP + BOTTOM + END
    (empty / "a.py").write_text(text.replace("(frozen=True)", ""))
    (empty / "b.py").write_text(text.replace('    """Gradient times activation."""\n', ""))
    (empty / "c.py").write_text(text.replace("gain: float = 1.0", "gain: float"))
    (empty / "d.py").write_text(text.replace("def explain", "def explain("))
    for name, wanted in {
        "a": "wrong  a.py:13: settings are part of a number's key: write @dataclass(frozen=True)",
        "b": "wrong  b.py:13: no docstring",
        "c": "wrong  c.py:13: cannot be made: every setting needs a default",
        "d": "wrong  d.py:18: cannot be imported: SyntaxError",
    }.items():
        code, out = type_("check", f"{name}.py")
        assert code == 1
        assert wanted in out
    code, out = type_("check", "nobody.py:Mine")
    assert code == 2
    assert "there is no file" in out


def test_counts_are_cut_to_be_quick_and_asked_whole_where_that_breaks_it(empty, type_):
    text = TOP.replace("gain: float = 1.0", "gain: float = 1.0\n    masks: int = 4000") + BOTTOM
    (empty / "one.py").write_text(text + END)
    assert "one.py: Mine with masks = 8 to be quick, 8 cases a model" in type_("check", "one.py")[1]
    (empty / "two.py").write_text(text + "        assert self.masks == 4000\n" + END)
    code, out = type_("check", "two.py")
    assert (code, out.splitlines()[0]) == (0, "two.py: Mine, 8 cases a model")


def test_a_tracer_that_was_there_is_there_afterwards(empty, type_):
    before = sys.gettrace()
    fault(empty, before="        torch.rand(3)\n")
    type_("check", "mine.py")
    assert sys.gettrace() is before
