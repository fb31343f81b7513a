"""Packed weights and working memory of the fast decoder.

Shapes are those of `weights`; L layers. A Linear's weights are packed in panels of 32 outputs, 4 inputs a word.
"""

from typing import NamedTuple

import numpy as np

from .fast_layers import BLOCK, BYTE_OFFSET
from .tile_product import TILE_COLUMNS
from .weights import Sizes, Tensors, unpack_triangle

# Rows that go through a Linear at once.
ROWS = 64
# How an EEM's memory enters (`Parameters.introduction`).
INTRODUCTIONS = ("none", "token", "combination", "embedding")


class Parameters(NamedTuple):
    """Packed weights; per-layer weights have a leading axis L. Scales are float64; biases expect byte inputs."""

    norm_gain: np.ndarray  # [L, 2, D] float64
    norm_offset: np.ndarray  # [L, 2, D] float64
    epsilon: int
    width: int  # features of a head
    num_heads: int  # 0: flat
    mixing_weight: np.ndarray  # [L, H * K * N * row_words]
    mixing_bias: np.ndarray  # [L, N, H]
    mixing_scale: np.ndarray  # [L, N, H]
    row_words: int
    in_weight: np.ndarray  # [L, words], the heads' two projections
    in_bias: np.ndarray
    in_scale: np.ndarray
    out_weight: np.ndarray
    out_bias: np.ndarray
    out_scale: np.ndarray
    up_weight: np.ndarray
    up_bias: np.ndarray
    up_scale: np.ndarray
    table: np.ndarray  # [L, 4096] bytes
    down_weight: np.ndarray
    down_bias: np.ndarray
    down_scale: np.ndarray
    head_weight: np.ndarray
    head_bias: np.ndarray
    head_scale: np.ndarray
    head_factor: float
    vocab_size: int
    embedding: np.ndarray  # [V, E] int8, as stored
    embedding_scale: np.ndarray  # [V], to units of the residual stream
    introduction: int


class Room(NamedTuple):
    """Memory of one call; words and bytes of one name are two views of the same memory."""

    cache_words: np.ndarray  # [L, N / 4 * columns]
    ahead: np.ndarray  # [L, BLOCK * sum columns]
    mixed: np.ndarray  # [BLOCK * sum columns]
    narrow_words: np.ndarray
    narrow_bytes: np.ndarray
    wide_words: np.ndarray
    wide_bytes: np.ndarray
    sums: np.ndarray
    largest: np.ndarray
    zeros: np.ndarray
    sizes: tuple[int, int, int, int, int]  # heads, taps, input columns, output columns, windows


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _packed_linear(tensors: Tensors, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Panels of 32 outputs with 4 inputs a word, the bias for inputs 128 above their value, and the scale."""
    weight_OK, scale = tensors[f"{name}.weight"], tensors[f"{name}.scale"].astype(np.float64)
    outputs, inputs = weight_OK.shape
    padded = np.zeros((_rounded_up(outputs, TILE_COLUMNS), _rounded_up(inputs, 4)), dtype=np.int8)
    padded[:outputs, :inputs] = weight_OK
    panels = padded.reshape(-1, TILE_COLUMNS, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    bias = np.zeros(len(padded), dtype=np.int64)
    bias[:outputs] = tensors.get(f"{name}.bias", 0)
    bias -= BYTE_OFFSET * padded.sum(1, dtype=np.int64)
    padded_scale = np.zeros(len(padded))
    padded_scale[:outputs] = scale
    # Whatever the offset adds, sums are exact modulo 2^32, and they fit once the bias has removed it.
    return np.ascontiguousarray(panels).reshape(-1).view(np.int32), bias.astype(np.int32), padded_scale


def pack_parameters(sizes: Sizes, tensors: Tensors) -> Parameters:
    layers = range(sizes.num_layers)
    heads, n = max(1, sizes.num_heads), sizes.num_positions
    padded_n = _rounded_up(n, BLOCK)
    squares, biases, scales = [], [], []
    for layer in layers:
        square = np.zeros((heads, sizes.kernel_size, padded_n, padded_n), dtype=np.int8)
        square[:, :, :n, :n] = unpack_triangle(tensors[f"{layer}.mixing.weight"], n)
        offset = BYTE_OFFSET * square.sum((1, 3), dtype=np.int64)[:, :n]
        squares.append(square.reshape(-1).view(np.int32))
        biases.append((tensors[f"{layer}.mixing.bias"] - offset).T.astype(np.int32))
        scales.append(tensors[f"{layer}.mixing.scale"].T.astype(np.float64))

    def norms(field: str) -> np.ndarray:
        names = ("mixing_norm", "mlp_norm")
        return np.array([[tensors[f"{layer}.{name}.{field}"] for name in names] for layer in layers], dtype=np.float64)

    def linears(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if f"0.{name}.weight" not in tensors:
            none = (sizes.num_layers, 0)
            return np.zeros(none, np.int32), np.zeros(none, np.int32), np.zeros(none, np.float64)
        weights, biases, scales = zip(*(_packed_linear(tensors, f"{layer}.{name}") for layer in layers))
        return np.stack(weights), np.stack(biases), np.stack(scales)

    tables = [tensors[f"{layer}.activation.table"].astype(np.int16) + BYTE_OFFSET for layer in layers]
    return Parameters(
        norms("gain"),
        norms("offset"),
        sizes.norm_epsilon,
        sizes.hidden_size // heads,
        sizes.num_heads,
        np.stack(squares),
        np.ascontiguousarray(np.stack(biases)),
        np.ascontiguousarray(np.stack(scales)),
        padded_n // 4,
        *linears("mixing_in"),
        *linears("mixing_out"),
        *linears("up"),
        np.stack(tables).astype(np.uint8),
        *linears("down"),
        *_packed_linear(tensors, "head"),
        float(tensors["head.factor"][0]),
        sizes.vocab_size,
        tensors["head.weight" if sizes.is_tied else "embedding.weight"],
        tensors["embedding.scale"].astype(np.float64),
        INTRODUCTIONS.index(sizes.introduction),
    )


def make_room(sizes: Sizes, num_windows: int, num_rows: int) -> Room:
    """Room for `num_windows` in step, and for `num_rows` rows of one window at once."""
    heads, taps, d = max(1, sizes.num_heads), sizes.kernel_size, sizes.hidden_size
    out_columns = _rounded_up(d // heads, TILE_COLUMNS)
    columns = out_columns + taps - 1
    words = _rounded_up(sizes.num_positions, BLOCK) // 4
    rows = max(num_windows, min(num_rows, ROWS))
    # Taps must read zeros in the gaps between windows: BYTE_OFFSET as a byte.
    cache = np.full((sizes.num_layers, words, heads * num_windows * columns, 4), BYTE_OFFSET, dtype=np.uint8)
    narrow = np.zeros((rows, _rounded_up(d, 4)), dtype=np.uint8)
    wide = np.zeros((rows, _rounded_up(sizes.intermediate_size, 4)), dtype=np.uint8)
    widest = _rounded_up(max(sizes.intermediate_size, sizes.vocab_size, d), TILE_COLUMNS)
    block = BLOCK * heads * num_windows * out_columns
    return Room(
        cache.reshape(sizes.num_layers, -1).view(np.int32),
        np.zeros((sizes.num_layers, block), dtype=np.int32),
        np.zeros(block, dtype=np.int32),
        narrow.reshape(-1).view(np.int32),
        narrow.reshape(-1),
        wide.reshape(-1).view(np.int32),
        wide.reshape(-1),
        np.zeros(rows * widest, dtype=np.int32),
        np.zeros(rows, dtype=np.int64),
        np.zeros(TILE_COLUMNS, dtype=np.int32),
        (heads, taps, columns, out_columns, num_windows),
    )
