"""The decoder of an integer model in plain operations: float32 products of integers, NumPy for the rest.

It computes the same integers in two ways: all positions of a batch of windows at once (`states`), or token by token
for windows in step (`begin`, `step`). Shapes: B windows, T positions, R rows of any kind, D features, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .code_memory import code_memory
from .entropy_coder import RangeDecoder
from .tensor_grids import (
    ACTIVATION_ENTRIES,
    ACTIVATION_LIMIT,
    COUNT_BITS,
    CURVE,
    GAIN_BITS,
    LOGIT_BITS,
    LOGIT_LIMIT,
    NORM_BITS,
    PRODUCT_INPUTS,
    RESIDUAL_LIMIT,
    SLOPE,
    TOTAL_BITS,
    scaled,
)
from .weights import Sizes, Tensors, unpack_triangle


def exact_product(a_RK: np.ndarray, weight_OK: torch.Tensor) -> np.ndarray:
    """`a W^T` of integers as int64 `[R, O]`, by exact float32 products of `PRODUCT_INPUTS` inputs each."""
    total = np.zeros((len(a_RK), len(weight_OK)), dtype=np.int64)
    a = torch.from_numpy(a_RK.astype(np.float32))
    for first in range(0, a.shape[1], PRODUCT_INPUTS):
        inputs = slice(first, first + PRODUCT_INPUTS)
        total += (a[:, inputs] @ weight_OK[:, inputs].T).numpy().astype(np.int64)
    return total


@dataclass
class MixingCache:
    """Inputs of every layer's mixing, `[N, B, D]` int8, and how many positions are filled."""

    inputs: list[np.ndarray]
    memory_BD: np.ndarray
    length: int = 0

    def keep(self, rows: np.ndarray) -> None:
        """Keep only these windows."""
        self.inputs = [inputs[:, rows] for inputs in self.inputs]
        self.memory_BD = self.memory_BD[rows]


class PlainDecoder:
    """See the module docstring; `tensors` as in `weights`."""

    def __init__(self, sizes: Sizes, tensors: Tensors) -> None:
        self._sizes = sizes
        self._tensors = tensors
        n = sizes.num_positions
        self._matrices: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name.endswith(".weight") and tensor.dtype == np.int8:
                square = unpack_triangle(tensor, n) if name.endswith("mixing.weight") else tensor
                self._matrices[name] = torch.from_numpy(square.astype(np.float32))

    def states(self, tokens_BT: np.ndarray, memory_BD: np.ndarray) -> np.ndarray:
        """The residual stream after the last block at every token, `[B, T, D]`."""
        cache = self.begin(len(tokens_BT), memory_BD)
        return self.extend(cache, tokens_BT)

    def begin(self, batch_size: int, memory_BD: np.ndarray) -> MixingCache:
        """An empty cache; `memory_BD` from `memory`."""
        sizes = self._sizes
        shape = (sizes.num_positions, batch_size, sizes.hidden_size)
        cache = MixingCache([np.zeros(shape, dtype=np.int8) for _ in range(sizes.num_layers)], memory_BD)
        if sizes.introduction == "token":
            self._run(cache, memory_BD[None].astype(np.int64))
        return cache

    def step(self, cache: MixingCache, tokens_B: np.ndarray) -> np.ndarray:
        """`extend` by one token, as `[B, D]`."""
        return self.extend(cache, tokens_B[:, None])[:, 0]

    def extend(self, cache: MixingCache, tokens_BT: np.ndarray) -> np.ndarray:
        """States `[B, T, D]` of the next tokens of every window."""
        x_TBD = self._embed(tokens_BT.T, cache.memory_BD)
        return self._run(cache, x_TBD).transpose(1, 0, 2)

    def _embed(self, tokens_TB: np.ndarray, memory_BD: np.ndarray) -> np.ndarray:
        sizes, tensors = self._sizes, self._tensors
        weight_VE = tensors["head.weight" if sizes.is_tied else "embedding.weight"]
        scale = tensors["embedding.scale"][tokens_TB][..., None]
        x_TBE = scaled(weight_VE[tokens_TB], scale, RESIDUAL_LIMIT)
        if sizes.introduction == "combination":
            return np.clip(x_TBE + memory_BD, -RESIDUAL_LIMIT, RESIDUAL_LIMIT)
        if sizes.introduction == "embedding":
            return np.concatenate([np.broadcast_to(memory_BD, (len(x_TBE), *memory_BD.shape)), x_TBE], axis=-1)
        return x_TBE

    def _run(self, cache: MixingCache, x_TBD: np.ndarray) -> np.ndarray:
        first, end = cache.length, cache.length + len(x_TBD)
        for layer, inputs_NBD in enumerate(cache.inputs):
            a_TBD = self._norm(f"{layer}.mixing_norm", x_TBD)
            if self._sizes.num_heads:
                a_TBD = scaled(*self._linear(f"{layer}.mixing_in", a_TBD), ACTIVATION_LIMIT)
            inputs_NBD[first:end] = a_TBD
            sums_TBD, scale = self._mix(f"{layer}.mixing", inputs_NBD[:end], first)
            if self._sizes.num_heads:
                sums_TBD, scale = self._linear(f"{layer}.mixing_out", scaled(sums_TBD, scale, ACTIVATION_LIMIT))
            x_TBD = self._add(x_TBD, sums_TBD, scale)
            sums_TBI, scale = self._linear(f"{layer}.up", self._norm(f"{layer}.mlp_norm", x_TBD))
            half = ACTIVATION_ENTRIES // 2
            index_TBI = np.minimum(scaled(sums_TBI, scale, half), half - 1) + half
            g_TBI = self._tensors[f"{layer}.activation.table"][index_TBI]
            x_TBD = self._add(x_TBD, *self._linear(f"{layer}.down", g_TBI))
        cache.length = end
        return x_TBD

    @staticmethod
    def _add(x: np.ndarray, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        # The update fits int64 whatever the scale; a larger one would saturate the sum anyway.
        return np.clip(x + scaled(sums, scale, 1 << 40), -RESIDUAL_LIMIT, RESIDUAL_LIMIT)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        d = x.shape[-1]
        sum_x = x.sum(-1, keepdims=True)
        spread = d * (x * x).sum(-1, keepdims=True) - sum_x * sum_x + self._sizes.norm_epsilon
        ratio = float(1 << NORM_BITS) / np.sqrt(spread.astype(np.float64))
        u = np.rint((d * x - sum_x) * ratio).astype(np.int64)
        affine = u * self._tensors[f"{name}.gain"] + self._tensors[f"{name}.offset"]
        return scaled(affine, np.float64(2.0 ** -(NORM_BITS + GAIN_BITS)), ACTIVATION_LIMIT)

    def _linear(self, name: str, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums with bias, and the scale of each output."""
        sums = exact_product(a.reshape(-1, a.shape[-1]), self._matrices[f"{name}.weight"])
        sums = sums + self._tensors[f"{name}.bias"]
        return sums.reshape(*a.shape[:-1], -1), self._tensors[f"{name}.scale"]

    def _mix(self, name: str, a_NBD: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows from `first` on: sums with bias `[T, B, D]`, and their scales."""
        sizes = self._sizes
        end, batch_size, _ = a_NBD.shape
        heads, width = max(1, sizes.num_heads), sizes.hidden_size // max(1, sizes.num_heads)
        a_HNBE = a_NBD.reshape(end, batch_size, heads, width).transpose(2, 0, 1, 3)
        left = (sizes.kernel_size - 1) // 2
        padded = np.pad(a_HNBE, ((0, 0), (0, 0), (0, 0), (left, sizes.kernel_size // 2)))
        sums = np.zeros((heads, end - first, batch_size * width), dtype=np.int64)
        for head in range(heads):
            for tap in range(sizes.kernel_size):
                weight_TN = self._matrices[f"{name}.weight"][head, tap, first:end, :end]
                columns = padded[head, ..., tap : tap + width].reshape(end, -1)
                sums[head] += exact_product(columns.T, weight_TN).T
        sums += self._tensors[f"{name}.bias"][:, first:end, None]
        scale_HT = self._tensors[f"{name}.scale"][:, first:end]
        scale_TBD = np.repeat(scale_HT.T[:, None], width, axis=-1)
        return sums.reshape(heads, -1, batch_size, width).transpose(1, 2, 0, 3).reshape(
            -1, *a_NBD.shape[1:]
        ), scale_TBD

    def counts(self, x_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts `[R, V]` of the next token, and their totals `[R]`."""
        largest = np.maximum(np.abs(x_RD).max(-1, keepdims=True), 1)
        head_input = np.rint(x_RD * (ACTIVATION_LIMIT / largest)).astype(np.int64)
        sums = exact_product(head_input, self._matrices["head.weight"])
        unit = largest * self._tensors["head.factor"]
        logits = scaled(sums, self._tensors["head.scale"].astype(np.float64) * unit, LOGIT_LIMIT)
        below = logits.max(-1, keepdims=True) - logits
        shift = np.minimum(below >> LOGIT_BITS, COUNT_BITS + 1)
        part = below & ((1 << LOGIT_BITS) - 1)
        weights = ((1 << COUNT_BITS) - part * (SLOPE - CURVE * part)) >> shift
        sums_R = weights.sum(-1)
        excess_R = np.maximum(np.frexp(sums_R.astype(np.float64))[1] - TOTAL_BITS, 0)
        return (weights >> excess_R[:, None]) + 1, (sums_R >> excess_R) + weights.shape[1]

    def memory(self, codes: Sequence[np.ndarray | None]) -> np.ndarray:
        return code_memory(self._sizes, self._tensors, codes)

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int], memory_BD: np.ndarray) -> list[np.ndarray]:
        """Start, count and total of every token from `first` on (BOS is at 0), `[3, T]` for each text."""
        scores = []
        for text, begin, memory_D in zip(texts, first, memory_BD):
            symbols = np.zeros((3, len(text) - begin), dtype=np.int64)
            if symbols.size:
                x_TD = self.states(np.array([text[:-1]], dtype=np.int64), memory_D[None])[0]
                for index, token in enumerate(text[begin:]):
                    symbols[:, index] = self._symbol(x_TD[[begin - 1 + index]], token)
            scores.append(symbols)
        return scores

    def _symbol(self, x_1D: np.ndarray, token: int) -> tuple[int, int, int]:
        counts_1V, total_1 = self.counts(x_1D)
        return counts_1V[0, :token].sum(), counts_1V[0, token], total_1[0]

    def decode(
        self, coders: Sequence[RangeDecoder], texts: Sequence[list[int]], ends: Sequence[int], memory_BD: np.ndarray
    ) -> list[bool]:
        """Extend each of `texts` (BOS and known tokens) to `ends` tokens, in step; True for a damaged string."""
        order = sorted(range(len(texts)), key=lambda index: -ends[index])
        is_damaged = [False] * len(texts)
        cache = self.begin(len(order), memory_BD[order])
        for position in range(ends[order[0]] - 1):
            num_active = sum(end > position + 1 for end in ends)
            if num_active < len(order):
                order = order[:num_active]
                cache.keep(np.arange(num_active))
            x_BD = self.step(cache, np.array([texts[index][position] for index in order]))
            counts_BV, totals_B = self.counts(x_BD)
            for index, counts_V, total in zip(order, counts_BV, totals_B.tolist()):
                if len(texts[index]) == position + 1:
                    token, is_taken = _take_token(coders[index], counts_V, total)
                    texts[index].append(token)
                    is_damaged[index] |= not is_taken
        return is_damaged


def _take_token(coder: RangeDecoder, counts_V: np.ndarray, total: int) -> tuple[int, bool]:
    ends_V = counts_V.cumsum()
    # No token owns a value beyond the last count: the coder then finds the payload damaged.
    token = min(int(np.searchsorted(ends_V, coder.target(total), side="right")), len(ends_V) - 1)
    count = int(counts_V[token])
    return token, coder.take(int(ends_V[token]) - count, count, total)
