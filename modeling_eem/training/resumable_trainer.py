"""The trainer of `eem train`: measures held-out rows, keeps whole checkpoints only, and stops at NaN."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, SaveStrategy
from transformers.utils import logging

from modeling_eem.files import LOCK_FILE, full_disk_named, locked
from modeling_eem.loading import load_model
from modeling_eem.models.loss_eem import IGNORE_INDEX
from modeling_eem.training.best_model import StopEarlyCallback, kept_model, stopped_early
from modeling_eem.training.callbacks import MeasureCheckpointsCallback
from modeling_eem.training.checkpoints import (
    COMPLETE_FILE,
    NEWEST,
    RUN_FILE,
    checkpoint_to_resume,
    delete_checkpoint,
    is_cut_alike,
    is_finished,
    mark_complete,
    newest_whole,
    read_state,
    rotate,
    torn,
    write_run_record,
)
from modeling_eem.training.distributed import over_processes
from modeling_eem.training.experiment import Run
from modeling_eem.training.loss_watch import LossWatch, check_weights
from modeling_eem.training.run_arguments import RunArguments
from modeling_eem.training.run_file import model_kind
from modeling_eem.training.run_outputs import describe
from modeling_eem.training.trainer import TokenWeightedTrainer

logger = logging.get_logger(__name__)

# Checkpoints, logs and sharded states are in folders; the other files are what training resumes from, also DeepSpeed.
NOT_PUBLISHED = ["*/*", "*.pt", "*.pth", "*.bin", "trainer_state.json", "complete.json", "latest", "zero_to_fp32.py"]
NOT_PUBLISHED += [LOCK_FILE]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during a training; its text names the newest checkpoint and says how to go on."""


class RunTrainer(TokenWeightedTrainer):
    """Trains a `Run`, or what is left of it.

    A checkpoint holds the model with its code and tokenizer, the optimizer's, scheduler's and random states, and what
    `describe` writes; it counts once `complete.json` lists all of that. Weights that are not finite are never saved.
    `output_dir` is locked while the run trains and finishes.
    """

    args: RunArguments

    def __init__(self, run: Run, callbacks: Sequence[TrainerCallback] = ()):
        self.run = run
        arguments = copy.copy(run.arguments)  # the caller's arguments stay as they are
        arguments.label_names = list(run.metrics.label_names)
        arguments.save_total_limit = None  # transformers' own rotation deletes the newest checkpoint for the best one
        super().__init__(
            model=run.model,
            args=arguments,
            data_collator=run.collator,
            train_dataset=run.train_rows,
            eval_dataset=run.held_out_rows,
            processing_class=run.tokenizer,
            compute_metrics=run.metrics,
            preprocess_logits_for_metrics=run.metrics.preprocess,
            callbacks=[MeasureCheckpointsCallback(), StopEarlyCallback(), *callbacks],
        )
        self.remove_callback(PrinterCallback)  # a progress bar shows what it would print
        self.loss_watch = LossWatch(is_eager=self.args.device.type == "cpu")
        self._new_tokens = torch.zeros((), dtype=torch.long)

    def fit(self) -> None:
        """Train, from the run's checkpoint if there is one; a finished run is loaded.

        Raises:
            FloatingPointError: for a loss or a weight that is NaN or infinite; see `LossWatch`.
            TrainingInterrupted: on Ctrl-C.
            ValueError: if another process uses `output_dir`, or changed it since the run was prepared.
            OSError: for a full disk, with the file and the free space.
        """
        output = self.args.output_folder
        if self.run.is_finished:
            self._load_from_checkpoint(str(output))
            self.state = read_state(output)
            return
        try:
            with self._lock(), full_disk_named(output):
                self._fit()
        except KeyboardInterrupt as error:
            raise TrainingInterrupted(self._how_to_go_on()) from error

    def _fit(self) -> None:
        checkpoint = self.run.checkpoint
        if checkpoint_to_resume(self.run.arguments) != checkpoint or is_finished(self.run.arguments, self.run.record):
            raise ValueError(f"{self.args.output_dir} was changed by another training: start this one again.")
        if checkpoint is not None and self._is_trained(checkpoint):
            self.state = read_state(checkpoint)
            self._load_from_checkpoint(
                str(self._best_checkpoint() if self.args.load_best_model_at_end else checkpoint)
            )
        else:
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        self.loss_watch.check()

    def write_finished_model(self) -> None:
        """Leave the trained model and its description in `output_dir`, and push it if the run says so.

        All files are written beside the old ones, and replace them when they are whole.

        Raises:
            TrainingInterrupted: on Ctrl-C before they are, or while they are pushed.
        """
        output = self.args.output_folder
        if not self.run.is_finished:
            try:
                with self._lock(), full_disk_named(output):
                    self._write_finished_model(output)
            except KeyboardInterrupt as error:
                raise TrainingInterrupted(self._how_to_go_on()) from error
        if self.args.push_to_hub:
            try:
                self._push(output, "End of training")
            except KeyboardInterrupt as error:
                said = f"{output} is finished, but not all of it was uploaded; the same command uploads it again."
                raise TrainingInterrupted(said) from error

    def _write_finished_model(self, output: Path) -> None:
        new = output / "finished.part"
        if self.args.should_save:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.save_model(str(new), _internal_call=True)
            if self.args.should_save:
                self.state.save_to_json(str(new / TRAINER_STATE_NAME))
                describe(new, self.run, self.state, self.kept_step, kept_model(self.args))
                write_run_record(new, self.run.record)
                mark_complete(new)
                # The record, and the state that it is read with, come before the config: a kill would otherwise leave
                # a model of unknown origin. The list comes last: with it the run counts as finished.
                order = {TRAINER_STATE_NAME: 0, RUN_FILE: 1, COMPLETE_FILE: 3}
                for path in sorted(new.iterdir(), key=lambda path: order.get(path.name, 2)):
                    path.replace(output / path.name)
        finally:
            if self.args.should_save:
                shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    @property
    def kept_step(self) -> int:
        """The step whose weights the trained model has."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return self.state.global_step if best is None else best

    def _lock(self) -> AbstractContextManager:
        return locked(self.args.output_folder) if self.is_world_process_zero() else nullcontext()

    def _how_to_go_on(self) -> str:
        stopped = f"stopped at step {self.state.global_step}"
        checkpoint = newest_whole(self.args.output_folder, self.state.global_step) or self.run.checkpoint
        if checkpoint is None:
            return (
                f"{stopped}; no checkpoint was saved, so the same command begins again: save_steps says when one is "
                "saved."
            )
        if self.run.arguments.resume_from_checkpoint in NEWEST or checkpoint == self.run.checkpoint:
            return f"{stopped}; the same command goes on from {checkpoint}."
        return f"{stopped}; to go on from there, change resume_from_checkpoint to {checkpoint}."

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measuring draws no random number from the training's stream: how often you measure changes no step."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`eval_loss` is the metrics' own mean: rows repeated to fill up a last batch do not count."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        name = "mean_squared_error" if self.run.is_regression else "cross_entropy"
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = output.metrics[f"{metric_key_prefix}_{name}"]
        return output

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Held-out rows are never cut or left out, and are padded on the right, where no causal model sees it."""
        training, self.data_collator = self.data_collator, self._eval_collator
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = training, drop_last

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        self._micro_batch = 0
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            tokens = torch.stack([real_tokens(batch) for batch in batches]).sum()
            self._new_tokens = self._new_tokens.to(tokens.device) + tokens
        return batches, num_items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batch += 1
        self.loss_watch.add(self.state.global_step + 1, self._micro_batch, inputs["input_ids"], loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the real tokens trained on, and a `train_loss` that does not depend on interruptions."""
        self.loss_watch.check()
        tokens = over_processes(self.accelerator, self._new_tokens.to(self.args.device), "sum")
        self.state.num_input_tokens_seen += int(tokens)
        self._new_tokens = torch.zeros_like(self._new_tokens)
        logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        if "train_loss" in logs:
            logs["train_loss"] = mean_training_loss(self.state)
        super().log(logs, start_time)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The run decides the steps between logs, measurements and checkpoints. transformers would keep those of the
        checkpoint's state, and warn of `0.1667 != 10`."""
        names = ("logging_steps", "eval_steps", "save_steps")
        wanted = {name: getattr(self.args, name) for name in names}
        if kwargs.get("resume_from_checkpoint", args[2]):
            vars(self.args).update(dict.fromkeys(names))  # None is not compared
        try:
            begun = super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            vars(self.args).update(wanted)
            self.state.compute_steps(self.args, max_steps)
        self._forget_the_best_of_another_metric()
        if self.args.load_best_model_at_end and self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._best_checkpoint())
        return begun

    def _best_checkpoint(self) -> Path:
        """The best so far, in `output_dir` or beside the checkpoint that the run resumed from. The state names it by
        the place where `output_dir` was."""
        name = f"checkpoint-{self.state.best_global_step}"
        best = self.args.output_folder / name
        if (problem := torn(best)) is None:
            return best
        if self.run.checkpoint is not None and torn(other := self.run.checkpoint.parent / name) is None:
            return other
        raise ValueError(
            f"{best}, the best measurement so far, {problem}, but the run is to end with it: put it back, or choose "
            "another output_dir."
        )

    def _load_best_model(self) -> None:
        self.state.best_model_checkpoint = str(self._best_checkpoint())
        if self._is_sharded:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Reads whole weights as `from_pretrained` does. The Trainer looks for the model's own names, but transformers
        saves some models under others, such as a mixture of experts under a name an expert."""
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = load_model(resume_from_checkpoint, model_kind(self.run.config))
            self.model.load_state_dict(saved.state_dict())

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _forget_the_best_of_another_metric(self) -> None:
        """The state keeps only the best value, which says nothing of a metric that it was not measured by."""
        state, name = self.state, f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        best = [entry for entry in state.log_history if entry["step"] == state.best_global_step]
        if not any(entry.get(name) == state.best_metric for entry in best):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Only a measurement whose step is saved counts: a better one in between has no checkpoint to keep."""
        is_last = self.state.global_step >= self.state.max_steps
        is_saved = self.control.should_save or is_last or self.args.save_strategy == SaveStrategy.BEST
        return is_saved and super()._determine_best_metric(metrics, trial)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().create_scheduler(*args, **kwargs)
        except (TypeError, AttributeError) as error:  # a keyword, or a value, that the schedule cannot use
            if not self.args.lr_scheduler_kwargs:
                raise
            raise ValueError(f"lr_scheduler_kwargs of {self.args.lr_scheduler_type}: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The next step's learning rate is this run's: its optimizer was saved with that of a run that may have ended
        earlier, where a schedule is at 0."""
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        if isinstance(schedule, AcceleratedScheduler):
            schedule = schedule.scheduler
        # DeepSpeed's stand-in for an optimizer has no groups.
        if checkpoint is not None and isinstance(schedule, LambdaLR) and isinstance(self.optimizer, Optimizer):
            groups = self.optimizer.param_groups
            for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas):
                group["lr"] = base * factor(schedule.last_epoch)
            schedule._last_lr = [group["lr"] for group in groups]  # what is logged

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random states are the last that a resume reads: the checkpoint must still be there, whole and the same.

        If another number of processes goes on, each draws anew: the saved states are of other processes.
        """
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        if not is_cut_alike(Path(checkpoint), self.run.record):
            draws_before = self.state.global_step * self.args.world_size
            torch.manual_seed(self.args.seed + draws_before + self.args.process_index)
            logger.warning_once(
                f"{checkpoint} was trained with other numbers of processes, rows a device or accumulation steps. The "
                "run goes on with as many rows in each step, but draws noise, dropout and random prefixes anew: "
                "it will not end bit for bit where it would have ended."
            )
        problem = torn(Path(checkpoint))
        if problem is None and (step := read_state(Path(checkpoint)).global_step) != self.state.global_step:
            problem = f"is of step {step}, and training would go on at step {self.state.global_step}"
        if problem is not None:
            raise ValueError(f"{checkpoint} {problem}: it was changed while it was read. Start again.")

    @property
    def _eval_collator(self) -> Any:
        return replace(self.run.collator, random_prefix_probability=0.0, padding_side="right")

    def _is_trained(self, checkpoint: Path) -> bool:
        """Whether nothing is left to train after a checkpoint: transformers would train it one more step."""
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        state = read_state(checkpoint)
        return state.global_step >= max_steps or stopped_early(self.args, state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.loss_watch.check()
        check_weights(self.model, self.state.global_step)
        output = self.args.output_folder
        folder = output / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            delete_checkpoint(folder)  # torn, or about to be written again
        self.accelerator.wait_for_everyone()
        try:
            with full_disk_named(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_run_record(folder, self.run.record)
                    describe(folder, self.run, self.state, self.state.global_step, "this step's")
                    mark_complete(folder)
        except OSError:
            if self.args.should_save:
                delete_checkpoint(folder)  # room for others
            raise
        if self.args.should_save:  # no older checkpoint is deleted before this one is known to be whole
            asked = self.run.arguments
            named = None if asked.resume_from_checkpoint in NEWEST else self.run.checkpoint
            kept = [Path(path) for path in (self.state.best_model_checkpoint, named) if path]
            rotate(output, asked.save_total_limit, self.state.global_step, kept)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._push(folder, f"Step {self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Leaves out `training_args.bin`: it holds tokens and paths, and nothing here reads it."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: `_save_checkpoint` pushes when the checkpoint is whole, with its code and card."""

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        with _hub_named("leave out --push_to_hub, and upload the trained model later"):
            super().init_hf_repo(*args, **kwargs)

    def _push(self, folder: Path, message: str) -> None:
        if self.is_world_process_zero():
            assert self.hub_model_id is not None  # `push_to_hub` makes one
            with _hub_named(f"{folder} is whole: upload it later"):
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=folder,
                    commit_message=message,
                    revision=self.args.hub_revision,
                    ignore_patterns=NOT_PUBLISHED,
                )


@contextmanager
def _hub_named(advice: str) -> Iterator[None]:
    """Turn what the Hub's client raises, of several libraries' kinds, into an OSError of one line."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(f"the Hub cannot be reached, or refuses ({type(error).__name__}: {said}): {advice}.") from error


def real_tokens(batch: dict[str, Tensor]) -> Tensor:
    """The number of tokens in a batch that are not padding; packed rows have no mask, but padding has no label."""
    if "attention_mask" in batch:
        # A row without any label is one that fills up the batches of several processes.
        has_labels_B = (batch["labels"] != IGNORE_INDEX).any(-1) if "labels" in batch else 1
        return (batch["attention_mask"].sum(-1) * has_labels_B).sum()
    is_real_BT = batch["labels"] != IGNORE_INDEX
    begins_BT = (batch["position_ids"] == 0) & torch.nn.functional.pad(is_real_BT[:, 1:], (0, 1))
    return (is_real_BT | begins_BT).sum()


def mean_training_loss(state: TrainerState) -> float:
    """Mean of the logged losses, each weighted by the steps it is a mean of."""
    logged = [(0, 0.0), *((entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry)]
    total = sum((step - before) * loss for (before, _), (step, loss) in zip(logged, logged[1:]))
    return total / max(logged[-1][0], 1)
