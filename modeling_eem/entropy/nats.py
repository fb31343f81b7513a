"""Cross-entropies of tokens, precise enough to subtract their sums from one another.

Shapes: N tokens, D features, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling_eem.models.loss_eem import CHUNK_SIZE


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the outputs before N tokens predict of them, `[N]` each.

    Attributes:
        nats: `logsumexp(logits) - logits[target]`, float64.
        entropies: `-Σ_v p_v log p_v`, the mean nats that the model expects.
        ranks: the number of logits above the target's, plus 1; 1 where the target has the largest logit.
        boundary_nats: `-log Σ_v p_v` over the tokens that begin a word.
    """

    nats: Tensor
    entropies: Tensor
    ranks: Tensor
    boundary_nats: Tensor | None


def token_nats(hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> Tensor:
    """`logsumexp(logits_n) - logits_n[target_n]` in float64, `[N]`; the logits exist in chunks only.

    Values that are summed a thousandfold and then subtracted are kept in float64. The exponentials are as precise as
    the logits, at least float32, whose rounding is 1e-7 of the result.

    Args:
        head: makes logits `[N, V]` of `hidden_ND`; if it returns its input, `hidden_ND` is overwritten.
    """
    nats_N = torch.empty(len(targets_N), dtype=torch.float64, device=targets_N.device)
    for chunk, logits in _logits(hidden_ND, head):
        targets = logits.gather(1, targets_N[chunk, None]).squeeze(1).double()
        nats_N[chunk] = logits.exp_().sum(-1).double().log() - targets
    return nats_N


def predictions(
    hidden_ND: Tensor, head: nn.Module, targets_N: Tensor, word_starts_V: Tensor | None = None
) -> Predictions:
    """`token_nats`, and everything else in `Predictions`, from the same logits; a third slower.

    Args:
        word_starts_V: True for the tokens that begin a word.
    """
    parts: list[tuple[Tensor, ...]] = []
    for chunk, logits in _logits(hidden_ND, head):
        targets = logits.gather(1, targets_N[chunk, None])
        ranks = 1 + (logits > targets).sum(-1)
        exponentials = logits.exp()
        z = exponentials.sum(-1).double()
        # A logit of -inf has the probability 0 and adds 0, not NaN.
        entropies = z.log() - exponentials.mul(logits.clamp(min=torch.finfo(logits.dtype).min)).sum(-1).double() / z
        part = [z.log() - targets.squeeze(1).double(), entropies, ranks]
        if word_starts_V is not None:
            part.append(z.log() - (exponentials @ word_starts_V.to(exponentials.dtype)).double().log())
        parts.append(tuple(part))
    nats, entropies, ranks, *boundary = (torch.cat(columns) for columns in zip(*parts))
    return Predictions(nats, entropies, ranks, boundary[0] if boundary else None)


def _logits(hidden_ND: Tensor, head: nn.Module) -> Iterator[tuple[slice, Tensor]]:
    """Logits minus their largest, in chunks, at least float32; the caller may overwrite them."""
    for start in range(0, len(hidden_ND), CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        rows = hidden_ND[chunk]
        # One row's last bits depend on the weights' address in memory, which differs between processes.
        logits = head(rows) if len(rows) > 1 else head(rows.repeat(2, 1))[:1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        yield chunk, logits.sub_(logits.amax(-1, keepdim=True))
