"""Token mixing: one learned matrix over positions, shared by all features of a head.

    y[i, f] = bias[i] + sum_{j <= i} sum_p W[i, j, p] x[j, f + p - (k - 1) // 2]

i.e. a 1-D convolution of `k` taps whose channels are the TOKENS and whose spatial axis is the FEATURE axis, padded
with (k - 1) // 2 zeros on the left and k // 2 on the right. Shapes: B batch, T tokens, D features, H heads, K taps,
E = D / H.

It stands here twice: `reference_token_mixing` is the equation, `token_mixing` what the models run. The fast path works
on `[T, B, E]`, so that a head's mixing is a product of a `[T, T]` matrix with `[T, B * E]` columns, cut into blocks of
columns of W so that the half above the diagonal is never computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns of W a product takes at a time: few enough to skip most of the upper triangle, enough for full speed.
BLOCK_SIZE = 64
# How often the taps are halved; a third time costs as much memory traffic as it saves products.
MOST_SPLITS = 2
# Rows of W that one reading of a cache serves: a batch of texts is read less often the more there are.
LOOK_AHEAD = 16


def reference_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_BTD: Tensor, is_causal: bool) -> Tensor:
    """The equation above, a loop over heads around `conv1d`; the truth that `token_mixing` is tested against."""
    num_heads, _, _, kernel_size = weight_HTTK.shape
    mixed = []
    for weight_TTK, bias_T, x_BTE in zip(weight_HTTK, bias_HT, x_BTD.chunk(num_heads, dim=-1)):
        if is_causal:
            weight_TTK = weight_TTK.permute(2, 0, 1).tril().permute(1, 2, 0)
        padded = F.pad(x_BTE, ((kernel_size - 1) // 2, kernel_size // 2))
        mixed.append(F.conv1d(padded, weight_TTK, bias_T))
    return torch.cat(mixed, dim=-1)


class _BlockMixing(torch.autograd.Function):
    """`y[h, :, f] = bias[h] + sum_p W[h, :, :, p] x[h, :, f + p]` and its gradients, fast.

    Shapes: `W [H, T, T, K]`, `bias [H, T]`, `x [H, T, F]`, `y [H, T, F]`. Columns of y whose taps reach past x's last
    column hold anything, and their gradient must be zero. With `is_causal` nothing above W's diagonal counts, whatever
    stands there, and its gradient is zero: `_mix` skips the blocks there.

    An even number of taps is halved `splits` times, each time for three quarters of the products, as a fast FIR
    filter (F(2, 2) of Winograd). Even and odd taps A, B and even and odd columns U, V of x, with U' for U one further:

        y_even = A*U + B*V  = A*(U - V) + (A + B)*V
        y_odd  = A*V + B*U' = (A + B)*V + B*(U' - V)

    so that three convolutions of half the taps and half the columns do the work of four. The products are between
    `_fan_out(taps)` and `_differences(columns)`; `_fan_in` makes y of them.
    """

    @staticmethod
    def forward(ctx: Any, weight_HTTK: Tensor, bias_HT: Tensor, x_HTF: Tensor, is_causal: bool, splits: int) -> Tensor:
        weight_KHTT = weight_HTTK.movedim(3, 0)
        weight_KHTT = weight_KHTT.tril() if is_causal else weight_KHTT.contiguous()
        kernels = _fan_out(weight_KHTT.unbind(), splits)
        pieces = _differences(_columns(x_HTF, splits))
        mixed = [
            [_mix(taps, bias_HT if piece == len(pieces) // 2 else None, columns, is_causal)]
            for piece, (taps, columns) in enumerate(zip(kernels, pieces))
        ]
        needs_weight, _, needs_x = ctx.needs_input_grad[:3]
        ctx.save_for_backward(weight_KHTT if needs_x else None, *(pieces if needs_weight else ()))
        ctx.is_causal, ctx.splits, ctx.num_taps = is_causal, splits, len(kernels[0])
        return _interleaved(_fan_in(mixed)).reshape(x_HTF.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_HTF: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        needs_weight, needs_bias, needs_x = ctx.needs_input_grad[:3]
        weight_KHTT, *pieces = ctx.saved_tensors
        grads = [grad for (grad,) in _fan_out(_columns(grad_HTF, ctx.splits), ctx.splits)]
        grad_weight = grad_x = None
        if needs_weight:
            slopes = [_mix_slopes(*pair, ctx.num_taps, ctx.is_causal) for pair in zip(grads, pieces)]
            grad_weight = _interleaved(_fan_in(slopes))
        if needs_x:
            kernels = _fan_out(weight_KHTT.unbind(), ctx.splits)  # formed again: together they are larger than W
            grad_pieces = [_mix_transposed(*pair, ctx.is_causal) for pair in zip(kernels, grads)]
            grad_x = _interleaved(_differences_transposed(grad_pieces)).reshape(grad_HTF.shape)
        return grad_weight, grad_HTF.sum(-1) if needs_bias else None, grad_x, None, None


def _columns(x_HTF: Tensor, splits: int) -> list[Tensor]:
    """Every `2**splits`-th column from the first, from the second, …, each in memory of its own."""
    num_heads, length, width = x_HTF.shape
    columns_HTFP = x_HTF.reshape(num_heads, length, width >> splits, 1 << splits)
    return [columns_HTF.contiguous() for columns_HTF in columns_HTFP.unbind(-1)]


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `_columns`, with one more axis; one part is not copied."""
    return parts[0][..., None] if len(parts) == 1 else torch.stack(tuple(parts), dim=-1)


def _fan_out(parts: Sequence[Tensor], splits: int) -> list[Sequence[Tensor]]:
    """Even parts, even + odd ones, odd ones; each again, `splits` times."""
    if splits == 0:
        return [parts]
    even, odd = parts[::2], parts[1::2]
    middle = [a + b for a, b in zip(even, odd)]
    return [*_fan_out(even, splits - 1), *_fan_out(middle, splits - 1), *_fan_out(odd, splits - 1)]


def _fan_in(parts: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The transpose of `_fan_out`: even = first + middle, odd = middle + last."""
    if len(parts) == 1:
        return parts[0]
    first, middle, last = (_fan_in(third) for third in _thirds(parts))
    return [part for a, b, c in zip(first, middle, last) for part in (a + b, b + c)]


def _differences(columns: Sequence[Tensor]) -> list[Tensor]:
    """Even columns less the odd ones after them, odd ones, the even ones after those less these; each again."""
    if len(columns) == 1:
        return [*columns]
    even, odd = columns[::2], columns[1::2]
    after = [*even[1:], F.pad(even[0][..., 1:], (0, 1))]
    first = [u - v for u, v in zip(even, odd)]
    last = [u - v for u, v in zip(after, odd)]
    return [*_differences(first), *_differences(odd), *_differences(last)]


def _differences_transposed(pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of `_differences`' columns, from those of its pieces."""
    if len(pieces) == 1:
        return pieces
    first, middle, last = (_differences_transposed(third) for third in _thirds(pieces))
    before = [F.pad(last[-1][..., :-1], (1, 0)), *last[:-1]]
    even = [u + v for u, v in zip(first, before)]
    odd = [(m - u).sub_(v) for m, u, v in zip(middle, first, last)]
    return [grad for pair in zip(even, odd) for grad in pair]


def _thirds(parts: Sequence[Any]) -> list[Sequence[Any]]:
    third = len(parts) // 3
    return [parts[:third], parts[third : 2 * third], parts[2 * third :]]


def _mix(taps: Sequence[Tensor], bias_HT: Tensor | None, x_HTF: Tensor, is_causal: bool) -> Tensor:
    """`bias + sum_p taps[p] x[..., p:]`, by blocks of columns of W."""
    y_HTF = x_HTF.new_zeros(x_HTF.shape) if bias_HT is None else bias_HT[..., None].repeat(1, 1, x_HTF.shape[-1])
    for weight_TT, x_TL, y_TL in _matrices(taps, x_HTF, y_HTF):
        for block, seeing, _ in _blocks(len(weight_TT), is_causal):
            y_TL.narrow(0, *seeing).addmm_(_piece(weight_TT, seeing, block), x_TL.narrow(0, *block))
    return y_HTF


def _mix_transposed(taps: Sequence[Tensor], grad_HTF: Tensor, is_causal: bool) -> Tensor:
    """`_mix`'s gradient with respect to x."""
    grad_x_HTF = grad_HTF.new_zeros(grad_HTF.shape)  # made from the gradient, so that vmap can batch over it
    for weight_TT, grad_x_TL, grad_TL in _matrices(taps, grad_x_HTF, grad_HTF):
        for block, _, seen in _blocks(len(weight_TT), is_causal):
            grad_x_TL.narrow(0, *seen).addmm_(_piece(weight_TT, block, seen).T, grad_TL.narrow(0, *block))
    return grad_x_HTF


def _mix_slopes(grad_HTF: Tensor, x_HTF: Tensor, num_taps: int, is_causal: bool) -> list[Tensor]:
    """`_mix`'s gradients with respect to its taps."""
    num_heads, length, _ = x_HTF.shape
    slopes = [grad_HTF.new_zeros(num_heads, length, length) for _ in range(num_taps)]
    for slopes_TT, x_TL, grad_TL in _matrices(slopes, x_HTF, grad_HTF):
        for block, seeing, _ in _blocks(length, is_causal):
            block_LB = x_TL.narrow(0, *block).T
            _piece(slopes_TT, seeing, block).addmm_(grad_TL.narrow(0, *seeing), block_LB, beta=0)
            if is_causal:
                _piece(slopes_TT, block, block).tril_()
    return slopes


def _matrices(taps: Sequence[Tensor], x_HTF: Tensor, y_HTF: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each head and tap: its matrix, the columns of x it reads and those of y it is for."""
    width = x_HTF.shape[-1] - len(taps) + 1
    for tap, weight_HTT in enumerate(taps):
        yield from zip(weight_HTT, x_HTF.narrow(-1, tap, width), y_HTF.narrow(-1, 0, width))


# A first position and a number of positions: narrow's arguments. A whole slice would be an alias, which vmap cannot
# batch.
Span = tuple[int, int]


def _piece(matrix: Tensor, rows: Span, columns: Span) -> Tensor:
    return matrix.narrow(0, *rows).narrow(1, *columns)


def _blocks(length: int, is_causal: bool) -> list[tuple[Span, Span, Span]]:
    """Blocks of positions as (the block, the positions that see it, the positions it sees)."""
    if not is_causal:
        return [((0, length),) * 3]
    starts = range(0, length, BLOCK_SIZE)
    sizes = [min(BLOCK_SIZE, length - start) for start in starts]
    return [((start, size), (start, length - start), (0, start + size)) for start, size in zip(starts, sizes)]


def _num_splits(num_taps: int, dtype: torch.dtype) -> int:
    """How often `_BlockMixing` halves the taps: each time saves a quarter of the products, for a pass over x and y.

    Not in half precision, where the sums and differences would be rounded.
    """
    if dtype not in (torch.float32, torch.float64):
        return 0
    return min(MOST_SPLITS, (num_taps & -num_taps).bit_length() - 1)


def token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
    """`reference_token_mixing` on the layout `[H, T, B, E]`, fast.

    The padded features of all rows stand side by side in one buffer, so a tap is a view of it shifted by one column.
    Columns where a tap runs from one row into the next hold sums nobody reads, and are dropped at the end.
    """
    batch_size, width = x_HTBE.shape[2:]
    kernel_size = weight_HTTK.shape[-1]
    # Autocast stops at the door of an autograd function, so the product's dtype is settled here.
    dtype = _product_dtype(x_HTBE)
    splits = _num_splits(kernel_size, dtype)
    row_width = -(-(width + kernel_size - 1) // 2**splits) * 2**splits
    x_HTF = _pad_features(x_HTBE, kernel_size, row_width).flatten(2)
    y_HTF = _BlockMixing.apply(weight_HTTK.to(dtype), bias_HT.to(dtype), x_HTF.to(dtype), is_causal, splits)
    return y_HTF.unflatten(2, (batch_size, row_width))[..., :width]


def _pad_features(x: Tensor, kernel_size: int, row_width: int) -> Tensor:
    """Zeros where taps reach past the features; without taps no copy, which `F.pad` would make even so."""
    left = (kernel_size - 1) // 2
    return x if kernel_size == 1 else F.pad(x, (left, row_width - x.shape[-1] - left))


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def continued_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_TBD: Tensor, new_length: int) -> Tensor:
    """The last `new_length` rows of a causal `token_mixing` of `x [T, B, D]`, as `[Q, B, D]`: for generation."""
    length = x_TBD.shape[0]
    rows = slice(length - new_length, length)
    weight_HQTK = weight_HTTK[:, rows, :length].movedim(3, 1).tril(rows.start).movedim(1, 3)
    return _as_QBD(_add_products(bias_HT[:, rows, None], weight_HQTK, x_TBD), x_TBD)


@dataclass
class LookAhead:
    """What the tokens before `start` add to the rows of W from `start` on, biases included: `sums [H, Q, F]`."""

    start: int
    sums_HQF: Tensor


def next_token_mixing(
    weight_HTTK: Tensor, bias_HT: Tensor, x_TBD: Tensor, ahead: LookAhead | None
) -> tuple[Tensor, LookAhead]:
    """`continued_token_mixing` of the last token alone, as `[1, B, D]`, and what the next tokens may use of it.

    All earlier tokens are read once in `LOOK_AHEAD` new ones, when their part of the next rows is summed for all of
    these; a token then adds what came since.
    """
    position = x_TBD.shape[0] - 1
    if ahead is None or not 0 <= position - ahead.start < ahead.sums_HQF.shape[1]:
        rows = slice(position, position + LOOK_AHEAD)
        earlier = slice(0, position)
        sums_HQF = _add_products(bias_HT[:, rows, None], weight_HTTK[:, rows, earlier], x_TBD[earlier])
        ahead = LookAhead(position, sums_HQF)
    row, row_ahead = slice(position, position + 1), slice(position - ahead.start, position - ahead.start + 1)
    since = slice(ahead.start, position + 1)
    sums_H1F = _add_products(ahead.sums_HQF[:, row_ahead], weight_HTTK[:, row, since], x_TBD[since])
    return _as_QBD(sums_H1F, x_TBD), ahead


def _add_products(sums: Tensor, weight_HQTK: Tensor, x_TBD: Tensor) -> Tensor:
    """`sums [H, Q, 1 or F] + sum_p W[..., p] x[..., p : p + E]` over all given tokens; F is B rows of E features."""
    num_heads, _, length, kernel_size = weight_HQTK.shape
    if num_heads == kernel_size == 1:
        return torch.addmm(sums[0], weight_HQTK[0, ..., 0], x_TBD.reshape(length, -1))[None]
    x_HTBE = x_TBD.unflatten(-1, (num_heads, -1)).movedim(2, 0)
    width = x_HTBE.shape[-1]
    padded_HTBF = _pad_features(x_HTBE, kernel_size, width + kernel_size - 1)
    for tap in range(kernel_size):
        sums = torch.baddbmm(sums, weight_HQTK[..., tap], padded_HTBF[..., tap : tap + width].flatten(2))
    return sums


def _as_QBD(sums_HQF: Tensor, x_TBD: Tensor) -> Tensor:
    """Features of all heads side by side, as in `x`."""
    if len(sums_HQF) == 1:
        return sums_HQF.view(-1, *x_TBD.shape[1:])
    return sums_HQF.unflatten(2, (x_TBD.shape[1], -1)).movedim(0, 2).flatten(2)


def gathered_token_mixing(
    weight_HTTK: Tensor, bias_HT: Tensor, x_BTHE: Tensor, rows_BQ: Tensor, columns_BT: Tensor, visible_BQT: Tensor
) -> Tensor:
    """Mixing for tokens at any positions: `W[rows, columns]` where `visible`, else 0. Returns `[B, Q, H, E]`.

    Costs a gathered matrix for each row of the batch; for packed rows, cached decoding and given `position_ids`. The
    leading axis of `rows`, `columns` and `visible` may be 1 when all rows stand alike.
    """
    kernel_size = weight_HTTK.shape[-1]
    width = x_BTHE.shape[-1]
    dtype = _product_dtype(x_BTHE)
    padded_BHTF = _pad_features(x_BTHE, kernel_size, width + kernel_size - 1).transpose(1, 2).to(dtype)
    y_BHQE = bias_HT[:, rows_BQ].transpose(0, 1)[..., None].to(dtype)
    for tap in range(kernel_size):
        weight_HBQT = weight_HTTK[..., tap][:, rows_BQ[:, :, None], columns_BT[:, None, :]]
        weight_BHQT = weight_HBQT.transpose(0, 1).masked_fill(~visible_BQT[:, None], 0.0).to(dtype)
        y_BHQE = y_BHQE + weight_BHQT @ padded_BHTF[..., tap : tap + width]
    return y_BHQE.transpose(1, 2)


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


__all__ = [
    "AlignedLayout",
    "ContinuedLayout",
    "GatheredLayout",
    "LookAhead",
    "continued_token_mixing",
    "gathered_token_mixing",
    "next_token_mixing",
    "reference_token_mixing",
    "token_mixing",
]
