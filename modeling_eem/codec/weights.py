"""The contents of an integer model: its sizes, and its integers and scales by name.

Shapes: V tokens, D features, I features between, H heads (1 if flat), K taps, N positions, P numbers of a code,
Q codes a number may have. Names in `tensors`, `{l}` a layer and `{s}` a Linear (`up`, `down`, `mixing_in`,
`mixing_out`):

    embedding.weight [V, E] int8, embedding.scale [V]; head.weight [V, D] int8, head.scale [V], head.factor [1] float64
    {l}.mixing_norm.gain [D] int32, .offset [D] int64; {l}.mlp_norm the same
    {l}.mixing.weight [H, K, N (N + 1) / 2] int8 (rows of the lower triangle), .bias [H, N] int32, .scale [H, N]
    {l}.{s}.weight [O, I] int8, .bias [O] int32, .scale [O]; {l}.activation.table [4096] int8
    code.table [Q] int32 or, for a format with a scale, code.scales [Q] int32; code.prior, code.scale_prior
    memory.weight [D, P] int32, memory.bias [D] int64, memory.scale [D]

With a tied head there is no `embedding.weight`: it is `head.weight`. Scales are float32.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from .tensor_grids import (
    ACTIVATION_ENTRIES,
    ACTIVATION_LIMIT,
    CODE_LIMIT,
    EPSILON_LIMIT,
    FLOAT32_EXACT,
    GAIN_LIMIT,
    MEMORY_BIAS_LIMIT,
    MEMORY_WEIGHT_LIMIT,
    MOST_FEATURES,
    MOST_TOKENS,
    OFFSET_LIMIT,
    PRODUCT_INPUTS,
    SUM_LIMIT,
    WEIGHT_LIMIT,
)

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """The numbers that say how to read the tensors.

    Attributes:
        context: n, BOS included.
        num_heads: 0 for flat mixing.
        norm_epsilon: a LayerNorm's epsilon times `d^2` in squared units of the residual stream, rounded.
        introduction: "none", or an EEM's "token", "embedding" or "combination".
        code_dtype: the code's format; None without a code.
        code_size: P; 0 without a code.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    context: int
    num_heads: int
    kernel_size: int
    bos_token_id: int
    norm_epsilon: int
    is_tied: bool
    introduction: str = "none"
    code_dtype: str | None = None
    code_size: int = 0

    @property
    def num_memory_positions(self) -> int:
        return int(self.introduction == "token")

    @property
    def num_positions(self) -> int:
        """Rows of the mixing matrices."""
        return self.context + self.num_memory_positions

    @property
    def embedding_size(self) -> int:
        """E, the width of a token's embedding."""
        return self.hidden_size - (self.code_size if self.introduction == "embedding" else 0)


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of the decoder; `code_prior` checks those of the code."""
    d, wide, heads = sizes.hidden_size, sizes.intermediate_size, max(1, sizes.num_heads)
    n, vocab = sizes.num_positions, sizes.vocab_size
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "embedding.scale": ((vocab,), "float32"),
        "head.weight": ((vocab, d), "int8"),
        "head.scale": ((vocab,), "float32"),
        "head.factor": ((1,), "float64"),
    }
    if not sizes.is_tied:
        shapes["embedding.weight"] = ((vocab, sizes.embedding_size), "int8")
    linears = {"up": (wide, d), "down": (d, wide)}
    if sizes.num_heads:
        linears |= {"mixing_in": (d, d), "mixing_out": (d, d)}
    for layer in range(sizes.num_layers):
        for norm in ("mixing_norm", "mlp_norm"):
            shapes[f"{layer}.{norm}.gain"] = ((d,), "int32")
            shapes[f"{layer}.{norm}.offset"] = ((d,), "int64")
        shapes[f"{layer}.mixing.weight"] = ((heads, sizes.kernel_size, n * (n + 1) // 2), "int8")
        shapes[f"{layer}.mixing.bias"] = ((heads, n), "int32")
        shapes[f"{layer}.mixing.scale"] = ((heads, n), "float32")
        for name, shape in linears.items():
            shapes[f"{layer}.{name}.weight"] = (shape, "int8")
            shapes[f"{layer}.{name}.bias"] = (shape[:1], "int32")
            shapes[f"{layer}.{name}.scale"] = (shape[:1], "float32")
        shapes[f"{layer}.activation.table"] = ((ACTIVATION_ENTRIES,), "int8")
    if sizes.introduction != "none":
        width = sizes.code_size if sizes.introduction == "embedding" else d
        shapes["memory.scale"] = ((width,), "float32")
        shapes["memory.bias"] = ((width,), "int64")
        shapes["memory.weight"] = ((width, sizes.code_size), "int32")
    return shapes


def check_tensors(sizes: Sizes, tensors: Tensors) -> None:
    """Raise a ValueError if a tensor is missing, has another shape, or is outside the format's bounds."""
    if not 1 <= sizes.hidden_size <= MOST_FEATURES:
        raise ValueError(f"hidden_size is {sizes.hidden_size}; the codec's LayerNorm can sum at most {MOST_FEATURES}.")
    if not 2 <= sizes.vocab_size <= MOST_TOKENS:
        raise ValueError(f"the vocabulary is {sizes.vocab_size}; a total of counts can hold at most {MOST_TOKENS}.")
    if not 1 <= sizes.norm_epsilon <= EPSILON_LIMIT:
        raise ValueError(f"norm_epsilon must be within 1 and {EPSILON_LIMIT}: it is added to a LayerNorm's spread.")
    if not 0 <= sizes.bos_token_id < sizes.vocab_size or sizes.context < 2:
        raise ValueError("the model needs a BOS token inside the vocabulary and a context of at least 2.")
    for name, (shape, dtype) in tensor_shapes(sizes).items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or str(tensor.dtype) != dtype:
            found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise ValueError(f"tensor {name!r} must be {dtype} {shape}, found {found}: build the codec model again.")
    for name, tensor in tensors.items():
        _check_values(name, tensor)
    for name in tensors:
        if name.endswith(".bias") and not name.startswith("memory"):
            _check_sums(name.removesuffix(".bias"), tensors, sizes)


_LIMITS = {
    ".gain": GAIN_LIMIT,
    ".offset": OFFSET_LIMIT,
    "activation.table": ACTIVATION_LIMIT,
    "code.table": CODE_LIMIT,
    "memory.bias": MEMORY_BIAS_LIMIT,
}


def _check_values(name: str, tensor: np.ndarray) -> None:
    if tensor.dtype.kind == "f":
        is_valid = bool(np.isfinite(tensor).all() and (tensor >= 0).all())
    else:
        limit = next((value for ending, value in _LIMITS.items() if name.endswith(ending)), None)
        if name.endswith(".weight"):
            limit = MEMORY_WEIGHT_LIMIT if name.startswith("memory") else WEIGHT_LIMIT
        is_valid = limit is None or (int(tensor.min()) >= -limit and int(tensor.max()) <= limit)
    if not is_valid:
        raise ValueError(f"tensor {name!r} is outside the bounds of the format: build the codec model again.")


def _check_sums(name: str, tensors: Tensors, sizes: Sizes) -> None:
    """Check that sums of products and bias stay int32; float32 products of `PRODUCT_INPUTS` inputs are exact."""
    weight = tensors[f"{name}.weight"]
    largest = ACTIVATION_LIMIT * row_sums(weight, sizes) + np.abs(tensors[f"{name}.bias"].astype(np.int64))
    inputs = min(PRODUCT_INPUTS, weight.shape[-1])
    if int(largest.max()) > SUM_LIMIT or inputs * ACTIVATION_LIMIT * WEIGHT_LIMIT >= FLOAT32_EXACT:
        row = int(largest.reshape(-1).argmax())
        raise ValueError(f"{name!r}: row {row} can sum past 2^31; its weights or its bias are out of proportion.")


def row_sums(weight: np.ndarray, sizes: Sizes) -> np.ndarray:
    """`sum |w|` of each output row, int64: `[O]`, or `[H, N]` for a packed triangle. Weights are within ±127."""
    magnitudes = np.abs(weight)  # still int8: as int64 a head of 8,000 tokens would take 16 MB
    if weight.ndim == 2:
        return magnitudes.sum(-1, dtype=np.int64)
    n = sizes.num_positions
    starts = np.arange(n) * (np.arange(n) + 1) // 2
    return np.add.reduceat(magnitudes.sum(1, dtype=np.int64), starts, axis=-1)


def unpack_triangle(packed: np.ndarray, n: int) -> np.ndarray:
    """Unpack the rows of a lower triangle, `[..., N (N + 1) / 2]` → `[..., N, N]`."""
    square = np.zeros((*packed.shape[:-1], n, n), dtype=packed.dtype)
    square[(..., *np.tril_indices(n))] = packed
    return square


def model_id(sizes: Sizes, tensors: Tensors, tokenizer_json: str, version: int) -> str:
    """SHA-256 over everything that decides the decoded tokens."""
    digest = hashlib.sha256(json.dumps({"version": version, **asdict(sizes)}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes())
    digest.update(tokenizer_json.encode())
    return digest.hexdigest()
