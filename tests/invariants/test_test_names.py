"""A test's name is a short sentence of what holds: `test_a_killed_process_holds_nothing`, not `test_config`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MODULES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py"))


def _names(path: Path) -> Iterator[str]:
    """Of all test functions and methods of a module, those that override one of transformers' suites too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


@pytest.mark.parametrize("module", MODULES)
def test_a_name_has_three_words_or_more(module: str) -> None:
    short = [name for name in _names(TESTS / module) if len(name.removeprefix("test_").split("_")) < 3]
    assert short == [], "what does each of these check?"
