"""The products of a run are found, all of them, and replayed as they lay in memory."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from modeling_eem.models.mixing_masked_mixer import product


@pytest.fixture(scope="module")
def cases() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import limit_cases

        yield limit_cases


def test_products_are_found_with_their_layouts(cases: ModuleType) -> None:
    a, b, weight = torch.randn(4, 6), torch.randn(6, 8), torch.randn(10, 6)
    out = torch.zeros(4, 8)

    def run() -> None:
        torch.mm(a, b)
        torch.mm(a, b)
        out.addmm_(a[:, :3], b[:3])
        out.addmm_(a, b, beta=0)
        product(a, weight)

    found = {(tuple(one.a[0]), tuple(one.b[0]), one.adds): n for one, n in cases.products_of(run).items()}
    assert found == {
        ((4, 6), (6, 8), False): 3,  # an addition to nothing is none
        ((4, 3), (3, 8), True): 1,
        ((4, 6), (6, 10), False): 1,
    }
    (slice_,) = [one for one in cases.products_of(run) if one.adds]
    assert slice_.a[1] == (6, 1) and slice_.flops == 2 * 4 * 3 * 8 and slice_.least_seconds(2) > 0


def test_a_product_that_is_not_known_is_not_left_out(cases: ModuleType) -> None:
    a = torch.randn(2, 4, 4)
    with pytest.raises(AssertionError, match="0 FLOPs were found in products, 256 were run"):
        cases.products_of(lambda: torch.bmm(a, a))
