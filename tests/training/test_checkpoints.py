"""Runs that are interrupted: 10 steps are 5 and 5, torn checkpoints are skipped, other runs are refused."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_eem.training import RunTrainer, prepare_run
from modeling_eem.training.checkpoints import COMPLETE_FILE, rotate, torn

STEPS = {"max_steps": 10, "save_steps": 5, "logging_steps": 2, "eval_steps": 3}
MEASURED_TIME = ("runtime", "per_second", "train_loss")


def train(path: Path, *overrides: str) -> RunTrainer:
    trainer = RunTrainer(prepare_run(path, overrides))
    trainer.fit()
    trainer.finish()
    return trainer


def state(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint goes on from, and what was logged, without the time it took."""
    trainer_state = json.loads((checkpoint / "trainer_state.json").read_text())
    return {
        "weights": load_file(checkpoint / "model.safetensors"),
        **{
            name: torch.load(checkpoint / name, weights_only=False)
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "rng_state_1.pth")
            if (checkpoint / name).exists()
        },
        "log": [
            {name: value for name, value in entry.items() if not name.endswith(MEASURED_TIME)}
            for entry in trainer_state["log_history"]
        ],
    }


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_equal(one, other)
    else:
        assert np.array_equal(a, b)


@pytest.fixture(scope="module")
def trained(
    run_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The output of an uninterrupted run with checkpoints 5 and 10, and its values."""
    folder = tmp_path_factory.mktemp("trained")
    values = run_values(**STEPS, output_dir=str(folder / "out"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    train(folder / "tiny.yaml")
    yield folder / "out", values


@pytest.fixture
def again(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """A run file with a copy of that output, its values changed."""

    def write(**changes: Any) -> Path:
        output, values = trained
        shutil.copytree(output, tmp_path / "out", dirs_exist_ok=True)
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out"), **changes}))
        return path

    return write


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ten_steps_are_five_and_five(write_run: Callable[..., Path], tmp_path: Path, accumulation: int) -> None:
    """With noise, random prefixes, shuffling, more than one epoch, evaluation in between."""
    path = write_run(**STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)
    uninterrupted = train(path)
    assert uninterrupted.run.config.noise_scale and uninterrupted.run.collator.random_prefix_probability
    assert uninterrupted.state.epoch > 1
    whole = state(tmp_path / "out" / "checkpoint-10")
    shutil.rmtree(tmp_path / "out" / "checkpoint-10")
    resumed = train(path)
    assert resumed.run.checkpoint == tmp_path / "out" / "checkpoint-5"
    assert_equal(state(tmp_path / "out" / "checkpoint-10"), whole)

    shutil.rmtree(tmp_path / "out")
    train(path, "--save_steps", "10")
    assert_equal(state(tmp_path / "out" / "checkpoint-10")["weights"], whole["weights"])


@pytest.mark.parametrize("how", ["missing", "truncated"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", COMPLETE_FILE]
)
def test_a_torn_checkpoint_is_skipped(
    again: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    path = again()
    spoiled = tmp_path / "out" / "checkpoint-10" / name
    if how == "missing":
        spoiled.unlink()
    else:
        os.truncate(spoiled, spoiled.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        assert prepare_run(path).checkpoint == tmp_path / "out" / "checkpoint-5"
    assert "checkpoint-10" in caplog.text and name in caplog.text and "torn" in caplog.text


def test_without_a_whole_checkpoint_a_run_begins(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again()
    for step in (5, 10):
        (tmp_path / "out" / f"checkpoint-{step}" / COMPLETE_FILE).unlink()
    assert prepare_run(path).checkpoint is None


def test_what_resume_from_checkpoint_says(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again()
    five, ten = (tmp_path / "out" / f"checkpoint-{step}" for step in (5, 10))
    assert prepare_run(path).checkpoint == prepare_run(path, ["--resume_from_checkpoint", "true"]).checkpoint == ten
    assert prepare_run(path, ["--resume_from_checkpoint", str(five)]).checkpoint == five
    with pytest.raises(ValueError, match="checkpoint-10: choose another output_dir, or let the run resume"):
        prepare_run(path, ["--resume_from_checkpoint", "false"])
    elsewhere = ["--output_dir", str(tmp_path / "elsewhere")]
    assert prepare_run(path, [*elsewhere, "--resume_from_checkpoint", "false"]).checkpoint is None
    (five / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-5 lacks optimizer.pt; name a whole checkpoint"):
        prepare_run(path, ["--resume_from_checkpoint", str(five)])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 0.02}, "training.learning_rate was 0.01 and is 0.02"),
        ({"seed": 1}, "training.seed was 42 and is 1"),
        ({"token_loss": "focal"}, "training.token_loss was 'cross_entropy' and is 'focal'"),
        ({"noise_scale": 0.5}, "model.noise_scale was 0.0625 and is 0.5"),
        ({"random_prefix_probability": 0.0}, "model.random_prefix_probability was 0.5"),
        ({"rows": "stream"}, "data.rows was 'windows' and is 'stream'"),
    ],
)
def test_another_run_is_refused(again: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoint-10 belongs to another run: {message}"):
        prepare_run(again(**changes))


def test_other_text_under_the_same_name_is_refused(again: Callable[..., Path], tmp_path: Path, run_text: Path) -> None:
    shutil.copy(run_text / "train.jsonl", tmp_path / "train.jsonl")
    path = again(train_files=[str(tmp_path / "train.jsonl")], output_dir=str(tmp_path / "text"), save_steps=2)
    train(path, "--max_steps", "2")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(ValueError, match="belongs to another run: data.made_of"):
        prepare_run(path)


def test_a_run_may_go_on_longer(again: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"max_steps": 12, "save_steps": 6, "logging_steps": 1, "eval_steps": 4, "save_total_limit": 1}
    trainer = train(again(**changes))
    assert trainer.run.checkpoint == tmp_path / "out" / "checkpoint-10" and trainer.state.global_step == 12
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-12"]


def test_a_finished_run_is_not_trained_further(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again()
    before = state(tmp_path / "out" / "checkpoint-10")
    for name in ("model.safetensors", "README.md"):
        (tmp_path / "out" / name).unlink()
    trainer = train(path)
    assert trainer.state.global_step == 10
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), before["weights"])
    assert (tmp_path / "out" / "README.md").is_file()


def test_rotation_never_counts_a_torn_checkpoint(again: Callable[..., Path], tmp_path: Path) -> None:
    again()
    (tmp_path / "out" / "checkpoint-10" / "optimizer.pt").unlink()
    rotate(tmp_path / "out", limit=1, best=None)
    assert torn(tmp_path / "out" / "checkpoint-5") is None


# A process that is killed while it writes: half of the optimizer's state of step 6 is on disk.
KILLED = """
import os, signal, sys, torch
from modeling_eem.training import RunTrainer, prepare_run
whole_save = torch.save
def save(value, path, *args, **kwargs):
    whole_save(value, path, *args, **kwargs)
    if path.endswith(os.path.join("checkpoint-6", "optimizer.pt")):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
trainer = RunTrainer(prepare_run(sys.argv[1]))
trainer.fit()
"""


@pytest.mark.slow
def test_a_kill_costs_the_steps_since_the_last_checkpoint(
    trained: tuple[Path, dict[str, Any]], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_run(**STEPS | {"save_steps": 3})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=tmp_path, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "checkpoint-6" / "model.safetensors").exists()
    resumed = train(path)
    assert resumed.run.checkpoint == tmp_path / "out" / "checkpoint-3"
    assert torn(tmp_path / "out" / "checkpoint-6") is None
    assert_equal(state(tmp_path / "out" / "checkpoint-10")["weights"], state(trained[0] / "checkpoint-10")["weights"])
    assert_equal(
        state(tmp_path / "out" / "checkpoint-10")["optimizer.pt"], state(trained[0] / "checkpoint-10")["optimizer.pt"]
    )


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(write_run: Callable[..., Path], tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = write_run(**STEPS, per_device_train_batch_size=2)

    def launch() -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*torchrun, str(root / "train.py"), "--config", str(path)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=500,
        )
        assert done.returncode == 0

    launch()
    whole = state(tmp_path / "out" / "checkpoint-10")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= whole.keys()
    assert not torch.equal(whole["rng_state_0.pth"]["cpu"], whole["rng_state_1.pth"]["cpu"])
    shutil.rmtree(tmp_path / "out" / "checkpoint-10")
    launch()
    assert_equal(state(tmp_path / "out" / "checkpoint-10"), whole)
