"""The layers of the decoder on rows of bytes, compiled: the same integers as `plain_decoder`, many times faster.

Everything works on flat arrays and places in them. Activations are stored as unsigned bytes, 128 above their value;
biases are made for that (`fast_decoder`). No function here reads the environment or holds Python's lock.

Names: R rows (positions times windows, position by position), D features, `words` four bytes seen as one int32.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .arithmetic import (
    ACTIVATION_ENTRIES,
    ACTIVATION_LIMIT,
    COUNT_BITS,
    GAIN_BITS,
    LOGIT_BITS,
    LOGIT_LIMIT,
    NORM_BITS,
    RESIDUAL_LIMIT,
    TOTAL_BITS,
)
from .tile_product import (
    TILE_COLUMNS,
    linear_tile_1,
    linear_tile_4,
    linear_tile_8,
    mixing_tile_1,
    mixing_tile_8,
)

# Positions whose mixing is summed in advance, at one reading of all earlier ones.
BLOCK = 16
# Activations as unsigned bytes lie this far above their value.
BYTE_OFFSET = 128
# Rows of counts are summed in pieces of this many tokens to find one.
PIECE = 128
NORM_UNIT = float(1 << NORM_BITS)
AFFINE_UNIT = 2.0 ** -(NORM_BITS + GAIN_BITS)
# Past every sum with the residual stream that does not saturate.
LARGEST_UPDATE = float(2 * RESIDUAL_LIMIT + 2)
HALF_TABLE = ACTIVATION_ENTRIES // 2
POWERS_MASK = (1 << LOGIT_BITS) - 1

compiled = njit(nogil=True, cache=True, fastmath=False, error_model="numpy", boundscheck=False)


@intrinsic
def rint(typing_context: Any, x: Any) -> Any:
    """To the nearest integer, halves to the even one, as float64."""

    def implement(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        double = ir.DoubleType()
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(double, [double]), "llvm.rint.f64")
        return builder.call(function, arguments)

    return types.float64(types.float64), implement


@compiled
def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


@compiled
def norm_rows(x_RD, first, num_rows, gain_D, offset_D, epsilon, out, out_place, out_stride):  # noqa: ANN001, ANN201
    """LayerNorm of rows of the residual stream; row r goes to `out[out_place + r * out_stride]` as bytes."""
    d = x_RD.shape[1]
    for r in range(num_rows):
        x_D = x_RD[first + r]
        sum_x = np.int64(0)
        sum_squares = np.int64(0)
        for f in range(d):
            value = np.int64(x_D[f])
            sum_x += value
            sum_squares += value * value
        ratio = NORM_UNIT / np.sqrt(np.float64(d * sum_squares - sum_x * sum_x + epsilon))
        place = out_place + r * out_stride
        for f in range(d):
            u = rint(np.float64(d * np.int64(x_D[f]) - sum_x) * ratio)
            affine = u * gain_D[f] + offset_D[f]
            q = clip(rint(affine * AFFINE_UNIT), -float(ACTIVATION_LIMIT), float(ACTIVATION_LIMIT))
            out[place + f] = np.uint8(np.int32(q) + BYTE_OFFSET)


@compiled
def linear_rows(words, words_stride, num_rows, packed, bias, out, out_stride):  # noqa: ANN001, ANN201
    """`out[r] = W inputs[r] + bias` for rows of bytes; `packed` holds W in panels of 32 outputs."""
    panels = bias.shape[0] // TILE_COLUMNS
    steps = packed.shape[0] // bias.shape[0]
    for panel in range(panels):
        column = panel * TILE_COLUMNS
        place = column * steps
        r = 0
        while r + 8 <= num_rows:
            linear_tile_8(
                out, r * out_stride + column, out_stride, bias, column, 0, packed, place, TILE_COLUMNS,
                words, r * words_stride, words_stride, steps,
            )  # fmt: skip
            r += 8
        if r + 4 <= num_rows:
            linear_tile_4(
                out, r * out_stride + column, out_stride, bias, column, 0, packed, place, TILE_COLUMNS,
                words, r * words_stride, words_stride, steps,
            )  # fmt: skip
            r += 4
        while r < num_rows:
            linear_tile_1(
                out, r * out_stride + column, out_stride, bias, column, 0, packed, place, TILE_COLUMNS,
                words, r * words_stride, words_stride, steps,
            )  # fmt: skip
            r += 1


@compiled
def add_rows(x_RD, first, num_rows, sums, stride, scale):  # noqa: ANN001, ANN201
    """`x + rint(sums * scale)`, a scale a feature."""
    for r in range(num_rows):
        for f in range(x_RD.shape[1]):
            update = clip(rint(np.float64(sums[r * stride + f]) * scale[f]), -LARGEST_UPDATE, LARGEST_UPDATE)
            value = x_RD[first + r, f] + np.int32(update)
            x_RD[first + r, f] = min(max(value, -RESIDUAL_LIMIT), RESIDUAL_LIMIT)


@compiled
def round_rows(sums, stride, num_rows, scale, num_columns, out, out_stride):  # noqa: ANN001, ANN201
    """Sums to bytes, a scale a column."""
    limit = float(ACTIVATION_LIMIT)
    for r in range(num_rows):
        for f in range(num_columns):
            q = clip(rint(np.float64(sums[r * stride + f]) * scale[f]), -limit, limit)
            out[r * out_stride + f] = np.uint8(np.int32(q) + BYTE_OFFSET)


@compiled
def activate_rows(sums, stride, num_rows, scale, num_columns, table, out, out_stride):  # noqa: ANN001, ANN201
    """Sums to places in the table, and what stands there."""
    low, high = -float(HALF_TABLE), float(HALF_TABLE - 1)
    for r in range(num_rows):
        for f in range(num_columns):
            index = np.int32(clip(rint(np.float64(sums[r * stride + f]) * scale[f]), low, high))
            sums[r * stride + f] = index + HALF_TABLE
        for f in range(num_columns):
            out[r * out_stride + f] = table[sums[r * stride + f]]


@compiled
def store_inputs(rows, first, stride, position, batch_size, sizes, width, cache):  # noqa: ANN001, ANN201
    """Bytes of B rows at a position into the cache `[N / 4, columns, 4]`; gaps for taps stay as they are."""
    heads, taps, columns, _, capacity = sizes
    left = (taps - 1) // 2
    for h in range(heads):
        for b in range(batch_size):
            column = (h * capacity + b) * columns + left
            row = (first + b) * stride + h * width
            for f in range(width):
                cache[position >> 2, column + f, position & 3] = rows[row + f]


@compiled
def mix_block(words, start, end, batch_size, sizes, weight, row_words, zeros, out):  # noqa: ANN001, ANN201
    """Products of `BLOCK` rows of W from `start` on with the positions before `end`, as `[BLOCK, columns]`.

    `weight [H, K, N, row_words]`, a row of W padded to whole words; `sizes`: heads, taps, input columns and output
    columns of a head's row, windows there is room for.
    """
    heads, taps, columns, out_columns, capacity = sizes
    n = weight.shape[0] // (heads * taps * row_words)
    stride, step = heads * capacity * out_columns, heads * capacity * columns
    for h in range(heads):
        for b in range(batch_size):
            run = h * capacity + b
            for c in range(0, out_columns, TILE_COLUMNS):
                for half in range(0, BLOCK, 8):
                    place = half * stride + run * out_columns + c
                    steps = min(end, start + half + 8) >> 2
                    for tap in range(taps):
                        row = ((h * taps + tap) * n + start + half) * row_words
                        column = run * columns + c + tap
                        if tap == 0:
                            mixing_tile_8(
                                out, place, stride, zeros, 0, 0, words, column, step, weight, row, row_words, steps
                            )
                        else:
                            mixing_tile_8(
                                out, place, stride, out, place, stride,
                                words, column, step, weight, row, row_words, steps,
                            )  # fmt: skip


@compiled
def mix_row(words, position, batch_size, sizes, weight, row_words, ahead, out):  # noqa: ANN001, ANN201
    """The sums of one position: what its block has in advance, and the positions of the block up to this one."""
    heads, taps, columns, out_columns, capacity = sizes
    n = weight.shape[0] // (heads * taps * row_words)
    stride, step = heads * capacity * out_columns, heads * capacity * columns
    start = position // BLOCK * BLOCK
    first = start >> 2
    steps = (position >> 2) - first + 1
    for h in range(heads):
        for b in range(batch_size):
            run = h * capacity + b
            for c in range(0, out_columns, TILE_COLUMNS):
                place = run * out_columns + c
                for tap in range(taps):
                    row = ((h * taps + tap) * n + position) * row_words + first
                    column = first * step + run * columns + c + tap
                    if tap == 0:
                        in_ahead = (position - start) * stride + place
                        mixing_tile_1(
                            out, place, 0, ahead, in_ahead, 0, words, column, step, weight, row, row_words, steps
                        )
                    else:
                        mixing_tile_1(out, place, 0, out, place, 0, words, column, step, weight, row, row_words, steps)


@compiled
def add_mixed(x_RD, first, sums, place, batch_size, sizes, width, bias, scale):  # noqa: ANN001, ANN201
    """Flat mixing of one position into the residual stream of its B rows."""
    _, _, _, out_columns, _ = sizes
    for b in range(batch_size):
        for f in range(width):
            total = np.float64(sums[place + b * out_columns + f] + bias)
            update = clip(rint(total * scale), -LARGEST_UPDATE, LARGEST_UPDATE)
            value = x_RD[first + b, f] + np.int32(update)
            x_RD[first + b, f] = min(max(value, -RESIDUAL_LIMIT), RESIDUAL_LIMIT)


@compiled
def round_mixed(sums, place, batch_size, sizes, width, bias_H, scale_H, out, first, stride):  # noqa: ANN001, ANN201
    """Mixing with heads of one position to bytes, heads side by side; rows from `first` on."""
    heads, _, _, out_columns, capacity = sizes
    limit = float(ACTIVATION_LIMIT)
    for h in range(heads):
        for b in range(batch_size):
            run = place + (h * capacity + b) * out_columns
            row = (first + b) * stride + h * width
            for f in range(width):
                q = clip(rint(np.float64(sums[run + f] + bias_H[h]) * scale_H[h]), -limit, limit)
                out[row + f] = np.uint8(np.int32(q) + BYTE_OFFSET)


@compiled
def head_rows(x_RD, first, num_rows, out, stride, largest_R):  # noqa: ANN001, ANN201
    """Rows of the residual stream as bytes, each by its largest magnitude, which is kept."""
    for r in range(num_rows):
        largest = np.int32(1)
        for f in range(x_RD.shape[1]):
            largest = max(largest, abs(x_RD[first + r, f]))
        ratio = ACTIVATION_LIMIT / np.float64(largest)
        for f in range(x_RD.shape[1]):
            out[r * stride + f] = np.uint8(np.int32(rint(np.float64(x_RD[first + r, f]) * ratio)) + BYTE_OFFSET)
        largest_R[r] = largest


@compiled
def weigh_tokens(sums, place, vocab_size, scale, unit, powers):  # noqa: ANN001, ANN201
    """Sums of the head to the weights of tokens, in place; returns the shift and the total of their counts."""
    limit = float(LOGIT_LIMIT)
    highest = np.int32(-LOGIT_LIMIT)
    for v in range(vocab_size):
        logit = np.int32(clip(rint(np.float64(sums[place + v]) * (scale[v] * unit)), -limit, limit))
        sums[place + v] = logit
        highest = max(highest, logit)
    total = np.int64(0)
    for v in range(vocab_size):
        below = highest - sums[place + v]
        weight = powers[below & POWERS_MASK] >> min(below >> LOGIT_BITS, np.int32(COUNT_BITS + 1))
        sums[place + v] = weight
        total += weight
    shift = 0
    while total >> (TOTAL_BITS + shift):
        shift += 1
    return shift, (total >> shift) + vocab_size


@compiled
def start_of(sums, place, token, shift):  # noqa: ANN001, ANN201
    """The counts of all tokens before `token`."""
    start = np.int64(0)
    for v in range(token):
        start += sums[place + v] >> shift
    return start + token


@compiled
def find_token(sums, place, vocab_size, shift, target):  # noqa: ANN001, ANN201
    """The token that owns the count `target`, and its start; what lies beyond all counts owns the last token."""
    start = np.int64(0)
    v = 0
    while v + PIECE < vocab_size:
        piece = np.int64(PIECE)
        for i in range(v, v + PIECE):
            piece += sums[place + i] >> shift
        if start + piece > target:
            break
        start += piece
        v += PIECE
    while v < vocab_size - 1:
        count = np.int64(sums[place + v] >> shift) + 1
        if start + count > target:
            break
        start += count
        v += 1
    return v, start
