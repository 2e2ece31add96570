"""ARCHITECTURE.md held to the code: floors, arrows, sizes, and the nevers."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "heatproof"
SHELVES = ("benchmarks", "datasets", "explainers", "recipes", "reports", "results")
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
HEAVY = {"torch", "transformers", "captum"}
TORCH_FREE = (
    "records",
    "errors",
    "reducers",
    "statistics",
    "summary",
    "words",
    "tables",
    "pictures",
    "plots",
    "report",
)
TORCH_FREE += ("regress", "results", "shelf", "readme", "stability", "variants", "detector", "exam", "lineup")
TORCH_FREE += ("paper", "outsider", "versus", "captionpage")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


FILES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py")) if "_house" not in p.parts}


@cache
def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports, those for type checkers left out; ``lazy``: also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef) and not lazy:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return found


def modules(path: Path, *, lazy: bool = True) -> set[str]:
    """The house's own modules among a file's imports."""
    found = set()
    for name in imports(path, lazy=lazy):
        head, *rest = name.split(".")
        while head == "heatproof" and rest and ".".join(rest) not in FILES:
            rest.pop()
        if head == "heatproof":
            found.add(".".join(rest) or "__init__")
    return found - {name_of(path) if path.is_relative_to(PACKAGE) else ""}


def floors() -> dict[str, int]:
    """Module or package -> floor, as ARCHITECTURE.md draws it."""
    found: dict[str, int] = {}
    block = re.search(r"```floors\n(.*?)```", TEXT, re.DOTALL)
    assert block, "ARCHITECTURE.md has no ```floors block"
    for line in block[1].strip().splitlines():
        number, _, names = line.removeprefix("floor ").partition(" ")
        for name in names.split():
            assert name not in found, f"{name} stands on two floors"
            found[name] = int(number)
    return found


def floor_of(module: str) -> int:
    return FLOORS[module.partition(".")[0]]


FLOORS = floors()


def test_every_module_stands_on_one_floor():
    there = {name.split(".")[0] for name in FILES} - {"__init__"}
    assert set(FLOORS) == there, "give a new module its floor in ARCHITECTURE.md"


@pytest.mark.parametrize("name", [n for n in FILES if n != "__init__"])
def test_arrows_point_down(name):
    for other in modules(FILES[name]) - {"__init__"}:
        assert floor_of(other) <= floor_of(name), f"{name} imports {other}, a floor above"


def test_there_is_no_circle():
    graph = {name: modules(path) - {"__init__"} for name, path in FILES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def reached(name: str) -> set[str]:
    """Modules that are imported with a module, however far."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += modules(FILES[here], lazy=False)
    return seen


@pytest.mark.parametrize("name", TORCH_FREE)
def test_tables_are_redrawn_without_torch(name):
    for module in reached(name):
        heavy = {x.partition(".")[0] for x in imports(FILES[module], lazy=False)} & HEAVY
        assert not heavy, f"{name} -> {module} imports {heavy}"


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("metrics.")])
def test_metrics_know_no_family_and_no_explainer(name):
    known = {"contract", "errors", "geometry", "seeds", "records", "statistics", "__init__", "lrp", "metrics"}
    known |= {"segments", "captions", "judge"}  # a judge is a net of its own, never the one under test
    assert {m.split(".")[0] for m in modules(FILES[name])} <= known


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("models.", "models"))])
def test_models_know_no_metric(name):
    known = {"contract", "errors", "geometry", "seeds", "records", "lrp", "models", "__init__", "shelf"}
    assert {m.split(".")[0] for m in modules(FILES[name])} <= known


# ---------------------------------------------------------------- shelves


def shelf_files(shelf: str) -> list[Path]:
    return sorted((ROOT / shelf).glob("*.py"))


@pytest.mark.parametrize(
    "path", [p for s in ("explainers", "datasets") for p in shelf_files(s)], ids=lambda p: p.name
)
def test_a_shelf_file_imports_the_house_below_it_and_no_other_shelf_file(path):
    beside = {p.stem for p in path.parent.glob("*.py")}
    roots = {name.split(".")[0] for name in imports(path)}
    libraries = roots & {"torch", "captum", "numpy", "PIL", "pycocotools", "scipy"}
    assert not (roots - libraries) & beside - {"random"}, "shared code moves into the package"
    assert path.stem not in {"captum", "torch", "numpy", "datasets"}, "named after the library that it wraps"
    allowed = {"__init__", "contract", "errors", "geometry", "seeds", "lrp", "segments", "games", "masks"}
    allowed |= {"scenery", "records", "photographs", "captions"} if path.parent.name == "datasets" else set()
    assert {m.split(".")[0] for m in modules(path)} <= allowed


@pytest.mark.parametrize("shelf", SHELVES)
def test_shelves_are_no_packages(shelf):
    assert not list((ROOT / shelf).rglob("__init__.py"))


@cache
def code_lines(path: Path) -> int:
    """Lines that are no docstring, no comment, no import and not blank."""
    text = path.read_text(encoding="utf-8")
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            told |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for n, line in lines if n not in told and line.strip() and not line.strip().startswith("#"))


def explainers_in(path: Path) -> int:
    classes = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
    ]
    return sum(any(getattr(f, "name", "") == "explain" for f in c.body) for c in classes)


@pytest.mark.parametrize("path", shelf_files("explainers"), ids=lambda p: p.name)
def test_an_explainer_can_be_read_at_a_sitting(path):
    assert code_lines(path) <= 80 * explainers_in(path)


@pytest.mark.parametrize("path", [*FILES.values(), *shelf_files("datasets")], ids=lambda p: p.name)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_runner_is_the_story():
    assert len(FILES["runner"].read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize(
    "path", [*FILES.values(), *shelf_files("datasets"), *shelf_files("explainers")], ids=lambda p: p.name
)
def test_the_first_line_says_what_a_file_is_for(path):
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()


# ---------------------------------------------------------------- what is told and what is there


@cache
def definitions(path: Path) -> set[str]:
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            found |= {f"{node.name}.{f.name}" for f in ast.walk(node) if isinstance(f, ast.FunctionDef)}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {ast.unparse(t) for t in targets}
    return found


def spoken_of() -> Iterator[tuple[str, str]]:
    """Every `module.name` in ARCHITECTURE.md whose module is ours."""
    for said in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)(?:\(\))?`", TEXT):
        parts = said.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            if ".".join(parts[:cut]) in FILES:
                yield ".".join(parts[:cut]), ".".join(parts[cut:])
                break


def test_the_walk_names_real_functions():
    said = set(spoken_of())
    assert len(said) > 12
    for module, name in said:
        if f"{module}.{name}" not in FILES and name != "py":
            assert name in definitions(FILES[module]), f"ARCHITECTURE.md speaks of {module}.{name}"


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no git checkout: what is tracked is not known")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_text_holds_a_path_of_a_machine():
    """Homes and temporary folders of whoever wrote it; a slash or a quote before tells a path from a word."""
    machine = re.compile(r"(?<![\w.}/-])/(?:home|root|Users|work|mnt|opt|tmp)/[\w.-]+")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in machine.findall(text)]
    assert not found
