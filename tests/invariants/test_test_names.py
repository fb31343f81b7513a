"""A test's name is a short sentence of what holds: `test_a_killed_process_holds_nothing`, not `test_config`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MODULES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py"))


def _names(scope: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Of the test functions of a module and of the methods of its classes, but not of functions inside others."""
    for node in scope.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node)


@pytest.mark.parametrize("module", MODULES)
def test_a_name_has_three_words_or_more(module: str) -> None:
    names = _names(ast.parse((TESTS / module).read_text(encoding="utf-8")))
    assert [name for name in names if len(name.removeprefix("test_").split("_")) < 3] == []
