"""Levels and prices of codes: known optima, and prices against Shannon's bound."""

from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rates() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "studies" / "speaking")
        import rates

        yield rates


def test_levels_of_known_densities(rates: ModuleType) -> None:
    """Max (1960): a uniform density has equal steps; a normal one ±0.7979 at one bit, ±0.4528 and ±1.510 at two."""
    uniform = (np.arange(100_000) + 0.5) / 100_000
    np.testing.assert_allclose(rates.lloyd_max(uniform, 4), [0.125, 0.375, 0.625, 0.875], atol=1e-3)
    normal = np.array([NormalDist().inv_cdf(share) for share in uniform])
    np.testing.assert_allclose(rates.lloyd_max(normal, 2), [-0.7979, 0.7979], atol=5e-3)
    np.testing.assert_allclose(rates.lloyd_max(normal, 4), [-1.510, -0.4528, 0.4528, 1.510], atol=2e-3)


def test_a_price_is_the_entropy_of_the_levels(rates: ModuleType) -> None:
    draws = np.random.default_rng(0)
    skewed = (draws.random((50_000, 2)) < 0.11).astype(np.float32)
    levels, bits = rates.rounded(skewed, skewed, 1)
    np.testing.assert_allclose(levels, skewed, atol=0.2)
    shares = skewed.mean(0, dtype=np.float64)
    entropy = -(shares * np.log2(shares) + (1 - shares) * np.log2(1 - shares)).sum()
    assert bits == pytest.approx(entropy, abs=1e-4) and 0.98 < entropy < 1.02
    codes = draws.standard_normal((50_000, 3)).astype(np.float32)
    for number in (1, 2, 4):
        levels, bits = rates.rounded(codes, codes, number)
        assert bits <= 3 * number + 0.01
        assert all(len(np.unique(levels[:, column])) <= 2**number for column in range(3))
