"""Sliding exact entropies, for texts longer than the context.

`H(x_j) = S(BOS, x_s … x_j) - S(BOS, x_s … x_{j-1})`, both from the same start s, which moves on by `stride` tokens
once the window is full. Source: Badger & Neligeorge 2025.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from modeling_eem.entropy.base import Option
from modeling_eem.entropy.exact import PrefixEstimator
from modeling_eem.models.modeling_eem import EEMForCausalLM

STRIDE_HELP = "For texts longer than the context: how many tokens share a start."


class SlidingEntropy(PrefixEstimator):
    """Exact entropies of a text of any length, in nats; for a text that fits the context, those of `ExactEntropy`.

    Args:
        stride: how many tokens share a start, 1 … n - 1. With fewer, each token sees more of the text before it (at
            least n - 1 - stride tokens), and takes more passes: (stride + 1) / stride of a window for each token.
    """

    method: ClassVar[str] = "sliding"
    options: ClassVar[tuple[Option, ...]] = (Option("stride", "int", STRIDE_HELP, default=1),)

    def __init__(self, model: EEMForCausalLM, stride: int = 1, batch_tokens: int = 4096):
        super().__init__(model, batch_tokens)
        check_stride(stride, model.config.max_position_embeddings)
        self.stride = stride

    @property
    def max_length(self) -> None:
        return None

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        windows: list[Tensor] = []
        prefixes: list[tuple[int, int]] = []
        for row in rows:
            for start, first, last in spans(len(row), self.model.config.max_position_embeddings, self.stride):
                prefixes += [(len(windows), length) for length in range(first - start + 1, last - start + 3)]
                windows.append(torch.cat([row[:1], row[start : last + 1]]))
        sums = iter(self.nats(windows, prefixes))
        return [self._differences(len(row), sums) for row in rows]

    def _differences(self, length: int, sums: Iterator[Tensor]) -> Tensor:
        values_T = torch.full((length,), float("nan"), dtype=torch.float64)
        for _, first, last in spans(length, self.model.config.max_position_embeddings, self.stride):
            block = torch.stack([next(sums) for _ in range(last - first + 2)])
            values_T[first : last + 1] = block.diff()
        return values_T


def spans(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """`(start, first, last)`: tokens first … last of a row are scored in a window of BOS and tokens start … last.

    Token 0 is BOS. The first window starts with the text and scores all that fits it. Each further window scores the
    next `stride` tokens after as much text as fits before them.
    """
    first, last = 1, min(length, context) - 1
    while first < length:
        yield max(last - context + 2, 1), first, last
        first, last = last + 1, min(last + stride, length - 1)


def check_stride(stride: int, context: int) -> None:
    """Raise a ValueError for a stride that leaves a window nothing to score, or skips text."""
    if not 1 <= stride <= context - 1:
        raise ValueError(f"stride must lie in 1 … {context - 1} for a context of {context} tokens, not be {stride}.")
