"""The best checkpoint is the best of those that were saved, by the metric that this run names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from whole_run import train

from modeling_eem.training import RunTrainer, prepare_run

MEASURED_TIME = ("runtime", "per_second")


def checkpoints(trainer: RunTrainer) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in trainer.args.output_folder.glob("checkpoint-*")}


@pytest.fixture
def measure_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has every evaluation find given losses, by the step."""
    evaluate = RunTrainer.evaluate

    def give(losses: dict[int, float]) -> None:
        def measured(trainer: RunTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
            return evaluate(trainer, *args, **kwargs) | {"eval_loss": losses[trainer.state.global_step]}

        monkeypatch.setattr(RunTrainer, "evaluate", measured)

    return give


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([1.0, 2.0, 3.0, 2.5, 3.0, 2.6], 2),  # before any checkpoint
        ([4.0, 2.0, 1.2, 1.5, 3.0, 3.0], 4),  # between two
    ],
)
def test_a_better_measurement_that_was_not_saved_deletes_no_checkpoint(
    write_run: Callable[..., Path], measure_as: Callable[..., None], losses: list[float], best: int
) -> None:
    measure_as(dict(enumerate(losses, 1)))
    path = write_run(
        "masked_mixer", max_steps=6, eval_steps=1, save_steps=2, save_total_limit=1, metric_for_best_model="loss"
    )
    trainer = train(path)
    assert trainer.state.best_global_step == best and checkpoints(trainer) == {best, 6}


def test_the_best_of_epochs_is_one_of_their_ends(
    write_run: Callable[..., Path], measure_as: Callable[..., None]
) -> None:
    measure_as({1: 1.0, 2: 1.1, 3: 2.0, 4: 1.2, 5: 1.3, 6: 3.0, 7: 1.4, 8: 1.5, 9: 2.5})
    changes = {"max_steps": None, "num_train_epochs": 3, "rows": "pad", "save_strategy": "epoch", "eval_steps": 1}
    trainer = train(write_run("masked_mixer", **changes, save_total_limit=1, metric_for_best_model="loss"))
    assert trainer.state.global_step == 9
    assert trainer.state.best_global_step == 3 and checkpoints(trainer) == {3, 9}


@pytest.mark.parametrize(("metric", "is_remembered"), [("loss", True), ("token_accuracy", False)])
def test_a_resumed_run_knows_the_best_of_its_own_metric_alone(
    write_run: Callable[..., Path], metric: str, is_remembered: bool
) -> None:
    """The smallest loss is no measure of an accuracy, which is better when it is larger."""

    class Began(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found.append((state.best_metric, state.best_global_step, state.best_model_checkpoint))

    found: list[tuple[Any, ...]] = []
    path = write_run("masked_mixer", max_steps=2, save_strategy="best", eval_steps=1, metric_for_best_model="loss")
    first = train(path).state
    RunTrainer(prepare_run(path, ["--max_steps", "3", "--metric_for_best_model", metric]), [Began()]).fit()
    remembered = (first.best_metric, first.best_global_step, first.best_model_checkpoint)
    assert None not in remembered and found == [remembered if is_remembered else (None, None, None)]


def test_a_run_that_saves_its_best_logs_the_same_when_it_is_resumed(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"max_steps": 10, "logging_steps": 2, "eval_steps": 3, "save_strategy": "best"}
    path = write_run(**changes, metric_for_best_model="loss")

    def log() -> list[dict[str, Any]]:
        history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
        return [{key: value for key, value in entry.items() if not key.endswith(MEASURED_TIME)} for entry in history]

    assert 3 in checkpoints(train(path))
    whole = log()
    for left in (tmp_path / "out").iterdir():
        if left.is_file():
            left.unlink()
        elif left.name != "checkpoint-3":
            shutil.rmtree(left)
    assert train(path).run.checkpoint == tmp_path / "out" / "checkpoint-3"
    assert log() == whole
