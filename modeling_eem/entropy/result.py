"""What every estimator returns: one value a token, and where the token stands in its text."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NATS = "nats"


@dataclass(frozen=True, eq=False)
class TokenEntropies:
    """Per-token values of a batch of rows; shapes: B rows, T tokens.

    A value belongs to the token it describes: it is the entropy of the token at that place given the tokens before
    it. NaN marks what was not scored: the first token of a row (BOS), and padding.

    Attributes:
        ids: `[B, T]`, as they were given.
        values: `[B, T]`, float64, in `unit`.
        attention_mask: `[B, T]`, True on real tokens.
        method: the estimator's name.
        unit: "nats"; or what an occlusion or gradient measures, which is no entropy but goes with it.
        texts: the UTF-8 bytes of each row, where a tokenizer was at hand. A window may begin or end inside a
            character.
        offsets: `[B, T, 2]`, first and last-plus-one byte of each token in its row's text; special tokens and padding
            span nothing.
        boundary_nats: `[B, T]`, `-log P(the next token begins a word)` at each token, from estimators that were asked
            for it; the word probabilities of Pimentel & Meister 2024 need it.
    """

    ids: Tensor
    values: Tensor
    attention_mask: Tensor
    method: str
    unit: str = NATS
    texts: tuple[bytes, ...] | None = None
    offsets: Tensor | None = None
    boundary_nats: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> list[Tensor]:
        """The values of each row's real tokens, `[t]` each."""
        return [values_T[mask_T] for values_T, mask_T in zip(self.values, self.attention_mask)]

    def totals(self) -> Tensor:
        """The sum of each row's scored values, `[B]`; in nats, the row's code length without its code."""
        return self.values.nansum(-1)

    def bits(self) -> Tensor:
        """The values in bits, `[B, T]`.

        Raises:
            ValueError: for values that are no entropies.
        """
        self.require_nats("bits")
        return self.values / math.log(2)

    def normalized(self, document_ids: Tensor | None = None) -> Tensor:
        """`(e - min) / (max - min)` over the scored tokens of each document segment, `[B, T]`; see `min_max`.

        Args:
            document_ids: `[B, T]`, which document each token belongs to; by default a row is one document.
        """
        if document_ids is None:
            document_ids = torch.zeros_like(self.ids)
        return torch.stack([min_max(*row) for row in zip(self.values, document_ids)])

    def require_nats(self, purpose: str) -> None:
        if self.unit != NATS:
            raise ValueError(f"{purpose} need entropies in nats; {self.method} measures {self.unit}.")


def min_max(values_T: Tensor, segments_T: Tensor) -> Tensor:
    """Each segment's values mapped to [0, 1] by its own least and largest; NaN is kept, a constant segment gives 0."""
    normalized_T = torch.full_like(values_T, float("nan"))
    for segment in segments_T.unique():
        here_T = (segments_T == segment) & ~values_T.isnan()
        if here_T.any():
            values = values_T[here_T]
            least, span = values.min(), values.max() - values.min()
            normalized_T[here_T] = (values - least) / span if span > 0 else torch.zeros_like(values)
    return normalized_T
