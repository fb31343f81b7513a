"""Cross-entropies for sums that are subtracted from one another."""

import torch
from torch import Tensor, nn

_CHUNK_SIZE = 512  # tokens whose logits exist at one time


def token_nats(
    hidden_ND: Tensor, head: nn.Module, targets_N: Tensor, word_starts_V: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`logsumexp(logits_n) - logits_n[target_n]` in float64, `[N]`; the logits exist in chunks only.

    What is summed thousandfold and then subtracted is kept in float64; the exponentials are as precise as the logits,
    at least float32, whose rounding is 1e-7 of the result.

    Args:
        head: makes logits `[N, V]` of `hidden_ND`.
        word_starts_V: True for some of the vocabulary; adds `logsumexp(logits_n) - logsumexp(logits_n[those])`.
    """
    nats_N = torch.empty(len(targets_N), dtype=torch.float64, device=targets_N.device)
    boundary_N = None if word_starts_V is None else torch.empty_like(nats_N)
    for start in range(0, len(targets_N), _CHUNK_SIZE):
        chunk = slice(start, start + _CHUNK_SIZE)
        logits = head(hidden_ND[chunk])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits - logits.amax(-1, keepdim=True)
        targets = logits.gather(1, targets_N[chunk, None]).squeeze(1).double()
        probabilities = logits.exp_()
        log_z = probabilities.sum(-1).double().log()
        nats_N[chunk] = log_z - targets
        if boundary_N is not None:
            boundary_N[chunk] = log_z - (probabilities @ word_starts_V.to(probabilities.dtype)).double().log()
    return nats_N, boundary_N
