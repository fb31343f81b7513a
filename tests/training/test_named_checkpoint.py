"""A run that is told which checkpoint to resume from keeps that one, and what else its output_dir holds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerCallback
from whole_run import train

from modeling_eem.training import RunTrainer, TrainingInterrupted, prepare_run
from modeling_eem.training.checkpoints import mark_complete


class StopAt(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def kept(output: Path) -> set[str]:
    return {path.name for path in output.glob("checkpoint-*")}


def stopped(path: Path, step: int, *overrides: str) -> str:
    """What Ctrl-C after a step says."""
    with pytest.raises(TrainingInterrupted) as error:
        RunTrainer(prepare_run(path, overrides), [StopAt(step)]).fit()
    return str(error.value)


def test_the_named_checkpoint_stays_and_the_newest_is_told(again: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    path = again(max_steps=12, save_steps=1, save_total_limit=1)
    words = ["--resume_from_checkpoint", str(output / "checkpoint-5")]
    told = stopped(path, 8, *words)
    assert told == (
        f"stopped at step 8; to go on from there, change resume_from_checkpoint to {output / 'checkpoint-8'}."
    )
    assert kept(output) == {"checkpoint-5", "checkpoint-8", "checkpoint-10"}
    assert train(path, *words).state.global_step == 12
    assert kept(output) == {"checkpoint-5", "checkpoint-12"}


def test_a_run_that_shall_begin_says_how_to_go_on(again: Callable[..., Path], tmp_path: Path) -> None:
    """`false` is refused once there are checkpoints."""
    output = str(tmp_path / "new")
    told = stopped(again(save_steps=1), 2, "--output_dir", output, "--resume_from_checkpoint", "false")
    assert told.endswith(f"change resume_from_checkpoint to {output}/checkpoint-2.")


def test_another_runs_checkpoints_are_not_rotated_away(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again(save_total_limit=1)
    shutil.copytree(tmp_path / "out" / "checkpoint-5", tmp_path / "mine" / "checkpoint-5")
    other = tmp_path / "out" / "checkpoint-10"
    record = yaml.safe_load((other / "run.yaml").read_text())
    record["training"]["seed"] = 7
    (other / "run.yaml").write_text(yaml.safe_dump(record))
    mark_complete(other)
    with pytest.raises(ValueError, match="checkpoint-10 belongs to another run: training.seed was 7 and is 42"):
        prepare_run(path, ["--resume_from_checkpoint", str(tmp_path / "mine" / "checkpoint-5")])
