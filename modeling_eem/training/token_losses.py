"""Token losses: functions of a token's cross-entropy and an estimate of its entropy.

Each is a pure function of N tokens, nats in and nats out, differentiable in the cross-entropy alone; everything else
is a constant. Theorem 1 (Badger & Neligeorge 2025): generalization falls once a model's loss goes below the entropy of
its training data. So a loss should approach each token's entropy and not go below it.

    ℓ cross-entropy   p = exp(-ℓ) the target's probability   e its entropy   ê = e normalised to [0, 1]
    H entropy of the model's own prediction
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem.models.loss_eem import IGNORE_INDEX, mean_over


@dataclass(frozen=True)
class TokenLossOptions:
    """Parameters of the losses that have any.

    Args:
        entropy_threshold: τ of `threshold`, in nats.
        focal_gamma: γ of `focal`.
        mile_gamma: γ of `mile`.
        selected_fraction: share of tokens that `selective` keeps in each segment.

    Raises:
        ValueError: for a number out of range.
    """

    entropy_threshold: float = 4.0
    focal_gamma: float = 2.0
    mile_gamma: float = 1.0
    selected_fraction: float = 0.6

    def __post_init__(self) -> None:
        for name in ("entropy_threshold", "focal_gamma", "mile_gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0; got {getattr(self, name)}.")
        if not 0 < self.selected_fraction <= 1:
            raise ValueError(f"selected_fraction must lie above 0 and be at most 1; got {self.selected_fraction}.")


@dataclass(frozen=True)
class Tokens:
    """What a loss may read of N scored tokens; what it does not ask for is None."""

    losses: Tensor
    entropies: Tensor | None = None
    normalized_entropies: Tensor | None = None
    predictive_entropies: Tensor | None = None
    segments: Tensor | None = None


def _given(values: Tensor | None) -> Tensor:
    """Values that a loss has asked for, so they are not None."""
    assert values is not None
    return values


def cross_entropy(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """ℓ: the control."""
    return tokens.losses


def complement(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """(1 - ê) ℓ; published as "L1 Attr" with ê from occlusion."""
    return (1 - _given(tokens.normalized_entropies)) * tokens.losses


def distance(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """|ℓ - e|: the gradient changes its sign below e, per-token flooding."""
    return (tokens.losses - _given(tokens.entropies)).abs()


def hinge(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """max(ℓ - e, 0): the gradient stops at e."""
    return (tokens.losses - _given(tokens.entropies)).relu()


def threshold(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """ℓ where e < τ, else 0: drops unpredictable tokens."""
    return tokens.losses * (_given(tokens.entropies) < options.entropy_threshold)


def focal(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """(1 - p)^γ ℓ (Lin et al. 2017, arXiv 1708.02002); the factor is differentiated too."""
    # At ℓ = 0 the power of a γ below 1 has an infinite slope, and infinity times ℓ is NaN.
    misses = (-torch.expm1(-tokens.losses)).clamp(min=torch.finfo(tokens.losses.dtype).tiny)
    return misses**options.focal_gamma * tokens.losses


def mile(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """(1 + H)^γ ℓ, H a constant; divided by the mean of (1 + H)^γ over the optimizer step (arXiv 2310.19531)."""
    return (1 + _given(tokens.predictive_entropies)) ** options.mile_gamma * tokens.losses


def selective(tokens: Tokens, options: TokenLossOptions) -> Tensor:
    """ℓ on the share of tokens with the largest ℓ - e in each segment, else 0 (Rho-1, arXiv 2404.07965).

    e is a reference model's loss. In a segment of m tokens exactly ceil(m · share) are kept.
    """
    segments = _given(tokens.segments)
    excess = (tokens.losses - _given(tokens.entropies)).detach()
    # Sorted by falling excess within segments: a token's rank is its place minus the segment's first place.
    by_excess = excess.argsort(descending=True, stable=True)
    order = by_excess[segments[by_excess].argsort(stable=True)]
    _, inverse, sizes = segments.unique(return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - first[inverse[order]]
    # In integers: if the product is whole, the ceiling of its rounded float may be one too many.
    share = Fraction(str(options.selected_fraction)).limit_denominator(10**9)
    kept = torch.div(-sizes * share.numerator, share.denominator, rounding_mode="floor").neg()
    return tokens.losses * (ranks < kept[inverse])


@dataclass(frozen=True)
class TokenLoss:
    """A loss and the inputs that it needs.

    Attributes:
        needs_entropies: reads `entropies` or `normalized_entropies`.
        needs_predictive_entropies: reads the entropy of the model's prediction.
        needs_all_tokens: a token's loss depends on other tokens' losses: all are computed before any gradient.
        is_averaged: its weights are divided by their mean over the optimizer step.
    """

    function: Callable[[Tokens, TokenLossOptions], Tensor]
    needs_entropies: bool = False
    needs_predictive_entropies: bool = False
    needs_all_tokens: bool = False
    is_averaged: bool = False


TOKEN_LOSSES: dict[str, TokenLoss] = {
    "cross_entropy": TokenLoss(cross_entropy),
    "complement": TokenLoss(complement, needs_entropies=True),
    "distance": TokenLoss(distance, needs_entropies=True),
    "hinge": TokenLoss(hinge, needs_entropies=True),
    "threshold": TokenLoss(threshold, needs_entropies=True),
    "focal": TokenLoss(focal),
    "mile": TokenLoss(mile, needs_predictive_entropies=True, is_averaged=True),
    "selective": TokenLoss(selective, needs_entropies=True, needs_all_tokens=True),
}


def token_loss_function(name: str, **options: float) -> Callable[..., Tensor]:
    """A token loss without entropies, as the `compute_loss_func` of any Trainer of causal language models:

        Trainer(model, args, compute_loss_func=token_loss_function("focal", focal_gamma=2.0), …)

    The function takes `(outputs, labels, num_items_in_batch)` with `outputs.logits [B, T, V]` and unshifted
    `labels [B, T]`, and returns `sum_j f(ℓ_j) / n` in nats. It needs whole logits; `TokenLossMixin` does not. Without
    gradients, in evaluation, it is plain cross-entropy.

    Args:
        name: a name of `TOKEN_LOSSES`: cross_entropy or focal.
        options: fields of `TokenLossOptions`.

    Raises:
        ValueError: for a loss that needs entropies, or the mean of its weights over the optimizer step; for an option
            out of range.
    """
    loss = TOKEN_LOSSES.get(name)
    able = [other for other, known in TOKEN_LOSSES.items() if not (known.needs_entropies or known.is_averaged)]
    if name not in able or loss is None:
        raise ValueError(f"{name!r} cannot be a compute_loss_func, only {' or '.join(able)} can: use TokenLossMixin.")
    values = TokenLossOptions(**options)

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        targets_N = labels[:, 1:].flatten()
        is_scored_N = targets_N != IGNORE_INDEX
        logits_NV = outputs.logits[:, :-1].flatten(0, 1)[is_scored_N].float()
        losses_N = F.cross_entropy(logits_NV, targets_N[is_scored_N], reduction="none")
        if torch.is_grad_enabled():
            losses_N = loss.function(Tokens(losses_N), values)
        return mean_over(losses_N.sum(), len(losses_N) if num_items_in_batch is None else num_items_in_batch)

    return compute_loss


__all__ = ["TOKEN_LOSSES", "TokenLoss", "TokenLossOptions", "Tokens", "token_loss_function"]
