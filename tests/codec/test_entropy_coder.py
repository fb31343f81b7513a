"""The range coder: what goes in comes out, at the cost of the counts."""

import math
import random

import pytest

from modeling_eem.codec.entropy_coder import RangeDecoder, RangeEncoder, shortest_in_interval


def draw_symbols(draw: random.Random, number: int) -> list[tuple[int, int, int]]:
    """(start, count, total): totals up to 2^32 - 1, counts from 1 to all of it, first and last places too."""
    symbols = []
    for _ in range(number):
        total = draw.choice([1, 2, 3, 255, 1 << 16, draw.randrange(1, 1 << 32), (1 << 32) - 1])
        count = draw.choice([1, total, draw.randrange(1, total + 1)])
        symbols.append((draw.choice([0, total - count, draw.randrange(total - count + 1)]), count, total))
    return symbols


def encode(symbols: list[tuple[int, int, int]]) -> bytes:
    encoder = RangeEncoder()
    for symbol in symbols:
        encoder.encode(*symbol)
    return encoder.final_bytes()


@pytest.mark.parametrize("seed", range(200))
def test_symbols_come_back_at_their_cost(seed: int) -> None:
    draw = random.Random(seed)
    symbols = draw_symbols(draw, draw.randrange(60))
    data = encode(symbols)
    decoder = RangeDecoder(data)
    for start, count, total in symbols:
        assert start <= decoder.target(total) < start + count
        assert decoder.take(start, count, total)
    assert decoder.is_at_end()
    bits = sum(math.log2(total / count) for _, count, total in symbols)
    assert 8 * len(data) <= bits + 8 + 1e-6 * len(symbols)


def test_carries_run_through_full_bytes() -> None:
    symbols = [(255, 1, 256)] * 20 + [((1 << 32) - 2, 1, (1 << 32) - 1)] * 20 + [(1, 1, 2)]
    decoder = RangeDecoder(encode(symbols))
    for start, count, total in symbols:
        assert start <= decoder.target(total) < start + count
        assert decoder.take(start, count, total)
    assert decoder.is_at_end()


def test_no_symbols_take_no_bytes() -> None:
    assert encode([]) == b""
    assert RangeDecoder(b"").is_at_end()
    assert not RangeDecoder(b"\1").is_at_end()


def test_the_shortest_number_is_in_the_interval() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        low, width = draw.getrandbits(64), draw.randrange(1, 1 << draw.randrange(1, 65))
        assert low <= shortest_in_interval(low, width) < low + width


def test_a_string_is_accepted_only_as_its_symbols_are_encoded() -> None:
    """Damage gives other symbols or is noticed, never the same ones: a string of symbols has one encoding."""
    draw = random.Random(0)
    num_accepted = 0
    for _ in range(3000):
        data = draw.randbytes(draw.randrange(1, 12))
        decoder, symbols = RangeDecoder(data), []
        is_taken = True
        for _ in range(draw.randrange(12)):
            total = draw.randrange(2, 1 << 9)
            symbols.append((decoder.target(total), 1, total))
            is_taken = is_taken and decoder.take(*symbols[-1])
        if is_taken and decoder.is_at_end():
            num_accepted += 1
            assert encode(symbols) == data
    assert num_accepted > 50
