"""What holds the house together: sizes, strata, pins, declared imports, and the copies of what ships."""

import ast
import filecmp
import re
import subprocess
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
PROJECT = PYPROJECT["project"]
CONTRACTS = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
MODEL_FILES = sorted(path.stem for path in (PACKAGE / "models").glob("*.py") if path.stem != "__init__")

# Top-level modules by the requirement that brings them, where the names differ or a declared package brings another.
BROUGHT_BY = {
    "deepspeed": "accelerate",  # only below its launcher, which needs it
    "filelock": "huggingface-hub",
    "fsspec": "datasets",
    "llvmlite": "numba",
    "lm_eval": "lm-eval",
    "loguru": "datatrove",
    "multiprocess": "datasets",
    "nltk": "lm-eval",
    "sklearn": "lm-eval",
    "starlette": "gradio",
    "triton": "torch",  # for a GPU
    "yaml": "pyyaml",
}


def _python_files() -> Iterator[Path]:
    yield from ROOT.glob("*.py")
    for folder in ("eem", "modeling_eem", "tests", "benchmarks", "studies"):
        yield from (ROOT / folder).rglob("*.py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(leading dots, module) of every import in a file, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


def test_no_file_is_two_files() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _python_files()}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def test_models_call_nothing_private_of_a_library() -> None:
    """A checkpoint carries these files: what a library renames would break it, beyond our mending."""
    known = {"_get_resized_embeddings"}  # transformers has no public way to resize a second table
    nodes = [node for path in (PACKAGE / "models").glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    ours |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    ours |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name for name in used if re.match("_[^_]", name)} - ours == known


def test_every_module_has_its_stratum() -> None:
    layers = CONTRACTS["strata look down only"]["layers"]
    named = {name.strip(" ()") for layer in layers for name in layer.split(":")}
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {"eem", *(f"modeling_eem.{name}" for name in modules - {"__init__"})} <= named


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_import_only_what_travels_with_them(name: str) -> None:
    """The Hub copies only `from .x import Y`: one dot, a name after it, no folder."""
    for dots, module in _imports(PACKAGE / "models" / f"{name}.py"):
        assert dots or module.split(".")[0] != "modeling_eem", f"{name} imports {module} from the installed package"
        assert not dots or (dots == 1 and module in MODEL_FILES), f"{name} imports {'.' * dots}{module}"


def _requirements(texts: list[str]) -> Iterator[Requirement]:
    """Requirements, those of our own extras in place of `modeling-eem[…]`."""
    for text in texts:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from _requirements(PROJECT["optional-dependencies"][extra])
        else:
            yield requirement


def test_every_dependency_is_pinned_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for requirement in _requirements([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not in {requirement.specifier}"


def test_every_import_is_declared() -> None:
    """A library that the package imports comes with `pip install modeling-eem`, or with an extra that says so."""
    from eem.console import EXTRAS

    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "eem").rglob("*.py")]:
        for dots, module in _imports(path):
            name = module.split(".")[0]
            if dots or name in sys.stdlib_module_names or name in ("eem", "modeling_eem"):
                continue
            brings = canonicalize_name(BROUGHT_BY.get(name, name))
            assert brings in core or name in EXTRAS or brings in EXTRAS, f"{path}: nothing declared brings {name}"


def test_extras_that_errors_name_exist() -> None:
    from eem.console import EXTRAS

    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    for library in ("datatrove", "gradio", "nltk", "peft", "ray", "tensorboard"):
        assert any(text.startswith(library) for text in extras[EXTRAS[library]])


def test_the_evaluate_library_is_not_hidden() -> None:
    """evaluate.py at the top of the tree has the name of the library that lm-eval imports."""
    code = "import evaluate; print(evaluate.load, evaluate.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "function load" in done.stdout and str(ROOT / "evaluate.py") not in done.stdout


def test_the_tokenizer_at_the_root_is_the_one_that_ships() -> None:
    files = sorted(path.name for path in (PACKAGE / "assets/tokenizer").iterdir())
    assert files
    assert filecmp.cmpfiles(PACKAGE / "assets/tokenizer", ROOT / "tokenizer", files, shallow=False)[0] == files


def test_everything_that_ships_is_package_data() -> None:
    """setuptools leaves out what no pattern names."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["modeling_eem"]
    listed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    shipped = {path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert {path for path in shipped - listed if path.suffix != ".py"} == set()


def test_nothing_but_the_root_scripts_changes_where_modules_are_found() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "eem").rglob("*.py")]:
        assert not re.search(r"sys\.path\b", path.read_text()), path
