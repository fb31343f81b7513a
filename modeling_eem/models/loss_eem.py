"""Head and cross-entropy in chunks of tokens: the `[tokens, vocabulary]` logits never exist whole.

A chunk's gradients are computed while its logits exist, and kept for backward. Nothing is recomputed, and the peak
memory beside the weights is one chunk of logits. Shapes: N tokens, D features, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import slice_logits_to_keep

from .layout_masked_mixer import check_integers, check_shape, is_readable
from .mixing_masked_mixer import is_watched, linear, product

# The label of a token that is not scored.
IGNORE_INDEX = -100
# Tokens whose logits exist at one time: enough for full matrix speed, few enough to cost little memory.
CHUNK_SIZE = 512
# Logits whose softmax a CPU computes at one time: 2 MB in float32, which its cores' own caches hold.
BLOCK_NUMBERS = 1 << 19
# On a CPU a chunk of more rows is filled up with zeros to a multiple of this. PyTorch's oneDNN compiles a product for
# every number of rows and keeps the last 1,024: megabytes each, gigabytes after a thousand steps.
ROW_MULTIPLE = 64


# Turns cross-entropies into losses: (cross-entropies [n], the predictions' entropies [n] or None, which of the N
# tokens these are) -> losses [n].
TokenLossFunction = Callable[[Tensor, Tensor | None, slice], Tensor]


class _LinearTokenLoss(torch.autograd.Function):
    """`sum_n f(CE_n)`, `CE_n` and `H_n` for logits `h_n W^T`; forward also computes the sum's `d/dh` and `d/dW`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        loss_weights_N: Tensor | None,
        token_loss: TokenLossFunction | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        device = hidden_ND.device
        is_autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if is_autocast else hidden_ND.dtype
        weight_low_VD = weight_VD.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=device)
        losses_N = torch.empty(labels_N.shape, dtype=torch.float32, device=device)
        entropies_N = torch.empty_like(losses_N) if with_entropy else None
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros(weight_VD.shape, dtype=torch.float32, device=device) if needs_weight else None
        # A token loss is called once a chunk; without one, less than a chunk at a time stays in a CPU's cache.
        is_eager_cpu = device.type == "cpu" and not torch.compiler.is_compiling()
        is_small = token_loss is None and is_eager_cpu
        num_rows = min(max(BLOCK_NUMBERS // len(weight_VD), 1), CHUNK_SIZE) if is_small else CHUNK_SIZE
        # One memory for all float32 copies: to fetch new memory took longer than to fill it.
        copies = None if dtype == torch.float32 else losses_N.new_empty(min(num_rows, len(labels_N)), len(weight_VD))
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(labels_N), CHUNK_SIZE):
                chunk = slice(start, start + CHUNK_SIZE)
                hidden_low, labels_C = hidden_ND[chunk].to(dtype), labels_N[chunk]
                if is_eager_cpu and len(labels_C) > ROW_MULTIPLE:  # zeros have logits of zero, and add to no gradient
                    hidden_low = F.pad(hidden_low, (0, 0, 0, -len(labels_C) % ROW_MULTIPLE))
                is_scored_C = labels_C != IGNORE_INDEX
                weights = 1.0 if loss_weights_N is None else loss_weights_N[chunk].float()
                slopes_C = torch.where(is_scored_C, weights, 0.0)
                logits = low = exact = exponentials = None  # frees the previous chunk's first
                logits = product(hidden_low, weight_low_VD)
                for first in range(0, len(labels_C), num_rows):
                    rows = slice(first, min(first + num_rows, len(labels_C)))
                    low, is_scored, slopes = logits[rows], is_scored_C[rows], slopes_C[rows]
                    exact = low if copies is None else copies[: len(low)].copy_(low)
                    exact.sub_(exact.amax(-1, keepdim=True))
                    targets = labels_C[rows].masked_fill(~is_scored, 0)[:, None]
                    target_logits = exact.gather(1, targets)
                    exponentials = exact.exp() if with_entropy else exact.exp_()
                    z = exponentials.sum(-1, keepdim=True)
                    log_z = z.log()
                    losses = (log_z - target_logits).squeeze(1).masked_fill(~is_scored, 0.0)
                    losses_N[chunk][rows] = losses
                    entropies = None
                    if entropies_N is not None:
                        entropies = (log_z - torch.einsum("nv,nv->n", exponentials, exact)[:, None] / z).squeeze(1)
                        entropies_N[chunk][rows] = entropies
                    if token_loss is not None:
                        chunk_total, slopes = _value_and_slopes(token_loss, losses, entropies, chunk, is_scored)
                        total += chunk_total
                    if needs_hidden or needs_weight:
                        # d CE / d logits = softmax - onehot, times the slope of the token's loss, in their memory.
                        slopes = slopes[:, None].to(z.dtype)
                        low.copy_(exponentials.mul_(slopes / z).scatter_add_(1, targets, -slopes))
                if token_loss is None:
                    total += (losses_N[chunk] * slopes_C).sum()
                if grad_hidden is not None:
                    grad_hidden[chunk] = product(logits, weight_low_VD.T)[: len(labels_C)]
                if grad_weight is not None and dtype == torch.float32:
                    grad_weight.addmm_(logits.T, hidden_low)
                elif grad_weight is not None:
                    grad_weight += logits.T @ hidden_low
        # The sum over all tokens may be beyond float16; what backward makes of it, their mean, is not.
        if grad_weight is not None and weight_VD.dtype != torch.float16:
            grad_weight = grad_weight.to(weight_VD.dtype)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        ctx.save_for_backward(grad_hidden, grad_weight, (labels_N == IGNORE_INDEX).all())
        ctx.mark_non_differentiable(losses_N, *(() if entropies_N is None else (entropies_N,)))
        return total, losses_N, entropies_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *grads, is_empty = ctx.saved_tensors
        # A mean over no tokens has the slope 1 / 0; zero times that is NaN.
        slope = grad_total.masked_fill(is_empty, 0.0)
        grad_hidden, grad_weight = (
            None if grad is None else _times(grad, slope).to(dtype) for grad, dtype in zip(grads, ctx.dtypes)
        )
        return grad_hidden, grad_weight, None, None, None, None


def _times(grad: Tensor, slope: Tensor) -> Tensor:
    """The product; of float16 in float32, whose range a scaled loss's slope needs."""
    return grad.float() * slope if grad.dtype == torch.float16 else grad * slope.to(grad.dtype)


def _value_and_slopes(
    token_loss: TokenLossFunction, losses: Tensor, entropies: Tensor | None, chunk: slice, is_scored: Tensor
) -> tuple[Tensor, Tensor]:
    """`sum f(CE)` over scored tokens, and each one's `f'(CE)`."""
    with torch.enable_grad():
        losses = losses.detach().requires_grad_()
        total = token_loss(losses, entropies, chunk).masked_fill(~is_scored, 0.0).sum()
        (slopes,) = torch.autograd.grad(total, losses)
    return total.detach(), slopes.masked_fill(~is_scored, 0.0)


def linear_token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    token_loss: TokenLossFunction,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of a function of the cross-entropies of a bias-free linear head, in nats and float32.

    `total = sum_n f(CE_n)`, `CE_n = logsumexp(W h_n) - (W h_n)[label_n]`; a label of -100 scores 0. Matrix products
    run in the autocast dtype if there is one, the softmax in float32. Only the total carries a gradient, to `hidden`
    and `weight`; everything else that `token_loss` reads is constant.

    Returns:
        `total []`, the cross-entropies `[N]`, and with `with_entropy` the predictions' entropies `[N]`.
    """
    hidden_ND, weight_VD = _wanted(hidden_ND, weight_VD)
    return _LinearTokenLoss.apply(hidden_ND, weight_VD, labels_N, None, token_loss, with_entropy)


def _wanted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Without gradients, tensors that want none: `needs_input_grad` does not tell whether gradients are on."""
    return tensors if torch.is_grad_enabled() else tuple(tensor.detach() for tensor in tensors)


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, loss_weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`sum_n w_n CE_n` (w = 1 by default) and the cross-entropies `[N]`; see `linear_token_loss`."""
    hidden_ND, weight_VD = _wanted(hidden_ND, weight_VD)
    return _LinearTokenLoss.apply(hidden_ND, weight_VD, labels_N, loss_weights_N, None, False)[:2]


def next_token_targets(labels_BT: Tensor, shift_labels_BT: Tensor | None = None) -> Tensor:
    """What each output predicts: output t predicts token t + 1, the last nothing. `shift_labels` come shifted."""
    if shift_labels_BT is not None:
        return shift_labels_BT
    check_integers("labels", labels_BT)
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)


def mean_over(total: Tensor, num_items: Tensor | int) -> Tensor:
    """`total / num_items`; for no items (a step that scores nothing) 0 with a zero gradient."""
    if isinstance(num_items, Tensor):
        return total / num_items.to(total.device).clamp(min=1)
    return total / max(num_items, 1)


def logits_and_loss(
    hidden_BTD: Tensor,
    lm_head: nn.Module,
    targets_BT: Tensor | None,
    output_logits: bool,
    logits_to_keep: int | Tensor = 0,
    loss_weights_BT: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The end of a language model's forward: logits on request; loss and nats of each target if there are targets.

    Returns:
        `logits [B, kept, V]`, and `loss []` and `losses [B, T]` as `causal_lm_loss` gives them; None for each that
            is missing.
    """
    logits = linear(lm_head, slice_logits_to_keep(hidden_BTD, logits_to_keep)) if output_logits else None
    if targets_BT is None:
        return logits, None, None
    kept_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    loss, losses_BT = causal_lm_loss(
        hidden_BTD, lm_head, targets_BT, loss_weights_BT, num_items_in_batch, logits if kept_all else None
    )
    return logits, loss, losses_BT


def _check_labels(labels_BT: Tensor, what: str, count: int | None) -> None:
    """Labels are integers below `count`, or -100. Values are read on a CPU only: elsewhere reading would wait."""
    check_integers("labels", labels_BT)
    if count is not None and labels_BT.is_cpu and is_readable(labels_BT):
        is_wrong_BT = (labels_BT != IGNORE_INDEX) & ((labels_BT < 0) | (labels_BT >= count))
        if is_wrong_BT.any():
            wrong = labels_BT[is_wrong_BT][0].item()
            raise ValueError(f"labels holds {wrong}: neither {what} below {count} nor {IGNORE_INDEX}.")


def causal_lm_loss(
    hidden_BTD: Tensor,
    lm_head: nn.Module,
    targets_BT: Tensor,
    loss_weights_BT: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    logits_BTV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A model's training loss, and the nats of each target.

    `loss = sum_j w_j CE_j / n`, where n is `num_items_in_batch` if given (the labelled tokens of the whole optimizer
    step, which the Trainer counts), else the labelled tokens here. A token of weight zero stays in n. With n = 0 the
    loss is 0 and so is its gradient.

    Args:
        hidden_BTD: the head's inputs.
        lm_head: a plain `nn.Linear` is applied in chunks; others (adapters, quantized layers, hooks) are called.
        targets_BT: what each output predicts, -100 for nothing.
        loss_weights_BT: weight of each target.
        logits_BTV: the logits, if the caller keeps them anyway; the head is then not run again.

    Returns:
        `loss []` and `losses [B, T]`, NaN where nothing was scored.

    Raises:
        ValueError: for targets or weights of another shape.
    """
    check_shape("labels", targets_BT, *hidden_BTD.shape[:2])
    check_shape("loss_weights", loss_weights_BT, *hidden_BTD.shape[:2])
    _check_labels(targets_BT, "a token id", len(lm_head.weight) if type(lm_head) is nn.Linear else None)
    targets_BT = targets_BT.to(hidden_BTD.device)
    targets_N = targets_BT.flatten().long()
    weights_N = None if loss_weights_BT is None else loss_weights_BT.flatten().to(hidden_BTD.device)
    # autocast does not know meta tensors, and their logits cost nothing.
    if logits_BTV is None and is_plain_linear(lm_head) and not hidden_BTD.is_meta:
        total, losses_N = linear_cross_entropy(hidden_BTD.flatten(0, 1), lm_head.weight, targets_N, weights_N)
    else:
        logits_NV = (lm_head(hidden_BTD) if logits_BTV is None else logits_BTV).flatten(0, 1).float()
        logits_NV = logits_NV.to(hidden_BTD.device)  # of models over several devices
        losses_N = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="none")
        if weights_N is not None:  # of a token that is not scored it may be NaN
            weights_N = weights_N.masked_fill(targets_N == IGNORE_INDEX, 0.0)
        total = losses_N.sum() if weights_N is None else (losses_N * weights_N).sum()
    is_scored_BT = targets_BT != IGNORE_INDEX
    num_items = is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch
    losses_BT = losses_N.detach().view_as(targets_BT).masked_fill(~is_scored_BT, float("nan"))
    return mean_over(total, num_items), losses_BT


def is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a head is its weights' product and nothing else, so that it need not be called."""
    is_plain = type(head) is nn.Linear and type(head.weight) in (Tensor, nn.Parameter)  # torchao swaps weights
    return is_plain and head.bias is None and not is_watched(head)


def token_classification_loss(
    logits_BTC: Tensor, labels_BT: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean over scored tokens of the squared error (one number a token) or the cross-entropy (classes).

    With C = 1 the labels are real numbers, unscored where NaN or -100; with C > 1 classes, unscored where -100. The
    sum is divided by `num_items_in_batch` if given (the Trainer's count of the whole optimizer step).

    Raises:
        ValueError: labels of another shape, or no classes.
    """
    check_shape("labels", labels_BT, *logits_BTC.shape[:2])
    labels_BT = labels_BT.to(logits_BTC.device)
    if logits_BTC.shape[-1] > 1:
        _check_labels(labels_BT, "a class", logits_BTC.shape[-1])
        is_scored_BT = labels_BT != IGNORE_INDEX
        logits_NC = logits_BTC.flatten(0, 1).float()
        total = F.cross_entropy(logits_NC, labels_BT.flatten().long(), ignore_index=IGNORE_INDEX, reduction="sum")
    else:
        labels_BT = labels_BT.float()
        is_scored_BT = ~(labels_BT.isnan() | (labels_BT == IGNORE_INDEX))
        # Filled before the square, because NaN times zero is NaN in the gradient too.
        errors_BT = (logits_BTC.squeeze(-1).float() - labels_BT).masked_fill(~is_scored_BT, 0.0)
        total = errors_BT.square().sum()
    return mean_over(total, is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch)


__all__ = [
    "IGNORE_INDEX",
    "causal_lm_loss",
    "is_plain_linear",
    "linear_cross_entropy",
    "linear_token_loss",
    "logits_and_loss",
    "mean_over",
    "next_token_targets",
    "token_classification_loss",
]
