"""From a name in a spec to a class: no registry, a name is a file and a class (DESIGN, section 1).

``"gradcam"`` is the one public class of ``explainers/gradcam.py``; ``"captum_suite:Saliency"`` one of several;
``"./mine.py:Mine"`` a file beside the spec. The workspace's shelves come first, then the house's own, then
installed packages that announce themselves under ``heatproof.explainers`` and so on.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from heatproof.errors import Refused, unknown

VERBS = {"explainers": "explain", "datasets": "samples", "metrics": "measure", "models": "load"}
PACKAGE = Path(__file__).parent
IN_PACKAGE = ("metrics", "models")


def house() -> Path:
    """The house's own shelves: inside the wheel, or the checkout of an editable install."""
    return PACKAGE / "_house" if (PACKAGE / "_house").is_dir() else PACKAGE.parents[1]


@dataclass(frozen=True)
class Place:
    """Where names are looked up: the spec's folder for paths, the workspace, then the house."""

    spec: Path
    workspace: Path

    @property
    def roots(self) -> list[Path]:
        return list(dict.fromkeys([self.workspace.resolve(), house().resolve()]))

    def files(self, shelf: str) -> dict[str, Path]:
        """Every name on a shelf and its file; the workspace's hides the house's."""
        found: dict[str, Path] = {}
        for root in reversed(self.roots):
            found |= {p.stem: p for p in sorted((root / shelf).glob("*.py")) if p.stem[0] != "_"}
        if shelf in IN_PACKAGE:
            found = _in_package(shelf) | found
        return found

    def trained(self) -> dict[str, Path]:
        """Every model of a recipe: name -> recipe. A fine-tuning, ``tune_...``, is asked to start from one of them and is none itself."""
        return {name: path for name, path in self.recipes().items() if not name.startswith("tune_")}

    def recipes(self) -> dict[str, Path]:
        """Every recipe by name."""
        found: dict[str, Path] = {}
        for root in reversed(self.roots):
            found |= {p.stem: p for p in sorted((root / "recipes").glob("*.toml"))}
        return found

    def benchmarks(self) -> dict[str, Path]:
        """Every benchmark, ``papers/NAME`` among them."""
        found: dict[str, Path] = {}
        for root in reversed(self.roots):
            top = root / "benchmarks"
            found |= {p.relative_to(top).with_suffix("").as_posix(): p for p in sorted(top.rglob("*.toml"))}
        return found


@cache
def _in_package(shelf: str) -> dict[str, Path]:
    """The parts of a kind that live in the package itself: its files that hold a class with the verb."""
    ours = {p.stem: p for p in sorted((PACKAGE / shelf).glob("*.py")) if p.stem[0] != "_"}
    return {stem: p for stem, p in ours.items() if _classes_in(p, VERBS[shelf])}


def find(shelf: str, use: str, place: Place, where: str, also: Iterable[str] = ()) -> type:
    """The class that a name means, or Refused with the nearest name and what there is (``also``, too)."""
    file, _, wanted = use.partition(":")
    if "/" in file or file.endswith(".py"):
        path = (place.spec / file).resolve()
        if not path.is_file():
            raise Refused(f"{where}: {use!r}: there is no file {path}; paths are relative to the spec")
    else:
        files = place.files(shelf)
        if file not in files:
            for entry in importlib.metadata.entry_points(group=f"heatproof.{shelf}"):
                if entry.name == file:
                    return _class_of(entry.load(), wanted, shelf, where, use)
            others = {e.name for e in importlib.metadata.entry_points(group=f"heatproof.{shelf}")}
            known = {*files, *others, *also, *(place.trained() if shelf == "models" else ())}
            raise unknown(where, shelf[:-1], file, known, "A path works too: './mine.py:Mine'.")
        path = files[file]
    return _class_of(load(path, where), wanted, shelf, where, use)


def load(path: Path, where: str = "") -> ModuleType:
    """Import a file: our own package's by name, a shelf's by path under a made-up name."""
    if path.is_relative_to(PACKAGE) and "_house" not in path.relative_to(PACKAGE).parts:
        dotted = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        return importlib.import_module(f"heatproof.{dotted}")
    tag = blake2b(str(path).encode(), digest_size=4).hexdigest()
    name = f"heatproof_shelf_{path.parent.name}_{path.stem}_{tag}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{where}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise Refused(f"{where}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def file_of(cls: type) -> Path:
    """The file that a class of a part stands in."""
    return Path(str(sys.modules[cls.__module__].__file__))


def _class_of(module: Any, wanted: str, shelf: str, where: str, use: str) -> type:
    if inspect.isclass(module):
        return module
    verb = VERBS[shelf]
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and name[0] != "_"
        and callable(getattr(value, verb, None))
    }
    file = getattr(module, "__file__", module.__name__)
    if wanted:
        if wanted not in found:
            raise unknown(f"{where}: {file}", f"class with a {verb}()", wanted, found)
        return found[wanted]
    stem = Path(file).stem.replace("_", "").lower()
    namesake = [value for name, value in found.items() if name.lower() == stem]
    if len(found) == 1 or namesake:
        return namesake[0] if namesake else next(iter(found.values()))
    if not found:
        raise Refused(f"{where}: {file} has no public class with a {verb}() method")
    raise Refused(
        f"{where}: {use!r} has several classes; name one: "
        + ", ".join(f"{use}:{name}" for name in sorted(found))
    )


def _classes_in(path: Path, verb: str) -> list[str]:
    """The public classes of a file that have a verb, read without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and node.name[0] != "_"
        and any(isinstance(f, ast.FunctionDef) and f.name == verb for f in node.body)
        and "Protocol" not in {getattr(b, "id", "") for b in node.bases}
    ]


def uses(shelf: str, path: Path) -> list[str]:
    """How the classes of a shelf file are named in a spec: 'gradcam', or 'captum_suite:Saliency'."""
    names = _classes_in(path, VERBS[shelf])
    if len(names) == 1:
        return [path.stem]
    return [path.stem if n.lower() == path.stem.replace("_", "") else f"{path.stem}:{n}" for n in names]


# ---------------------------------------------------------------- sources, for the key of a number


@cache
def source(path: Path) -> str:
    """A hash of a file and of every local module that it imports, however deep (law 8)."""
    files = sorted(f.name.encode() + b"\0" + _text(f) for f in _closure(path.resolve()))
    return blake2b(b"\0".join(files), digest_size=16).hexdigest()


def _text(file: Path) -> bytes:
    return file.read_bytes().replace(b"\r\n", b"\n")


def _closure(path: Path) -> set[Path]:
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting.extend(_local_imports(file))
    return seen


@cache
def _local_imports(path: Path) -> tuple[Path, ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            head, *rest = name.split(".")
            if name == "heatproof":  # what the package itself hands out lives in the contract
                yield PACKAGE / "contract.py"
            base = PACKAGE.joinpath(*rest) if head == "heatproof" else path.parent.joinpath(head, *rest)
            for found in (base.with_suffix(".py"), base / "__init__.py"):
                if found.is_file() and found != PACKAGE / "__init__.py":
                    yield found


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file, or Refused naming the line that is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: not UTF-8 text: {error}") from error


def locate(name: str, cwd: Path) -> tuple[str, Path, Path]:
    """A benchmark's name, file and workspace, from a name or a path as typed."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise Refused(f"{name}: there is no such file")
        path = path.resolve()
        shelves = [p for p in path.parents if p.name == "benchmarks"]
        workspace = shelves[0].parent if shelves else path.parent
        tag = path.relative_to(shelves[0]) if shelves else Path(path.name)
        return tag.with_suffix("").as_posix(), path, _writable(workspace, cwd)
    known = Place(cwd, cwd).benchmarks()
    if name not in known:
        raise unknown("heatproof run", "benchmark", name, known, "A path works too: ./my.toml")
    path = known[name].resolve()
    top = next(p for p in path.parents if p.name == "benchmarks").parent
    return name, path, _writable(top, cwd)


def _writable(workspace: Path, cwd: Path) -> Path:
    """Nothing is ever written beside the installed package: its specs run in the current folder."""
    inside = (PACKAGE / "_house").resolve()
    return cwd.resolve() if workspace.resolve() == inside else workspace
