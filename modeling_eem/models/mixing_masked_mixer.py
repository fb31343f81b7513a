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
# Numbers in a cache line: products of taps a column short of it took a sixth longer.
COLUMN_MULTIPLE = 16
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
    """`y = reference_token_mixing` on the layout `[H, T, B, E]`, and its gradients, fast.

    Shapes: `W [H, T, T, K]`, `bias [H, T]`, `x` and `y [H, T, B, E]`. With `is_causal` nothing above W's diagonal
    counts, whatever stands there, and its gradient is zero: `_mix` skips the blocks there.

    An even number of taps is halved `splits` times, each time for three quarters of the products, as a fast FIR
    filter (F(2, 2) of Winograd). Even and odd taps A, B and even and odd columns U, V of x, with U' for U one further:

        y_even = A*U + B*V  = A*(U - V) + (A + B)*V
        y_odd  = A*V + B*U' = (A + B)*V + B*(U' - V)

    so that three convolutions of half the taps and half the columns do the work of four. The products are between
    `_fan_out(taps)` and `_differences(columns)`; `_fan_in` makes y of them.
    """

    @staticmethod
    def forward(
        ctx: Any, weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool, splits: int
    ) -> Tensor:
        weight_KHTT = weight_HTTK.movedim(3, 0)
        weight_KHTT = weight_KHTT.tril() if is_causal else weight_KHTT.contiguous()
        kernels = _fan_out(weight_KHTT.unbind(), splits)
        columns = _Columns(*x_HTBE.shape[2:], len(weight_KHTT), splits)
        pieces = _differences(columns.of_inputs(x_HTBE))
        mixed = [
            [_mix(taps, bias_HT if piece == len(pieces) // 2 else None, x_HTF, columns.num_outputs, is_causal)]
            for piece, (taps, x_HTF) in enumerate(zip(kernels, pieces))
        ]
        needs_weight, _, needs_x = ctx.needs_input_grad[:3]
        ctx.save_for_backward(weight_KHTT if needs_x else None, *(pieces if needs_weight else ()))
        ctx.is_causal, ctx.columns = is_causal, columns
        return columns.outputs(_fan_in(mixed))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_HTBE: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        needs_weight, needs_bias, needs_x = ctx.needs_input_grad[:3]
        weight_KHTT, *pieces = ctx.saved_tensors
        columns, splits = ctx.columns, ctx.columns.splits
        grads = [grad for (grad,) in _fan_out(columns.of_outputs(grad_HTBE), splits)]
        grad_weight = grad_x = None
        if needs_weight:
            slopes = [_mix_slopes(*pair, columns.num_taps, ctx.is_causal) for pair in zip(grads, pieces)]
            grad_weight = _interleaved(_fan_in(slopes))
        if needs_x:
            kernels = _fan_out(weight_KHTT.unbind(), splits)  # formed again: together they are larger than W
            grad_pieces = [_mix_transposed(*pair, columns.num_inputs, ctx.is_causal) for pair in zip(kernels, grads)]
            grad_x = columns.inputs(_differences_transposed(grad_pieces))
        return grad_weight, grad_HTBE.sum((-2, -1)) if needs_bias else None, grad_x, None, None


@dataclass(frozen=True)
class _Columns:
    """Where `_BlockMixing` has the features of a batch: every `2**splits`-th in a `[H, T, F]` tensor of its own.

    In each the texts stand side by side with zeros between them, so a tap is a view shifted by one column; where it
    runs from one text into the next there are sums nobody reads. Without taps x and y are taken as they lie.
    """

    batch_size: int
    width: int
    kernel_size: int
    splits: int

    @property
    def num_taps(self) -> int:
        """Taps of a product."""
        return self.kernel_size >> self.splits

    @property
    def num_outputs(self) -> int:
        """Columns of a product."""
        whole = self.batch_size * self._row
        return whole if self.kernel_size == 1 else _rounded_up(whole, COLUMN_MULTIPLE)

    @property
    def num_inputs(self) -> int:
        """Columns that a product's taps read, and `_differences` with them."""
        beyond = self.num_taps - 1 + self.splits
        return _rounded_up(self.num_outputs + beyond, COLUMN_MULTIPLE) if beyond else self.num_outputs

    def of_inputs(self, x_HTBE: Tensor) -> list[Tensor]:
        return self._spread(x_HTBE, self._left, self.num_inputs)

    def inputs(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `of_inputs`, and its transpose."""
        return self._gathered(parts, self._left)

    def of_outputs(self, y_HTBE: Tensor) -> list[Tensor]:
        return self._spread(y_HTBE, 0, self.num_outputs)

    def outputs(self, parts: Sequence[Tensor]) -> Tensor:
        return self._gathered(parts, 0)

    @property
    def _left(self) -> int:
        return (self.kernel_size - 1) // 2

    @property
    def _row(self) -> int:
        """Columns between a text and the next."""
        return _rounded_up(self.width + self.kernel_size - 1, 1 << self.splits) >> self.splits

    # Gradients pass here too: only what vmap can batch, so no flatten, unflatten or whole slices.
    def _spread(self, x_HTBE: Tensor, left: int, num_columns: int) -> list[Tensor]:
        num_heads, length = x_HTBE.shape[:2]
        if self.kernel_size == 1:
            return [x_HTBE.reshape(num_heads, length, num_columns)]
        step = 1 << self.splits
        parts = []
        for start in range(step):
            first = (start - left) % step
            features = x_HTBE[..., first::step] if step > 1 else x_HTBE
            part_HTF = x_HTBE.new_zeros(num_heads, length, num_columns)
            rows_HTBF = self._rows(part_HTF, 1)
            rows_HTBF.narrow(-1, (first + left) >> self.splits, features.shape[-1]).copy_(features)
            parts.append(part_HTF)
        return parts

    def _gathered(self, parts: Sequence[Tensor], left: int) -> Tensor:
        num_heads, length = parts[0].shape[:2]
        together_HTF = _interleaved(parts).reshape(num_heads, length, -1)
        return self._rows(together_HTF, len(parts)).narrow(-1, left, self.width)

    def _rows(self, columns_HTF: Tensor, step: int) -> Tensor:
        num_heads, length = columns_HTF.shape[:2]
        used = self.batch_size * self._row * step
        return columns_HTF.narrow(-1, 0, used).view(num_heads, length, self.batch_size, self._row * step)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    """All with one more axis, the last; one alone is not copied."""
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
    """Even columns less the odd ones after them, odd ones, the even ones after those less these; each again.

    What comes after the last column is the first: no product reads so far.
    """
    if len(columns) == 1:
        return [*columns]
    even, odd = columns[::2], columns[1::2]
    after = [*even[1:], even[0].roll(-1, -1)]
    first = [u - v for u, v in zip(even, odd)]
    last = [u - v for u, v in zip(after, odd)]
    return [*_differences(first), *_differences(odd), *_differences(last)]


def _differences_transposed(pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of `_differences`' columns, from those of its pieces."""
    if len(pieces) == 1:
        return pieces
    first, middle, last = (_differences_transposed(third) for third in _thirds(pieces))
    before = [last[-1].roll(1, -1), *last[:-1]]
    even = [u + v for u, v in zip(first, before)]
    odd = [(m - u).sub_(v) for m, u, v in zip(middle, first, last)]
    return [grad for pair in zip(even, odd) for grad in pair]


def _thirds(parts: Sequence[Any]) -> list[Sequence[Any]]:
    third = len(parts) // 3
    return [parts[:third], parts[third : 2 * third], parts[2 * third :]]


def _mix(taps: Sequence[Tensor], bias_HT: Tensor | None, x_HTF: Tensor, num_outputs: int, is_causal: bool) -> Tensor:
    """`bias + sum_p taps[p] x[..., p : p + num_outputs]`, by blocks of L columns of W."""
    if bias_HT is None:
        y_HTF = x_HTF.new_zeros(*x_HTF.shape[:2], num_outputs)
    else:
        y_HTF = bias_HT[..., None].repeat(1, 1, num_outputs)
    for weights_SL, x_LF, y_SF in _column_blocks(taps, x_HTF, y_HTF, is_causal):
        for tap, weight_SL in enumerate(weights_SL):
            y_SF.addmm_(weight_SL, x_LF.narrow(1, tap, num_outputs))
    return y_HTF


def _mix_transposed(taps: Sequence[Tensor], grad_HTF: Tensor, num_inputs: int, is_causal: bool) -> Tensor:
    """`_mix`'s gradient with respect to x, by blocks of L rows of W."""
    num_heads, length, num_outputs = grad_HTF.shape
    grad_x_HTF = grad_HTF.new_zeros(num_heads, length, num_inputs)  # from the gradient, so that vmap can batch over it
    size = _block_size(length, is_causal)
    for weights_TT, grad_x_TF, grad_TF in zip(zip(*taps), grad_x_HTF, grad_HTF):
        end = 0
        for grad_LF, weights_LT in zip(grad_TF.split(size), _split(weights_TT, size, 0)):
            end += len(grad_LF)
            seen_SF = grad_x_TF.narrow(0, 0, end)
            for tap, weight_LT in enumerate(weights_LT):
                seen_SF.narrow(1, tap, num_outputs).addmm_(weight_LT.narrow(1, 0, end).T, grad_LF)
    return grad_x_HTF


def _mix_slopes(grad_HTF: Tensor, x_HTF: Tensor, num_taps: int, is_causal: bool) -> list[Tensor]:
    """`_mix`'s gradients with respect to its taps, by blocks of L columns of W."""
    num_heads, length, num_outputs = grad_HTF.shape
    slopes = [grad_HTF.new_zeros(num_heads, length, length) for _ in range(num_taps)]
    for slopes_SL, x_LF, grad_SF in _column_blocks(slopes, x_HTF, grad_HTF, is_causal):
        for tap, slope_SL in enumerate(slopes_SL):
            slope_SL.addmm_(grad_SF, x_LF.narrow(1, tap, num_outputs).T, beta=0)
            if is_causal:
                slope_SL.narrow(0, 0, len(x_LF)).tril_()
    return slopes


def _column_blocks(
    taps: Sequence[Tensor], x_HTF: Tensor, y_HTF: Tensor, is_causal: bool
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """For each head and block of L columns of W: the block of every tap and of x, and y; S rows see the block."""
    length = x_HTF.shape[1]
    size = _block_size(length, is_causal)
    for weights_TT, x_TF, y_TF in zip(zip(*taps), x_HTF, y_HTF):
        blocks = zip(x_TF.split(size), _split(weights_TT, size, 1))
        for start, (x_LF, weights_TL) in zip(range(0, length, size), blocks):
            yield [_rows_from(start, weight_TL) for weight_TL in weights_TL], x_LF, _rows_from(start, y_TF)


def _block_size(length: int, is_causal: bool) -> int:
    return BLOCK_SIZE if is_causal else length


def _split(matrices_TT: Sequence[Tensor], size: int, dim: int) -> Iterator[tuple[Tensor, ...]]:
    """The first blocks of all, the second, …"""
    return zip(*(matrix_TT.split(size, dim) for matrix_TT in matrices_TT))


def _rows_from(start: int, matrix: Tensor) -> Tensor:
    # Not by a slice: a whole one is an alias, which vmap cannot batch.
    return matrix.narrow(0, start, matrix.shape[0] - start)


def _num_splits(num_taps: int, dtype: torch.dtype) -> int:
    """How often `_BlockMixing` halves the taps: each time saves a quarter of the products, for a pass over x and y.

    Not in half precision, where the sums and differences would be rounded.
    """
    if dtype not in (torch.float32, torch.float64):
        return 0
    return min(MOST_SPLITS, (num_taps & -num_taps).bit_length() - 1)


def token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
    """`reference_token_mixing` on the layout `[H, T, B, E]`, fast."""
    # Autocast stops at the door of an autograd function, so the product's dtype is settled here.
    dtype = _product_dtype(x_HTBE)
    splits = _num_splits(weight_HTTK.shape[-1], dtype)
    return _BlockMixing.apply(weight_HTTK.to(dtype), bias_HT.to(dtype), x_HTBE.to(dtype), is_causal, splits)


def _pad_features(x: Tensor, kernel_size: int) -> Tensor:
    """Zeros where taps reach past the features; without taps no copy, which `F.pad` would make even so."""
    return x if kernel_size == 1 else F.pad(x, ((kernel_size - 1) // 2, kernel_size // 2))


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
    padded_HTBF = _pad_features(x_HTBE, kernel_size)
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
    padded_BHTF = _pad_features(x_BTHE, kernel_size).transpose(1, 2).to(dtype)
    y_BHQE = bias_HT[:, rows_BQ].transpose(0, 1)[..., None].to(dtype)
    for tap in range(kernel_size):
        weight_HBQT = weight_HTTK[..., tap][:, rows_BQ[:, :, None], columns_BT[:, None, :]]
        weight_BHQT = weight_HBQT.transpose(0, 1).masked_fill(~visible_BQT[:, None], 0.0).to(dtype)
        y_BHQE = y_BHQE + weight_BHQT @ padded_BHTF[..., tap : tap + width]
    return y_BHQE.transpose(1, 2)


__all__ = [
    "LookAhead",
    "continued_token_mixing",
    "gathered_token_mixing",
    "next_token_mixing",
    "reference_token_mixing",
    "token_mixing",
]
