"""Which row of the mixing matrices each token of a batch stands on.

Shapes: B batch, T tokens, Q new tokens, D features.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers.utils.import_utils import is_tracing

from .configuration_masked_mixer import MaskedMixerConfig


def check_tensor(name: str, x: Tensor) -> None:
    """Raise TypeError for anything but a tensor, and ValueError for complex numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
    if x.is_complex():
        raise ValueError(f"{name} must be real, got {x.dtype}.")


def check_shape(name: str, x: Tensor | None, *shape: int) -> None:
    """Raise ValueError for another shape, which would broadcast silently, and what `check_tensor` raises."""
    if x is None:
        return
    check_tensor(name, x)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(x.shape)}.")


def check_integers(name: str, x: Tensor) -> None:
    """Raise ValueError unless `x` is integers `[batch, tokens]` and not empty, and what `check_tensor` raises."""
    check_tensor(name, x)
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name} must be [batch, tokens] with at least one token, got {list(x.shape)}.")
    if x.dtype not in (torch.long, torch.int):
        raise ValueError(f"{name} must be integers (torch.long), got {x.dtype}.")


def check_ids(input_ids: Tensor, vocab_size: int | None = None) -> None:
    """Raise what `check_integers` raises and, given `vocab_size`, ValueError for ids outside the vocabulary."""
    check_integers("input_ids", input_ids)
    if vocab_size is None or not is_readable(input_ids):
        return
    lowest, highest = input_ids.min().item(), input_ids.max().item()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"input_ids holds {wrong}, outside the vocabulary of {vocab_size}: is this the model's tokenizer?"
        )


def is_readable(x: Tensor) -> bool:
    """Whether values can be read: not while a graph is traced or captured, and not from meta or fake tensors."""
    return not (x.is_meta or is_tracing(x))


def token_ranks(attention_mask_BT: Tensor) -> Tensor:
    """Position of each token among the real ones of its row, 0 on padding before the first."""
    return (attention_mask_BT.bool().cumsum(-1) - 1).clamp(min=0)


@dataclass
class AlignedLayout:
    """Tokens on consecutive rows of W: a whole row, or its real tokens moved to one side of the padding.

    Padding has no effect: its inputs and its mixed outputs are zero.

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

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """On another device. accelerate moves what has this method from one layer's device to the next one's."""
        return _moved(self, *args, **kwargs)

    def align(self, x_TBD: Tensor) -> Tensor:
        """Real tokens in order on their side, zeros elsewhere."""
        if self.order is None or self.is_real_TB1 is None:
            return x_TBD
        return self._move(x_TBD, self.order).masked_fill(~self.is_real_TB1, 0.0)

    def restore(self, x_TBD: Tensor) -> Tensor:
        if self.inverse is None or self.is_real_TB1 is None:
            return x_TBD
        return self._move(x_TBD.masked_fill(~self.is_real_TB1, 0.0), self.inverse)

    @staticmethod
    def _move(x_TBD: Tensor, index: Tensor) -> Tensor:
        return x_TBD.flatten(0, 1).index_select(0, index).view_as(x_TBD)


@dataclass
class ContinuedLayout:
    """`new_length` tokens after those of a cache, without padding, every text on the same consecutive rows of W."""

    new_length: int


@dataclass
class GatheredLayout:
    """Tokens on any rows of W: `rows [1 or B, Q]` of new tokens, `columns [1 or B, T]` of all, and who sees whom."""

    rows_BQ: Tensor
    columns_BT: Tensor
    visible_BQT: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `AlignedLayout.to`."""
        return _moved(self, *args, **kwargs)

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
        """Cached tokens get their positions from the mask (rank among real tokens), new ones from `position_ids`.

        A real token at position 0 begins a document; documents do not see each other.
        """
        length = past_length + new_length
        if attention_mask_BT is None:
            is_real_BT = torch.ones(1, length, dtype=torch.bool, device=device)
        else:
            is_real_BT = attention_mask_BT.bool()
        columns_BT = token_ranks(is_real_BT)
        if position_ids_BQ is not None:
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
            # A caller may give any positions: none may use W above its diagonal.
            visible_BQT = visible_BQT & (columns_BT[:, past_length:, None] >= columns_BT[:, None, :])
        return cls(columns_BT[:, past_length:], columns_BT, visible_BQT)


Layout = AlignedLayout | ContinuedLayout | GatheredLayout


def _moved(layout: Any, *args: Any, **kwargs: Any) -> Any:
    held = vars(layout).items()
    return replace(layout, **{name: value.to(*args, **kwargs) for name, value in held if value is not None})


def choose_layout(
    config: MaskedMixerConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_length: int,
) -> Layout:
    """Which row of the mixing matrices each token stands on.

    Raises:
        ValueError: for more tokens than `max_position_embeddings`, a mask or positions of another shape, positions
            outside the matrices, or positions that restart with right alignment.
    """
    batch_size, new_length, _ = inputs_embeds.shape
    if past_length + new_length > config.max_position_embeddings:
        raise ValueError(
            f"{past_length + new_length} tokens are more than max_position_embeddings="
            f"{config.max_position_embeddings}, the size of the mixing matrices: shorten or split the text."
        )
    check_shape("attention_mask (of cached and new tokens)", attention_mask, batch_size, past_length + new_length)
    if position_ids is None and past_length == 0:
        return AlignedLayout.from_mask(attention_mask, config.position_alignment)
    if position_ids is not None:
        position_ids = _checked_positions(config, position_ids, attention_mask, batch_size, past_length, new_length)
    is_simple = config.position_alignment == "left" and config.is_causal
    if is_simple and _is_consecutive(attention_mask, position_ids, past_length, new_length):
        return ContinuedLayout(new_length) if past_length else AlignedLayout()
    return GatheredLayout.from_positions(
        position_ids, attention_mask, past_length, new_length, config.is_causal, inputs_embeds.device
    )


def _checked_positions(
    config: MaskedMixerConfig,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    batch_size: int,
    past_length: int,
    new_length: int,
) -> Tensor:
    """Positions of the new tokens, 0 on padding. `position_ids` may begin with those of cached tokens."""
    check_tensor("position_ids", position_ids)
    is_shaped = position_ids.ndim == 2 and len(position_ids) in (1, batch_size)
    if not is_shaped or not new_length <= position_ids.shape[1] <= past_length + new_length:
        raise ValueError(f"position_ids must be [1 or {batch_size}, {new_length}], got {list(position_ids.shape)}.")
    check_integers("position_ids", position_ids)
    position_ids = position_ids[:, -new_length:]
    if not is_readable(position_ids):
        return position_ids
    if config.position_alignment == "right" and (position_ids.diff(dim=-1) < 0).any():
        raise ValueError(
            "position_ids that restart (packed rows) need position_alignment='left': with 'right' only the last "
            "document would end on the last row. Pass the documents as separate rows."
        )
    if attention_mask is not None:
        position_ids = position_ids.masked_fill(attention_mask[:, -new_length:] == 0, 0)
    n = config.max_position_embeddings
    if ((position_ids < 0) | (position_ids >= n)).any():
        raise ValueError(f"position_ids must be within 0 and {n - 1}, the rows of the mixing matrices.")
    return position_ids


def has_ranks(position_ids: Tensor | None, attention_mask: Tensor | None, past_length: int, new_length: int) -> bool:
    """Whether all new tokens stand where the mask alone would put them."""
    if position_ids is None or not is_readable(position_ids):
        return True
    position_ids = position_ids[:, -new_length:]
    if attention_mask is None:
        ranks_Q = torch.arange(past_length, past_length + new_length, device=position_ids.device)
        return bool((position_ids == ranks_Q).all())
    is_padding_BQ = attention_mask[:, -new_length:] == 0
    return bool(((position_ids == token_ranks(attention_mask)[:, -new_length:]) | is_padding_BQ).all())


def _is_consecutive(
    attention_mask: Tensor | None, position_ids: Tensor | None, past_length: int, new_length: int
) -> bool:
    """Whether all rows hold the same consecutive positions without padding, as in most generation."""
    if torch.compiler.is_compiling() or not all(
        is_readable(x) for x in (attention_mask, position_ids) if x is not None
    ):
        return False
    if attention_mask is not None and not attention_mask.all():
        return False
    return has_ranks(position_ids, None, past_length, new_length)


__all__ = [
    "AlignedLayout",
    "ContinuedLayout",
    "GatheredLayout",
    "Layout",
    "check_ids",
    "check_integers",
    "check_shape",
    "check_tensor",
    "choose_layout",
    "has_ranks",
    "is_readable",
    "token_ranks",
]
