"""The crossing of points whose entropy is known, and its interval against simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import t

from modeling_eem.bits import CodeLength
from modeling_eem.evaluation.entropy_floor import FloorPoint, fit_entropy_floor, floor_table, ideal_cross_entropy

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
    assert floor.smallest_total == pytest.approx(1.5) and floor.first_at_zero is None


def test_runs_past_the_floor_do_not_bend_the_line() -> None:
    points = [_point(size, max(1.5 - size, 0.004)) for size in (0.25, 0.5, 1.0, 2.0, 4.0)]
    floor = fit_entropy_floor(points)
    assert floor.used == ["0.25", "0.5", "1"] and floor.crossing == pytest.approx(1.5)
    assert not floor.is_extrapolated and floor.first_at_zero == 2.0 and not floor.levelled


def test_the_line_ends_where_the_curve_levels_off() -> None:
    sizes = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
    bent = [_point(size, 0.02 + math.log1p(math.exp(4 * (1.5 - size))) / 4) for size in sizes]
    floor = fit_entropy_floor(bent[::-1])
    assert floor.used == ["0.25", "0.5", "0.75", "1"] and floor.levelled == ["1.25", "1.5", "2", "3"]
    assert floor.crossing == pytest.approx(1.52, abs=0.06)
    cells = {row[0]: row[4] for row in floor_table(bent, floor).rows}
    assert list(cells) == ["0.25", "0.5", "0.75", "1", "1.25", "1.5", "2", "3"], "in order of size"
    assert [cells["1"], cells["1.25"]] == ["yes", "levels off"]


def test_noise_about_a_line_is_seldom_taken_for_a_bend() -> None:
    generator = np.random.default_rng(3)
    floors = [fit_entropy_floor(_noisy_points(generator, entropy=1.3)) for _ in range(1000)]
    assert np.mean([bool(floor.levelled) for floor in floors]) == pytest.approx(0.025, abs=0.015)


def test_runs_of_one_size_are_used_together() -> None:
    bend = {0.5: 1.0, 1.0: 0.55, 1.5: 0.3, 2.0: 0.2}
    points = [_point(size, loss + shift) for size, loss in bend.items() for shift in (-0.01, 0.01)]
    floor = fit_entropy_floor(points)
    assert len(floor.used) == 6 and floor.levelled == ["2", "2"]


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
        ([_point(1, 0.5), _point(2, 0.2), _point(3, 0.001)], "2 of 3 runs are above 0.01 .* 2 size"),
        ([_point(1, 0.5), _point(1, 0.4), _point(1, 0.3)], "codes of 1 size"),
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
    above = [row[5] for row in floor_table(points, floor, known=1.5).rows]
    assert above == pytest.approx([0.0, 0.02, -0.01], abs=1e-6)
    assert (ideal_cross_entropy(0.5, 1.5), ideal_cross_entropy(2.0, 1.5)) == (1.0, 0.0)


def test_the_table_says_which_way_the_crossing_errs() -> None:
    for slope, message in ((-0.5, "each bit saves one, of these 0.500"), (-1.4, "no code saves more than one")):
        points = [_point(size, 1.5 + slope * size) for size in (0.25, 0.5, 1.0)]
        assert message in floor_table(points, fit_entropy_floor(points)).notes[1]


def test_the_table_says_which_code_reaches_zero() -> None:
    points = [_point(size, max(1.5 - size, 0.0)) for size in (0.25, 0.5, 1.0, 2.0)]
    assert "leaves at most 0.01 bits per byte takes 2.000" in floor_table(points, fit_entropy_floor(points)).notes[2]
    assert "No run reaches 0.01" in floor_table(points[:3], fit_entropy_floor(points[:3])).notes[2]


def test_an_interval_that_is_none_is_said_to_be_none() -> None:
    points = [_point(1, 2.0), _point(2, 1.2), _point(3, 1.9)]
    assert "no 95 % interval" in floor_table(points, fit_entropy_floor(points)).notes[0]


@pytest.mark.parametrize("zero", [math.nan, math.inf, -0.1])
def test_a_zero_that_is_no_number_is_refused(zero: float) -> None:
    with pytest.raises(ValueError, match="zero must be a finite number"):
        fit_entropy_floor([_point(0.1 * i, 1 - 0.1 * i) for i in range(1, 6)], zero)
