"""Runs that are interrupted: 10 steps are 5 and 5, torn checkpoints are skipped, other runs are refused."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from whole_run import train

from modeling_eem.training import RunTrainer, TrainingInterrupted, prepare_run
from modeling_eem.training.checkpoints import COMPLETE_FILE, mark_complete, rotate, torn

ROOT = Path(__file__).parents[2]
STEPS = {"max_steps": 10, "save_steps": 5, "logging_steps": 2, "eval_steps": 3}
MEASURED_TIME = ("runtime", "per_second")


def interrupt(output: Path, without: str | None = None) -> None:
    """As a kill would leave it: without the finished model, and without a checkpoint that was not reached."""
    for path in output.iterdir():
        if path.is_file():
            path.unlink()
    if without is not None:
        shutil.rmtree(output / without)


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


@pytest.mark.parametrize("accumulation, token_loss", [(1, "cross_entropy"), (2, "cross_entropy"), (2, "mile")])
def test_ten_steps_are_five_and_five(
    write_run: Callable[..., Path], tmp_path: Path, accumulation: int, token_loss: str
) -> None:
    """With noise, random prefixes, shuffling, more than one epoch, evaluation in between; and with weights that are
    averaged before the step's first batch."""
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    path = write_run(**STEPS, **cut, token_loss=token_loss)
    uninterrupted = train(path)
    assert uninterrupted.run.config.noise_scale and uninterrupted.run.collator.random_prefix_probability
    assert uninterrupted.state.epoch > 1
    whole = state(tmp_path / "out" / "checkpoint-10")
    finished = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    interrupt(tmp_path / "out", "checkpoint-10")
    resumed = train(path)
    assert resumed.run.checkpoint == tmp_path / "out" / "checkpoint-5"
    assert_equal(state(tmp_path / "out" / "checkpoint-10"), whole)
    assert resumed.state.log_history[-1]["train_loss"] == finished["log_history"][-1]["train_loss"]
    assert resumed.state.num_input_tokens_seen == finished["num_input_tokens_seen"]

    shutil.rmtree(tmp_path / "out")
    train(path, "--save_steps", "10")
    assert_equal(state(tmp_path / "out" / "checkpoint-10")["weights"], whole["weights"])


@pytest.mark.parametrize("rows, accumulation", [(2, 2), (1, 4)])
def test_a_run_goes_on_with_its_steps_cut_up_in_another_way(
    write_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int, accumulation: int
) -> None:
    train(write_run("masked_mixer", **STEPS))
    whole = state(tmp_path / "out" / "checkpoint-10")["weights"]
    interrupt(tmp_path / "out", "checkpoint-10")
    cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    with caplog.at_level(logging.WARNING):
        resumed = train(write_run("masked_mixer", **STEPS, **cut))
    assert resumed.run.checkpoint == tmp_path / "out" / "checkpoint-5"
    assert "goes on with as many rows in each step" in caplog.text
    for name, weight in state(tmp_path / "out" / "checkpoint-10")["weights"].items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-5)


def test_shards_of_deepspeed_need_their_number_of_processes(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again()
    folder = tmp_path / "out" / "checkpoint-10"
    (folder / "global_step10").mkdir()
    assert prepare_run(path).checkpoint == folder
    record = (folder / "run.yaml").read_text().replace("world_size: 1", "world_size: 2")
    record = record.replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 2")
    (folder / "run.yaml").write_text(record)
    mark_complete(folder)
    with pytest.raises(ValueError, match="holds DeepSpeed's shards for 2 processes: start 2"):
        prepare_run(path)


def test_a_tied_head_resumes_without_a_warning(
    write_run: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_run("masked_mixer", **STEPS, tie_word_embeddings=True)
    train(path)
    whole = state(tmp_path / "out" / "checkpoint-10")
    interrupt(tmp_path / "out", "checkpoint-10")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        train(path)
    assert "missing keys" not in caplog.text
    assert_equal(state(tmp_path / "out" / "checkpoint-10"), whole)


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
        ({"per_device_train_batch_size": 2}, r"the rows of a step \(.*\) were 4 and are 2"),
    ],
)
def test_another_run_is_refused(again: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoint-10 belongs to another run: {message}"):
        prepare_run(again(**changes))


def test_a_run_may_go_on_on_another_device(again: Callable[..., Path]) -> None:
    assert prepare_run(again(use_cpu=False)).checkpoint is not None


def test_other_text_under_the_same_name_is_refused(again: Callable[..., Path], tmp_path: Path, run_text: Path) -> None:
    shutil.copy(run_text / "train.jsonl", tmp_path / "train.jsonl")
    path = again(train_files=[str(tmp_path / "train.jsonl")], output_dir=str(tmp_path / "text"), save_steps=2)
    train(path, "--max_steps", "2")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(ValueError, match="belongs to another run: data.made_of.files"):
        prepare_run(path)


def test_a_run_may_go_on_longer(again: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"max_steps": 12, "save_steps": 6, "logging_steps": 1, "eval_steps": 4, "save_total_limit": 1}
    trainer = train(again(**changes))
    assert trainer.run.checkpoint == tmp_path / "out" / "checkpoint-10" and trainer.state.global_step == 12
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-12"]


def test_a_finished_run_is_not_trained_further(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again()
    before = state(tmp_path / "out" / "checkpoint-10")
    trainer = train(path)
    assert trainer.state.global_step == 10
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), before["weights"])
    assert (tmp_path / "out" / "README.md").is_file()


def test_rotation_never_counts_a_torn_checkpoint(again: Callable[..., Path], tmp_path: Path) -> None:
    again()
    (tmp_path / "out" / "checkpoint-10" / "optimizer.pt").unlink()
    rotate(tmp_path / "out", limit=1, step=10)
    assert torn(tmp_path / "out" / "checkpoint-5") is None


def test_what_a_resume_needs_makes_a_checkpoint_whole(again: Callable[..., Path], tmp_path: Path) -> None:
    """A list that agrees with a folder from which the optimizer was left out is a list of too little."""
    again()
    folder = tmp_path / "out" / "checkpoint-10"
    for name, what in (("optimizer.pt", "the optimizer's state"), ("scheduler.pt", "the schedule")):
        (folder / name).rename(tmp_path / name)
        mark_complete(folder)
        assert torn(folder) == f"holds no {what}, which a resume needs"
        (tmp_path / name).rename(folder / name)
    mark_complete(folder)
    assert torn(folder, with_contents=True) is None


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"a": []}', '{"a": {"size": "x"}}', "{", "\udcff"])
def test_a_list_of_another_kind_is_torn(again: Callable[..., Path], tmp_path: Path, content: str) -> None:
    again()
    folder = tmp_path / "out" / "checkpoint-10"
    (folder / COMPLETE_FILE).write_text(content, errors="surrogateescape")
    assert torn(folder) == f"has no readable {COMPLETE_FILE}"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "run.yaml"])
def test_other_bytes_of_the_same_size_are_found(
    again: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = again()
    spoiled = tmp_path / "out" / "checkpoint-10" / name
    spoiled.write_bytes(bytes(spoiled.stat().st_size))
    with caplog.at_level(logging.WARNING):
        assert prepare_run(path).checkpoint == tmp_path / "out" / "checkpoint-5"
    assert f"holds other bytes of {name} than were written" in caplog.text


# Rotation


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_would_keep_nothing_is_refused(again: Callable[..., Path], tmp_path: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=f"save_total_limit must be from 1 to .*; got {limit}"):
        prepare_run(again(save_total_limit=limit))
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2


def test_what_a_killed_rotation_left_is_removed(again: Callable[..., Path], tmp_path: Path) -> None:
    again()
    output = tmp_path / "out"
    shutil.copytree(output / "checkpoint-5", output / "deleted-checkpoint-2")
    (output / "checkpoint-5" / "optimizer.pt").unlink()  # as the old rotation left it
    rotate(output, limit=None, step=10)
    assert {path.name for path in output.iterdir()} == {"checkpoint-5", "checkpoint-10"}
    rotate(output, limit=1, step=10)
    assert {path.name for path in output.iterdir()} == {"checkpoint-10"}


# Interruptions


def test_ctrl_c_leaves_a_word(again: Callable[..., Path], write_run: Callable[..., Path], tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    trainer = RunTrainer(prepare_run(again(max_steps=12)), [Stop()])
    with pytest.raises(TrainingInterrupted, match="stopped at step 11; the same command goes on from .*checkpoint-10"):
        trainer.fit()
    trainer = RunTrainer(prepare_run(write_run(output_dir=str(tmp_path / "new"))), [Stop()])
    with pytest.raises(
        TrainingInterrupted, match="stopped at step 1; no checkpoint was saved, so the same command begins again"
    ):
        trainer.fit()


def test_a_full_disk_leaves_what_there_was(again: Callable[..., Path], tmp_path: Path) -> None:
    """Each size stops another file."""
    path = again(max_steps=12, save_steps=12)
    before = state(tmp_path / "out" / "checkpoint-10")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in (tmp_path / "out" / "checkpoint-10").iterdir())
    for size in (100, 3000, largest - 10):
        trainer = RunTrainer(prepare_run(path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match=r"no space to write it \(.* MB are free\)") as failed:
                trainer.fit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(failed.value.filename).startswith(str(tmp_path / "out"))
        assert not (tmp_path / "out" / "checkpoint-12").exists()
        assert_equal(state(tmp_path / "out" / "checkpoint-10"), before)
    assert train(path).state.global_step == 12


def test_the_steps_between_measurements_are_those_of_the_run_that_goes_on(
    again: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers keeps the checkpoint's, and warns of a share that is not its number of steps."""
    trainer = train(again(max_steps=20, eval_steps=0.2, logging_steps=1))
    measured = [entry["step"] for entry in trainer.state.log_history if "eval_cross_entropy" in entry]
    assert [step for step in measured if step > 10] == [12, 15, 16, 20]
    assert "do not match" not in capfd.readouterr().err


def test_the_callers_arguments_stay_as_they_are(write_run: Callable[..., Path]) -> None:
    run = prepare_run(write_run(save_steps=1, save_total_limit=1))
    before = run.arguments.to_dict()
    trainer = RunTrainer(run)
    trainer.fit()
    trainer.write_finished_model()
    assert run.arguments.to_dict() == before and trainer.args.label_names == ["labels"]


@pytest.mark.parametrize("metric", ["loss", "cross_entropy", "bits_per_byte"])
def test_the_best_checkpoint_is_the_lowest_and_the_newest_stays(write_run: Callable[..., Path], metric: str) -> None:
    """transformers takes more for better, and of one checkpoint keeps the best at the end, not the newest."""
    path = write_run(max_steps=4, save_steps=1, eval_steps=1, save_total_limit=1, metric_for_best_model=metric)
    run = prepare_run(path, ["--learning_rate", "0.3", "--lr_scheduler_type", "constant"])
    trainer = RunTrainer(run)
    trainer.fit()
    measured = {log["step"]: log[f"eval_{metric}"] for log in trainer.state.log_history if f"eval_{metric}" in log}
    best = min(measured, key=measured.__getitem__)
    output = run.arguments.output_folder
    assert trainer.state.best_global_step == best
    assert {path.name for path in output.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}


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


def launched(path: Path, processes: int) -> None:
    """Runs `train.py` in one process or several."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train.py"), "--config", str(path)],
        cwd=path.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run(**STEPS, per_device_train_batch_size=2)
    launched(path, 2)
    whole = state(tmp_path / "out" / "checkpoint-10")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= whole.keys()
    assert not torch.equal(whole["rng_state_0.pth"]["cpu"], whole["rng_state_1.pth"]["cpu"])
    interrupt(tmp_path / "out", "checkpoint-10")
    launched(path, 2)
    assert_equal(state(tmp_path / "out" / "checkpoint-10"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(
    write_run: Callable[..., Path], run_text: Path, tmp_path: Path, before: int, after: int
) -> None:
    """With the same rows in each step, a model without noise ends where it would have ended, but for rounding.

    Twenty rows make five whole steps: of a last step's missing rows, accelerate gives processes rows twice.
    """
    lines = (run_text / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "text.jsonl").write_text("".join(2 * lines))
    given = {"train_files": [str(tmp_path / "text.jsonl")], "rows": "pad", **STEPS}

    def run(processes: int) -> dict[str, torch.Tensor]:
        launched(write_run("masked_mixer", **given, per_device_train_batch_size=4 // processes), processes)
        return state(tmp_path / "out" / "checkpoint-10")["weights"]

    whole = run(before)
    interrupt(tmp_path / "out", "checkpoint-10")
    for name, weight in run(after).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-5)
