"""The crossing of points whose entropy is known, and its interval against simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import t

from modeling_eem.bits import CodeLength
from modeling_eem.evaluation.entropy_floor import FloorPoint, fit_entropy_floor, floor_table

NUM_BYTES = 1000


def _point(embedding: float, cross_entropy: float) -> FloorPoint:
    nats = cross_entropy * math.log(2) * NUM_BYTES
    length = CodeLength(nll_nats=nats, code_bits=embedding * NUM_BYTES, num_bytes=NUM_BYTES, num_tokens=NUM_BYTES)
    return FloorPoint(f"{embedding:g}", length)


def _noisy_points(generator: np.random.Generator, entropy: float, slope: float = -0.8) -> list[FloorPoint]:
    sizes = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    losses = slope * (sizes - entropy) + generator.normal(0, 0.02, len(sizes))
    return [_point(size, loss) for size, loss in zip(sizes, losses)]


def test_points_on_a_line_cross_where_it_does() -> None:
    points = [_point(size, 1.5 - size) for size in (0.25, 0.5, 1.0, 1.25)]
    floor = fit_entropy_floor(points)
    assert floor.crossing == pytest.approx(1.5) and floor.slope == pytest.approx(-1) and floor.is_extrapolated
    assert (floor.low, floor.high) == (pytest.approx(1.5), pytest.approx(1.5)) and floor.r_squared == pytest.approx(1)
    assert floor.smallest_total == pytest.approx(1.5)


def test_runs_past_the_floor_do_not_bend_the_line() -> None:
    points = [_point(size, max(1.5 - size, 0.004)) for size in (0.25, 0.5, 1.0, 2.0, 4.0)]
    floor = fit_entropy_floor(points)
    assert floor.used == ["0.25", "0.5", "1"] and floor.crossing == pytest.approx(1.5)
    assert not floor.is_extrapolated
    assert fit_entropy_floor(points, zero=0.0).crossing > 1.7, "with them in, the line would be another"


def test_the_interval_holds_the_crossing_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(0)
    floors = [fit_entropy_floor(_noisy_points(generator, entropy=1.3)) for _ in range(2000)]
    hits = np.mean([floor.low <= 1.3 <= floor.high for floor in floors])
    assert 0.935 < hits < 0.965
    assert np.median([floor.crossing for floor in floors]) == pytest.approx(1.3, abs=0.01)


def test_the_interval_s_ends_solve_fieller_s_equation() -> None:
    points = _noisy_points(np.random.default_rng(1), entropy=1.3)
    floor = fit_entropy_floor(points)
    x, y = np.array([(point.embedding, point.cross_entropy) for point in points]).T
    residuals = y - floor.intercept - floor.slope * x
    variance = (residuals**2).sum() / (len(x) - 2)

    def excess(at: float) -> float:
        spread = variance * (1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        return (floor.intercept + floor.slope * at) ** 2 - t.ppf(0.975, len(x) - 2) ** 2 * spread

    assert floor.low == pytest.approx(brentq(excess, floor.crossing - 1, floor.crossing))
    assert floor.high == pytest.approx(brentq(excess, floor.crossing, floor.crossing + 1))


def test_a_slope_that_may_be_zero_has_no_interval() -> None:
    floor = fit_entropy_floor([_point(1, 2.0), _point(2, 1.2), _point(3, 1.9)])
    assert (floor.low, floor.high) == (-math.inf, math.inf)


def test_what_no_line_fits_is_refused() -> None:
    for points, message in [
        ([_point(1, 0.5), _point(2, 0.2), _point(3, 0.001)], "2 of 3 runs are above 0.01"),
        ([_point(1, 0.5), _point(1, 0.4), _point(1, 0.3)], "all codes are of one size"),
        ([_point(1, 0.5), _point(2, 0.6), _point(3, 0.7)], "does not fall"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_entropy_floor(points)


def test_the_table_says_whether_the_truth_is_inside() -> None:
    points = [_point(size, 1.5 - size + bend) for size, bend in ((0.25, 0.0), (0.5, 0.02), (1.0, -0.01))]
    floor = fit_entropy_floor(points)
    assert ", inside the interval" in floor_table(points, floor, known=floor.crossing).notes[-1]
    assert ", outside the interval" in floor_table(points, floor, known=floor.high + 0.1).notes[-1]
    assert [row[4] for row in floor_table(points, floor).rows] == ["yes"] * 3
