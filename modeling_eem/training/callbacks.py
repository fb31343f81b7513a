"""Callbacks: what a loss is called, random streams of processes, evaluation at checkpoints."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_eem.training.token_loss_arguments import TokenLossArguments
from modeling_eem.training.training_forward import without_adapters

LEFT_OUT = "tokens_without_entropy"  # how the log names labelled tokens that the loss leaves out


def loss_text(logs: dict[str, Any], args: TrainingArguments, model: Any) -> str:
    """A logged training loss with its unit, nats a token being cross-entropy's alone; and what it leaves out."""
    loss = float(logs["loss"])
    name = args.token_loss if isinstance(args, TokenLossArguments) else "cross_entropy"
    if without_adapters(model).config.num_labels == 1:
        text = f"{loss:.3f} nats² a token"
    else:
        text = f"{loss:.3f} nats a token" if name == "cross_entropy" else f"{name} {loss:.3f}"
    return f"{text}, {logs[LEFT_OUT]} tokens without an entropy left out" if LEFT_OUT in logs else text


class SeedDevicesCallback(TrainerCallback):
    """Gives every process a random stream of its own; seeded alike, as transformers does, all would draw one noise.

    Checkpoints keep each process's state, and a run resumed from one goes on with it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


class MeasureCheckpointsCallback(TrainerCallback):
    """Evaluates and logs at every checkpoint, and at the end: its card holds its own numbers, and a run that goes on
    from it begins a mean of losses where the uninterrupted run did."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            control.should_evaluate = control.should_log = True
