"""Trainers with token losses, and with regression on per-token entropies."""

from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.models.configuration_eem import is_autoencoder
from modeling_eem.models.loss_eem import IGNORE_INDEX
from modeling_eem.training.callbacks import LEFT_OUT, SeedDevicesCallback
from modeling_eem.training.distributed import keep_loss_precision, over_processes
from modeling_eem.training.token_loss_arguments import TokenLossArguments
from modeling_eem.training.token_loss_head import TokenLossHead
from modeling_eem.training.token_losses import TOKEN_LOSSES
from modeling_eem.training.training_forward import (
    RegressionForward,
    TrainingForward,
    as_integers,
    as_they_were,
    forward_replaced,
    regression_alignment,
    without_adapters,
)
from modeling_eem.training.training_text import context_length

_NO_LIMIT = 1 << 40  # tokens of a row, for models without a limit


class TokenLossMixin(Trainer):
    """Gives any Trainer a token loss; evaluation is plain cross-entropy.

        class MySFT(TokenLossMixin, SFTTrainer): ...

    Its arguments must be a `TokenLossArguments` too. It works for any causal language model. A model for token
    classification with one label is fitted to `token_entropies` by mean squared error instead (second-order entropy
    estimation).

    The loss is divided by the scored tokens of the whole optimizer step, over accumulation steps and devices, so it
    does not depend on how the step is cut up; a step without scored tokens has gradient 0. If the loss needs
    entropies, a labelled token whose entropy is NaN is left out, and the log counts it as `tokens_without_entropy`.
    With several `entropy_columns`, each stage of training reads its own; evaluation reads the last.
    `eval_loss` is a mean over tokens, whatever the batches were.

    The model's `forward` is replaced only while this trainer calls it.

    Raises:
        ValueError: for arguments without a token loss, a training set that lacks the `entropy_columns` that the loss
            needs, or an argument that would change the loss elsewhere in the Trainer.
    """

    model: nn.Module  # never made by `model_init`

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._token_loss = arguments = _checked_arguments(self)
        self._base = without_adapters(self.model)
        self.is_regression = (
            self._base.config.num_labels == 1 and "ForTokenClassification" in type(self._base).__name__
        )
        self._reads_entropies = self.is_regression or TOKEN_LOSSES[arguments.token_loss].needs_entropies
        if self._reads_entropies:
            _check_columns(self.train_dataset, arguments.entropy_columns)
        self.training_forward = self._make_forward(arguments)
        if self.training_forward is not None:
            self.model_accepts_loss_kwargs = True  # the replaced forward divides by num_items_in_batch
        self._left_out: Tensor | int = 0
        self._num_items: Tensor | int | None = None
        self._is_measuring = False  # in `prediction_step`, so with the forward replaced
        self._states_to_load: str | None = None  # of a resume within an epoch, before its first step

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            assert plugin is not None
            keep_loss_precision(plugin)

    def _make_forward(self, args: TokenLossArguments) -> TrainingForward | None:
        """None for autoencoders, which train on their own loss."""
        if is_autoencoder(self._base.config):
            if args.token_loss != "cross_entropy":
                raise ValueError(f"an autoencoder takes token_loss='cross_entropy', not {args.token_loss!r}.")
            return None
        if self.is_regression:
            alignment = regression_alignment(self._base.config, args.regression_alignment)
            self._base.config.regression_alignment = alignment  # a property of the trained model
            return RegressionForward(is_shifted=alignment == "prefix")
        normalize = args.entropy_normalization == "minmax"
        return TokenLossHead(self._base, TOKEN_LOSSES[args.token_loss], args.token_loss_options, normalize)

    def _replaced(self, forward: Callable[..., Any] | None = None) -> AbstractContextManager:
        forward = forward or self.training_forward
        return nullcontext() if forward is None else forward_replaced(self._base, forward)

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the columns that the replaced forward takes, too."""
        super()._set_signature_columns_if_needed()
        if self.training_forward is not None:
            known = self._signature_columns or []
            taken = (*self.training_forward.columns, *self._token_loss.entropy_columns)
            self._signature_columns = [*known, *(column for column in taken if column not in known)]

    def _with_entropies(self, batch: dict[str, Any], column: str) -> dict[str, Any]:
        """The batch with one column of entropies, under the name that the replaced forward knows."""
        columns = self._token_loss.entropy_columns
        if columns == [TOKEN_ENTROPIES] or self.training_forward is None:
            return batch
        kept = {name: values for name, values in batch.items() if name not in (*columns, TOKEN_ENTROPIES)}
        return {**kept, TOKEN_ENTROPIES: batch[column]} if column in batch else kept

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Under DeepSpeed transformers rounds all that is floating point to the dtype of training, entropies too."""
        columns = () if self.training_forward is None else self.training_forward.columns
        return as_they_were(super()._prepare_inputs(as_integers(inputs, columns)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self.training_forward is None or not model.training:
            if self._is_measuring and self.training_forward is not None:
                inputs = as_integers(inputs, self.training_forward.columns)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # The replaced forward runs below the autocast that accelerate puts around the model's own.
        with self._replaced(), self.accelerator.autocast():
            inputs = as_integers(inputs, self.training_forward.columns)
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None:  # counted over all devices, whose gradients are averaged
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple[Any, ...]:
        """Refuses a stage of entropies beyond the last step of the last epoch; the arguments check their own
        `max_steps`."""
        *counts, max_steps = super().set_initial_training_values(args, dataloader)
        if args.max_steps <= 0:
            self._token_loss.check_stages(max_steps)
        return *counts, max_steps

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        self.check_stages_after(resume_from_checkpoint, max_steps)
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._states_to_load = resume_from_checkpoint if batches else None
        return epochs, batches

    def check_stages_after(self, checkpoint: str | Path | None, max_steps: int) -> None:
        """ValueError if a run of `max_steps` that goes on from a checkpoint would return to an earlier stage's
        entropies."""
        if checkpoint and self._reads_entropies:
            before = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            self._token_loss.check_no_stage_comes_back(before.global_step, before.max_steps, max_steps)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Chooses the stage's entropies. For a loss that averages weights over the step, computes their mean before
        the step's first batch."""
        states, self._states_to_load = self._states_to_load, None
        column = self._token_loss.entropy_column(self.state.global_step, self.state.max_steps)
        chosen = (self._with_entropies(self._without_repeats(batch), column) for batch in epoch_iterator)
        batches, num_items = super().get_batch_samples(chosen, num_batches, device)
        if len(batches) < num_batches:
            # Only a stream ends within a step, whose gradient would stay for the next epoch's first one.
            return [], None
        head = self.training_forward
        if not batches or not isinstance(head, TokenLossHead) or not isinstance(num_items, Tensor):
            return batches, num_items
        if head.loss.needs_entropies:
            labelled = self._count(head, batches, device, is_training=False)
            self._left_out = self._left_out + (labelled - num_items)  # read when it is logged
        if head.loss.is_averaged and (len(batches) > 1 or self.args.world_size > 1):
            mean = self._weight_sum(head, batches, states) / num_items.clamp(min=1)
            mean = torch.where(num_items > 0, mean, 1.0)
            batches = [{**batch, "mean_token_weight": mean} for batch in batches]
        return batches, num_items

    @torch.no_grad()
    def _weight_sum(self, head: TokenLossHead, batches: list[dict[str, Any]], states: str | None) -> Tensor:
        """The sum over all devices, through the wrapped model, which gathers its weights. It draws the noise that the
        step will draw: a resume within an epoch loads the `states` of its checkpoint only after this."""
        model = self.model_wrapped
        assert model is not None
        model.train()
        with torch.random.fork_rng(), self._replaced(head.weight_sum), self.accelerator.autocast():
            if states is not None:
                self._load_rng_state(states)
            sums = [model(**as_integers(self._prepare_inputs(batch), head.columns)).loss for batch in batches]
        return over_processes(self.accelerator, torch.stack(sums).sum(), "sum")

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        if self.training_forward is None:
            self._num_items = super()._get_num_items_in_batch(batch_samples, device)
            return self._num_items
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        # Not `model.training`: transformers turns it on only after this, in the first step and after an evaluation.
        self._num_items = self._count(self.training_forward, batch_samples, device, not self._is_measuring)
        return self._num_items

    @staticmethod
    def _scored(forward: TrainingForward | None, batch: dict[str, Any], is_training: bool) -> Tensor:
        """Which tokens are scored; of an autoencoder all labelled ones."""
        return batch["labels"] != IGNORE_INDEX if forward is None else forward.scored(batch, is_training)

    def _count(
        self, forward: TrainingForward | None, batches: list[dict[str, Any]], device: torch.device, is_training: bool
    ) -> Tensor:
        """Scored tokens over all devices."""
        counts = [self._scored(forward, batch, is_training).sum() for batch in batches]
        count = torch.stack(counts).sum().to(device)
        if self.args.world_size > 1:
            count = over_processes(self.accelerator, count, "sum") // self.get_tp_size()
        return count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (left_out := int(self._left_out)):
            logs[LEFT_OUT] = left_out
            self._left_out = 0
        super().log(logs, start_time)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Rows in their order, also with `group_by_length`, by which transformers (5.23) orders predictions too."""
        strategy, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "random"
        try:
            return super()._get_eval_sampler(eval_dataset)
        finally:
            self.args.train_sampling_strategy = strategy

    def _without_repeats(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A training batch whose repeated rows have no label, so that several processes take one process's steps."""
        if self.args.world_size == 1 or self.args.dataloader_drop_last or not isinstance(self.train_dataset, Sized):
            return inputs
        rows = self._train_batch_size * (self.args.world_size // self.get_tp_size())
        if len(inputs.get("labels", ())) != self._train_batch_size:  # rows joined by a collator
            return inputs
        # Not accelerate's own remainder, which it does not know after a resume within an epoch.
        return self._without_repeated_rows(inputs, len(self.train_dataset) % rows)

    def _without_repeated_rows(self, inputs: dict[str, Any], remainder: int) -> dict[str, Any]:
        """A batch whose repeated rows have no label: accelerate fills up several processes' last batches with rows
        that came before, behind the rows of all processes."""
        is_last = self.accelerator.gradient_state.end_of_dataloader
        if self.args.world_size == 1 or "labels" not in inputs or not is_last or remainder < 1:
            return inputs
        labels_BT = inputs["labels"]
        first = self.args.process_index // self.get_tp_size() * len(labels_BT)
        places_B = torch.arange(first, first + len(labels_BT), device=labels_BT.device)
        return {**inputs, "labels": labels_BT.masked_fill(places_B[:, None] >= remainder, IGNORE_INDEX)}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._num_items = None
        inputs = self._without_repeated_rows(inputs, self.accelerator.gradient_state.remainder)
        inputs = self._with_entropies(inputs, self._token_loss.entropy_columns[-1])
        self._is_measuring = True
        try:
            with self._replaced():
                loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self._is_measuring = False
        if loss is not None and (self.training_forward is not None or "labels" in inputs):
            items, total = self._num_items, loss.double()
            if items is None:  # a Trainer such as TRL's: its loss is the mean over this process's batch
                own = self._scored(self.training_forward, inputs, is_training=False).sum().to(total.device)
                items = self._count(self.training_forward, [inputs], total.device, is_training=False)
                # The mean over no token is NaN.
                total = torch.where(own > 0, total * own * self.args.world_size / items.clamp(min=1), 0.0)
            items = torch.as_tensor(items, device=total.device)
            self._loss_sum += torch.where(items > 0, total * items, 0.0)
            self._loss_items += items
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's loop with a loss that is a mean over tokens; its own weighs batches by their rows."""
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.args.device)
        self._loss_items = torch.zeros_like(self._loss_sum)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._loss_items > 0:
            mean = over_processes(self.accelerator, self._loss_sum, "mean") / self._loss_items
            assert output.metrics is not None
            output.metrics[f"{metric_key_prefix}_loss"] = mean.item()
        return output


class TokenWeightedTrainer(TokenLossMixin, Trainer):
    """A Trainer whose training loss is a token loss: see `TokenLossMixin`.

    Without a `data_collator`, rows of unequal length are padded as the model's config says.
    """

    def __init__(self, model: PreTrainedModel, args: TokenLossArguments, **kwargs: Any):
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = default_collator(without_adapters(model).config)
        super().__init__(model=model, args=args, **kwargs)
        if self.args.data_seed is None:
            # A second `train` would shuffle by what SeedDevicesCallback gave each process.
            self.accelerator.dataloader_config.data_seed = self.args.seed
        self.add_callback(SeedDevicesCallback)


def default_collator(config: PreTrainedConfig) -> CausalCollator:
    """Pads with the config's padding token, or any token of its vocabulary: padding is masked and has no label."""
    config = config.get_text_config()
    values = config.to_dict()
    candidates = (values.get(name) for name in ("pad_token_id", "bos_token_id"))
    pad_token_id = next((token for token in candidates if isinstance(token, int) and token >= 0), 0)
    max_length = context_length(config) or _NO_LIMIT
    return CausalCollator(pad_token_id=pad_token_id, vocab_size=config.vocab_size, max_length=max_length)


def _checked_arguments(trainer: Trainer) -> TokenLossArguments:
    """The trainer's arguments; ValueError for any that would silently change the loss, or never reach it."""
    args = trainer.args
    if not isinstance(args, TokenLossArguments):
        raise ValueError(
            f"{type(args).__name__} has no token loss: pass TokenWeightedTrainingArguments, or arguments of a "
            f"dataclass that begins with TokenLossArguments, such as `class MyArguments(TokenLossArguments, "
            f"{type(args).__name__})`."
        )
    refused = {
        "label_smoothing_factor takes the labels from the token loss: set it to 0.": args.label_smoothing_factor,
        "compute_loss_func replaces token_loss: leave one of them out.": trainer.compute_loss_func,
        "model_init makes models that this trainer does not know: pass the model.": trainer.model_init,
        "average_tokens_across_devices: false contradicts the token loss, which is a mean over all devices.": (
            not args.average_tokens_across_devices
        ),
        "DataParallel has no token loss: start one process a GPU with torchrun.": args.n_gpu > 1,
        "context and sequence parallelism cut rows, and a token loss needs whole rows: switch them off.": (
            trainer.get_cp_size() > 1 or trainer.get_sp_size() > 1
        ),
    }
    for message, is_set in refused.items():
        if is_set:
            raise ValueError(message)
    return args


def _check_columns(dataset: Any, columns: list[str]) -> None:
    if isinstance(dataset, Dataset) and (missing := [name for name in columns if name not in dataset.column_names]):
        raise ValueError(
            f"this loss needs the column {', '.join(missing)} (nats, one a token) in train_dataset, which has only "
            f"{', '.join(dataset.column_names)}."
        )
