"""What holds the house together: sizes, strata, pins, and an import path without the repository root."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "modeling_eem"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
LAYERS = [
    [module.strip(" ()") for module in layer.split(":")] for layer in CONTRACTS["strata look down only"]["layers"]
]
MODEL_FILES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "bits"))


def _python_files() -> Iterator[Path]:
    yield from ROOT.glob("*.py")
    for folder in ("modeling_eem", "tests", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


def test_no_file_is_two_files() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _python_files()}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def test_every_module_has_its_stratum() -> None:
    assert LAYERS[:-1] == [[name] for name in ["cli", "evaluation", "training", "entropy", "data", "report", "bits"]]
    assert set(MODEL_FILES) <= set(LAYERS[-1]), "name every model file in the lowest layer of pyproject.toml"
    assert CONTRACTS["strata look down only"]["exhaustive"]
    alone = {name.removeprefix("modeling_eem.") for name in CONTRACTS["models stand alone"]["source_modules"]}
    assert alone <= set(MODEL_FILES)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(leading dots, module) of every import in a file, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_travel(name: str) -> None:
    """The Hub copies only `from .x import Y`: one dot, a name after it, no folder."""
    for dots, module in _imports(PACKAGE / f"{name}.py"):
        assert dots or module.split(".")[0] != "modeling_eem", f"{name} imports {module} from the installed package"
        assert not dots or (dots == 1 and module in MODEL_FILES), f"{name} imports {'.' * dots}{module}"


def test_every_dependency_is_pinned_inside_its_range() -> None:
    project = PYPROJECT["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not in {requirement.specifier}"


def test_the_evaluate_library_is_not_hidden() -> None:
    """evaluate.py at the top of the tree would shadow the library that lm-eval imports."""
    import evaluate

    assert Path(evaluate.__file__).parent != ROOT and callable(evaluate.load)
    folders = {Path(folder).resolve() for folder in sys.path}
    assert ROOT not in folders, "the repository root is on sys.path: run the `pytest` command, not `python -m pytest`"
