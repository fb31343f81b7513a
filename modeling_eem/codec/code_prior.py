"""The code of a window in integers, and the learned prior that it is written with.

A number of the code is an index into its format's numbers. Its upper bits (at most 8) are coded with counts of their
own for each of the P places, fitted on the codes of the calibration text. The lower bits of a 16-bit format are coded
as they are. Formats with a scale (int2 … int8) have one more index at the end, into a table of scales.

Shapes: N windows, P numbers, Q the upper bits' values.
"""

import numpy as np
import torch

from .entropy_coder import RangeDecoder, RangeEncoder
from .float_model_parts import CODE_FORMATS, ScaledInteger
from .tensor_grids import CODE_LIMIT
from .weights import Sizes, Tensors

UPPER_BITS = 8
NUM_SCALES = 256
# The sum of a place's counts, and the number of codes that the smooth part of its prior counts for.
PRIOR_TOTAL = 1 << 16
SMOOTH_WEIGHT = 32.0


def code_tensors(values_NP: np.ndarray, code_dtype: str) -> tuple[Tensors, int]:
    """Tables of the format and priors fitted to the real codes `[N, P]`, and code_bits."""
    reach = max(float(np.abs(values_NP).max()), 1e-6)
    code_bits = int(np.floor(np.log2(CODE_LIMIT / (2 * reach))))
    format_ = CODE_FORMATS[code_dtype]
    if format_.scale_bits and not isinstance(format_, ScaledInteger):
        raise ValueError(f"the codec stores no scale of {code_dtype!r}: train the model with another code_dtype.")
    tensors: Tensors = {}
    if isinstance(format_, ScaledInteger):
        scales_N = np.abs(values_NP).max(1)
        low, high = np.log2(max(scales_N.min() / 4, 2.0**-code_bits)), np.log2(2 * reach)
        scales = np.rint(2.0 ** (np.linspace(low, high, NUM_SCALES) + code_bits))
        tensors["code.scales"] = np.clip(scales, 1, CODE_LIMIT).astype(np.int32)
    else:
        numbers = format_.decode(torch.arange(1 << format_.bits, dtype=torch.int32), None).double().numpy()
        numbers = np.where(np.isfinite(numbers), numbers, 0.0)
        tensors["code.table"] = np.clip(np.rint(numbers * 2.0**code_bits), -CODE_LIMIT, CODE_LIMIT).astype(np.int32)
    tensors["code.bits"] = np.array([code_bits], dtype=np.int32)
    indices = code_indices(values_NP, code_dtype, tensors)
    lower = max(0, format_.bits - UPPER_BITS)
    order = np.argsort(fixed_point_of_each(code_dtype, tensors)[:: 1 << lower], kind="stable")
    upper_NP = indices[:, : values_NP.shape[1]] >> lower
    tensors["code.prior"] = np.stack([_prior(place, order) for place in upper_NP.T])
    if "code.scales" in tensors:
        tensors["code.scale_prior"] = _prior(indices[:, -1], np.arange(NUM_SCALES))[None]
    return tensors, code_bits


def fixed_point_of_each(code_dtype: str, tensors: Tensors) -> np.ndarray:
    """For every index, a number that grows with the number it stands for."""
    if "code.table" in tensors:
        return tensors["code.table"]
    return np.arange(1 << CODE_FORMATS[code_dtype].bits)


def _prior(indices_N: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Counts [Q] int32, at least 1, summing to about `PRIOR_TOTAL`: those seen, plus a bell over the sorted values.

    `order` sorts the indices by the numbers that they stand for.
    """
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    ranks_N = rank[indices_N]
    places = np.arange(len(order))
    width = max(float(ranks_N.std()), 1.0)
    bell = np.exp(-0.5 * ((places - ranks_N.mean()) / width) ** 2) + 1e-4
    seen = np.bincount(ranks_N, minlength=len(order)).astype(np.float64)
    seen = np.convolve(seen, [0.25, 0.5, 0.25], mode="same")
    mass = seen + SMOOTH_WEIGHT * bell / bell.sum()
    counts = np.maximum(np.rint(mass / mass.sum() * PRIOR_TOTAL), 1)
    return counts.astype(np.int32)[rank]


def code_indices(values_NP: np.ndarray, code_dtype: str, tensors: Tensors) -> np.ndarray:
    """The code numbers `[N, P]` of real codes, or `[N, P + 1]` with the index of the scale."""
    format_ = CODE_FORMATS[code_dtype]
    if not isinstance(format_, ScaledInteger):
        return format_.encode(torch.from_numpy(values_NP).float())[0].numpy().astype(np.int64)
    fixed_NP = values_NP.astype(np.float64) * 2.0 ** int(tensors["code.bits"][0])
    scales = tensors["code.scales"]
    # The smallest scale that no number exceeds; beyond the last scale numbers saturate.
    scale_N = np.searchsorted(scales, np.abs(fixed_NP).max(1)).clip(0, len(scales) - 1)
    steps_NP = np.rint(fixed_NP * format_.largest / scales[scale_N][:, None])
    steps_NP = np.clip(steps_NP, -format_.largest, format_.largest).astype(np.int64) + format_.largest
    return np.concatenate([steps_NP, scale_N[:, None]], axis=1)


def fixed_point(indices_NP: np.ndarray, code_dtype: str, tensors: Tensors) -> np.ndarray:
    """The exact integers `[N, P]`, in units of 2^-code_bits, that the decoder computes with."""
    if "code.table" in tensors:
        return tensors["code.table"][indices_NP].astype(np.int64)
    format_ = CODE_FORMATS[code_dtype]
    assert isinstance(format_, ScaledInteger), "the other formats have a table"
    largest = format_.largest
    scale_N1 = tensors["code.scales"].astype(np.int64)[indices_NP[:, -1:]]
    product = 2 * (indices_NP[:, :-1] - largest) * scale_N1 + largest
    return product // (2 * largest)  # to the nearest, halves upwards


def check_code(sizes: Sizes, tensors: Tensors) -> str:
    """The name of the code's format; ValueError if it is unknown or its tables do not fit the sizes."""
    code_dtype = sizes.code_dtype
    if code_dtype not in CODE_FORMATS:
        raise ValueError(f"unknown code_dtype {code_dtype!r}: use one of {', '.join(CODE_FORMATS)}.")
    bits = CODE_FORMATS[code_dtype].bits
    is_scaled = isinstance(CODE_FORMATS[code_dtype], ScaledInteger)
    shapes = {"code.prior": (sizes.code_size, 1 << min(bits, UPPER_BITS)), "code.bits": (1,)}
    shapes |= (
        {"code.scales": (NUM_SCALES,), "code.scale_prior": (1, NUM_SCALES)}
        if is_scaled
        else {"code.table": (1 << bits,)}
    )
    if is_scaled and "code.scales" in tensors and tensors["code.scales"].min() < 1:
        raise ValueError("tensor 'code.scales' must hold scales of at least 1: build the codec model again.")
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape or tensors[name].dtype != np.int32:
            raise ValueError(f"tensor {name!r} must be int32 {shape}: build the codec model again.")
        if "prior" in name and (tensors[name].min() < 1 or tensors[name].sum(-1).max() >= 1 << 31):
            raise ValueError(f"tensor {name!r} must hold counts of at least 1: build the codec model again.")
    return code_dtype


class CodeCoder:
    """Writes and reads code numbers with a range coder, and gives their cost.

    Raises:
        ValueError: if the tables of the code do not fit the sizes.
    """

    def __init__(self, sizes: Sizes, tensors: Tensors) -> None:
        self._dtype = check_code(sizes, tensors)
        self._lower_bits = max(0, CODE_FORMATS[self._dtype].bits - UPPER_BITS)
        priors = [*tensors["code.prior"], *tensors.get("code.scale_prior", ())]
        self._ends = [np.cumsum(prior, dtype=np.int64) for prior in priors]
        self._tensors = tensors

    def numbers(self, values_NP: np.ndarray) -> np.ndarray:
        """Code numbers of real codes, one row each: `code_indices` in this model's format."""
        return code_indices(values_NP, self._dtype, self._tensors)

    def fixed_point(self, code: np.ndarray) -> np.ndarray:
        """The integers that the decoder computes with, for one code's numbers."""
        return fixed_point(np.asarray(code, dtype=np.int64)[None], self._dtype, self._tensors)[0]

    def symbols(self, code: np.ndarray) -> list[tuple[int, int, int]]:
        """(start, count, total) of every symbol of a code.

        Raises:
            ValueError: for a code of another length, or a number that the format does not have.
        """
        if len(code) != len(self._ends):
            raise ValueError(f"a code of this model has {len(self._ends)} numbers, not {len(code)}.")
        symbols = []
        for place, (number, ends) in enumerate(zip(code, self._ends)):
            lower_bits = self._lower_of(place)
            upper = int(number) >> lower_bits
            if not 0 <= upper < len(ends):
                raise ValueError(f"{number} is not a number of the format {self._dtype}.")
            start = int(ends[upper - 1]) if upper else 0
            symbols.append((start, int(ends[upper]) - start, int(ends[-1])))
            if lower_bits:
                symbols.append((int(number) & ((1 << lower_bits) - 1), 1, 1 << lower_bits))
        return symbols

    def encode(self, encoder: RangeEncoder, code: np.ndarray) -> None:
        for symbol in self.symbols(code):
            encoder.encode(*symbol)

    def decode(self, decoder: RangeDecoder) -> np.ndarray | None:
        """The code numbers; None if the string is damaged."""
        numbers = []
        for place, ends in enumerate(self._ends):
            total, lower_bits = int(ends[-1]), self._lower_of(place)
            upper = int(np.searchsorted(ends, decoder.target(total), side="right"))
            start = int(ends[upper - 1]) if upper else 0
            if not decoder.take(start, int(ends[upper]) - start, total):
                return None
            lower = 0
            if lower_bits:
                lower = decoder.target(1 << lower_bits)
                if not decoder.take(lower, 1, 1 << lower_bits):
                    return None
            numbers.append(upper << lower_bits | lower)
        return np.array(numbers, dtype=np.int64)

    def _lower_of(self, place: int) -> int:
        return self._lower_bits if place < len(self._tensors["code.prior"]) else 0
