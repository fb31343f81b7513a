"""What a training will cost, measured on a few of its own steps; nothing of them is kept."""

import copy
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from modeling_eem.files import check_unlocked, existing_part
from modeling_eem.report import Table, duration, quantity
from modeling_eem.training.callbacks import MeasureCheckpointsCallback
from modeling_eem.training.checkpoints import read_state
from modeling_eem.training.experiment import Run, prepare_run
from modeling_eem.training.flops import counted_flops
from modeling_eem.training.resumable_trainer import RunTrainer, real_tokens
from modeling_eem.training.run_arguments import RunArguments

_COUNTED, _TIMED = 3, 10  # steps at most
_SECONDS = 10.0  # for each kind; no step begins later
_SAMPLED_ROWS = 1000
_MEASURED_BATCHES = 4
_DESCRIPTION_BYTES = 80_000  # card, learning curve, numbers and lists beside the weights


@dataclass(frozen=True)
class DryRun:
    """What is left of a run, in numbers; sizes in bytes, times in seconds.

    Attributes:
        name: the run's name.
        begins: what it will do first, in words.
        parameters, trained: the model's parameters, and how many of them get a gradient.
        first_step, last_step: it trains the steps after the first, up to the last.
        rows_per_step: rows of an optimizer step, over devices and accumulation steps.
        flops_per_row: FLOPs of forward, backward and loss, counted in the first steps; see `counted_flops`.
        tokens_per_row: mean real tokens in a sample of rows.
        rows: rows that the steps read.
        step_seconds: time of an optimizer step, including loading its rows.
        timed_steps: number of steps in that mean.
        evaluations: number of evaluations, on the way and at the end.
        evaluation_seconds: time of one evaluation, from a few of its batches.
        memory: the most accelerator memory that a process held, or the machine's memory without an accelerator.
        model_bytes: size of the trained model with its code and tokenizer.
        checkpoint_bytes: size of a checkpoint to resume from.
        checkpoints: number of checkpoints written in all.
        kept: number of checkpoints kept.
        free_bytes: free space on the disk of `output_dir`.
    """

    name: str
    begins: str
    parameters: int
    trained: int
    first_step: int
    last_step: int
    rows_per_step: int
    flops_per_row: float
    tokens_per_row: float
    rows: int
    step_seconds: float
    timed_steps: int
    evaluations: int
    evaluation_seconds: float
    memory: int
    model_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    kept: int
    free_bytes: int

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step

    @property
    def flops_per_step(self) -> float:
        """FLOPs of a step with all its rows."""
        return self.flops_per_row * self.rows_per_step

    @property
    def flops(self) -> float:
        return self.flops_per_row * self.rows

    @property
    def tokens(self) -> float:
        """Real tokens, counted each time they are read."""
        return self.tokens_per_row * self.rows

    @property
    def seconds(self) -> float:
        """Time of training and measuring, without starting and without writing checkpoints."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    @property
    def disk(self) -> int:
        """Bytes that the run leaves on disk."""
        return self.kept * self.checkpoint_bytes + self.model_bytes

    @property
    def most_disk(self) -> int:
        """The most bytes on disk at one time: a checkpoint is deleted only when the next one is whole."""
        return max(min(self.checkpoints, self.kept + 1) * self.checkpoint_bytes, self.disk)


def dry_run(
    path: str | Path, overrides: Sequence[str] = (), advance: Callable[[], None] = lambda: None
) -> DryRun | Run:
    """Prepare a run as `prepare_run` does, take a few of its steps in memory, and estimate the cost of the whole.

    It writes to a temporary folder only, not to `output_dir`, the Hub or any tracker in `report_to`.

    Args:
        advance: called after each step.

    Returns:
        The figures; for a finished run the run itself, because nothing is left to train.

    Raises:
        ValueError: as `prepare_run` and `RunTrainer`; and for sharded training, which no process sees whole.
        FloatingPointError: for a loss that is NaN or infinite.
    """
    run = prepare_run(path, overrides)
    output = Path(str(run.arguments.output_dir))
    free_bytes = _free_bytes(output)
    check_unlocked(output)
    if run.is_finished:
        return run
    if run.arguments.fsdp or run.arguments.deepspeed:
        raise ValueError("a dry run takes whole models: leave fsdp and deepspeed out of it.")
    with tempfile.TemporaryDirectory() as folder:
        return _measure(run, _Rehearsal(_in_memory(run, folder), advance), Path(folder), free_bytes)


def _free_bytes(output: Path) -> int:
    """Free bytes for `output_dir`; ValueError if it cannot be made."""
    place = existing_part(output)
    if not os.access(place, os.W_OK):
        raise ValueError(f"{place} cannot be written to: choose another output_dir.")
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def _in_memory(run: Run, folder: str) -> Run:
    """The run with arguments that write, measure and report nothing by themselves."""
    arguments = copy.copy(run.arguments)
    arguments.output_dir = folder
    arguments.save_strategy = SaveStrategy.NO
    arguments.eval_strategy = IntervalStrategy.NO
    arguments.eval_on_start = False
    arguments.logging_strategy = IntervalStrategy.NO
    arguments.report_to = []
    arguments.push_to_hub = False
    rehearsed = copy.copy(run)
    rehearsed.arguments = arguments
    return rehearsed


class _Rehearsal(RunTrainer):
    """Takes a few steps, and counts their rows."""

    def __init__(self, run: Run, advance: Callable[[], None]):
        self.clock = _Clock(advance)
        super().__init__(run, [self.clock])
        self.remove_callback(MeasureCheckpointsCallback)
        self.rows = 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.rows += len(inputs["input_ids"])
        return super().training_step(model, inputs, num_items_in_batch)

    def rehearse(self, steps: int) -> None:
        """Take that many steps, or fewer if they take long."""
        self.clock.steps = steps
        self.rows = 0
        self.train()


class _Clock(TrainerCallback):
    """Notes when each step ended. Ends the training after `steps`, or after `_SECONDS` and at least two steps."""

    def __init__(self, advance: Callable[[], None]):
        self.advance = advance
        self.steps = 1
        self.ends: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ends = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.advance()
        is_long = len(self.ends) > 1 and self.ends[-1] - self.ends[0] > _SECONDS
        if is_long or len(self.ends) >= self.steps or state.global_step >= state.max_steps:
            control.should_training_stop = True


def _measure(run: Run, trainer: _Rehearsal, folder: Path, free_bytes: int) -> DryRun:
    arguments = run.arguments
    loader = trainer.get_train_dataloader()
    *_, batches, last_step = trainer.set_initial_training_values(arguments, loader)
    trainer.check_stages_after(run.checkpoint, last_step)
    first_step = 0 if run.checkpoint is None else read_state(run.checkpoint).global_step
    steps_per_epoch = max(math.ceil((batches or 1) / arguments.gradient_accumulation_steps), 1)
    rows_per_epoch = len(run.train_rows)
    if arguments.dataloader_drop_last:
        rows_per_epoch = len(loader) * arguments.train_batch_size * arguments.world_size

    def rows_until(step: int) -> int:
        epochs, rest = divmod(step, steps_per_epoch)
        return epochs * rows_per_epoch + min(rest * run.rows_per_step, rows_per_epoch)

    if arguments.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.args.max_steps = 1 + _TIMED  # more than the run may have: the first step is slower than the others
    flops = counted_flops(lambda: trainer.rehearse(_COUNTED))
    flops_per_row = flops / trainer.rows
    trainer.rehearse(1 + _TIMED)
    ends = trainer.clock.ends
    model_bytes, optimizer_bytes = _sizes(run, trainer, folder)
    saved_every, measured_every = _periods(run.arguments, last_step, steps_per_epoch)
    # A run that ends with its best model saves whatever it measures, and keeps the best one beside the newest.
    saved = [saved_every, measured_every] if arguments.load_best_model_at_end else [saved_every]
    checkpoints = _count(saved, first_step, last_step) if saved_every else 0
    evaluations = _count([saved_every, measured_every], first_step, last_step) + int(arguments.eval_on_start)
    limit = arguments.save_total_limit
    limit = limit and limit + int(arguments.load_best_model_at_end)
    return DryRun(
        name=run.name,
        begins=run.begins,
        parameters=run.model.num_parameters(),
        trained=run.model.num_parameters(only_trainable=True),
        first_step=first_step,
        last_step=max(last_step, first_step),
        rows_per_step=run.rows_per_step,
        flops_per_row=flops_per_row,
        tokens_per_row=_tokens_per_row(run),
        rows=max(rows_until(last_step) - rows_until(first_step), 0),
        step_seconds=(ends[-1] - ends[0]) / (len(ends) - 1),
        timed_steps=len(ends) - 1,
        evaluations=evaluations,
        evaluation_seconds=_evaluation_seconds(run, trainer),
        memory=_peak_memory(arguments.device),
        model_bytes=model_bytes,
        checkpoint_bytes=model_bytes + optimizer_bytes,
        checkpoints=checkpoints,
        kept=checkpoints if limit is None else min(checkpoints, limit),
        free_bytes=free_bytes,
    )


def _periods(arguments: RunArguments, last_step: int, steps_per_epoch: int) -> tuple[int, int]:
    """Steps between checkpoints, and between measurements of held-out rows; 0: at most at the end."""
    state = TrainerState()
    state.compute_steps(arguments, last_step)
    by_name = {"no": 0, "epoch": steps_per_epoch}
    measured = by_name.get(IntervalStrategy(arguments.eval_strategy).value, int(state.eval_steps or 0))
    saved = by_name.get(SaveStrategy(arguments.save_strategy).value, int(state.save_steps or 0))
    return (measured if arguments.save_strategy == SaveStrategy.BEST else saved), measured


def _count(periods: Sequence[int], first: int, last: int) -> int:
    """How many steps after `first`, up to `last`, are the last or a multiple of one of at most two periods."""
    every = [period for period in periods if period]
    met = sum(last // period - first // period for period in every)
    if len(every) == 2:
        both = math.lcm(*every)
        met -= last // both - first // both
    return met + int(last > first and all(last % period for period in every))


def _tokens_per_row(run: Run) -> float:
    """The mean over rows spread over the data set."""
    rows = run.train_rows
    every = math.ceil(len(rows) / _SAMPLED_ROWS)
    sample = [rows[number] for number in range(0, len(rows), every)]
    return sum(int(real_tokens(run.collator([row]))) for row in sample) / len(sample)


def _evaluation_seconds(run: Run, trainer: RunTrainer) -> float:
    """Time for all held-out rows, from a few batches. A first batch loads what measuring needs and does not count."""
    batch = trainer.args.eval_batch_size * trainer.args.world_size
    rows = len(run.held_out_rows)
    few = min(rows, _MEASURED_BATCHES * batch)
    trainer.evaluate(run.held_out_rows.take(min(rows, batch)))
    began = time.perf_counter()
    trainer.evaluate(run.held_out_rows.take(few))
    return (time.perf_counter() - began) * rows / few


def _sizes(run: Run, trainer: RunTrainer, folder: Path) -> tuple[int, int]:
    """File sizes: of the model with its code, tokenizer and card, and of the optimizer's state."""
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in run.model.state_dict().values()}  # tied weights once
    run.tokenizer.save_pretrained(folder)
    run.model.save_pretrained(folder, state_dict={})  # its config and code
    files = _DESCRIPTION_BYTES + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    return sum(weights.values()) + files, _nbytes(trainer.optimizer.state_dict()["state"])


def _nbytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_nbytes, items))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def dry_run_table(dry: DryRun) -> Table:
    """The figures in words, with notes on how each was found."""
    rows = [
        ("parameters", f"{dry.parameters:,}"),
        *([("trained of them", f"{dry.trained:,}")] if dry.trained != dry.parameters else []),
        ("steps", f"{dry.steps:,} of {dry.rows_per_step:,} rows"),
        ("tokens", f"{dry.tokens:,.0f}"),
        ("FLOPs a step", quantity(dry.flops_per_step, "FLOP")),
        ("FLOPs in all", quantity(dry.flops, "FLOP")),
        ("memory", quantity(dry.memory, "B")),
        ("time a step", duration(dry.step_seconds)),
        ("time of an evaluation", duration(dry.evaluation_seconds)),
        ("evaluations", f"{dry.evaluations:,}"),
        ("time in all", duration(dry.seconds)),
        ("a checkpoint", quantity(dry.checkpoint_bytes, "B")),
        ("checkpoints kept", f"{dry.kept:,} of {dry.checkpoints:,}"),
        ("disk at the end", quantity(dry.disk, "B")),
        ("disk at most", quantity(dry.most_disk, "B")),
        ("disk that is free", quantity(dry.free_bytes, "B")),
    ]
    return Table(
        columns=("what", "value"),
        rows=rows,
        title=f"{dry.name}: {dry.begins}",
        notes=(
            "FLOPs are counted as the first steps run, forward, loss and backward, two a multiply-add of a matrix "
            "product; rows of unequal length make the whole an estimate.",
            f"A step's time is the mean of {dry.timed_steps} real steps on this machine, and memory is what the "
            "process held at most meanwhile; an evaluation's time is estimated from a few batches.",
            "The time in all leaves out starting and writing checkpoints. Disk is weights, the optimizer's state, "
            "code and tokenizer, without cards, curves and logs.",
            *_warnings(dry),
        ),
    )


def _warnings(dry: DryRun) -> list[str]:
    if dry.most_disk <= dry.free_bytes:
        return []
    return ["The disk has too little space: set save_total_limit, or choose another output_dir."]
