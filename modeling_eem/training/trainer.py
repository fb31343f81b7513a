"""The HF Trainer with token losses, and with regression on per-token entropies."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput, TokenClassifierOutput
from transformers.utils import is_peft_available

from modeling_eem.models.loss_eem import IGNORE_INDEX
from modeling_eem.models.modeling_eem_autoencoder import EEMAutoencoder
from modeling_eem.training.callbacks import SeedDevicesCallback
from modeling_eem.training.token_loss_head import TokenLossHead, install_forward
from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions


@dataclass
class TokenWeightedTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` and the token loss.

    Args:
        token_loss: a name of `TOKEN_LOSSES`.
        entropy_normalization: ê of `complement`: "minmax" within each document segment, or "none", clipped to [0, 1].
        entropy_threshold, focal_gamma, mile_gamma, selected_fraction: see `TokenLossOptions`.
        regression_alignment: where a token's entropy is read off a token-classification model: "prefix", at the
            output before the token, which has not seen it; "token", at the token itself.
    """

    token_loss: str = "cross_entropy"
    entropy_normalization: str = "minmax"
    entropy_threshold: float = TokenLossOptions.entropy_threshold
    focal_gamma: float = TokenLossOptions.focal_gamma
    mile_gamma: float = TokenLossOptions.mile_gamma
    selected_fraction: float = TokenLossOptions.selected_fraction
    regression_alignment: str = "prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in {
            "token_loss": tuple(TOKEN_LOSSES),
            "entropy_normalization": ("minmax", "none"),
            "regression_alignment": ("prefix", "token"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")

    @property
    def token_loss_options(self) -> TokenLossOptions:
        return TokenLossOptions(self.entropy_threshold, self.focal_gamma, self.mile_gamma, self.selected_fraction)


class TokenWeightedTrainer(Trainer):
    """A Trainer whose training loss is a token loss; evaluation is plain cross-entropy.

    Works for any causal language model. A model for token classification with one label is fitted to
    `token_entropies` by mean squared error instead (second-order entropy estimation).

    The loss is divided by the labelled tokens of the whole optimizer step, over accumulation steps and devices, so it
    does not depend on how the step is cut up.

    Raises:
        ValueError: a training set without `token_entropies` where the loss needs them.
    """

    def __init__(self, model: PreTrainedModel, args: TokenWeightedTrainingArguments, **kwargs: Any):
        loss = TOKEN_LOSSES[args.token_loss]
        base = _without_adapters(model)
        self.is_regression = base.config.num_labels == 1 and "ForTokenClassification" in type(base).__name__
        self._check_columns(kwargs.get("train_dataset"), self.is_regression or loss.needs_entropies)
        self.token_loss_head = None
        if isinstance(base, EEMAutoencoder):
            if args.token_loss != "cross_entropy":
                raise ValueError(f"an autoencoder takes token_loss='cross_entropy', not {args.token_loss!r}.")
        elif self.is_regression:
            base.config.regression_alignment = args.regression_alignment  # for who reads the saved model's numbers
            _RegressionForward(base, is_shifted=args.regression_alignment == "prefix")
        else:
            normalize = args.entropy_normalization == "minmax"
            self.token_loss_head = TokenLossHead(base, loss, args.token_loss_options, normalize)
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(SeedDevicesCallback)

    @staticmethod
    def _check_columns(dataset: Any, is_needed: bool) -> None:
        if is_needed and isinstance(dataset, Dataset) and "token_entropies" not in dataset.column_names:
            raise ValueError(
                "this loss needs the column token_entropies (nats, one a token) in train_dataset, which has only "
                f"{', '.join(dataset.column_names)}."
            )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Where weights are averaged over the step, their mean is found before the first of its batches is trained."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        is_cut = len(batches) > 1 or self.args.world_size > 1
        if batches and is_cut and self.token_loss_head and self.token_loss_head.loss.is_averaged:
            self.model.train()
            with torch.random.fork_rng():
                weights = sum(self.token_loss_head.weight_sum(**self._prepare_inputs(batch)) for batch in batches)
            mean = self.accelerator.reduce(weights, "sum") / num_items
            batches = [{**batch, "mean_token_weight": mean} for batch in batches]
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        if not self.is_regression:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(is_scored(batch["token_entropies"], batch["labels"]).sum() for batch in batch_samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count.to(device)).sum()
        return count.to(device)


def _without_adapters(model: Any) -> PreTrainedModel:
    """The model below peft's adapters, or the model itself."""
    if not is_peft_available():
        return model
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


class _RegressionForward:
    """`sum_j (score_j - e_j)^2 / n` over labelled tokens with an entropy."""

    def __init__(self, model: PreTrainedModel, is_shifted: bool):
        self.own_forward = model.forward
        self.is_shifted = is_shifted
        install_forward(model, self.forward, ("token_entropies", "num_items_in_batch"))

    def forward(
        self,
        *args: Any,
        labels: Tensor | None = None,
        token_entropies: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        outputs = self.own_forward(*args, **kwargs)
        if token_entropies is None or labels is None:
            return outputs
        is_scored_BT = is_scored(token_entropies, labels)
        scores_BT = outputs.logits.squeeze(-1).float()
        if self.is_shifted:
            scores_BT = scores_BT.roll(1, dims=1)  # what lands on the first token is not scored
        errors_BT = (scores_BT - token_entropies.float()).masked_fill(~is_scored_BT, 0.0)
        num_items = is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch
        return TokenClassifierOutput(loss=errors_BT.square().sum() / num_items, logits=outputs.logits)


def is_scored(token_entropies_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Tokens with a label and an entropy; never a row's first column, which has no output before it."""
    is_scored_BT = (labels_BT != IGNORE_INDEX) & ~token_entropies_BT.isnan()
    is_scored_BT[:, 0] = False
    return is_scored_BT
