"""Faster token mixing on a CPU, to the models' own numbers.

* `block_token_mixing`: token mixing by blocks, which never computes the half above the diagonal: of W's rows by
  oneDNN, or, with taps, of its columns by the BLAS, which adds in place. Taps by a fast FIR algorithm.

Each declines what it was not made for (other devices and dtypes, shards, quantized or watched layers) by returning
None, and the models then compute it themselves. `records/speed-notes.md` shows the gain of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cpu_linear import HAS_ONEDNN, is_plain, onednn

# Columns of W that a product takes at a time: few enough to skip most of the upper triangle, enough for full speed.
BLOCK_SIZE = 64
# Rows of W that a product of oneDNN's takes at a time, and the columns of x from which on that measured faster.
ROW_BLOCK_SIZE = 128
LEAST_COLUMNS = 256
# Numbers in a cache line: products of taps that were a column short of it took a sixth longer.
COLUMN_MULTIPLE = 16


def block_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor | None:
    """`dense_token_mixing` by blocks; not in half precision, which would round the sum of each block and tap."""
    if not is_plain(x_HTBE, weight_HTTK, torch.float32, torch.float64):
        return None
    return _BlockMixing.apply(weight_HTTK, bias_HT, x_HTBE, is_causal)


class _BlockMixing(torch.autograd.Function):
    """`y = reference_token_mixing` on the layout `[H, T, B, E]`, and its gradients, fast.

    Shapes: `W [H, T, T, K]`, `bias [H, T]`, `x` and `y [H, T, B, E]`. With `is_causal`, values above W's diagonal have
    no effect and gradient zero: `_mix` skips the blocks there.

    An even number of taps is halved, which takes three quarters of the products: a fast FIR filter (F(2, 2) of
    Winograd). With even and odd taps A, B, even and odd columns U, V of x, and U' for U one column further:

        y_even = A*U + B*V  = A*(U - V) + (A + B)*V
        y_odd  = A*V + B*U' = (A + B)*V + B*(U' - V)

    Three convolutions of half the taps and half the columns do the work of four. The products are between
    `_fan_out(taps)` and `_differences(columns)`; `_fan_in` makes y from them. Halving again gained nothing.
    """

    @staticmethod
    def forward(ctx: Any, weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
        weight_KHTT = weight_HTTK.movedim(3, 0)
        weight_KHTT = weight_KHTT.tril() if is_causal else weight_KHTT.contiguous()
        _, _, batch_size, width = x_HTBE.shape
        columns = _Columns(batch_size, width, len(weight_KHTT))
        kernels = _fan_out(weight_KHTT.unbind(), columns.step)
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
    def backward(ctx: Any, grad_HTBE: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        needs_weight, needs_bias, needs_x = ctx.needs_input_grad[:3]
        weight_KHTT, *pieces = ctx.saved_tensors
        columns = ctx.columns
        grads = [grad for (grad,) in _fan_out(columns.of_outputs(grad_HTBE), columns.step)]
        grad_weight = grad_x = None
        if needs_weight:
            slopes = [_mix_slopes(*pair, columns.num_taps, ctx.is_causal) for pair in zip(grads, pieces)]
            grad_weight = _interleaved(_fan_in(slopes))
        if needs_x:
            kernels = _fan_out(weight_KHTT.unbind(), columns.step)  # computed again: together they are larger than W
            grad_pieces = [_mix_transposed(*pair, columns.num_inputs, ctx.is_causal) for pair in zip(kernels, grads)]
            grad_x = columns.inputs(_differences_transposed(grad_pieces))
        return grad_weight, grad_HTBE.sum((-2, -1)) if needs_bias else None, grad_x, None


@dataclass(frozen=True)
class _Columns:
    """Where `_BlockMixing` keeps the features of a batch: every `step`-th feature in its own `[H, T, F]` tensor.

    In each tensor the texts are side by side with zeros between them, so a tap is a view shifted by one column. Sums
    across two texts are never read. Without taps x and y are used in place.
    """

    batch_size: int
    width: int
    kernel_size: int

    @property
    def step(self) -> int:
        """2 if taps are halved, else 1."""
        return 1 if self.kernel_size % 2 else 2

    @property
    def num_taps(self) -> int:
        """Taps of a product."""
        return self.kernel_size // self.step

    @property
    def num_outputs(self) -> int:
        """Columns of a product."""
        whole = self.batch_size * self._row
        return whole if self.kernel_size == 1 else _rounded_up(whole, COLUMN_MULTIPLE)

    @property
    def num_inputs(self) -> int:
        """Columns that a product's taps and `_differences` read."""
        beyond = self.num_taps - 2 + self.step
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
        """Columns from one text to the next."""
        return _rounded_up(self.width + self.kernel_size - 1, self.step) // self.step

    # Gradients pass here too, so only operations that vmap can batch: no flatten, unflatten or whole slices.
    def _spread(self, x_HTBE: Tensor, left: int, num_columns: int) -> list[Tensor]:
        num_heads, length = x_HTBE.shape[:2]
        if self.kernel_size == 1:
            return [x_HTBE.reshape(num_heads, length, num_columns)]
        step = self.step
        parts = []
        for start in range(step):
            first = (start - left) % step
            features = x_HTBE[..., first::step] if step > 1 else x_HTBE
            part_HTF = x_HTBE.new_zeros(num_heads, length, num_columns)
            rows_HTBF = self._rows(part_HTF, 1)
            rows_HTBF.narrow(-1, (first + left) // step, features.shape[-1]).copy_(features)
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
    """All parts stacked along a new last axis; a single part is not copied."""
    return parts[0][..., None] if len(parts) == 1 else torch.stack(tuple(parts), dim=-1)


def _fan_out(parts: Sequence[Tensor], step: int) -> list[Sequence[Tensor]]:
    """Even parts, even + odd parts, odd parts."""
    if step == 1:
        return [parts]
    even, odd = parts[::2], parts[1::2]
    return [even, [a + b for a, b in zip(even, odd)], odd]


def _fan_in(parts: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The transpose of `_fan_out`: even = first + middle, odd = middle + last."""
    if len(parts) == 1:
        return parts[0]
    return [part for a, b, c in zip(*parts) for part in (a + b, b + c)]


def _differences(columns: Sequence[Tensor]) -> Sequence[Tensor]:
    """U - V, V and U' - V, for even columns U, the odd columns V after them, and the even columns U' after those.

    The first column follows the last: no product reads that far.
    """
    if len(columns) == 1:
        return columns
    even, odd = columns
    return [even - odd, odd, even.roll(-1, -1) - odd]


def _differences_transposed(pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of `_differences`' columns, from those of its pieces."""
    if len(pieces) == 1:
        return pieces
    first, middle, last = pieces
    return [first + last.roll(1, -1), (middle - first).sub_(last)]


def _is_by_rows(x_HTF: Tensor, num_inputs: int, num_outputs: int, is_causal: bool) -> bool:
    """Whether oneDNN multiplies, by blocks of L rows of W. It cannot add in place, as several taps need.

    Without taps a product has as many columns as x. Two taps that were halved are one tap, but read further.
    """
    is_taken = HAS_ONEDNN and torch.backends.mkldnn.enabled and x_HTF.dtype == torch.float32
    return is_taken and is_causal and num_inputs == num_outputs >= LEAST_COLUMNS


def _mix(taps: Sequence[Tensor], bias_HT: Tensor | None, x_HTF: Tensor, num_outputs: int, is_causal: bool) -> Tensor:
    """`bias + sum_p taps[p] x[..., p : p + num_outputs]`, by blocks of L columns of W."""
    if bias_HT is not None and _is_by_rows(x_HTF, x_HTF.shape[-1], num_outputs, is_causal):
        y_HTF = torch.empty_like(x_HTF)
        for weight_TT, bias_T, x_TF, y_TF in zip(taps[0], bias_HT, x_HTF, y_HTF):
            for start, stop in _row_blocks(len(x_TF)):
                block_LF = onednn(weight_TT[start:stop, :stop], x_TF[:stop].T, None)
                torch.add(block_LF, bias_T[start:stop, None], out=y_TF[start:stop])
        return y_HTF
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
    grad_x_HTF = grad_HTF.new_zeros(num_heads, length, num_inputs)  # from the gradient: vmap can then batch over it
    if _is_by_rows(grad_HTF, num_inputs, num_outputs, is_causal):
        for weight_TT, grad_x_TF, grad_TF in zip(taps[0], grad_x_HTF, grad_HTF):
            for start, stop in _row_blocks(length):
                seeing_LS = _rows_from(start, weight_TT).narrow(1, start, stop - start).T
                block_LF = onednn(seeing_LS, _rows_from(start, grad_TF).T, None)
                grad_x_TF.narrow(0, start, stop - start).copy_(block_LF)
        return grad_x_HTF
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
    if _is_by_rows(grad_HTF, x_HTF.shape[-1], num_outputs, is_causal):
        for slope_TT, x_TF, grad_TF in zip(slopes[0], x_HTF, grad_HTF):
            for start, stop in _row_blocks(length):
                block_LS = onednn(grad_TF.narrow(0, start, stop - start), x_TF.narrow(0, 0, stop), None)
                slope_TT.narrow(0, start, stop - start).narrow(1, 0, stop).copy_(block_LS.tril(start))
        return slopes
    for slopes_SL, x_LF, grad_SF in _column_blocks(slopes, x_HTF, grad_HTF, is_causal):
        for tap, slope_SL in enumerate(slopes_SL):
            slope_SL.addmm_(grad_SF, x_LF.narrow(1, tap, num_outputs).T, beta=0)
            if is_causal:
                slope_SL.narrow(0, 0, len(x_LF)).tril_()
    return slopes


def _column_blocks(
    taps: Sequence[Tensor], x_HTF: Tensor, y_HTF: Tensor, is_causal: bool
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """For each head and block of L columns of W: the block of every tap, that of x, and the rows of y that see it."""
    length = x_HTF.shape[1]
    size = _block_size(length, is_causal)
    for weights_TT, x_TF, y_TF in zip(zip(*taps), x_HTF, y_HTF):
        blocks = zip(x_TF.split(size), _split(weights_TT, size, 1))
        for start, (x_LF, weights_TL) in zip(range(0, length, size), blocks):
            yield [_rows_from(start, weight_TL) for weight_TL in weights_TL], x_LF, _rows_from(start, y_TF)


def _row_blocks(length: int) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin and end."""
    return ((start, min(start + ROW_BLOCK_SIZE, length)) for start in range(0, length, ROW_BLOCK_SIZE))


def _block_size(length: int, is_causal: bool) -> int:
    return BLOCK_SIZE if is_causal else length


def _split(matrices_TT: Sequence[Tensor], size: int, dim: int) -> Iterator[tuple[Tensor, ...]]:
    """The first blocks of all matrices, then the second, …"""
    return zip(*(matrix_TT.split(size, dim) for matrix_TT in matrices_TT))


def _rows_from(start: int, matrix: Tensor) -> Tensor:
    # No slice: a whole slice is an alias, which vmap cannot batch.
    return matrix.narrow(0, start, matrix.shape[0] - start)


__all__ = ["block_token_mixing"]
