"""The training forward of a causal language model, with a token loss and without whole logits.

It takes the place of the model's own `forward` on the instance, inside whatever wraps the model later (DDP, FSDP2,
PEFT), because that is where sharded weights are gathered. Shapes: B batch, T tokens, N scored tokens.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import CausalLMOutput, ModelOutput
from transformers.utils import logging

from modeling_eem.entropy.normalization import min_max_normalize
from modeling_eem.models.loss_eem import (
    IGNORE_INDEX,
    has_plain_head,
    linear_cross_entropy,
    linear_token_loss,
    next_token_targets,
)
from modeling_eem.training.token_losses import TokenLoss, TokenLossOptions, Tokens

logger = logging.get_logger(__name__)

_EXTRA_COLUMNS = ("token_entropies", "document_ids", "num_items_in_batch", "mean_token_weight")


class TokenLossHead:
    """`sum_j f(ℓ_j) / n` over labelled tokens, for ours and for foreign causal language models.

    n is `num_items_in_batch`, the labelled tokens of the whole optimizer step, which the Trainer counts; a token of
    weight zero stays in it. Outside training the model's own forward runs: evaluation is plain cross-entropy.

    Args:
        model: a causal language model. A head that is a plain Linear without bias on the base model's last hidden
            state (checked once, on values) runs in chunks; any other is called whole, with a warning.
        loss, options: the token loss.
        normalize: ê by min-max within each document segment, or the entropies clipped to [0, 1].
    """

    def __init__(self, model: PreTrainedModel, loss: TokenLoss, options: TokenLossOptions, normalize: bool = True):
        self.model = model
        self.loss = loss
        self.options = options
        self.normalize = normalize
        self.own_forward = model.forward
        with _whole_weights(model):
            self.is_chunked = has_plain_head(model)
        if not self.is_chunked:
            logger.warning(
                f"{type(model).__name__}: the head is more than a Linear without bias on the last hidden state, so "
                "its logits are computed whole in training; expect more memory."
            )
        install_forward(model, self.forward, _EXTRA_COLUMNS)

    def forward(
        self,
        *args: Any,
        labels: Tensor | None = None,
        token_entropies: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        mean_token_weight: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        if labels is None or not self.model.training:
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
            return self.own_forward(*args, labels=labels, **kwargs)
        targets_BT = next_token_targets(labels, kwargs.pop("shift_labels", None))
        is_scored_BT = targets_BT != IGNORE_INDEX
        context = self._context(kwargs, is_scored_BT, token_entropies, document_ids)
        if self.is_chunked:
            hidden_BTD = self.model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            weight_VD = self.model.get_output_embeddings().weight
            total, weights = self._chunked(hidden_BTD[is_scored_BT], weight_VD, targets_BT[is_scored_BT], context)
        else:
            logits_BTV = self.own_forward(*args, use_cache=False, **kwargs).logits
            total, weights = self._whole(logits_BTV[is_scored_BT].float(), targets_BT[is_scored_BT], context)
        if self.loss.is_averaged:
            total = total / (weights.mean() if mean_token_weight is None else mean_token_weight)
        num_items = is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / num_items)

    @torch.no_grad()
    def weight_sum(self, labels: Tensor, **kwargs: Any) -> Tensor:
        """Sum of a batch's token weights, for losses whose weights are averaged over an optimizer step."""
        for name in _EXTRA_COLUMNS:
            kwargs.pop(name, None)
        targets_BT = next_token_targets(labels, kwargs.pop("shift_labels", None))
        is_scored_BT = targets_BT != IGNORE_INDEX
        hidden_BTD = self.model.base_model(use_cache=False, **kwargs).last_hidden_state
        hidden_ND, targets_N = hidden_BTD[is_scored_BT], targets_BT[is_scored_BT]
        head = self.model.get_output_embeddings()
        if self.is_chunked:
            entropies_N = linear_token_loss(hidden_ND, head.weight, targets_N, _identity, with_entropy=True)[2]
        else:
            logits_BTV = self.own_forward(use_cache=False, **kwargs).logits
            entropies_N = torch.distributions.Categorical(logits=logits_BTV[is_scored_BT].float()).entropy()
        return self._slopes(Tokens(torch.zeros_like(entropies_N), predictive_entropies=entropies_N)).sum()

    def _context(
        self, kwargs: dict, is_scored_BT: Tensor, token_entropies: Tensor | None, document_ids: Tensor | None
    ) -> Callable[..., Tokens]:
        """All that a loss may know beside the losses, as a function `tokens(losses, predictive_entropies, index)`."""
        if not self.loss.needs_entropies:
            return lambda losses, predictive, index: Tokens(losses, predictive_entropies=predictive)
        if token_entropies is None:
            raise ValueError(
                "this token_loss needs the column token_entropies (nats, one a token), and the batch has none."
            )
        # Entropies stand at their token, targets at the output before it.
        entropies_N = F.pad(token_entropies[:, 1:], (0, 1), value=float("nan"))[is_scored_BT].float()
        if entropies_N.isnan().any():
            raise ValueError(
                "token_entropies is NaN at a token that is scored: estimate it, or set the token's label to -100."
            )
        segments_N = _segments(is_scored_BT, kwargs.get("position_ids"), document_ids)[is_scored_BT]
        normalized_N = min_max_normalize(entropies_N, segments_N) if self.normalize else entropies_N.clamp(0, 1)
        return lambda losses, predictive, index: Tokens(
            losses, entropies_N[index], normalized_N[index], predictive, segments_N[index]
        )

    def _chunked(
        self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, context: Callable[..., Tokens]
    ) -> tuple[Tensor, Tensor]:
        with_entropy = self.loss.needs_predictive_entropies
        if self.loss.needs_all_tokens:
            with torch.no_grad():
                _, losses_N, entropies_N = linear_token_loss(hidden_ND, weight_VD, targets_N, _identity, with_entropy)
            weights_N = self._slopes(context(losses_N, entropies_N, slice(None)))
            return linear_cross_entropy(hidden_ND, weight_VD, targets_N, weights_N)[0], weights_N

        def token_loss(losses: Tensor, predictive: Tensor | None, chunk: slice) -> Tensor:
            return self.loss.function(context(losses, predictive, chunk), self.options)

        total, losses_N, entropies_N = linear_token_loss(hidden_ND, weight_VD, targets_N, token_loss, with_entropy)
        return total, self._slopes(context(losses_N, entropies_N, slice(None)))

    def _whole(self, logits_NV: Tensor, targets_N: Tensor, context: Callable[..., Tokens]) -> tuple[Tensor, Tensor]:
        losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
        entropies_N = torch.distributions.Categorical(logits=logits_NV.detach()).entropy()
        tokens = context(losses_N, entropies_N, slice(None))
        return self.loss.function(tokens, self.options).sum(), self._slopes(tokens)

    def _slopes(self, tokens: Tokens) -> Tensor:
        """f'(ℓ) of each token: its weight."""
        with torch.enable_grad():
            losses_N = tokens.losses.detach().requires_grad_()
            known = {**vars(tokens), "losses": losses_N}
            return torch.autograd.grad(self.loss.function(Tokens(**known), self.options).sum(), losses_N)[0]


def install_forward(model: PreTrainedModel, forward: Callable[..., ModelOutput], extra: tuple[str, ...]) -> None:
    """Put `forward` in place of the instance's, with its own parameters named beside `extra`: the Trainer keeps the
    columns that `forward` names."""

    def training_forward(*args: Any, **kwargs: Any) -> ModelOutput:
        return forward(*args, **kwargs)

    parameters = dict(inspect.signature(model.forward).parameters)
    for name in extra:
        parameters.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    training_forward.__signature__ = inspect.Signature(ordered)
    model.forward = training_forward


def _identity(losses: Tensor, _entropies: Tensor | None, _chunk: slice) -> Tensor:
    return losses


def _whole_weights(model: PreTrainedModel) -> AbstractContextManager:
    """Under ZeRO-3 a model is born in shards, and nothing gathers them before DeepSpeed's engine has it."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def _segments(is_scored_BT: Tensor, position_ids: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """A number for each token's segment: its row's documents, or its packed parts, or its whole row. `[B, T]` for the
    targets, one to the left of the tokens."""
    batch_size, length = is_scored_BT.shape
    rows_B1 = torch.arange(batch_size, device=is_scored_BT.device)[:, None] * length
    parts_BT = torch.zeros_like(is_scored_BT, dtype=torch.long)
    if document_ids is not None:
        parts_BT = document_ids.diff(dim=1, prepend=document_ids[:, :1]).ne(0).cumsum(1)
    elif position_ids is not None:
        parts_BT = (position_ids == 0).cumsum(1).expand(batch_size, -1)
    return rows_B1 + F.pad(parts_BT[:, 1:], (0, 1))
