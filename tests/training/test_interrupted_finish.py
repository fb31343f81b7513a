"""Ctrl-C or a kill while a trained run is finished costs nothing: neither the folder nor the upload."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_run import train

from modeling_eem.training import RunTrainer, TrainingInterrupted, prepare_run


def test_a_kill_while_files_are_placed_leaves_a_folder_of_this_run(
    write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file after which the folder would look like a stranger's model is config.json."""
    placed: list[str] = []
    replace = Path.replace

    def stop_behind_config(path: Path, target: Path) -> Path:
        moved = replace(path, target)
        if path.parent.name == "finished.part" != target.parent.name:
            placed.append(path.name)
            if path.name == "config.json":
                raise KeyboardInterrupt
        return moved

    path = write_run("masked_mixer", save_strategy="no")
    with monkeypatch.context() as patched, pytest.raises(TrainingInterrupted):
        patched.setattr(Path, "replace", stop_behind_config)
        train(path)
    assert placed[:2] == ["trainer_state.json", "run.yaml"] and "complete.json" not in placed
    assert train(path).state.global_step == 2


def test_ctrl_c_in_an_upload_says_that_the_run_is_finished(
    write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pushed: list[Path] = []

    def push(_trainer: RunTrainer, folder: Path, _message: str) -> None:
        pushed.append(folder)
        if len(pushed) == 1:
            raise KeyboardInterrupt

    def no_hub(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(RunTrainer, "init_hf_repo", no_hub)
    monkeypatch.setattr(RunTrainer, "_push", push)
    path = write_run("masked_mixer", save_strategy="no", push_to_hub=True, hub_model_id="someone/tiny")
    with pytest.raises(TrainingInterrupted, match="out is finished, .*; the same command uploads it again"):
        train(path)
    assert prepare_run(path).is_finished
    train(path)
    assert pushed == [tmp_path / "out"] * 2
