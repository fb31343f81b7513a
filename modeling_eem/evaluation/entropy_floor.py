"""Language entropy by shrinking: the smallest embedding that tells a text completely.

Models with ever smaller codes are trained on the same text. What the code does not tell the decoder must still
predict, so that the cross-entropy falls as the code grows, and the size at which it reaches zero estimates the
entropy. An ideal model is on the line of slope -1 through the entropy; every real one is above it.
Source: Badger & Neligeorge 2025, language entropy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import linregress, t

from modeling_eem.bits import CodeLength, nats_to_bits
from modeling_eem.report import Table

LEAST_RUNS = 3


@dataclass(frozen=True)
class FloorPoint:
    """A run's held-out code length, as two parts of bits per byte."""

    name: str
    length: CodeLength

    @property
    def embedding(self) -> float:
        """Bits per byte of the code as it is stored."""
        return self.length.code_bits / self.length.num_bytes

    @property
    def cross_entropy(self) -> float:
        """Bits per byte that the decoder still needs."""
        return nats_to_bits(self.length.nll_nats) / self.length.num_bytes


@dataclass(frozen=True)
class EntropyFloor:
    """Where a straight line through the points meets zero.

    Attributes:
        crossing: bits per byte of embedding at which the line's cross-entropy is 0: the estimate of the entropy.
        low, high: Fieller's 95 % interval of the crossing; infinite where the slope is not told from 0.
        intercept, slope, r_squared: of the line, cross-entropy on embedding, least squares.
        used: names of the runs it goes through.
        smallest_total: the least bits per byte, all included, that any run needs: a bound that holds without a line.
        is_extrapolated: whether the crossing lies beyond the largest embedding that was tried.
    """

    crossing: float
    low: float
    high: float
    intercept: float
    slope: float
    r_squared: float
    used: Sequence[str]
    smallest_total: float
    is_extrapolated: bool


def fit_entropy_floor(points: Sequence[FloorPoint], zero: float = 0.01) -> EntropyFloor:
    """Fit the line through the runs whose cross-entropy is above `zero` bits per byte; past it the curve is flat.

    With a + b x the line and the residuals normal, the 95 % interval is all x for which a + b x is not told from 0:

        (a + b x)² ≤ t² Var(a + b x),    t the 97.5 % quantile with n - 2 degrees of freedom.

    Raises:
        ValueError: fewer than three runs above `zero`, embeddings that are all of one size, or a cross-entropy that
            does not fall.
    """
    used = [point for point in points if point.cross_entropy > zero]
    if len(used) < LEAST_RUNS:
        raise ValueError(
            f"{len(used)} of {len(points)} runs are above {zero} bits per byte of cross-entropy, and a line with an "
            f"interval needs {LEAST_RUNS}: add runs with smaller codes."
        )
    x, y = np.array([(point.embedding, point.cross_entropy) for point in used]).T
    if np.ptp(x) == 0:
        raise ValueError("all codes are of one size: add runs with other sizes.")
    line = linregress(x, y)
    if line.slope >= 0:
        raise ValueError("the cross-entropy does not fall as codes grow, so it meets no zero: train the runs longer.")
    crossing = float(-line.intercept / line.slope)
    low, high = _fieller(x, line)
    return EntropyFloor(
        crossing=crossing,
        low=low,
        high=high,
        intercept=float(line.intercept),
        slope=float(line.slope),
        r_squared=float(line.rvalue) ** 2,
        used=[point.name for point in used],
        smallest_total=min(point.length.bits_per_byte for point in points),
        is_extrapolated=crossing > max(point.embedding for point in points),
    )


def _fieller(x: np.ndarray, line: Any) -> tuple[float, float]:
    """Roots of (a + b x)² = t² Var(a + b x), a quadratic in x."""
    quantile = t.ppf(0.975, len(x) - 2)
    variance_b, variance_a = line.stderr**2, line.intercept_stderr**2
    covariance = -x.mean() * variance_b
    second = line.slope**2 - quantile**2 * variance_b
    first = 2 * (line.intercept * line.slope - quantile**2 * covariance)
    constant = line.intercept**2 - quantile**2 * variance_a
    if second <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(first**2 - 4 * second * constant, 0.0))
    return float((-first - root) / (2 * second)), float((-first + root) / (2 * second))


def floor_table(points: Sequence[FloorPoint], floor: EntropyFloor, known: float | None = None) -> Table:
    """A row a run, and what the line says below."""
    place = "beyond the largest embedding, so extrapolated" if floor.is_extrapolated else "within the embeddings tried"
    notes = [
        f"The line through {len(floor.used)} runs, {floor.intercept:.3f} {floor.slope:+.3f} · embedding (R² "
        f"{floor.r_squared:.3f}), meets zero at {floor.crossing:.3f} bits per byte "
        f"(95 %: {floor.low:.3f} … {floor.high:.3f}), {place}.",
        f"No run needs less than {floor.smallest_total:.3f} bits per byte in all, a bound from above without a line.",
    ]
    if known is not None:
        verdict = "inside" if floor.low <= known <= floor.high else "outside"
        notes.append(f"The source's true entropy is {known:.3f} bits per byte, {verdict} the interval.")
    return Table(
        columns=("run", "embedding", "cross-entropy", "in all", "in the fit"),
        rows=[
            (
                point.name,
                point.embedding,
                point.cross_entropy,
                point.length.bits_per_byte,
                "yes" if point.name in floor.used else "no",
            )
            for point in points
        ],
        title="Held-out bits per byte as the embedding shrinks",
        notes=notes,
    )
