"""A run that stops early ends where its measurements say, keeps its best model, and knows that it is finished."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from whole_run import train

from modeling_eem.training import DryRun, RunTrainer, dry_run, prepare_run
from modeling_eem.training.checkpoints import mark_complete

LOSSES = [5.0, 4.0, 3.0, 3.5, 3.0, 3.2, 2.0, 1.0]  # best at step 3; equally good is not better


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every evaluation find the loss above that belongs to its step."""
    evaluate = RunTrainer.evaluation_loop

    def measured(trainer: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        output = evaluate(trainer, *args, **kwargs)
        output.metrics["eval_loss"] = LOSSES[trainer.state.global_step - 1]
        return output

    monkeypatch.setattr(RunTrainer, "evaluation_loop", measured)


@pytest.fixture
def run(write_run: Callable[..., Path], measure: None) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        return write_run("masked_mixer", **{"max_steps": 8, "eval_steps": 1, "save_steps": 100, **changes})

    return write


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_it_ends_after_the_patience_and_keeps_the_best(run: Callable[..., Path]) -> None:
    trainer = train(run(early_stopping_patience=3))
    output = trainer.args.output_folder
    assert trainer.state.global_step == 6 and trainer.kept_step == 3
    assert weights(output) == weights(output / "checkpoint-3") != weights(output / "checkpoint-6")
    results = json.loads((output / "results.json").read_text())
    third = json.loads((output / "checkpoint-3" / "results.json").read_text())
    assert results["step"] == 3 and results["kept_model"] == "the best measured by loss"
    assert results["tokens"] == third["tokens"] and results["held_out"] == third["held_out"]
    assert len(results["curve"]) == 6
    assert "3 of 8" in (output / "README.md").read_text()


def test_a_measurement_before_the_first_step_is_no_best_one(run: Callable[..., Path]) -> None:
    """Here it is the smallest loss of all, and no checkpoint holds that model."""
    trainer = train(run(early_stopping_patience=3, eval_on_start=True))
    assert trainer.state.global_step == 6 and trainer.kept_step == 3


def test_the_same_command_says_finished_and_more_patience_goes_on(run: Callable[..., Path]) -> None:
    path = run(early_stopping_patience=3)
    train(path)
    assert prepare_run(path).is_finished
    more = prepare_run(path, ["--early_stopping_patience", "4"])
    assert not more.is_finished and more.checkpoint is not None and more.checkpoint.name == "checkpoint-6"
    trainer = train(path, "--early_stopping_patience", "4")
    assert trainer.state.global_step == 8 and trainer.kept_step == 8


def test_without_patience_the_whole_run_is_trained_and_the_best_kept(run: Callable[..., Path]) -> None:
    trainer = train(run(max_steps=6, load_best_model_at_end=True, save_total_limit=1))
    output = trainer.args.output_folder
    assert trainer.state.global_step == 6 and trainer.kept_step == 3
    assert weights(output) == weights(output / "checkpoint-3")
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


@pytest.mark.parametrize("killed_at", [2, 4, 6])
def test_a_resumed_run_stops_where_the_uninterrupted_one_did(
    run: Callable[..., Path], tmp_path: Path, killed_at: int
) -> None:
    path = run(early_stopping_patience=3)
    output = train(path).args.output_folder
    whole = weights(output)
    for left in list(output.iterdir()):
        if left.is_file():
            left.unlink()
        elif int(left.name.rpartition("-")[2]) > killed_at:
            shutil.rmtree(left)
    moved = output.rename(tmp_path / "moved")  # the state names its best checkpoint by the old place
    trainer = train(path, "--output_dir", str(moved))
    assert trainer.run.checkpoint == moved / f"checkpoint-{killed_at}"
    assert trainer.state.global_step == 6 and weights(moved) == whole


def test_a_missing_best_checkpoint_is_refused_before_training(run: Callable[..., Path]) -> None:
    path = run(early_stopping_patience=3)
    output = train(path).args.output_folder
    for left in list(output.iterdir()):
        if left.is_file():
            left.unlink()
        elif left.name not in ("checkpoint-4", "checkpoint-5"):
            shutil.rmtree(left)
    shutil.rmtree(output / "checkpoint-5")
    with pytest.raises(ValueError, match="checkpoint-3, the best measurement so far, has no readable complete.json"):
        train(path)


def test_an_epochs_end_counts_once(write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last step is measured and saved once, and better epochs go on with a patience of one."""
    evaluate, found = RunTrainer.evaluation_loop, []

    def measured(trainer: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        output = evaluate(trainer, *args, **kwargs)
        found.append(trainer.state.global_step)
        output.metrics["eval_loss"] = 10.0 - trainer.state.global_step
        return output

    monkeypatch.setattr(RunTrainer, "evaluation_loop", measured)
    changes = {"max_steps": None, "num_train_epochs": 3, "rows": "pad", "save_strategy": "epoch", "eval_steps": 3}
    trainer = train(write_run("masked_mixer", **changes, early_stopping_patience=1))
    assert trainer.state.global_step == trainer.kept_step == 9 and found == [3, 6, 9]


def test_more_patience_goes_on_within_the_same_epochs(write_run: Callable[..., Path], measure: None) -> None:
    changes = {"max_steps": None, "num_train_epochs": 2, "rows": "pad", "eval_steps": 1}
    path = write_run("masked_mixer", **changes, early_stopping_patience=1)
    first = train(path)
    assert first.state.global_step == 4 and first.kept_step == 3 and first.state.max_steps == 6
    assert prepare_run(path).is_finished
    more = train(path, "--early_stopping_patience", "9")
    assert more.state.global_step == 6 and more.kept_step == 3


def test_a_run_that_resumes_from_another_folder_knows_its_best_there(run: Callable[..., Path], tmp_path: Path) -> None:
    path = run(early_stopping_patience=3)
    output = train(path).args.output_folder
    words = ["--resume_from_checkpoint", str(output / "checkpoint-5"), "--output_dir", str(tmp_path / "other")]
    trainer = train(path, *words)
    assert trainer.state.global_step == 6 and weights(tmp_path / "other") == weights(output)


def test_cards_say_whose_weights_they_describe(run: Callable[..., Path]) -> None:
    output = train(run(early_stopping_patience=3)).args.output_folder
    assert "this step's" in (output / "checkpoint-6" / "README.md").read_text()
    assert "the best measured by loss" in (output / "README.md").read_text()


def test_a_dry_run_counts_each_measurement_as_a_checkpoint(write_run: Callable[..., Path]) -> None:
    changes = {"max_steps": 6, "eval_steps": 1, "save_steps": 100, "save_total_limit": 1}
    costs = dry_run(write_run("masked_mixer", **changes, load_best_model_at_end=True))
    assert isinstance(costs, DryRun) and costs.checkpoints == 6 and costs.kept == 2


def test_what_is_kept_belongs_to_the_run(run: Callable[..., Path]) -> None:
    path = run(max_steps=2)
    train(path)
    record = path.parent / "out" / "run.yaml"
    older = yaml.safe_load(record.read_text())
    del older["training"]["kept_model"]
    record.write_text(yaml.safe_dump(older))
    mark_complete(record.parent)
    with pytest.raises(ValueError, match="kept_model was \"the last step's\" and is 'the best measured by loss'"):
        prepare_run(path, ["--load_best_model_at_end", "true"])
