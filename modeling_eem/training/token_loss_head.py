"""The training forward of a causal language model, with a token loss and without whole logits.

Shapes: B batch, T tokens, N scored tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from modeling_eem.entropy.normalization import min_max_normalize
from modeling_eem.loading import check_causal, evaluating, has_plain_head, whole_weights
from modeling_eem.models.loss_eem import (
    IGNORE_INDEX,
    linear_cross_entropy,
    linear_token_loss,
    mean_over,
    next_token_targets,
)
from modeling_eem.training.token_losses import TokenLoss, TokenLossOptions, Tokens
from modeling_eem.training.training_forward import OwnForward, takes

logger = logging.get_logger(__name__)


class TokenLossHead:
    """`sum_j f(ℓ_j) / n` over scored tokens, for this project's and any other causal language models.

    A token is scored if its label is not -100 and, if the loss needs entropies, its entropy is not NaN. n is
    `num_items_in_batch`, the scored tokens of the whole optimizer step; a token of weight zero counts in it. A mixture
    of experts' router loss is added too, times the batch's share of n. Outside training the model's own forward runs:
    evaluation is plain cross-entropy.

    Args:
        model: a causal language model. A head that is a plain Linear without bias on the base model's last hidden
            state (checked once, on values) runs in chunks; any other head is called whole, with a warning.
        loss, options: the token loss.
        normalize: whether ê is min-max within each document segment; otherwise the entropies are clipped to [0, 1].

    Raises:
        ValueError: for a model that adds an unknown term to its cross-entropy, or sees later tokens.
    """

    columns = ("token_entropies", "document_ids", "mean_token_weight")

    def __init__(self, model: PreTrainedModel, loss: TokenLoss, options: TokenLossOptions, normalize: bool = True):
        self.model = model
        self.loss = loss
        self.options = options
        self.normalize = normalize
        self.takes_num_items = takes(model.forward, "num_items_in_batch")
        self.router_weight = _router_weight(model)
        with whole_weights(model):
            if not getattr(model, "is_quantized", False):  # LLM.int8() looks for outliers in all tokens at once
                check_causal(model)
            _check_own_loss(model, self.router_weight)
            self.is_chunked = not self.router_weight and has_plain_head(model)
        if not self.is_chunked:
            what = (
                "a router loss is added to the tokens'"
                if self.router_weight
                else "the head is more than a Linear without bias on the last hidden state"
            )
            logger.warning(
                f"{type(model).__name__}: {what}, so its logits are computed whole in training; expect more memory."
            )

    def __call__(
        self,
        own_forward: OwnForward,
        *args: Any,
        labels: Tensor | None = None,
        token_entropies: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        mean_token_weight: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        if labels is None or not self.model.training:
            return self._measure(own_forward, *args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
        targets_BT, is_scored_BT = self._targets(labels, kwargs.pop("shift_labels", None), token_entropies)
        context = self._context(kwargs, is_scored_BT, token_entropies, document_ids)
        targets_N = targets_BT[is_scored_BT]
        num_items = is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch
        router_loss = 0.0
        if self.is_chunked:
            hidden_BTD = self.model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            total, weights_N = self._chunked(hidden_BTD[is_scored_BT], self._head_weight(), targets_N, context)
        else:
            outputs = own_forward(*args, use_cache=False, **kwargs)
            total, weights_N = self._whole(outputs.logits[is_scored_BT].float(), targets_N, context)
            if self.router_weight:
                router_loss = mean_over(self.router_weight * outputs.aux_loss * is_scored_BT.sum(), num_items)
        if self.loss.is_averaged:
            total = total / (_mean(weights_N) if mean_token_weight is None else mean_token_weight)
        return CausalLMOutput(loss=mean_over(total, num_items) + router_loss)

    def weight_sum(
        self,
        own_forward: OwnForward,
        *args: Any,
        labels: Tensor,
        token_entropies: Tensor | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """A forward whose `loss` is the sum of a batch's token weights, for losses that divide by their mean."""
        targets_BT, is_scored_BT = self._targets(labels, kwargs.pop("shift_labels", None), token_entropies)
        if self.is_chunked:
            hidden_ND = self.model.base_model(*args, use_cache=False, **kwargs).last_hidden_state[is_scored_BT]
            targets_N = targets_BT[is_scored_BT]
            entropies_N = linear_token_loss(hidden_ND, self._head_weight(), targets_N, _identity, with_entropy=True)[2]
            assert entropies_N is not None  # asked for
        else:
            logits_BTV = own_forward(*args, use_cache=False, **kwargs).logits
            entropies_N = torch.distributions.Categorical(logits=logits_BTV[is_scored_BT].float()).entropy()
        tokens = Tokens(torch.zeros_like(entropies_N), predictive_entropies=entropies_N)
        return CausalLMOutput(loss=self._slopes(tokens).sum())

    def scored(self, batch: dict[str, Any], is_training: bool) -> Tensor:
        """Which tokens are scored, `[B, T]`, at the outputs that predict them; in evaluation all labelled tokens."""
        entropies_BT = batch.get("token_entropies") if is_training else None
        return self._targets(batch["labels"], batch.get("shift_labels"), entropies_BT)[1]

    def _targets(
        self, labels_BT: Tensor, shift_labels_BT: Tensor | None, token_entropies_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The token that each output predicts, and whether it is scored."""
        targets_BT = next_token_targets(labels_BT, shift_labels_BT)
        is_scored_BT = targets_BT != IGNORE_INDEX
        if self.loss.needs_entropies and token_entropies_BT is not None:
            is_scored_BT = is_scored_BT & ~_before_their_token(token_entropies_BT).isnan()
        return targets_BT, is_scored_BT

    def _measure(
        self, own_forward: OwnForward, *args: Any, num_items_in_batch: Tensor | int | None, **kwargs: Any
    ) -> ModelOutput:
        """The model's own forward, its loss without a router loss: plain cross-entropy.

        If it cannot take `num_items_in_batch`, its mean over the batch is rescaled.
        """
        if num_items_in_batch is not None and self.takes_num_items:
            kwargs["num_items_in_batch"] = num_items_in_batch
        outputs = own_forward(*args, **kwargs)
        if kwargs.get("labels") is None or outputs.loss is None:
            return outputs
        if self.router_weight:
            outputs["loss"] = outputs.loss - self.router_weight * outputs.aux_loss
        if num_items_in_batch is not None and not self.takes_num_items:
            is_scored_BT = self._targets(kwargs["labels"], kwargs.get("shift_labels"), None)[1]
            outputs["loss"] = mean_over(outputs.loss * is_scored_BT.sum(), num_items_in_batch)
        return outputs

    def _context(
        self, kwargs: dict, is_scored_BT: Tensor, token_entropies: Tensor | None, document_ids: Tensor | None
    ) -> Callable[..., Tokens]:
        """A function `tokens(losses, predictive_entropies, index)` that adds all else that a loss may read."""
        if not self.loss.needs_entropies:
            return lambda losses, predictive, index: Tokens(losses, predictive_entropies=predictive)
        if token_entropies is None:
            raise ValueError(
                "this token_loss needs the column token_entropies (nats, one a token), and the batch has none."
            )
        entropies_N = _before_their_token(token_entropies)[is_scored_BT].float()
        segments_N = _segments(is_scored_BT, kwargs.get("position_ids"), document_ids)[is_scored_BT]
        normalized_N = min_max_normalize(entropies_N, segments_N) if self.normalize else entropies_N.clamp(0, 1)
        return lambda losses, predictive, index: Tokens(
            losses, entropies_N[index], normalized_N[index], predictive, segments_N[index]
        )

    def _head_weight(self) -> Tensor:
        head = self.model.get_output_embeddings()
        assert head is not None  # `has_plain_head` has seen it
        return head.weight

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


def _identity(losses: Tensor, _entropies: Tensor | None, _chunk: slice) -> Tensor:
    return losses


def _mean(weights_N: Tensor) -> Tensor:
    """The mean; 1 if there is nothing to average."""
    return weights_N.mean() if len(weights_N) else weights_N.new_ones(())


def _before_their_token(values_BT: Tensor) -> Tensor:
    """Move values, integers too, from tokens to the outputs that predict them, one to the left."""
    values_BT = values_BT if values_BT.is_floating_point() else values_BT.float()
    return F.pad(values_BT[:, 1:], (0, 1), value=float("nan"))


def _router_weight(model: PreTrainedModel) -> float:
    """The factor of a mixture of experts' router loss; 0 for a model without one."""
    values = model.config.get_text_config().to_dict()
    if not values.get("output_router_logits"):
        return 0.0
    return float(values.get("router_aux_loss_coef") or values.get("aux_loss_coef") or 0.0)


def _check_own_loss(model: PreTrainedModel, router_weight: float) -> None:
    """ValueError for a model whose loss is more than the cross-entropy of its logits and a known router loss."""
    input_ids = torch.arange(3, device=model.device)[None] % model.config.get_text_config().vocab_size
    with evaluating(model):
        outputs = model(input_ids=input_ids, labels=input_ids, use_cache=False)
    expected = F.cross_entropy(outputs.logits[0, :-1].float(), input_ids[0, 1:])
    if router_weight:
        expected = expected + router_weight * outputs.aux_loss
    rounding = 1e-4 if model.dtype == torch.float32 else 1e-2  # of sums; a small coefficient must show
    if not torch.allclose(outputs.loss.float(), expected, rtol=rounding, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__}: its loss is {float(outputs.loss):.4g} and its logits' cross-entropy "
            f"{float(expected):.4g}; a token loss would drop the rest, so switch it off in the model's config."
        )


def _segments(is_scored_BT: Tensor, position_ids: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """A number for each token's segment: a document of its row, a packed part, or the whole row. `[B, T]` for the
    targets, one to the left of the tokens."""
    batch_size, length = is_scored_BT.shape
    rows_B1 = torch.arange(batch_size, device=is_scored_BT.device)[:, None] * length
    parts_BT = torch.zeros_like(is_scored_BT, dtype=torch.long)
    if document_ids is not None:
        parts_BT = document_ids.diff(dim=1, prepend=document_ids[:, :1]).ne(0).cumsum(1)
    elif position_ids is not None:
        parts_BT = (position_ids == 0).cumsum(1).expand(batch_size, -1)
    return rows_B1 + F.pad(parts_BT[:, 1:], (0, 1))
