import math
from collections.abc import Callable

import pytest

from modeling_eem.bits import (
    CodeLength,
    bits_per_byte,
    code_bits,
    code_offset_nats,
    nats_to_bits,
    normalized_loss,
    published_bits_per_byte,
    window_code_length,
    window_length_bits,
)


def test_nats_and_bits() -> None:
    assert nats_to_bits(math.log(2)) == 1
    assert nats_to_bits(-math.log(8)) == pytest.approx(-3)


def test_a_code_costs_its_numbers_and_what_is_stored_beside_them() -> None:
    assert code_bits(64, 4) == 256
    assert code_bits(64, 8, side_information_bits=16) == 528
    assert code_bits(0, 8) == 0


def test_a_short_window_pays_for_its_length_and_every_window_for_one_flag() -> None:
    assert window_length_bits(1024, 1024) == 1
    assert window_length_bits(1023, 1024) == window_length_bits(1, 1024) == 1 + math.log2(1023)
    assert window_length_bits(1, 1) == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 64, 256, 1000])
def test_a_decoder_can_tell_the_lengths_apart(max_tokens: int) -> None:
    """Kraft's inequality, without waste."""
    assert sum(2 ** -window_length_bits(m, max_tokens) for m in range(1, max_tokens + 1)) == pytest.approx(1)


@pytest.mark.parametrize(
    "num_values, bits_per_value, num_tokens, bytes_per_token, expected",
    [(512, 4, 512, 2.82, 1.42), (128, 4, 512, 3.92, 0.255)],
)
def test_published_code_costs(
    num_values: int, bits_per_value: int, num_tokens: int, bytes_per_token: float, expected: float
) -> None:
    offset = code_offset_nats(num_values, bits_per_value, num_tokens)
    assert published_bits_per_byte(offset, 1 / bytes_per_token) == pytest.approx(expected, abs=5e-3)
    honest = bits_per_byte(code_bits(num_values, bits_per_value), round(num_tokens * bytes_per_token))
    assert honest == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("cross_entropy, bytes_per_token, expected", [(1.4, 2.82, 0.72), (2.5, 3.92, 0.920)])
def test_published_bits_per_byte(cross_entropy: float, bytes_per_token: float, expected: float) -> None:
    assert published_bits_per_byte(cross_entropy, 1 / bytes_per_token) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("bits_per_value, expected", [(4, 0.173), (8, 0.347)])
def test_code_offsets_equal_the_published_ones(bits_per_value: int, expected: float) -> None:
    assert code_offset_nats(64, bits_per_value, 1024) == pytest.approx(expected, abs=5e-4)
    assert normalized_loss(2.157, 64, bits_per_value, 1024) == pytest.approx(2.157 + expected, abs=5e-4)


def test_honest_totals_add_up_over_windows() -> None:
    windows = [
        CodeLength(nll_nats=3 * math.log(2), code_bits=8, side_bits=0, num_bytes=10, num_tokens=4),
        CodeLength(nll_nats=1 * math.log(2), code_bits=8, side_bits=2, num_bytes=1, num_tokens=1),
    ]
    total = sum(windows, CodeLength())
    assert total.total_bits == pytest.approx(22)
    assert total.total_bits == pytest.approx(sum(window.total_bits for window in windows))
    assert total.bits_per_byte == pytest.approx(22 / 11)
    assert total.cross_entropy == pytest.approx(4 * math.log(2) / 5)


def test_shorthand_is_the_honest_count_on_full_windows_and_too_kind_on_padded_rows() -> None:
    max_tokens, cross_entropy, bytes_per_token = 1024, 2.2, 4

    def both(num_tokens: int) -> tuple[float, float]:
        window = CodeLength(
            nll_nats=cross_entropy * num_tokens,
            code_bits=code_bits(64, 8),
            side_bits=window_length_bits(num_tokens, max_tokens),
            num_bytes=bytes_per_token * num_tokens,
            num_tokens=num_tokens,
        )
        shorthand = published_bits_per_byte(normalized_loss(cross_entropy, 64, 8, max_tokens), 1 / bytes_per_token)
        return window.bits_per_byte, shorthand

    honest, shorthand = both(max_tokens)
    assert honest == pytest.approx(shorthand + 1 / (max_tokens * bytes_per_token))  # the flag
    honest, shorthand = both(100)
    assert honest > shorthand + 1.1  # 512 + 11 bits over 400 bytes, which the shorthand spreads over 4096


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: nats_to_bits(math.nan), "nats"),
        (lambda: code_bits(-1, 4), "num_values"),
        (lambda: code_bits(1, math.nan), "bits_per_value"),
        (lambda: code_bits(1, 4, -1), "side_information_bits"),
        (lambda: window_length_bits(0, 8), "num_tokens"),
        (lambda: window_length_bits(9, 8), "num_tokens"),
        (lambda: window_code_length(math.inf), "nll_nats"),
        (lambda: window_code_length(1.0, -1), "code_bits"),
        (lambda: window_code_length(1.0, 0, math.nan), "side_bits"),
        (lambda: bits_per_byte(-1, 1), "total_bits"),
        (lambda: bits_per_byte(1, 0), "total_bytes"),
        (lambda: published_bits_per_byte(math.nan, 0.25), "cross_entropy"),
        (lambda: published_bits_per_byte(1.0, 0), "tokens_per_byte"),
        (lambda: code_offset_nats(64, 4, 0), "max_tokens"),
        (lambda: normalized_loss(-1.0, 64, 4, 8), "cross_entropy"),
        (lambda: CodeLength(num_bytes=-1), "num_bytes"),
        (lambda: CodeLength(nll_nats=math.nan), "nll_nats"),
        (lambda: CodeLength(nll_nats=1.0, num_tokens=1).bits_per_byte, "total_bytes"),
        (lambda: CodeLength(nll_nats=1.0, num_bytes=1).cross_entropy, "num_tokens"),
    ],
)
def test_bad_values_are_named(call: Callable[[], float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()
