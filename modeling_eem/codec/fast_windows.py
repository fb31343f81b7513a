"""The layers of `fast_layers` put together: steps, whole windows, and the loop that decodes windows in step."""

import numpy as np

from .compilation import compiled
from .entropy_coder import LEAST_RANGE
from .fast_layers import (
    BLOCK,
    activate_rows,
    add_mixed,
    add_rows,
    find_token,
    head_rows,
    linear_rows,
    mix_block,
    mix_row,
    norm_rows,
    rint,
    round_mixed,
    round_rows,
    saturate,
    store_inputs,
    sum_counts,
    weigh_tokens,
)
from .packed_weights import INTRODUCTIONS, ROWS, Parameters, Room
from .tensor_grids import RESIDUAL_LIMIT

# Not literals: numba would compile a function again for every literal.
ZERO, ONE = np.int64(0), np.int64(1)
COMBINATION, EMBEDDING = INTRODUCTIONS.index("combination"), INTRODUCTIONS.index("embedding")


@compiled
def feed_forward(p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, num_rows: int) -> None:
    """`x + down(act(up(LN(x))))` for some rows."""
    d, wide = x_RD.shape[1], p.up_bias.shape[1]
    narrow_stride, wide_stride = (d + 3) // 4, (p.down_weight.shape[1] // p.down_bias.shape[1])
    gain, offset = p.norm_gain[layer, 1], p.norm_offset[layer, 1]
    norm_rows(x_RD, first, num_rows, gain, offset, p.epsilon, room.narrow_bytes, ZERO, 4 * narrow_stride)
    linear_rows(room.narrow_words, narrow_stride, num_rows, p.up_weight[layer], p.up_bias[layer], room.sums, wide)
    columns = min(wide, 4 * wide_stride)
    activate_rows(
        room.sums, wide, num_rows, p.up_scale[layer], columns, p.table[layer], room.wide_bytes, 4 * wide_stride
    )
    outputs = p.down_bias.shape[1]
    linear_rows(room.wide_words, wide_stride, num_rows, p.down_weight[layer], p.down_bias[layer], room.sums, outputs)
    add_rows(x_RD, first, num_rows, room.sums, outputs, p.down_scale[layer])


@compiled
def project_rows(room: Room, weight: np.ndarray, bias: np.ndarray, num_rows: int, stride: int) -> None:
    """A Linear D to D of the narrow rows, into `room.sums`."""
    linear_rows(room.narrow_words, stride, num_rows, weight, bias, room.sums, bias.shape[0])


@compiled
def mixing_inputs(
    p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, num_rows: int, position: int, batch: int
) -> None:
    """Write LN(x) of whole positions, projected if there are heads, into the cache."""
    d = x_RD.shape[1]
    stride = (d + 3) // 4
    gain, offset = p.norm_gain[layer, 0], p.norm_offset[layer, 0]
    norm_rows(x_RD, first, num_rows, gain, offset, p.epsilon, room.narrow_bytes, ZERO, 4 * stride)
    if p.num_heads:
        project_rows(room, p.in_weight[layer], p.in_bias[layer], num_rows, stride)
        round_rows(room.sums, p.in_bias.shape[1], num_rows, p.in_scale[layer], d, room.narrow_bytes, 4 * stride)
    for index in range(num_rows // batch):
        store_inputs(
            room.narrow_bytes, index * batch, 4 * stride, position + index, batch, room.sizes, p.width,
            room.cache_words[layer],
        )  # fmt: skip


@compiled
def add_mixing(
    p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, position: int, place: int, batch: int
) -> None:
    """Add the sums of one position, at `room.mixed[place]`, to the residual stream of its rows."""
    if p.num_heads == 0:
        bias, scale = p.mixing_bias[layer, position, 0], p.mixing_scale[layer, position, 0]
        add_mixed(x_RD, first, room.mixed, place, batch, room.sizes, bias, scale)
        return
    stride = (x_RD.shape[1] + 3) // 4
    bias_H, scale_H = p.mixing_bias[layer, position], p.mixing_scale[layer, position]
    round_mixed(room.mixed, place, batch, room.sizes, p.width, bias_H, scale_H, room.narrow_bytes, ZERO, 4 * stride)
    project_rows(room, p.out_weight[layer], p.out_bias[layer], batch, stride)
    add_rows(x_RD, first, batch, room.sums, p.out_bias.shape[1], p.out_scale[layer])


@compiled
def run_step(p: Parameters, room: Room, x_BD: np.ndarray, position: int, batch: int, ahead_from: int) -> int:
    """Run one position of `batch` windows through all layers; returns the block that is now summed in advance."""
    start = position // BLOCK * BLOCK
    for layer in range(p.table.shape[0]):
        mixing_inputs(p, room, layer, x_BD, ZERO, batch, position, batch)
        words, weight = room.cache_words[layer], p.mixing_weight[layer]
        if ahead_from != start:
            mix_block(words, start, start, batch, room.sizes, weight, p.row_words, room.zeros, room.ahead[layer])
        mix_row(words, position, batch, room.sizes, weight, p.row_words, room.ahead[layer], room.mixed)
        add_mixing(p, room, layer, x_BD, ZERO, position, ZERO, batch)
        feed_forward(p, room, layer, x_BD, ZERO, batch)
    return start


@compiled
def run_positions(p: Parameters, room: Room, x_RD: np.ndarray, num_positions: int, batch: int) -> None:
    """Run the first positions of `batch` windows through all layers; row `t * batch + b` of x is window b at t."""
    heads, _, _, out_columns, capacity = room.sizes
    row_sums = heads * capacity * out_columns
    at_once = max(1, ROWS // batch)
    for layer in range(p.table.shape[0]):
        for position in range(0, num_positions, at_once):
            rows = min(at_once, num_positions - position) * batch
            mixing_inputs(p, room, layer, x_RD, position * batch, rows, position, batch)
        for start in range(0, num_positions, BLOCK):
            mix_block(
                room.cache_words[layer], start, start + BLOCK, batch, room.sizes, p.mixing_weight[layer],
                p.row_words, room.zeros, room.mixed,
            )  # fmt: skip
            for position in range(start, min(start + BLOCK, num_positions)):
                add_mixing(p, room, layer, x_RD, position * batch, position, (position - start) * row_sums, batch)
        for position in range(0, num_positions, at_once):
            rows = min(at_once, num_positions - position) * batch
            feed_forward(p, room, layer, x_RD, position * batch, rows)


@compiled
def head_sums(p: Parameters, room: Room, x_RD: np.ndarray, first: int, num_rows: int) -> None:
    """The head's sums of some rows, `room.sums [R, V]`, and the rows' largest magnitudes."""
    stride = (x_RD.shape[1] + 3) // 4
    head_rows(x_RD, first, num_rows, room.narrow_bytes, 4 * stride, room.largest)
    linear_rows(room.narrow_words, stride, num_rows, p.head_weight, p.head_bias, room.sums, p.head_bias.shape[0])


@compiled
def score_rows(p: Parameters, room: Room, x_RD: np.ndarray, first: int, tokens: np.ndarray, out: np.ndarray) -> None:
    """Start, count and total of given tokens, one a row of x from `first` on, into `out [3, R]`."""
    width = p.head_bias.shape[0]
    for begin in range(0, len(tokens), ROWS):
        rows = min(ROWS, len(tokens) - begin)
        head_sums(p, room, x_RD, first + begin, rows)
        for r in range(rows):
            unit = np.float64(room.largest[r]) * p.head_factor
            weights_V = room.sums[r * width : r * width + p.vocab_size]
            shift, total = weigh_tokens(weights_V, p.head_scale, unit)
            token = tokens[begin + r]
            out[0, begin + r] = sum_counts(weights_V[:token], shift)
            out[1, begin + r] = (weights_V[token] >> shift) + 1
            out[2, begin + r] = total


@compiled
def embed_rows(p: Parameters, tokens_R: np.ndarray, memory_BD: np.ndarray, x_RD: np.ndarray, first: int) -> None:
    """The decoder's inputs, from row `first` of x on; row r of the tokens belongs to window `r mod B`."""
    batch, size = memory_BD.shape
    free = size if p.introduction == EMBEDDING else 0
    for r in range(len(tokens_R)):
        for f in range(free):
            x_RD[first + r, f] = memory_BD[r % batch, f]
        for f in range(x_RD.shape[1] - free):
            scaled = np.float64(p.embedding[tokens_R[r], f]) * p.embedding_scale[tokens_R[r]]
            value = np.int32(saturate(rint(scaled), RESIDUAL_LIMIT))
            if p.introduction == COMBINATION:
                value = min(max(value + memory_BD[r % batch, f], -RESIDUAL_LIMIT), RESIDUAL_LIMIT)
            x_RD[first + r, free + f] = value


@compiled
def place_memory(memory_BD: np.ndarray, x_RD: np.ndarray) -> None:
    """Write memories as the first position of their windows."""
    for b in range(memory_BD.shape[0]):
        for f in range(memory_BD.shape[1]):
            x_RD[b, f] = memory_BD[b, f]


@compiled
def score_window(
    p: Parameters, room: Room, tokens_T: np.ndarray, first: int, memory_1D: np.ndarray, x_TD: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Start, count and total `[3, T - first]` of the tokens from `first` on, given the tokens before."""
    slots = x_TD.shape[0] - (len(tokens_T) - 1)
    if slots:
        place_memory(memory_1D, x_TD)
    embed_rows(p, tokens_T[:-1], memory_1D, x_TD, slots)
    run_positions(p, room, x_TD, x_TD.shape[0], ONE)
    score_rows(p, room, x_TD, slots + first - 1, tokens_T[first:], out)


@compiled
def take_symbol(coder: np.ndarray, start: int, count: int, total: int, data: np.ndarray, place: np.ndarray) -> bool:
    """`RangeDecoder.take` on `coder`: offset, low, range; `place`: next byte, end. False if the string is damaged."""
    part = coder[2] // np.uint64(total)
    before = part * np.uint64(start)
    width = part * np.uint64(count)
    if coder[0] < before or coder[0] - before >= width:
        return False
    coder[0] -= before
    coder[1] += before
    coder[2] = width
    while coder[2] < np.uint64(LEAST_RANGE):
        byte = data[place[0]] if place[0] < place[1] else np.uint8(0)
        place[0] += 1
        coder[0] = (coder[0] << np.uint64(8)) | np.uint64(byte)
        coder[1] <<= np.uint64(8)
        coder[2] <<= np.uint64(8)
    return True


@compiled
def decode_group(
    p: Parameters, room: Room, texts: np.ndarray, known: np.ndarray, ends: np.ndarray, memory_BD: np.ndarray,
    coders: np.ndarray, data: np.ndarray, places: np.ndarray, is_damaged: np.ndarray, slots: int,
    x_BD: np.ndarray, tokens_B: np.ndarray,
) -> None:  # fmt: skip
    """Decode B windows in step into `texts [B, T]`, which hold `known` tokens already, including BOS.

    `ends`: final number of tokens of each text, the longest first; `coders [B, 3]` and `places [B, 2]` as in
    `take_symbol`. A damaged window goes on with token 0. `x_BD` and `tokens_B` are working memory.
    """
    batch, width = len(texts), p.head_bias.shape[0]
    ahead_from = -ONE
    if slots:
        place_memory(memory_BD, x_BD)
        ahead_from = run_step(p, room, x_BD, ZERO, batch, ahead_from)
    for position in range(ends[0] - 1):
        while ends[batch - 1] <= position + 1:
            batch -= 1
        for b in range(batch):
            tokens_B[b] = texts[b, position]
        embed_rows(p, tokens_B[:batch], memory_BD, x_BD, ZERO)
        ahead_from = run_step(p, room, x_BD, position + slots, batch, ahead_from)
        is_asked = False
        for b in range(batch):
            is_asked = is_asked or known[b] <= position + 1
        if not is_asked:
            continue
        head_sums(p, room, x_BD, ZERO, batch)
        for b in range(batch):
            if known[b] > position + 1 or is_damaged[b]:
                continue
            weights_V = room.sums[b * width : b * width + p.vocab_size]
            unit = np.float64(room.largest[b]) * p.head_factor
            shift, total = weigh_tokens(weights_V, p.head_scale, unit)
            target = min(coders[b, 0] // (coders[b, 2] // np.uint64(total)), np.uint64(total - 1))
            token, start = find_token(weights_V, shift, np.int64(target))
            count = (weights_V[token] >> shift) + 1
            texts[b, position + 1] = token
            is_damaged[b] = not take_symbol(coders[b], start, count, total, data, places[b])
