"""The layers of the decoder on rows of bytes, compiled: the same integers as `plain_decoder`, many times faster.

Everything works on flat arrays and places in them. Activations are stored as unsigned bytes, 128 above their value;
the packed biases account for that (`packed_weights`). No function here reads the environment or holds Python's lock.

Names: R rows (positions times windows, position by position), D features, `words` four bytes seen as one int32.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compilation import compiled, compiled_by_hand
from .tensor_grids import (
    ACTIVATION_ENTRIES,
    ACTIVATION_LIMIT,
    COUNT_BITS,
    CURVE,
    GAIN_BITS,
    LOGIT_BITS,
    LOGIT_LIMIT,
    NORM_BITS,
    RESIDUAL_LIMIT,
    SLOPE,
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

# Positions whose mixing is summed in advance, in one read of all earlier positions.
BLOCK = 16
# Activations stored as unsigned bytes are this much above their value.
BYTE_OFFSET = 128
# To find a token, rows of counts are summed in pieces of this many tokens.
PIECE = 128
NORM_UNIT = float(1 << NORM_BITS)
AFFINE_UNIT = 2.0 ** -(NORM_BITS + GAIN_BITS)
# Larger than any update that does not saturate the residual stream.
LARGEST_UPDATE = float(2 * RESIDUAL_LIMIT + 2)
LARGEST_LOGIT, BYTE_LIMIT = float(LOGIT_LIMIT), float(ACTIVATION_LIMIT)
# Types matter for speed: with a place that may be negative, or a needless float, an operation is not vectorised.
HALF_TABLE, HALF_INDEX = float(ACTIVATION_ENTRIES // 2), np.int32(ACTIVATION_ENTRIES // 2)
PART_MASK, LOGIT_SHIFT = np.uint32((1 << LOGIT_BITS) - 1), np.uint32(LOGIT_BITS)
HIGHEST_WEIGHT, SLOPE_32, CURVE_32 = np.uint32(1 << COUNT_BITS), np.uint32(SLOPE), np.uint32(CURVE)
LEAST_WEIGHT_SHIFT = np.uint32(COUNT_BITS + 1)

# Heads, taps, input columns and output columns of a head's row, and the number of windows with room.
MixingSizes = tuple[int, int, int, int, int]


@compiled_by_hand
def rint(typing_context: Any, x: Any) -> Any:
    """Round to the nearest integer, halves to even, as float64."""

    def implement(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        double = ir.DoubleType()
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(double, [double]), "llvm.rint.f64")
        return builder.call(function, arguments)

    return types.float64(types.float64), implement


@compiled
def saturate(x: float, limit: float) -> float:
    return min(max(x, -limit), limit)


@compiled
def norm_rows(
    x_RD: np.ndarray,
    first: int,
    num_rows: int,
    gain_D: np.ndarray,
    offset_D: np.ndarray,
    epsilon: int,
    out: np.ndarray,
    out_place: int,
    out_stride: int,
) -> None:
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
        out_D = out[out_place + r * out_stride :][:d]
        for f in range(d):
            u = rint(np.float64(d * np.int64(x_D[f]) - sum_x) * ratio)
            affine = u * gain_D[f] + offset_D[f]
            out_D[f] = np.uint8(np.int32(saturate(rint(affine * AFFINE_UNIT), BYTE_LIMIT)) + BYTE_OFFSET)


@compiled
def linear_rows(
    words: np.ndarray,
    words_stride: int,
    num_rows: int,
    packed: np.ndarray,
    bias: np.ndarray,
    out: np.ndarray,
    out_stride: int,
) -> None:
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
def add_row(x_D: np.ndarray, sums_D: np.ndarray, scale_D: np.ndarray) -> None:
    """`x + rint(sums * scale)` in place."""
    for f in range(len(x_D)):
        update = saturate(rint(np.float64(sums_D[f]) * scale_D[f]), LARGEST_UPDATE)
        x_D[f] = min(max(x_D[f] + np.int32(update), -RESIDUAL_LIMIT), RESIDUAL_LIMIT)


@compiled
def add_rows(x_RD: np.ndarray, first: int, num_rows: int, sums: np.ndarray, stride: int, scale: np.ndarray) -> None:
    """`add_row` for rows of sums `stride` apart, with one scale a feature."""
    for r in range(num_rows):
        add_row(x_RD[first + r], sums[r * stride :], scale)


@compiled
def round_rows(
    sums: np.ndarray, stride: int, num_rows: int, scale: np.ndarray, num_columns: int, out: np.ndarray, out_stride: int
) -> None:
    """Turn sums into bytes, with one scale a column."""
    for r in range(num_rows):
        sums_D, out_D = sums[r * stride :], out[r * out_stride :]
        for f in range(num_columns):
            out_D[f] = np.uint8(np.int32(saturate(rint(np.float64(sums_D[f]) * scale[f]), BYTE_LIMIT)) + BYTE_OFFSET)


@compiled
def activate_rows(
    sums: np.ndarray,
    stride: int,
    num_rows: int,
    scale: np.ndarray,
    num_columns: int,
    table: np.ndarray,
    out: np.ndarray,
    out_stride: int,
) -> None:
    """Turn sums into places in the activation table, and look them up."""
    for r in range(num_rows):
        sums_D, out_D = sums[r * stride :], out[r * out_stride :]
        for f in range(num_columns):
            index = np.int32(saturate(rint(np.float64(sums_D[f]) * scale[f]), HALF_TABLE)) + HALF_INDEX
            sums_D[f] = min(index, 2 * HALF_INDEX - 1)
        for f in range(num_columns):
            out_D[f] = table[np.uint32(sums_D[f])]


@compiled
def store_inputs(
    rows: np.ndarray,
    first: int,
    stride: int,
    position: int,
    batch_size: int,
    sizes: MixingSizes,
    width: int,
    cache: np.ndarray,
) -> None:
    """Write bytes of B rows at a position into the cache's words `[N / 4 * columns]`; gaps for taps are left alone."""
    heads, taps, columns, _, capacity = sizes
    shift = np.int32(8 * (position & 3))
    others = np.int32(~(255 << shift))
    place = (position >> 2) * heads * capacity * columns + (taps - 1) // 2
    for h in range(heads):
        for b in range(batch_size):
            words_E = cache[place + (h * capacity + b) * columns :]
            row_E = rows[(first + b) * stride + h * width :]
            for f in range(width):
                words_E[f] = words_E[f] & others | np.int32(row_E[f]) << shift


@compiled
def mix_block(
    words: np.ndarray,
    start: int,
    end: int,
    batch_size: int,
    sizes: MixingSizes,
    weight: np.ndarray,
    row_words: int,
    zeros: np.ndarray,
    out: np.ndarray,
) -> None:
    """Products of `BLOCK` rows of W from `start` on with the positions before `end`, as `[BLOCK, columns]`.

    `weight [H, K, N, row_words]`, a row of W padded to whole words; `sizes`: heads, taps, input columns and output
    columns of a head's row, and the number of windows with room.
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
def mix_row(
    words: np.ndarray,
    position: int,
    batch_size: int,
    sizes: MixingSizes,
    weight: np.ndarray,
    row_words: int,
    ahead: np.ndarray,
    out: np.ndarray,
) -> None:
    """The sums of one position: those of its block in advance, plus the positions of the block up to this one."""
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
def add_mixed(
    x_RD: np.ndarray,
    first: int,
    sums: np.ndarray,
    place: int,
    batch_size: int,
    sizes: MixingSizes,
    bias: int,
    scale: float,
) -> None:
    """Add the flat mixing of one position to the residual stream of its B rows."""
    out_columns = sizes[3]
    for b in range(batch_size):
        x_D, sums_D = x_RD[first + b], sums[place + b * out_columns :]
        for f in range(len(x_D)):
            total = np.int32(sums_D[f] + bias)  # both are modulo 2^32
            update = saturate(rint(np.float64(total) * scale), LARGEST_UPDATE)
            x_D[f] = min(max(x_D[f] + np.int32(update), -RESIDUAL_LIMIT), RESIDUAL_LIMIT)


@compiled
def round_mixed(
    sums: np.ndarray,
    place: int,
    batch_size: int,
    sizes: MixingSizes,
    width: int,
    bias_H: np.ndarray,
    scale_H: np.ndarray,
    out: np.ndarray,
    first: int,
    stride: int,
) -> None:
    """Round one position's mixing with heads to bytes, heads side by side, into rows from `first` on."""
    heads, _, _, out_columns, capacity = sizes
    for h in range(heads):
        bias, scale = bias_H[h], scale_H[h]
        for b in range(batch_size):
            sums_E = sums[place + (h * capacity + b) * out_columns :]
            out_E = out[(first + b) * stride + h * width :]
            for f in range(width):
                total = np.int32(sums_E[f] + bias)  # both are modulo 2^32
                q = saturate(rint(np.float64(total) * scale), BYTE_LIMIT)
                out_E[f] = np.uint8(np.int32(q) + BYTE_OFFSET)


@compiled
def head_rows(
    x_RD: np.ndarray, first: int, num_rows: int, out: np.ndarray, stride: int, largest_R: np.ndarray
) -> None:
    """Round rows of the residual stream to bytes, each scaled by its largest magnitude, which is kept."""
    for r in range(num_rows):
        x_D, out_D = x_RD[first + r], out[r * stride :]
        largest = np.int32(1)
        for f in range(len(x_D)):
            largest = max(largest, abs(x_D[f]))
        ratio = ACTIVATION_LIMIT / np.float64(largest)
        for f in range(len(x_D)):
            out_D[f] = np.uint8(np.int32(rint(np.float64(x_D[f]) * ratio)) + BYTE_OFFSET)
        largest_R[r] = largest


@compiled
def weigh_tokens(sums_V: np.ndarray, scale_V: np.ndarray, unit: float) -> tuple[np.int32, np.int64]:
    """Turn the head's sums into tokens' weights, in place; returns the shift and the total of their counts."""
    highest = np.int32(-LOGIT_LIMIT)
    for v in range(len(sums_V)):
        logit = np.int32(saturate(rint(np.float64(sums_V[v]) * (scale_V[v] * unit)), LARGEST_LOGIT))
        sums_V[v] = logit
        highest = max(highest, logit)
    total = np.int64(0)
    for v in range(len(sums_V)):
        below = np.uint32(highest - sums_V[v])
        part = below & PART_MASK
        weight = np.uint32(HIGHEST_WEIGHT - part * (SLOPE_32 - CURVE_32 * part))
        weight = weight >> min(below >> LOGIT_SHIFT, LEAST_WEIGHT_SHIFT)
        sums_V[v] = weight
        total += np.int64(weight)
    shift = 0
    while total >> (TOTAL_BITS + shift):
        shift += 1
    return np.int32(shift), (total >> shift) + len(sums_V)


@compiled
def sum_counts(weights: np.ndarray, shift: int) -> np.int64:
    """The sum of the counts of some tokens."""
    total = np.int64(len(weights))
    for v in range(len(weights)):
        total += np.int64(weights[v] >> shift)
    return total


@compiled
def find_token(weights_V: np.ndarray, shift: int, target: int) -> tuple[int, np.int64]:
    """The token that owns the count `target`, and its start; counts beyond all tokens belong to the last token."""
    start = np.int64(0)
    v = 0
    while v + PIECE < len(weights_V):
        piece = sum_counts(weights_V[v : v + PIECE], shift)
        if start + piece > target:
            break
        start += piece
        v += PIECE
    while v < len(weights_V) - 1:
        count = np.int64(weights_V[v] >> shift) + 1
        if start + count > target:
            break
        start += count
        v += 1
    return v, start
