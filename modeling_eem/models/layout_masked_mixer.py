"""On which rows of the mixing matrices the tokens of a batch stand.

Shapes: B batch, T tokens, Q new tokens, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AlignedLayout:
    """Tokens on consecutive rows of W: the whole row, or its real tokens moved to one side of the padding.

    Padding neither gives nor takes: its inputs and its mixed outputs are zero.

    `order` and `inverse` index the `T * B` tokens of a `[T, B, D]` tensor and are None where there is no mask.
    """

    order: Tensor | None = None
    inverse: Tensor | None = None
    is_real_TB1: Tensor | None = None

    @classmethod
    def from_mask(cls, attention_mask_BT: Tensor | None, alignment: str) -> "AlignedLayout":
        if attention_mask_BT is None:
            return cls()
        is_real_TB = attention_mask_BT.T.bool()
        length, batch_size = is_real_TB.shape
        order_TB = is_real_TB.int().argsort(dim=0, descending=alignment == "left", stable=True)
        inverse_TB = order_TB.argsort(dim=0)
        batch_B = torch.arange(batch_size, device=order_TB.device)
        return cls(
            order=(order_TB * batch_size + batch_B).flatten(),
            inverse=(inverse_TB * batch_size + batch_B).flatten(),
            is_real_TB1=is_real_TB.gather(0, order_TB)[..., None],
        )

    def align(self, x_TBD: Tensor) -> Tensor:
        """Real tokens in order on their side, zeros elsewhere."""
        if self.order is None:
            return x_TBD
        return self._move(x_TBD, self.order).masked_fill(~self.is_real_TB1, 0.0)

    def restore(self, x_TBD: Tensor) -> Tensor:
        if self.inverse is None:
            return x_TBD
        return self._move(x_TBD.masked_fill(~self.is_real_TB1, 0.0), self.inverse)

    @staticmethod
    def _move(x_TBD: Tensor, index: Tensor) -> Tensor:
        return x_TBD.flatten(0, 1).index_select(0, index).view_as(x_TBD)


@dataclass
class ContinuedLayout:
    """`new_length` tokens behind those of a cache, all rows on consecutive rows of W and without padding."""

    new_length: int


@dataclass
class GatheredLayout:
    """Tokens at any rows of W: `rows [1 or B, Q]` of the new tokens, `columns [1 or B, T]` of all, who sees whom."""

    rows_BQ: Tensor
    columns_BT: Tensor
    visible_BQT: Tensor

    @classmethod
    def from_positions(
        cls,
        position_ids_BQ: Tensor | None,
        attention_mask_BT: Tensor | None,
        past_length: int,
        new_length: int,
        is_causal: bool,
        device: torch.device,
    ) -> "GatheredLayout":
        """Positions of cached tokens follow from the mask (rank among real tokens), of new ones from `position_ids`.

        A real token at position 0 begins a document; documents do not see each other.
        """
        length = past_length + new_length
        if attention_mask_BT is None:
            is_real_BT = torch.ones(1, length, dtype=torch.bool, device=device)
        else:
            is_real_BT = attention_mask_BT.bool()
        columns_BT = (is_real_BT.cumsum(-1) - 1).clamp(min=0)
        if position_ids_BQ is not None:
            position_ids_BQ = position_ids_BQ[:, -new_length:]
            batch_size = max(position_ids_BQ.shape[0], columns_BT.shape[0])
            columns_BT = torch.cat(
                [
                    columns_BT[:, :past_length].expand(batch_size, -1),
                    position_ids_BQ.expand(batch_size, -1).to(columns_BT),
                ],
                dim=-1,
            )
        document_BT = (is_real_BT & (columns_BT == 0)).cumsum(-1)
        visible_BQT = is_real_BT[:, None, :] & (document_BT[:, past_length:, None] == document_BT[:, None, :])
        if is_causal:
            index_T = torch.arange(length, device=device)
            visible_BQT = visible_BQT & (index_T[past_length:, None] >= index_T)
            # Positions may be anything a caller gives; the rule of the diagonal holds for all of them.
            visible_BQT = visible_BQT & (columns_BT[:, past_length:, None] >= columns_BT[:, None, :])
        return cls(columns_BT[:, past_length:], columns_BT, visible_BQT)


Layout = AlignedLayout | ContinuedLayout | GatheredLayout

__all__ = ["AlignedLayout", "ContinuedLayout", "GatheredLayout", "Layout"]
