"""Code formats against brute force, PyTorch's casts and bitsandbytes."""

import math

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from torch import Tensor

from modeling_eem.models.quantization_eem import CODE_FORMATS, pack_bits, unpack_bits

BITS = {
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float6_e3m2": 6,
    **{f"int{bits}": bits for bits in range(8, 1, -1)},
}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "float6_e3m2": 28.0,
}
# The numbers of e3m2: subnormals k / 16, then (1 + m / 4) 2**(e - 3).
E3M2 = [k / 16 for k in range(4)] + [(1 + m / 4) * 2.0 ** (e - 3) for e in range(1, 8) for m in range(4)]


def _grid(name: str, values: Tensor) -> Tensor:
    """Every number the format has for this vector, ascending."""
    if name == "float6_e3m2":
        grid = torch.tensor(E3M2)
        grid = torch.cat([-grid, grid])
    elif name in LARGEST:
        dtype = getattr(torch, name)
        bits = torch.arange(2 ** BITS[name])
        grid = bits.to(torch.uint8 if BITS[name] == 8 else torch.int16).view(dtype).float()
    else:
        largest = 2 ** (BITS[name] - 1) - 1
        grid = values.abs().max() * torch.arange(-largest, largest + 1) / largest
    return grid[grid.isfinite()].sort().values


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0, 1e3, 1e6])
def test_rounding_is_to_the_nearest_number_of_the_format(name: str, scale: float) -> None:
    values = torch.randn(2000) * scale
    rounded = CODE_FORMATS[name].round(values)
    grid = _grid(name, values)
    above = torch.searchsorted(grid, values).clamp(1, len(grid) - 1)
    nearest = torch.minimum((grid[above] - values).abs(), (grid[above - 1] - values).abs())
    torch.testing.assert_close((rounded - values).abs(), nearest, rtol=1e-5, atol=1e-6 * scale)
    distance = (grid[torch.searchsorted(grid, rounded).clamp(max=len(grid) - 1)] - rounded).abs()
    below = (grid[(torch.searchsorted(grid, rounded) - 1).clamp(min=0)] - rounded).abs()
    assert (torch.minimum(distance, below) <= 1e-6 * rounded.abs()).all(), "a number the format does not have"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_native_formats_are_the_casts_of_torch(name: str) -> None:
    values = torch.cat([torch.randn(2000) * scale for scale in (1e-4, 1e-2, 1.0, 100.0)])
    values = values.clamp(-LARGEST[name], LARGEST[name])
    assert torch.equal(CODE_FORMATS[name].round(values), values.to(getattr(torch, name)).float())


def test_ties_of_six_bits_go_to_the_even_mantissa() -> None:
    """As in IEEE 754: halfway between neighbours, the one whose last mantissa bit is 0."""
    numbers = torch.tensor(E3M2)
    halfway = (numbers[1:] + numbers[:-1]) / 2
    even = numbers[torch.arange(len(halfway)) + torch.arange(len(halfway)) % 2]
    for sign in (1, -1):
        assert torch.equal(CODE_FORMATS["float6_e3m2"].round(sign * halfway), sign * even)


def test_int8_is_what_bitsandbytes_computes() -> None:
    """LLM.int8()'s row-wise absmax: integers, scales and values."""
    values = torch.randn(50, 64) * torch.rand(50, 1) * 10
    integers, scale = CODE_FORMATS["int8"].encode(values)
    expected, stats, _ = int8_vectorwise_quant(values)
    assert torch.equal(integers - 127, expected.int())
    assert torch.equal(scale[:, 0], stats)
    torch.testing.assert_close(CODE_FORMATS["int8"].round(values), expected * stats[:, None] / 127)


@pytest.mark.parametrize("name", BITS)
def test_what_is_stored_decodes_to_what_was_rounded(name: str) -> None:
    """Integers of the promised bits, packed into the promised bytes, a scale only where one is charged."""
    code_format = CODE_FORMATS[name]
    values = torch.randn(5, 13) * 3
    integers, scale = code_format.encode(values)
    assert integers.dtype == torch.int32 and integers.min() >= 0 and integers.max() < 2 ** BITS[name]
    assert (scale is None) == (code_format.scale_bits == 0)
    packed = pack_bits(integers, code_format.bits)
    assert len(packed) == math.ceil(5 * 13 * BITS[name] / 8)
    unpacked = unpack_bits(packed, code_format.bits, num_values=65).view(5, 13)
    assert torch.equal(unpacked, integers)
    assert torch.equal(code_format.decode(unpacked, scale), code_format.round(values))


@pytest.mark.parametrize("name", BITS)
def test_bits_of_a_code(name: str) -> None:
    code_format = CODE_FORMATS[name]
    scale_bits = 32 if name.startswith("int") else 0
    assert code_format.bits == BITS[name]
    assert code_format.code_bits(64) == 64 * BITS[name] + scale_bits


def test_there_are_no_other_formats() -> None:
    assert set(CODE_FORMATS) == set(BITS)


@pytest.mark.parametrize("name", BITS)
def test_rounding_twice_is_rounding_once(name: str) -> None:
    """So that a code that was stored and read may be given to a model that rounds again."""
    for scale in (1e-2, 1.0, 50.0):
        once = CODE_FORMATS[name].round(torch.randn(200, 16) * scale)
        torch.testing.assert_close(CODE_FORMATS[name].round(once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BITS)
def test_each_code_is_rounded_by_itself(name: str) -> None:
    codes = torch.randn(4, 3, 16) * torch.tensor([0.01, 1.0, 20.0])[:, None]
    rounded = CODE_FORMATS[name].round(codes)
    alone = [CODE_FORMATS[name].round(code) for code in codes.flatten(0, 1)]
    assert torch.equal(rounded.flatten(0, 1), torch.stack(alone))


@pytest.mark.parametrize("name", BITS)
def test_the_gradient_is_that_of_the_identity(name: str) -> None:
    """Also where a value saturates or is rounded to zero."""
    values = torch.tensor([0.0, 1e-9, 0.3, -7.0, 1e9], requires_grad=True)
    upstream = torch.randn(5)
    rounded = CODE_FORMATS[name].round(values)
    assert torch.equal(torch.autograd.grad(rounded, values, upstream)[0], upstream)


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 8).to(dtype)
    rounded = CODE_FORMATS[name].round(values)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, CODE_FORMATS[name].round(values.float()).to(dtype))


@pytest.mark.parametrize("name", LARGEST)
def test_values_past_the_largest_become_the_largest(name: str) -> None:
    largest = LARGEST[name]
    values = torch.tensor([largest, min(largest * 1.5, 3.4e38), -3.4e38])
    assert CODE_FORMATS[name].round(values).tolist() == [largest, largest, -largest]


@pytest.mark.parametrize("name", [name for name in BITS if name not in LARGEST])
def test_a_scaled_format_has_its_largest_value_exactly(name: str) -> None:
    values = torch.tensor([[1e4, -1.0, 0.0], [0.0, -3e-5, 1e-5]])
    rounded = CODE_FORMATS[name].round(values)
    torch.testing.assert_close(rounded[[0, 1], [0, 1]], values[[0, 1], [0, 1]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BITS)
def test_zeros_are_zeros(name: str) -> None:
    values = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -0.0]])
    rounded = CODE_FORMATS[name].round(values)
    assert rounded[0].tolist() == [0, 0, 0] and rounded[1].tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", BITS)
def test_the_smallest_numbers_of_float32_are_stored_too(name: str) -> None:
    """An inverse scale would overflow here."""
    integers, scale = CODE_FORMATS[name].encode(torch.tensor([1e-39, -5e-40, 0.0]))
    assert integers.min() >= 0 and integers.max() < 2 ** BITS[name]
    assert CODE_FORMATS[name].decode(integers, scale).abs().max() <= 1.1e-39


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("num_values", [1, 7, 8, 65])
def test_packing_round_trip(bits: int, num_values: int) -> None:
    integers = torch.randint(2**bits, (num_values,), dtype=torch.int32)
    packed = pack_bits(integers, bits)
    assert len(packed) == math.ceil(bits * num_values / 8)
    unpacked = unpack_bits(packed, bits, num_values)
    assert unpacked.dtype == torch.int32 and torch.equal(unpacked, integers)


def test_packing_is_most_significant_bit_first() -> None:
    assert pack_bits(torch.tensor([0b101, 0b011, 0b110]), 3) == bytes([0b10101111, 0b00000000])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BITS)
def test_encoding_a_decoded_code_again_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    """What a sender computes with is what a receiver computes with, who passes the decoded code to the model."""
    code_format = CODE_FORMATS[name]
    values = torch.randn(2000, 64) * torch.logspace(-6, 4, 2000)[:, None]
    values = values.to(dtype)
    values = values[values.isfinite().all(-1)]
    once = code_format.round(values)
    assert torch.equal(code_format.round(once), once)
    decoded = code_format.decode(*code_format.encode(values.float()))
    again = code_format.decode(*code_format.encode(decoded))
    assert torch.equal(again.view(torch.int32), decoded.view(torch.int32))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_number_of_a_vector_is_its_scale(bits: int) -> None:
    """`m s / m` is not always s in float32."""
    values = torch.rand(5000, 1) * 10
    code_format = CODE_FORMATS[f"int{bits}"]
    assert torch.equal(code_format.decode(*code_format.encode(values)), values)
    assert torch.equal(code_format.decode(*code_format.encode(-values)), -values)


@pytest.mark.parametrize("name", CODE_FORMATS)
@pytest.mark.parametrize("wrong", [float("inf"), -float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_never_stored_as_one_that_is(name: str, wrong: float) -> None:
    """A cast saturates infinity in some formats; whatever reads the code must see that it is broken."""
    assert CODE_FORMATS[name].round(torch.tensor([0.5, wrong, -1.0]))[1].isnan()
