"""eem evaluate curves from runs of `eem train` to a plot and tables."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from eem.evaluate import app


def _run(folder: Path, losses: list[float], code_bits: int) -> Path:
    """What `eem train` leaves of a run, as far as curves read it."""
    folder.mkdir()
    results = {"rows_per_step": 8, "max_length": 32, "code_bits_per_row": code_bits}
    history = [{"step": 10 * (index + 1), "eval_cross_entropy": loss} for index, loss in enumerate(losses)]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": history[-1]["step"], "log_history": history})
    )
    return folder


def test_plot_tables_and_numbers(tmp_path: Path) -> None:
    causal = _run(tmp_path / "causal", [5.0, 4.5, 4.2, 4.0], 0)
    eem = _run(tmp_path / "eem", [5.0, 4.0, 3.0, 2.0], 32)
    arguments = ["curves", str(causal), str(eem), "--reach", "4.4", "1.0", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "curves.json").read_text())
    offset = math.log(2)
    assert written["runs"]["eem"]["points"] == [[2560 * k, pytest.approx(6 - k + offset)] for k in (1, 2, 3, 4)]
    assert written["runs"]["eem"]["fits"]["linear"]["r_squared"] == pytest.approx(1)
    assert written["differences"]["eem less causal"][0] == [2560, pytest.approx(offset)]
    assert [(row["loss"], row["run"]) for row in written["reached"]] == [
        (loss, run) for loss in (4.4, 1.0) for run in ("causal", "eem")
    ]
    assert written["reached"][0]["samples"] == pytest.approx(written["reached"][0]["tokens"] / 32)
    assert written["reached"][2]["tokens"] is None, "never reached"
    assert "curves.png" in (tmp_path / "out" / "curves.md").read_text()
    with Image.open(tmp_path / "out" / "curves.png") as image:
        assert image.format == "PNG" and image.size[0] == 1280


def test_one_run_is_enough(tmp_path: Path) -> None:
    run = _run(tmp_path / "causal", [5.0, 4.5, 4.2], 0)
    assert CliRunner().invoke(app, ["curves", str(run), "--output", str(tmp_path / "out")]).exit_code == 0


@pytest.mark.parametrize(
    "names, message", [(["none"], "not an output folder of eem train"), (["a", "b/a"], "the same name")]
)
def test_bad_input_is_one_line(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/a"):
        _run(tmp_path / name, [5.0, 4.5, 4.2], 0)
    arguments = ["curves", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_more_runs_than_colours_and_losses_without_end_are_refused_at_once(tmp_path: Path) -> None:
    folders = [str(_run(tmp_path / f"run-{number}", [5.0, 4.5, 4.2], 0)) for number in range(8)]
    for given, message in ((folders, "a plot holds 7 runs, not 8"), ([folders[0], "--reach", "nan"], "finite losses")):
        result = CliRunner().invoke(app, ["curves", *given, "--output", str(tmp_path / "out")])
        assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()
