"""Formats a code can be stored in: rounding, bits, packing.

A format turns `n_p` numbers into integers of `bits` bits and back; some formats add one scale for the vector.
Rounding does both steps, so a model computes with exactly what the stored bits decode to.
Shapes: `[..., P]`, P numbers a code; a scale is `[..., 1]`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class CodeFormat(ABC):
    """A number format of `bits` bits a value and `scale_bits` bits a vector."""

    bits: int
    scale_bits: int = 0

    @abstractmethod
    def encode(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Integers in `[0, 2**bits)` as int32, and the scale if there is one."""

    @abstractmethod
    def decode(self, integers: Tensor, scale: Tensor | None) -> Tensor:
        """The float32 numbers that `encode` stored."""

    def round(self, values: Tensor) -> Tensor:
        """The nearest numbers of the format, in the dtype given; the gradient is that of the identity."""
        rounded = self.decode(*self.encode(values.detach().float())).to(values.dtype)
        return rounded + (values - values.detach())

    def code_bits(self, num_values: int) -> int:
        """Bits of one code of `num_values` numbers, the scale included."""
        return num_values * self.bits + self.scale_bits


class NativeFloat(CodeFormat):
    """A float dtype that torch has; values beyond its largest number become that number."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.bits = torch.finfo(dtype).bits

    def encode(self, values: Tensor) -> tuple[Tensor, None]:
        limit = torch.finfo(self.dtype).max
        stored = values.clamp(-limit, limit).to(self.dtype)
        integers = stored.view(torch.uint8 if self.bits == 8 else torch.int16)
        return integers.to(torch.int32) & (2**self.bits - 1), None

    def decode(self, integers: Tensor, scale: None = None) -> Tensor:
        stored = integers.to(torch.uint8 if self.bits == 8 else torch.int16)
        return stored.view(self.dtype).float()


class SmallFloat(CodeFormat):
    """Sign, exponent and mantissa bits with subnormals and no infinities or NaN, e.g. e3m2: 0 to 28 in 6 bits."""

    def __init__(self, exponent_bits: int, mantissa_bits: int):
        self.bits = 1 + exponent_bits + mantissa_bits
        self.mantissa_bits = mantissa_bits
        self.min_exponent = 2 - 2 ** (exponent_bits - 1)  # of the smallest normal number, and of the subnormals
        self.max_value = (2 - 2.0**-mantissa_bits) * 2.0 ** (2 ** (exponent_bits - 1))

    def encode(self, values: Tensor) -> tuple[Tensor, None]:
        magnitude = values.abs().clamp(max=self.max_value)
        # frexp: magnitude = fraction * 2**exponent with fraction in [0.5, 1); zero counts as the least magnitude.
        exponent = torch.frexp(magnitude.clamp(min=2.0**self.min_exponent)).exponent - 1
        steps = torch.ldexp(magnitude, self.mantissa_bits - exponent).round().to(torch.int32)
        # A mantissa that rounds up to the next power of two carries into the exponent field by itself.
        integers = ((exponent - self.min_exponent) << self.mantissa_bits) + steps
        return integers + (torch.signbit(values).to(torch.int32) << (self.bits - 1)), None

    def decode(self, integers: Tensor, scale: None = None) -> Tensor:
        sign = 1 - 2 * (integers >> (self.bits - 1))
        integers = integers & (2 ** (self.bits - 1) - 1)
        field = integers >> self.mantissa_bits
        mantissa = integers & (2**self.mantissa_bits - 1)
        # Field 0 is subnormal: no leading one, and the exponent of field 1.
        steps = mantissa + ((field > 0).to(torch.int32) << self.mantissa_bits)
        exponent = field.clamp(min=1) - 1 + self.min_exponent - self.mantissa_bits
        return sign * torch.ldexp(steps.float(), exponent)


class ScaledInteger(CodeFormat):
    """Signed integers times one float32 scale a vector, the row-wise absmax of LLM.int8() (Dettmers et al. 2022).

    `q = round(z * m / absmax(z))`, `z' = q * absmax(z) / m`, `m = 2**(bits - 1) - 1`. At `|q| = m`, z' is the scale s
    itself: m s / m may differ from s in the last bit, and encoding z' again must find the same scale.
    """

    scale_bits = 32

    def __init__(self, bits: int):
        self.bits = bits
        self.largest = 2 ** (bits - 1) - 1

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        scale = values.abs().amax(-1, keepdim=True)
        factor = self.largest / scale
        # The reciprocal of the smallest float32 numbers overflows; zero has none.
        integers = torch.where(factor.isfinite(), values * factor, values / scale * self.largest)
        integers = torch.where(scale > 0, integers, 0.0).round()
        return integers.to(torch.int32) + self.largest, scale

    def decode(self, integers: Tensor, scale: Tensor) -> Tensor:
        steps = integers - self.largest
        return torch.where(steps.abs() == self.largest, steps.sign() * scale, steps * scale / self.largest)


CODE_FORMATS: dict[str, CodeFormat] = {
    "float16": NativeFloat(torch.float16),
    "bfloat16": NativeFloat(torch.bfloat16),
    "float8_e4m3fn": NativeFloat(torch.float8_e4m3fn),
    "float8_e5m2": NativeFloat(torch.float8_e5m2),
    "float6_e3m2": SmallFloat(exponent_bits=3, mantissa_bits=2),
    **{f"int{bits}": ScaledInteger(bits) for bits in range(8, 1, -1)},
}


def pack_bits(integers: Tensor, bits: int) -> bytes:
    """Integers in `[0, 2**bits)` as a bit string, most significant bit first, zero-padded to whole bytes."""
    shifts = torch.arange(bits - 1, -1, -1)
    stream = (integers.reshape(-1, 1).cpu() >> shifts) & 1
    stream = torch.nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8)).view(-1, 8)
    return (stream << torch.arange(7, -1, -1)).sum(-1).to(torch.uint8).numpy().tobytes()


def unpack_bits(packed: bytes, bits: int, num_values: int) -> Tensor:
    """The int32 integers that `pack_bits` packed."""
    octets = torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(torch.int32)
    stream = ((octets[:, None] >> torch.arange(7, -1, -1)) & 1).flatten()[: num_values * bits]
    return (stream.view(num_values, bits) << torch.arange(bits - 1, -1, -1)).sum(-1).to(torch.int32)


__all__ = ["CODE_FORMATS", "CodeFormat", "pack_bits", "unpack_bits"]
