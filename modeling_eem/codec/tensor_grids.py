"""The tensors of the codec and their grids, one line a tensor: this table is the format.

Two machines that follow it get the same counts, so they decode a file to the same bytes. A real number is an integer
times its grid. "Rounded" is half to even (`rint`); "saturated" is clipped to the limits given. Everything is an
integer, except these float64 operations: a product of an integer and a scale, one square root and one division for
each LayerNorm row, one division for each token's head input. IEEE 754 rounds each of them correctly on every machine.
None is a sum that rounds, so a fused multiply-add changes nothing.
"""

from dataclasses import dataclass

import numpy as np

# int8 activations: levels are symmetric around 0, and -128 never occurs.
ACTIVATION_LIMIT = 127
WEIGHT_LIMIT = 127
# Inputs of one exact float32 product: 1024 * 127 * 127 < 2**24. Longer sums are split and added as int32.
PRODUCT_INPUTS = 1024
FLOAT32_EXACT = 1 << 24
# Sums of products, bias included.
SUM_LIMIT = (1 << 31) - 1
# The residual stream in 21 bits: d * sum(x^2) < 2^63 up to d = 2048.
RESIDUAL_LIMIT = (1 << 20) - 1
MOST_FEATURES = 2048
EPSILON_LIMIT = (1 << 62) - 1
# Normalised features on a grid of 2^-12; gain and offset of a LayerNorm by 2^-12 and 2^-24.
NORM_BITS = 12
GAIN_BITS = 12
GAIN_LIMIT = (1 << 24) - 1
OFFSET_LIMIT = (1 << 44) - 1
# The activation function as a table of 2^12 int8 numbers.
ACTIVATION_ENTRIES = 1 << 12
# Logits in 1/256 bit; a token's count falls by half every 256.
LOGIT_BITS = 8
LOGIT_LIMIT = (1 << 22) - 1
# Bits of the likeliest token's weight before a position's counts are scaled, and bits of their scaled sum.
COUNT_BITS = 30
# 2^-f for f in [0, 1), as 2^30 - i (SLOPE - CURVE i), i = 256 f: wrong by at most 0.3 %, 3e-6 bits a token, without a
# step from one power of two to the next.
CURVE = 2813
SLOPE = (1 << 21) + (CURVE << LOGIT_BITS)
TOTAL_BITS = 31
MOST_TOKENS = 1 << 20
# Numbers of a code on a grid of 2^-code_bits, and the projection from them to the memory.
CODE_LIMIT = (1 << 20) - 1
MEMORY_WEIGHT_LIMIT = (1 << 15) - 1
MEMORY_BIAS_LIMIT = 1 << 52


@dataclass(frozen=True)
class TensorGrid:
    """One tensor of the format: its number of bits, the grid of its integers, and how it is made."""

    name: str
    bits: int
    grid: str
    made_by: str


TENSORS: tuple[TensorGrid, ...] = (
    TensorGrid("weights (mixing, linear, head)", 8, "a float32 scale an output row", "stored, -127 to 127"),
    TensorGrid("biases", 32, "as the row's sum of products", "stored"),
    TensorGrid("token embedding", 8, "a float32 scale a token", "stored, -127 to 127"),
    TensorGrid(
        "residual stream",
        21,
        "2^-residual_bits, one for the model",
        "x + rint(sum * scale[row]), saturated at +-(2^20 - 1); at first rint(embedding * scale[token]) + memory",
    ),
    TensorGrid(
        "normalised features",
        18,
        "2^-12",
        "S1 = sum(x), S2 = sum(x^2), r = 2^12 / sqrt(d S2 - S1^2 + epsilon); u = rint((d x - S1) * r)",
    ),
    TensorGrid(
        "LayerNorm output",
        8,
        "one step a LayerNorm, in gain and offset",
        "rint((u gain + offset) / 2^24), saturated at +-127",
    ),
    TensorGrid("sum of products", 32, "scale[row]", "sum(weight * input) + bias, exact; 1024 inputs at a time < 2^24"),
    TensorGrid(
        "mixing input and output (heads only)", 8, "one step a head", "rint(sum * scale[row]), saturated at +-127"
    ),
    TensorGrid("GELU input", 12, "2^-k, one k a layer", "rint(sum * scale[row]), saturated at -2^11 and 2^11 - 1"),
    TensorGrid(
        "GELU output", 8, "a step and a zero point a layer", "table[input + 2^11]; the zero point is in the next bias"
    ),
    TensorGrid(
        "head input", 8, "m / 127, m = max(1, max|x|), by token", "rint(x * (127 / m)): no saturation is needed"
    ),
    TensorGrid(
        "logits",
        23,
        "1/256 bit",
        "rint(sum * (scale[token] * (m * factor))), saturated at +-(2^22 - 1)",
    ),
    TensorGrid(
        "weights of tokens",
        31,
        "1",
        "t = max(logits) - logit, i = t mod 256; (2^30 - i (2817280 - 2813 i)) >> min(t >> 8, 31)",
    ),
    TensorGrid(
        "counts",
        32,
        "1",
        "s = max(0, bits(sum of weights) - 31); (weight >> s) + 1; their total counts as (sum of weights >> s) + V",
    ),
    TensorGrid(
        "code",
        21,
        "2^-code_bits, one for the model",
        "stored table of the format's numbers; of int formats (2 step scale + m) // (2 m), scale from a stored table",
    ),
    TensorGrid(
        "memory", 21, "as the residual stream", "rint((sum(weight * code) + bias) * scale[row]), int64 sum below 2^53"
    ),
)


def scaled(sums: np.ndarray, scale: np.ndarray | np.float64, limit: int) -> np.ndarray:
    """`rint(sum * scale)`, saturated at +-limit."""
    return np.clip(np.rint(sums * scale.astype(np.float64)), -limit, limit).astype(np.int64)
