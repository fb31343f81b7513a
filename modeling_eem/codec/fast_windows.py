"""The layers of `fast_layers` put together: steps, whole windows, and the loop that decodes windows in step."""

import numpy as np

from .arithmetic import RESIDUAL_LIMIT
from .entropy_coder import LEAST_RANGE
from .fast_layers import (
    BLOCK,
    activate_rows,
    add_mixed,
    add_rows,
    compiled,
    find_token,
    head_rows,
    linear_rows,
    mix_block,
    mix_row,
    norm_rows,
    round_mixed,
    round_rows,
    start_of,
    store_inputs,
    weigh_tokens,
)
from .packed_weights import INTRODUCTIONS, ROWS, Parameters, Room

COMBINATION, EMBEDDING = INTRODUCTIONS.index("combination"), INTRODUCTIONS.index("embedding")


@compiled
def feed_forward(p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, num_rows: int) -> None:
    """`x + down(act(up(LN(x))))` for some rows."""
    d, wide = x_RD.shape[1], p.up_bias.shape[1]
    narrow_stride, wide_stride = (d + 3) // 4, (p.down_weight.shape[1] // p.down_bias.shape[1])
    gain, offset = p.norm_gain[layer, 1], p.norm_offset[layer, 1]
    norm_rows(x_RD, first, num_rows, gain, offset, p.epsilon, room.narrow_bytes, 0, 4 * narrow_stride)
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
    """A Linear D to D on the narrow rows, into `room.sums`."""
    linear_rows(room.narrow_words, stride, num_rows, weight, bias, room.sums, bias.shape[0])


@compiled
def mixing_inputs(
    p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, num_rows: int, position: int, batch: int
) -> None:
    """LN(x), with heads projected, of whole positions into the cache."""
    d = x_RD.shape[1]
    stride = (d + 3) // 4
    gain, offset = p.norm_gain[layer, 0], p.norm_offset[layer, 0]
    norm_rows(x_RD, first, num_rows, gain, offset, p.epsilon, room.narrow_bytes, 0, 4 * stride)
    if p.num_heads:
        project_rows(room, p.in_weight[layer], p.in_bias[layer], num_rows, stride)
        round_rows(room.sums, p.in_bias.shape[1], num_rows, p.in_scale[layer], d, room.narrow_bytes, 4 * stride)
    for index in range(num_rows // batch):
        store_inputs(
            room.narrow_bytes, index * batch, 4 * stride, position + index, batch, room.sizes, p.width,
            room.cache_bytes[layer],
        )  # fmt: skip


@compiled
def add_mixing(
    p: Parameters, room: Room, layer: int, x_RD: np.ndarray, first: int, position: int, place: int, batch: int
) -> None:
    """The sums of one position, at `room.mixed[place]`, into the residual stream of its rows."""
    if p.num_heads == 0:
        bias, scale = p.mixing_bias[layer, position, 0], p.mixing_scale[layer, position, 0]
        add_mixed(x_RD, first, room.mixed, place, batch, room.sizes, p.width, bias, scale)
        return
    stride = (x_RD.shape[1] + 3) // 4
    bias_H, scale_H = p.mixing_bias[layer, position], p.mixing_scale[layer, position]
    round_mixed(room.mixed, place, batch, room.sizes, p.width, bias_H, scale_H, room.narrow_bytes, 0, 4 * stride)
    project_rows(room, p.out_weight[layer], p.out_bias[layer], batch, stride)
    add_rows(x_RD, first, batch, room.sums, p.out_bias.shape[1], p.out_scale[layer])


@compiled
def run_step(p: Parameters, room: Room, x_BD: np.ndarray, position: int, batch: int, ahead_from: int) -> int:
    """One position of `batch` windows through all layers; returns the block whose sums are now known in advance."""
    start = position // BLOCK * BLOCK
    for layer in range(p.table.shape[0]):
        mixing_inputs(p, room, layer, x_BD, 0, batch, position, batch)
        words, weight = room.cache_words[layer], p.mixing_weight[layer]
        if ahead_from != start:
            mix_block(words, start, start, batch, room.sizes, weight, p.row_words, room.zeros, room.ahead[layer])
        mix_row(words, position, batch, room.sizes, weight, p.row_words, room.ahead[layer], room.mixed)
        add_mixing(p, room, layer, x_BD, 0, position, 0, batch)
        feed_forward(p, room, layer, x_BD, 0, batch)
    return start


@compiled
def run_positions(p: Parameters, room: Room, x_RD: np.ndarray, num_positions: int, batch: int) -> None:
    """The first positions of `batch` windows through all layers; row `t * batch + b` of x is window b at t."""
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
            shift, total = weigh_tokens(room.sums, r * width, p.vocab_size, p.head_scale, unit, p.powers)
            token = tokens[begin + r]
            out[0, begin + r] = start_of(room.sums, r * width, token, shift)
            out[1, begin + r] = (room.sums[r * width + token] >> shift) + 1
            out[2, begin + r] = total


@compiled
def embed_rows(p: Parameters, tokens_R: np.ndarray, memory_BD: np.ndarray, x_RD: np.ndarray) -> None:
    """The decoder's inputs; row r belongs to window `r mod B`."""
    batch, size = memory_BD.shape
    for r in range(len(tokens_R)):
        row = p.embedding[tokens_R[r]]
        if p.introduction == EMBEDDING:
            x_RD[r, :size] = memory_BD[r % batch]
            x_RD[r, size:] = row
        elif p.introduction == COMBINATION:
            for f in range(size):
                x_RD[r, f] = min(max(row[f] + memory_BD[r % batch, f], -RESIDUAL_LIMIT), RESIDUAL_LIMIT)
        else:
            x_RD[r] = row


@compiled
def score_window(
    p: Parameters, room: Room, tokens_T: np.ndarray, first: int, memory_1D: np.ndarray, x_TD: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Start, count and total `[3, T - first]` of the tokens from `first` on, knowing those before."""
    slots = x_TD.shape[0] - (len(tokens_T) - 1)
    if slots:
        x_TD[0] = memory_1D[0]
    embed_rows(p, tokens_T[:-1], memory_1D, x_TD[slots:])
    run_positions(p, room, x_TD, x_TD.shape[0], 1)
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
) -> None:  # fmt: skip
    """Decode B windows in step into `texts [B, T]`, of which `known` tokens are there, BOS among them.

    `ends`: tokens of each text in the end, the longest first; `coders [B, 3]` and `places [B, 2]` as `take_symbol`
    has them. A damaged window goes on with token 0.
    """
    batch, width = len(texts), p.head_bias.shape[0]
    x_BD = np.zeros((batch, p.norm_gain.shape[2]), dtype=np.int32)
    ahead_from = -1
    if slots:
        x_BD[:] = memory_BD
        ahead_from = run_step(p, room, x_BD, 0, batch, ahead_from)
    for position in range(ends[0] - 1):
        while ends[batch - 1] <= position + 1:
            batch -= 1
        embed_rows(p, texts[:batch, position], memory_BD, x_BD)
        ahead_from = run_step(p, room, x_BD, position + slots, batch, ahead_from)
        is_asked = False
        for b in range(batch):
            is_asked = is_asked or known[b] <= position + 1
        if not is_asked:
            continue
        head_sums(p, room, x_BD, 0, batch)
        for b in range(batch):
            if known[b] > position + 1 or is_damaged[b]:
                continue
            place = b * width
            unit = np.float64(room.largest[b]) * p.head_factor
            shift, total = weigh_tokens(room.sums, place, p.vocab_size, p.head_scale, unit, p.powers)
            target = min(coders[b, 0] // (coders[b, 2] // np.uint64(total)), np.uint64(total - 1))
            token, start = find_token(room.sums, place, p.vocab_size, shift, np.int64(target))
            count = (room.sums[place + token] >> shift) + 1
            texts[b, position + 1] = token
            is_damaged[b] = not take_symbol(coders[b], start, count, total, data, places[b])
