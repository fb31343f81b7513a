"""Language entropy by shrinking: the smallest embedding that tells a text completely.

Models with ever smaller codes are trained on the same text. The decoder must predict whatever the code does not tell
it. So the cross-entropy falls as the code grows, and the size at which it reaches zero estimates the entropy. An ideal
model is on the line of slope -1 through the entropy: each bit of code saves one bit. A real model is above it, because
its codes say less than their bits could. A line of slope -s that begins at the entropy H meets zero at H / s, so the
crossing is an estimate from above: the flatter the line, the farther above.
Source: Badger & Neligeorge 2025, language entropy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from modeling_eem.bits import CodeLength, nats_to_bits
from modeling_eem.evaluation.straight_line import Line, straight_line
from modeling_eem.report import Table

LEAST_RUNS = 3


@dataclass(frozen=True)
class FloorPoint:
    """A run's held-out code length, split into parts in bits per byte."""

    name: str
    length: CodeLength

    @property
    def embedding(self) -> float:
        """Bits per byte of the code as it is stored."""
        return self.length.code_bits / self.length.num_bytes

    @property
    def cross_entropy(self) -> float:
        """Bits per byte that the decoder still needs to predict the text."""
        return nats_to_bits(self.length.nll_nats) / self.length.num_bytes

    @property
    def total(self) -> float:
        """Bits per byte of code, cross-entropy and side information."""
        return self.length.bits_per_byte


@dataclass(frozen=True)
class EntropyFloor:
    """Where a straight line through the points meets zero.

    Attributes:
        crossing: bits per byte of embedding at which the line's cross-entropy is 0: the estimate of the entropy.
        low, high: Fieller's 95 % interval of the crossing; infinite if the slope does not differ from 0.
        intercept, slope, r_squared: the least-squares line of cross-entropy on embedding.
        used: names of the runs that the line was fitted to.
        levelled: names of the runs above `zero` that were left out, because the curve levels off there.
        first_at_zero: bits per byte of embedding of the smallest code that reaches `zero`; None if no code does.
        zero: bits per byte of cross-entropy that count as none.
        smallest_total: the fewest bits per byte in all that any run needs: a bound that holds without a line.
        is_extrapolated: whether the crossing is beyond the largest embedding that was tried.
    """

    crossing: float
    low: float
    high: float
    intercept: float
    slope: float
    r_squared: float
    used: Sequence[str]
    levelled: Sequence[str]
    first_at_zero: float | None
    zero: float
    smallest_total: float
    is_extrapolated: bool


def fit_entropy_floor(points: Sequence[FloorPoint], zero: float = 0.01) -> EntropyFloor:
    """Fit a line to the smallest codes, as far as their points lie on one and are above `zero` bits per byte.

    At zero the curve is flat, and it levels off before: the last bits cost most. So the line is fitted to the smallest
    codes, as many as show no bend upwards (a quadratic term that differs from 0 at 5 %), but at least three.

    For the line a + b x and normal residuals, the 95 % interval holds all x where a + b x does not differ from 0:

        (a + b x)² ≤ t² Var(a + b x),    t the 97.5 % quantile with n - 2 degrees of freedom.

    Raises:
        ValueError: for a `zero` that is not a number, fewer than three sizes of code above it, or a cross-entropy that
            does not fall.
    """
    if not 0 <= zero < math.inf:
        raise ValueError(f"zero must be a finite number of bits per byte of at least 0, not {zero}.")
    above = sorted((point for point in points if point.cross_entropy > zero), key=lambda point: point.embedding)
    if len(sizes := {point.embedding for point in above}) < LEAST_RUNS:
        raise ValueError(
            f"{len(above)} of {len(points)} runs are above {zero} bits per byte of cross-entropy, with codes of "
            f"{len(sizes)} size(s); a line with an interval needs {LEAST_RUNS}: add runs with smaller codes."
        )
    used = _straight_part(above)
    line = straight_line(*_coordinates(used))
    if line.slope >= 0:
        raise ValueError("the cross-entropy does not fall as codes grow and never meets zero: train the runs longer.")
    crossing = float(-line.intercept / line.slope)
    low, high = _fieller(_coordinates(used)[0], line)
    at_zero = [point.embedding for point in points if point.cross_entropy <= zero]
    return EntropyFloor(
        crossing=crossing,
        low=low,
        high=high,
        intercept=float(line.intercept),
        slope=float(line.slope),
        r_squared=float(line.rvalue) ** 2,
        used=[point.name for point in used],
        levelled=[point.name for point in above if point not in used],
        first_at_zero=min(at_zero, default=None),
        zero=zero,
        smallest_total=min(point.total for point in points),
        is_extrapolated=crossing > max(point.embedding for point in points),
    )


def _coordinates(points: Sequence[FloorPoint]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and cross-entropies."""
    return np.array([point.embedding for point in points]), np.array([point.cross_entropy for point in points])


def _straight_part(points: Sequence[FloorPoint]) -> Sequence[FloorPoint]:
    """The first of `points`, sorted by size, that lie on one line; either all runs of a size or none."""
    sizes = sorted({point.embedding for point in points})
    for largest in reversed(sizes[LEAST_RUNS:]):
        some = [point for point in points if point.embedding <= largest]
        if not _levels_off(*_coordinates(some)):
            return some
    return [point for point in points if point.embedding <= sizes[LEAST_RUNS - 1]]


def _levels_off(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a parabola through the points opens upwards, with a quadratic term that differs from 0 at 5 %."""
    powers = np.vander((x - x.mean()) / np.ptp(x), 3)
    coefficients = np.linalg.lstsq(powers, y)[0]
    variance = np.square(y - powers @ coefficients).sum() / (len(x) - 3)
    spread = math.sqrt(variance * np.linalg.inv(powers.T @ powers)[0, 0])
    # Points exactly on a line differ from it by the rounding of floats, which is not a bend.
    return bool(coefficients[0] > max(t.ppf(0.975, len(x) - 3) * spread, 1e-9 * np.ptp(y)))


def _fieller(x: np.ndarray, line: Line) -> tuple[float, float]:
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
    """One table row a run, with the line's results below. With a known entropy, also each run's distance above it."""
    columns = ["run", "embedding", "cross-entropy", "in all", "in the fit"]
    rows: list[list[str | float]] = [
        [
            point.name,
            point.embedding,
            point.cross_entropy,
            point.total,
            "yes" if point.name in floor.used else "levels off" if point.name in floor.levelled else "at zero",
        ]
        for point in sorted(points, key=lambda point: point.embedding)
    ]
    if known is not None:
        columns.append("above the ideal line")
        for row, point in zip(rows, sorted(points, key=lambda point: point.embedding)):
            row.append(point.cross_entropy - ideal_cross_entropy(point.embedding, known))
    return Table(
        columns=columns,
        rows=rows,
        title="Held-out bits per byte as the embedding shrinks",
        notes=[*_line_notes(floor), *([] if known is None else _known_notes(floor, known))],
    )


def ideal_cross_entropy(embedding: float, entropy: float) -> float:
    """Bits per byte that the best code of `embedding` bits per byte leaves to predict: max(H - embedding, 0)."""
    return max(entropy - embedding, 0.0)


def _line_notes(floor: EntropyFloor) -> list[str]:
    place = "beyond the largest embedding, so extrapolated" if floor.is_extrapolated else "within the embeddings tried"
    if math.isinf(floor.low):
        interval = "no 95 % interval: the slope is not told from 0"
    else:
        interval = f"95 %: {floor.low:.3f} … {floor.high:.3f}, of the scatter about the line alone"
    reached = (
        f"No run reaches {floor.zero:g} bits per byte of cross-entropy"
        if floor.first_at_zero is None
        else f"The smallest code that leaves at most {floor.zero:g} bits per byte takes {floor.first_at_zero:.3f}"
    )
    if floor.slope > -1:
        meaning = (
            f"Of an ideal code each bit saves one, of these {-floor.slope:.3f}: they say less than their bits could, "
            "so that the crossing lies above the entropy."
        )
    else:
        meaning = (
            f"A bit of code saves {-floor.slope:.3f} by this line, and no code saves more than one: the smaller the "
            "code, the worse its model was trained, so that the crossing may lie below the entropy."
        )
    return [
        f"The line through {len(floor.used)} runs, {floor.intercept:.3f} {floor.slope:+.3f} · embedding (R² "
        f"{floor.r_squared:.3f}), meets zero at {floor.crossing:.3f} bits per byte ({interval}), {place}.",
        meaning,
        f"{reached}. No run needs less than {floor.smallest_total:.3f} in all, a bound from above without a line.",
    ]


def _known_notes(floor: EntropyFloor, known: float) -> list[str]:
    verdict = "inside" if floor.low <= known <= floor.high else "outside"
    return [
        f"The source's true entropy is {known:.3f} bits per byte, {verdict} the interval; the crossing is "
        f"{floor.crossing / known:.2f} times as much. The ideal line is max({known:.3f} - embedding, 0)."
    ]
