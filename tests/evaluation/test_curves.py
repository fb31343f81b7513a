"""Curves of known lines: fits, differences, what is needed to reach a loss; and the files they are read from."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.evaluation.curves import RunCurve, common_loss, curves_table, reach_table, read_run_curve

TOKENS = [1000.0, 2000.0, 4000.0, 8000.0, 16000.0]


def _curve(losses: list[float], name: str = "run", tokens: list[float] = TOKENS) -> RunCurve:
    return RunCurve(name, 100, list(zip(tokens, losses)))


def test_a_line_and_a_logarithm_are_found_again() -> None:
    straight = _curve([5 - 1e-4 * tokens for tokens in TOKENS])
    linear, log_linear = straight.fits
    assert (linear.intercept, linear.slope, linear.r_squared) == (pytest.approx(5), pytest.approx(-1e-4), 1)
    assert log_linear.r_squared < 0.9
    bent = _curve([9 - 0.5 * math.log(tokens) for tokens in TOKENS])
    linear, log_linear = bent.fits
    assert (log_linear.intercept, log_linear.slope) == (pytest.approx(9), pytest.approx(-0.5))
    assert log_linear.r_squared == pytest.approx(1) and linear.r_squared < 0.9


def test_fits_say_where_they_reach_a_loss() -> None:
    for losses in ([5 - 1e-4 * tokens for tokens in TOKENS], [9 - 0.5 * math.log(tokens) for tokens in TOKENS]):
        for fit in _curve(losses).fits:
            assert fit.loss(fit.tokens(4.2)) == pytest.approx(4.2)
    assert all(math.isnan(fit.tokens(1.0)) for fit in _curve([3.0, 3.1, 3.2, 3.3, 3.4]).fits), "they do not fall"
    assert math.isinf(_curve([3 - 1e-4 * math.log(tokens) for tokens in TOKENS]).fits[1].tokens(1.0))


def test_a_line_that_began_lower_never_had_a_loss() -> None:
    """Not so many tokens below zero."""
    linear, log_linear = _curve([5 - 1e-4 * tokens for tokens in TOKENS]).fits
    assert math.isnan(linear.tokens(6.0)) and log_linear.tokens(6.0) > 0


@pytest.mark.parametrize(
    "loss, tokens", [(5.0, 1000), (4.5, 1500), (4.0, 2000), (3.5, 3000), (3.0, 4000), (6.0, 1000), (2.9, math.nan)]
)
def test_tokens_to_reach_lie_between_measurements(loss: float, tokens: float) -> None:
    curve = _curve([5.0, 4.0, 3.0, 3.0, 3.5])
    assert curve.tokens_to_reach(loss) == pytest.approx(tokens, nan_ok=True)


def test_differences_are_taken_where_both_were_measured() -> None:
    first = _curve([4.0, 3.0], tokens=[1000.0, 3000.0])
    second = _curve([3.0, 2.0, 1.0], tokens=[500.0, 2000.0, 9000.0])
    assert second.less(first) == [
        (1000.0, pytest.approx(3 - 1 / 3 - 4.0)),
        (2000.0, pytest.approx(2.0 - 3.5)),
        (3000.0, pytest.approx(2 - 1 / 7 - 3.0)),
    ]
    with pytest.raises(ValueError, match="measured at different tokens"):
        first.less(_curve([1.0, 1.0], tokens=[5000.0, 6000.0]))


def test_curves_are_tabled_with_what_reaches_a_loss() -> None:
    curves = [_curve([5.0, 4.0, 3.0, 2.5, 2.0], "a"), _curve([5.0, 4.5, 4.0, 3.5, 3.0], "b")]
    assert common_loss(curves) == 3.0
    assert len(curves_table(curves).rows) == 4
    first, second = reach_table(curves, [3.0]).rows
    assert first[:4] == (3.0, "a", 4000.0, 40.0) and second[:4] == (3.0, "b", 16000.0, 160.0)


def _write(folder: Path, measured: dict[int, float], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    results = {"rows_per_step": 8, "max_length": 32, "code_bits_per_row": 64, **changes}
    history = [{"step": step, "eval_cross_entropy": loss} for step, loss in measured.items()]
    state: dict[str, Any] = {"global_step": max(measured, default=0)}
    state["log_history"] = [{"step": 0, "eval_cross_entropy": 9.0}, {"step": 10, "loss": 3.0}, *history]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_a_run_is_read_with_its_code_s_bits(tmp_path: Path) -> None:
    curve = read_run_curve(_write(tmp_path / "eem", {10: 3.0, 20: 2.5, 30: 2.0}))
    offset = 64 * math.log(2) / 32
    assert curve.name == "eem" and curve.max_length == 32
    assert curve.points == [
        (step * 8 * 32, pytest.approx(loss + offset)) for step, loss in zip((10, 20, 30), (3, 2.5, 2))
    ]


def test_a_run_under_way_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (90, 100):
        _write(run / f"checkpoint-{step}", {1: 3.0, 2: 2.5, step: 2.0})
    assert read_run_curve(run).points[-1][0] == 100 * 8 * 32 and read_run_curve(run).name == "run"


def test_a_lengthened_run_under_way_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Its own folder still holds what the shorter run ended with."""
    run = _write(tmp_path / "run", {10: 3.0, 20: 2.5, 30: 2.0})
    for step in (30, 60):
        _write(run / f"checkpoint-{step}", {10: 3.0, 20: 2.5, step: 1.0})
    assert read_run_curve(run).points[-1][0] == 60 * 8 * 32
    (run / "checkpoint-60" / "results.json").unlink()
    assert read_run_curve(run).points[-1][1] > 2.0, "of equals the run's own folder is read"


def test_tokens_are_those_that_the_run_counted(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", {})
    history = [{"step": s, "eval_cross_entropy": 3.0, "num_input_tokens_seen": 200 * s} for s in (1, 2, 3)]
    (run / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": history}))
    assert [tokens for tokens, _ in read_run_curve(run).points] == [200, 400, 600]


@pytest.mark.parametrize("name", ["results.json", "trainer_state.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", "{", "3", '{"log_history": [3], "rows_per_step": "x"}', '{"rows_per_step": 1}']
)
def test_damaged_files_of_a_run_are_named(tmp_path: Path, name: str, content: str) -> None:
    run = _write(tmp_path / "run", {1: 3.0, 2: 2.5, 3: 2.0})
    (run / name).write_text(content)
    (run / "checkpoint-old").mkdir()
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_run_curve(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder, message in [
        (tmp_path, "not an output folder of eem train"),
        (_write(tmp_path / "short", {1: 3.0, 2: 2.5}), "was measured 2 times"),
        (_write(tmp_path / "unsettled", {1: 3.0}, code_bits_per_row=None), "set code_dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_run_curve(folder)


def test_a_measurement_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", {10: 5.0, 20: math.nan, 30: 4.0, 40: 3.9, 50: math.inf})
    curve = read_run_curve(run)
    assert [tokens for tokens, _ in curve.points] == [step * 8 * 32 for step in (10, 30, 40)]
    assert curve.tokens_to_reach(curve.points[1][1]) == 30 * 8 * 32
