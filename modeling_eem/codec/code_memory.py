"""The memory that a decoder gets from a window's code, in integers."""

from collections.abc import Sequence

import numpy as np

from .tensor_grids import RESIDUAL_LIMIT, scaled
from .weights import Sizes, Tensors


def code_memory(sizes: Sizes, tensors: Tensors, codes: Sequence[np.ndarray | None]) -> np.ndarray:
    """The memory `[B, D or P]`, int32, of each window's fixed-point code; zero without a code, empty without codes."""
    if sizes.introduction == "none":
        return np.zeros((len(codes), 0), dtype=np.int32)
    memory_BD = np.zeros((len(codes), len(tensors["memory.scale"])), dtype=np.int32)
    for row, code_P in enumerate(codes):
        if code_P is not None:
            sums_D = tensors["memory.weight"].astype(np.int64) @ code_P.astype(np.int64) + tensors["memory.bias"]
            memory_BD[row] = scaled(sums_D, tensors["memory.scale"], RESIDUAL_LIMIT)
    return memory_BD
