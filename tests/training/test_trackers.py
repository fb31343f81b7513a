"""What W&B, trackio and TensorBoard get by `report_to`, without a network."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_run import train


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(write_run("masked_mixer", report_to="wandb", run_name="tiny"))
    assert wandb.run is not None
    summary: Any = wandb.run.summary
    assert summary["train/global_step"] == 2 and 0 < summary["eval/bits_per_byte"] < 20
    wandb.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert kept.stat().st_size > 0


@pytest.mark.slow
def test_trackio_keeps_a_local_run(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at its import
    pytest.importorskip("trackio")
    train(write_run("masked_mixer", report_to="trackio", run_name="tiny", project="tiny"))  # it ends its run itself
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = " ".join(str(row) for row in connection.execute("select metrics from metrics"))
    assert "bits_per_byte" in logged and "loss" in logged
