"""A name in a spec is a file and a class: every way to name one, what hides what, and what a source is made of."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from heatproof import Refused, shelf
from heatproof.shelf import Place

SEVERAL = """
class One:
    def explain(self, model, cases): ...

class Two:
    def explain(self, model, cases): ...

class _Hidden:
    def explain(self, model, cases): ...

class Helper:
    pass
"""


@pytest.fixture
def place(world: Path) -> Place:
    (world / "explainers" / "several.py").write_text(SEVERAL)
    return Place(world / "benchmarks", world)


def find(place: Place, use: str, what: str = "explainers") -> type:
    return shelf.find(what, use, place, "toy.toml: explainers")


def test_a_file_is_its_one_public_class(place):
    assert find(place, "bright").__name__ == "Bright"
    assert find(place, "several:Two").__name__ == "Two"


def test_of_several_classes_the_namesake_is_meant(place, world):
    (world / "explainers" / "some_suite.py").write_text(SEVERAL + "\nclass SomeSuite(One): ...\n")
    assert find(place, "some_suite").__name__ == "SomeSuite"


def test_a_path_is_relative_to_the_spec(place, world):
    (world / "benchmarks" / "mine.py").write_text(SEVERAL)
    assert find(place, "./mine.py:One").__name__ == "One"
    assert find(place, "../explainers/bright.py").__name__ == "Bright"
    with pytest.raises(Refused, match=r"there is no file .*/yours.py; paths are relative to the spec"):
        find(place, "./yours.py")


def test_the_workspace_hides_the_house(place, world):
    house = find(place, "gradcam")
    assert Path(sys.modules[house.__module__].__file__).parent == shelf.house() / "explainers"
    (world / "explainers" / "gradcam.py").write_text(SEVERAL.replace("One", "Mine").split("class Two")[0])
    assert find(place, "gradcam").__name__ == "Mine"
    assert find(Place(Path.cwd(), Path("/nowhere")), "gradcam") is house


def test_metrics_and_models_live_in_the_package(place, world):
    assert find(place, "localization", "metrics").__module__ == "heatproof.metrics.localization"
    assert find(place, "inside", "metrics").__name__ == "Inside"
    (world / "metrics" / "localization.py").write_text("class Mine:\n    def measure(self, trials): ...\n")
    assert find(place, "localization", "metrics").__name__ == "Mine"
    assert find(place, "hf_clip", "models").__name__ == "HfClip"


def test_installed_packages_plug_in(place, monkeypatch):
    class Plugged:
        def explain(self, model, cases): ...

    class Entry:
        name, value = "plugged", "somewhere:Plugged"

        def load(self):
            return Plugged

    def entry_points(*, group):
        return [Entry()] if group == "heatproof.explainers" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert find(place, "plugged") is Plugged
    with pytest.raises(Refused, match="did you mean 'plugged'"):
        find(place, "pluged")


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (
            "brigth",
            r"toy.toml: explainers: no explainer 'brigth'; did you mean 'bright'\? There are: .*several",
        ),
        ("zzz", r"no explainer 'zzz'. There are: .*bright.*A path works too: './mine.py:Mine'"),
        ("several", r"'several' has several classes; name one: several:One, several:Two$"),
        ("several:Tow", r"no class with a explain\(\) 'Tow'; did you mean 'Two'\? There are: One, Two$"),
        ("several:Helper", r"There are: One, Two$"),
        ("../metrics/inside.py", r"inside.py has no public class with a explain\(\) method"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest_and_what_there_is(place, use, said):
    with pytest.raises(Refused, match=said):
        find(place, use)


def test_a_file_that_cannot_be_imported_is_named_with_the_reason(place, world):
    (world / "explainers" / "broken.py").write_text("import no_such_library\n")
    for _ in range(2):  # a failed import leaves nothing half-made behind
        with pytest.raises(
            Refused, match=r"broken.py cannot be imported: ModuleNotFoundError.*no_such_library"
        ):
            find(place, "broken")
    assert not [name for name in sys.modules if name.endswith("_broken")]


def test_only_what_is_named_is_imported(place, world):
    (world / "explainers" / "poison.py").write_text(
        "raise SystemExit\n\nclass Poison:\n    def explain(self, model, cases): ...\n"
    )
    assert find(place, "bright")
    assert "poison" in place.files("explainers")
    assert shelf.uses("explainers", world / "explainers" / "poison.py") == ["poison"]


def test_shelf_names_shadow_no_library(place):
    """A shelf called ``datasets`` must not answer to ``import datasets``."""
    find(place, "squares", "datasets")
    assert "squares" not in sys.modules
    assert not any(name in sys.modules for name in ("explainers", "benchmarks"))


def test_how_the_classes_of_a_file_are_named(place, world):
    assert shelf.uses("explainers", world / "explainers" / "several.py") == ["several:One", "several:Two"]
    assert shelf.uses("explainers", world / "explainers" / "bright.py") == ["bright"]


def test_benchmarks_and_recipes_of_both_places_are_there(place, world):
    (world / "benchmarks" / "papers").mkdir()
    (world / "benchmarks" / "papers" / "one.toml").write_text("")
    known = place.benchmarks()
    assert {"toy", "papers/one"} <= set(known)
    house = shelf.house() / "benchmarks"
    assert {p.relative_to(house).with_suffix("").as_posix() for p in house.rglob("*.toml")} <= set(known)
    assert {p.stem for p in (shelf.house() / "recipes").glob("*.toml")} == set(place.recipes())


# ---------------------------------------------------------------- sources


def closure(path: Path) -> set[str]:
    return {p.name for p in shelf._closure(path)}


def test_a_source_is_the_file_and_every_local_module_that_it_imports(tmp_path):
    (tmp_path / "part.py").write_text("import near\nfrom heatproof.geometry import read\nimport numpy\n")
    (tmp_path / "near.py").write_text("def f():\n    from far import g\n")
    (tmp_path / "far.py").write_text("")
    (tmp_path / "numpy_like.py").write_text("")
    assert closure(tmp_path / "part.py") == {"part.py", "near.py", "far.py", "geometry.py"}


def test_what_the_package_hands_out_counts_as_the_contract(tmp_path):
    (tmp_path / "part.py").write_text("from heatproof import Explanation\n")
    found = closure(tmp_path / "part.py")
    assert {"contract.py", "seeds.py", "errors.py"} <= found
    assert "runner.py" not in found
    assert "cli.py" not in found


def test_a_package_of_the_house_and_its_modules_are_followed(tmp_path):
    (tmp_path / "part.py").write_text("from heatproof.models import asking\n")
    assert {"asking.py", "geometry.py", "contract.py"} <= closure(tmp_path / "part.py")


@pytest.mark.parametrize("changed", ["part.py", "near.py"])
def test_one_letter_changes_the_source_and_the_place_does_not(tmp_path, changed):
    hashes = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.py").write_text("import near\n")
        (tmp_path / folder / "near.py").write_text("x = 1\n")
        if folder == "c":
            (tmp_path / folder / changed).write_text((tmp_path / folder / changed).read_text() + "# more\n")
        hashes.append(shelf.source(tmp_path / folder / "part.py"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_line_ends_do_not_change_the_source(tmp_path):
    hashes = []
    for folder, end in (("a", b"\n"), ("b", b"\r\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.py").write_bytes(b"x = 1" + end)
        hashes.append(shelf.source(tmp_path / folder / "part.py"))
    assert hashes[0] == hashes[1]


def test_malformed_toml_names_the_line(tmp_path):
    (tmp_path / "x.toml").write_text('title = "x"\nseed = \n')
    with pytest.raises(Refused, match=r"x.toml: not valid TOML: .*line 2"):
        shelf.read_toml(tmp_path / "x.toml")
    (tmp_path / "y.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(Refused, match=r"y.toml: not UTF-8"):
        shelf.read_toml(tmp_path / "y.toml")
