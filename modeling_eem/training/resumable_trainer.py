"""The trainer of `train.py`: measures held-out rows, keeps whole checkpoints only, and stops at NaN."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy

from modeling_eem.training.callbacks import MeasureCheckpointsCallback
from modeling_eem.training.checkpoints import mark_complete, rotate, write_run_record
from modeling_eem.training.experiment import Run
from modeling_eem.training.loss_watch import LossWatch, check_weights
from modeling_eem.training.outputs import describe
from modeling_eem.training.trainer import TokenWeightedTrainer

# Checkpoints, logs and sharded states are in folders; the rest is what training goes on from, DeepSpeed's included.
NOT_PUBLISHED = ["*/*", "*.pt", "*.pth", "*.bin", "trainer_state.json", "complete.json", "latest", "zero_to_fp32.py"]


class RunTrainer(TokenWeightedTrainer):
    """Trains a `Run`, or what is left of it.

    A checkpoint holds the model with its code and tokenizer, the optimizer's, scheduler's and random states, and what
    `describe` writes; it counts once `complete.json` lists all of that. Nothing that is not finite is saved.
    """

    def __init__(self, run: Run, callbacks: Sequence[TrainerCallback] = ()):
        self.run = run
        run.arguments.label_names = list(run.metrics.label_names)
        super().__init__(
            model=run.model,
            args=run.arguments,
            data_collator=run.collator,
            train_dataset=run.train_rows,
            eval_dataset=run.held_out_rows,
            processing_class=run.tokenizer,
            compute_metrics=run.metrics,
            preprocess_logits_for_metrics=run.metrics.preprocess,
            callbacks=[MeasureCheckpointsCallback(), *callbacks],
        )
        self.remove_callback(PrinterCallback)  # a progress bar shows what it would print
        self.loss_watch = LossWatch(is_eager=self.args.device.type == "cpu")

    def fit(self) -> None:
        """Train, from the run's checkpoint if there is one, and complete `output_dir`.

        Raises:
            FloatingPointError: a loss or a weight that is NaN or infinite; see `LossWatch`.
        """
        if self._is_trained():
            self._load_from_checkpoint(str(self.run.checkpoint))
            self.state = TrainerState.load_from_json(str(self.run.checkpoint / TRAINER_STATE_NAME))
        else:
            self.train(resume_from_checkpoint=self.run.checkpoint and str(self.run.checkpoint))
        self.loss_watch.check()

    def finish(self) -> None:
        """Leave the trained model in `output_dir`, described, and push it if the run says so."""
        output = Path(self.args.output_dir)
        self.save_model(str(output), _internal_call=True)
        if self.args.should_save:
            self.state.save_to_json(str(output / TRAINER_STATE_NAME))
            write_run_record(output, self.run.record)
            describe(output, self.run, self.state)
        if self.args.push_to_hub:
            self._push(output, "End of training")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measuring draws no random number from the training's stream: how often it is done changes no step."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Held-out rows are never cut short, and padded where no causal model can see it."""
        training, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        self._micro_batch = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batch += 1
        self.loss_watch.add(self.state.global_step + 1, self._micro_batch, inputs["input_ids"], loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.loss_watch.check()
        super().log(logs, start_time)

    @property
    def _eval_collator(self) -> Any:
        return replace(self.run.collator, random_prefix_probability=0.0, padding_side="right")

    def _is_trained(self) -> bool:
        """Whether the checkpoint is the last one: transformers would train it one step more."""
        if self.run.checkpoint is None:
            return False
        step = TrainerState.load_from_json(str(self.run.checkpoint / TRAINER_STATE_NAME)).global_step
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return step >= max_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.loss_watch.check()
        check_weights(self.model, self.state.global_step)
        output = Path(self.args.output_dir)
        folder = output / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # torn, or about to be written again
        self.accelerator.wait_for_everyone()
        # No older checkpoint goes before this one is known to be whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_run_record(folder, self.run.record)
            describe(folder, self.run, self.state)
            mark_complete(folder)
            rotate(output, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._push(folder, f"Step {self.state.global_step}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: `_save_checkpoint` pushes when the checkpoint is whole, its code and card included."""

    def _push(self, folder: Path, message: str) -> None:
        if self.is_world_process_zero():
            HfApi(token=self.args.hub_token).upload_folder(
                repo_id=self.hub_model_id,
                folder_path=folder,
                commit_message=message,
                revision=self.args.hub_revision,
                ignore_patterns=NOT_PUBLISHED,
            )
