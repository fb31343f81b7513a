"""Sliding exact entropies, for texts longer than the context.

`H(x_j) = S(BOS, x_s … x_j) - S(BOS, x_s … x_{j-1})`, both from the same start s, which moves on by `stride` tokens
once the window is full. Source: Badger & Neligeorge 2025.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modeling_eem.entropy.base import Option
from modeling_eem.entropy.exact import PrefixEstimator
from modeling_eem.models.modeling_eem import EEMForCausalLM

_BATCHES_A_CALL = 64  # times `batch_tokens`: the windows of a long text hold n tokens for each of its own
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
        values = [torch.full((len(row_T),), float("nan"), dtype=torch.float64) for row_T in rows]
        windows = windows_of(rows, self.model.config.max_position_embeddings, self.stride)
        for some in _together(windows, _BATCHES_A_CALL * self.batch_tokens):
            blocks = [range(window.first - window.start + 1, len(window) + 1) for window in some]
            prefixes = [(number, length) for number, block in enumerate(blocks) for length in block]
            sums = self.nats([window.ids(rows[window.row]) for window in some], prefixes)
            for window, sums_N in zip(some, sums.split([len(block) for block in blocks])):
                values[window.row][window.first : window.last + 1] = sums_N.diff()
        return values


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `first … last` of row `row`, scored after its first token and tokens `start … first - 1`."""

    row: int
    start: int
    first: int
    last: int

    def ids(self, row_T: Tensor) -> Tensor:
        return torch.cat([row_T[:1], row_T[self.start : self.last + 1]])

    def __len__(self) -> int:
        return self.last - self.start + 2


def windows_of(rows: Iterable[Tensor], context: int, stride: int) -> Iterator[Window]:
    """The windows of rows `[t]`, see `spans`."""
    for number, row_T in enumerate(rows):
        for span in spans(len(row_T), context, stride):
            yield Window(number, *span)


def _together(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows in groups of at most `tokens` tokens, or single ones."""
    some: list[Window] = []
    held = 0
    for window in windows:
        if some and held + len(window) > tokens:
            yield some
            some, held = [], 0
        some.append(window)
        held += len(window)
    if some:
        yield some


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
