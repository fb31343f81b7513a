"""Callbacks: the text of a logged loss, each process's random stream, evaluation at checkpoints."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from modeling_eem.training.token_loss_arguments import TokenLossArguments
from modeling_eem.training.training_forward import without_adapters

LEFT_OUT = "tokens_without_entropy"  # the log's name for labelled tokens that the loss leaves out


def loss_text(logs: dict[str, Any], args: TrainingArguments, model: Any) -> str:
    """A logged training loss with its unit (only cross-entropy is in nats a token) and the tokens it leaves out."""
    loss = float(logs["loss"])
    name = args.token_loss if isinstance(args, TokenLossArguments) else "cross_entropy"
    if without_adapters(model).config.num_labels == 1:
        text = f"{loss:.3f} nats² a token"
    else:
        text = f"{loss:.3f} nats a token" if name == "cross_entropy" else f"{name} {loss:.3f}"
    return f"{text}, {logs[LEFT_OUT]} tokens without an entropy left out" if LEFT_OUT in logs else text


class SeedDevicesCallback(TrainerCallback):
    """Gives every process its own random stream. transformers seeds all alike: they would draw the same noise.

    Checkpoints keep each process's state, and a resumed run continues with it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


class MeasureCheckpointsCallback(TrainerCallback):
    """Evaluates and logs at every checkpoint, and at the end. A checkpoint's card then holds its own numbers, and a
    run resumed from it begins a mean of losses where the uninterrupted run did.

    With `save_strategy: best` any evaluation may end in a checkpoint, so each is logged. A run that ends with its best
    model saves whatever it measures: the best of it is then there. What a step has measured, the end of its epoch does
    not measure again without need."""

    _measured_step: int | None = None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measured_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
        _save_what_may_be_best(args, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._measured_step == state.global_step:
            control.should_evaluate = False
            control.should_save &= not args.load_best_model_at_end  # what was measured was saved with it
        # Only what is measured as it is saved counts for the best; the last step's measurement always does.
        if control.should_save and state.global_step < state.max_steps:
            control.should_evaluate = control.should_log = True
        _save_what_may_be_best(args, control)


def _save_what_may_be_best(args: TrainingArguments, control: TrainerControl) -> None:
    if not control.should_evaluate:
        return
    if args.save_strategy == SaveStrategy.BEST:  # the Trainer saves it, if it is better
        control.should_log = True
    elif args.load_best_model_at_end:
        control.should_log = control.should_save = True
