"""A loss that is not finite stops the run, names its batch, and reaches no checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_eem.training import RunTrainer, prepare_run
from modeling_eem.training.loss_watch import LossWatch, check_weights

IDS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_batch_that_is_not_finite_is_named(value: float) -> None:
    watch = LossWatch(is_eager=False)
    losses = [1.0, 2.0, value, value]
    for index, loss in enumerate(losses):
        watch.add(index // 2 + 5, index % 2 + 1, IDS + 100 * index, torch.tensor(loss))
    message = r"at step 6, micro-batch 1, whose rows begin with the ids \[\[200, 201, .*207\], \[220, .*227\]\]"
    with pytest.raises(FloatingPointError, match=message):
        watch.check()


def test_finite_losses_are_forgotten_once_they_are_read() -> None:
    watch = LossWatch(is_eager=False)
    watch.add(1, 1, IDS, torch.tensor(3e38))
    watch.check()
    assert watch.waiting == []


def test_eager_watches_read_at_once() -> None:
    with pytest.raises(FloatingPointError, match="step 1, micro-batch 2"):
        LossWatch(is_eager=True).add(1, 2, IDS, torch.tensor(float("nan")))


def test_weights_are_checked_by_name() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, 3)
    with torch.no_grad():
        model.bias[1] = float("inf")
    with pytest.raises(FloatingPointError, match="the weight bias is not finite at step 3"):
        check_weights(model, 3)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the loss of the nth micro-batch NaN, counted from 1."""

    def spoil(number: int) -> None:
        whole, calls = RunTrainer.compute_loss, []

        def compute_loss(trainer: RunTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = whole(trainer, model, inputs, *args, **kwargs)
            if model.training:
                calls.append(inputs["input_ids"])
                loss = loss * float("nan") if len(calls) == number else loss
            return loss

        monkeypatch.setattr(RunTrainer, "compute_loss", compute_loss)

    return spoil


@pytest.mark.parametrize("is_eager", [True, False])
def test_a_run_stops_and_saves_nothing_that_is_not_finite(
    write_run: Callable[..., Path], tmp_path: Path, spoil: Callable[..., None], is_eager: bool
) -> None:
    """Micro-batch 6 is the second of step 3; on a GPU it is read when step 4 is about to be saved."""
    spoil(6)
    path = write_run(max_steps=8, save_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    trainer = RunTrainer(prepare_run(path, ["--logging_steps", "100"]))
    trainer.loss_watch.is_eager = is_eager
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"nan at step 3, micro-batch 2, whose rows begin with the ids \[\[0"):
        trainer.fit()
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    if is_eager:
        assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())


def test_a_gradient_that_is_not_finite_is_not_saved(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite and the step is not."""
    trainer = RunTrainer(prepare_run(write_run(save_steps=1)))
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        trainer.fit()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_losses_cannot_be_hidden(write_run: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="logging_nan_inf_filter would hide"):
        prepare_run(write_run(logging_nan_inf_filter=True))
