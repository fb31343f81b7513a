"""Bootstrap intervals of ratios, such as bits per byte, over documents drawn with replacement; Holm's correction.

Arrays are `[D]`, one number a document. Whole documents are drawn because a document's tokens are not independent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from modeling_eem.report import readable

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the bootstrap's values; NaN for a single document."""

    low: float
    high: float

    def text(self, spec: str = ".3f") -> str:
        """The interval as text, for a table's cell."""
        return "–" if math.isnan(self.low) else f"{readable(self.low, spec)} … {readable(self.high, spec)}"


def ratio_interval(numerators_D: NDArray, denominators_D: NDArray) -> Interval:
    """The interval of Σ numerators / Σ denominators."""
    return _interval(_ratio, numerators_D, denominators_D)


def ratio_difference(
    numerators_D: NDArray, denominators_D: NDArray, other_numerators_D: NDArray, other_denominators_D: NDArray
) -> tuple[float, Interval]:
    """Σ numerators / Σ denominators minus the other's, and its interval: the same documents are drawn for both."""

    def statistic(*columns_D: NDArray, axis: int = -1) -> NDArray:
        return _ratio(*columns_D[:2], axis=axis) - _ratio(*columns_D[2:], axis=axis)

    columns_D = numerators_D, denominators_D, other_numerators_D, other_denominators_D
    return float(statistic(*columns_D)), _interval(statistic, *columns_D)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: `max over the smaller ones of (number not smaller) · p`, at most 1.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _ratio(numerators_D: NDArray, denominators_D: NDArray, axis: int = -1) -> NDArray:
    return numerators_D.sum(axis) / denominators_D.sum(axis)


def _interval(statistic: Callable[..., NDArray], *columns_D: NDArray) -> Interval:
    if len(columns_D[0]) < 2:
        return Interval(math.nan, math.nan)
    # Plain percentiles: correcting their bias would cost the square of the documents.
    result = bootstrap(
        columns_D,
        statistic,
        n_resamples=_RESAMPLES,
        batch=64,
        vectorized=True,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))
