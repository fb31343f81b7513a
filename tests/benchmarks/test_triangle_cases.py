"""All ways of multiplying a triangle that the benchmark compares give the same triangle."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def cases() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import triangle_cases

        yield triangle_cases


@pytest.mark.parametrize("way", ["by_columns", "by_rows", "by_halves", "whole"])
@pytest.mark.parametrize("kind", ["W x", "W^T g", "g x^T"])
def test_every_way_gives_the_same_triangle(cases: ModuleType, way: str, kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(256, 256).tril()
    x, grad = torch.randn(2, 256, 8)
    expected = {"W x": weight @ x, "W^T g": weight.T @ grad, "g x^T": (grad @ x.T).tril()}[kind]
    found = getattr(cases, way)(weight, x, grad, torch.zeros_like(expected), kind)
    if kind == "g x^T":  # blocks on the diagonal and the square hold more
        found = found.tril()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
