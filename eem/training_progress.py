"""The progress of a training run. It imports transformers: commands import this file only to train."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eem.console import Steps, progress_bar
from modeling_eem.training.callbacks import loss_text


class ProgressCallback(TrainerCallback):
    """Shows name, steps, time left and last training loss, in the first process; in a log a line for each loss too."""

    def __init__(self, name: str):
        self.name = name
        self.open = ExitStack()
        self.steps = Steps(None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shown = progress_bar(self.name, state.max_steps, quiet=not state.is_world_process_zero)
        self.steps = self.open.enter_context(shown)
        self.steps.resume(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.update(state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.update()  # measuring may take long too

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            self.steps.tell(loss_text(logs, args, kwargs["model"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.open.close()
