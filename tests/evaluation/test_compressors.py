import bz2
import gzip
import lzma
import random
import shutil
import subprocess
import time
from collections.abc import Callable

import brotli
import pytest
import zstandard

from modeling_eem.evaluation.bits_table import measure_compressors
from modeling_eem.evaluation.compressors import COMPRESSORS, compressed_bits

TEXT = b"Call me Ishmael. Some years ago -- never mind how long precisely.\n" * 200


def test_sizes_are_those_of_streams_that_decompress_to_the_data() -> None:
    bits = compressed_bits(TEXT)
    assert list(bits) == ["gzip", "bzip2", "xz", "zstd", "brotli"]
    for name, module in {"gzip": gzip, "bzip2": bz2, "xz": lzma, "zstd": zstandard, "brotli": brotli}.items():
        assert bits[name] % 8 == 0
        assert module.decompress(COMPRESSORS[name](TEXT)) == TEXT
        assert bits[name] <= 8 * len(module.compress(TEXT)), f"{name} is not at its best setting"


@pytest.mark.parametrize(
    "name, command",
    [
        ("gzip", ["gzip", "-9n"]),
        ("bzip2", ["bzip2", "-9"]),
        ("xz", ["xz", "-9e"]),
        ("zstd", ["zstd", "-19"]),
        ("brotli", ["brotli", "-q", "11"]),
    ],
)
def test_sizes_are_those_of_the_command_line_tools(name: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    stream = subprocess.run([*command, "--stdout"], input=TEXT, capture_output=True, check=True).stdout
    # gzip's own deflate and zlib's choose blocks a little differently; xz stores a larger integrity check in Python.
    assert compressed_bits(TEXT)[name] == pytest.approx(8 * len(stream), rel=0.02, abs=8 * 16)


def test_random_bytes_do_not_shrink_and_nothing_still_costs_its_container() -> None:
    noise = random.Random(0).randbytes(10_000)
    assert min(compressed_bits(noise).values()) > 8 * len(noise)
    assert min(compressed_bits(b"").values()) > 0


def test_the_same_data_gives_the_same_sizes() -> None:
    assert compressed_bits(TEXT) == compressed_bits(TEXT)


def test_a_small_dictionary_gives_the_streams_of_xz_9e() -> None:
    generator = random.Random(0)
    for size in (0, 1, 100, 4095, 4097, 13_000):
        for data in (TEXT[:size], generator.randbytes(size)):
            assert len(COMPRESSORS["xz"](data)) == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
            assert lzma.decompress(COMPRESSORS["xz"](data)) == data


def test_a_short_row_takes_a_few_milliseconds() -> None:
    def seconds(compress: Callable[[bytes], bytes]) -> float:
        began = time.process_time()
        for start in range(20):
            compress(TEXT[start : start + 100])
        return time.process_time() - began

    plain = seconds(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    assert seconds(COMPRESSORS["xz"]) < plain / 4  # xz alone took nine tenths of a row's time


def test_the_bar_is_told_of_each_row_and_of_all_at_once() -> None:
    told: list[int] = []
    measured = measure_compressors([TEXT[:50], TEXT[50:90]], told.append)
    assert told == [1, 1, 1]
    for bits in measured:
        rows = [compressed_bits(part)[bits.name] for part in (TEXT[:50], TEXT[50:90])]
        assert (bits.each_row, bits.whole) == (sum(rows) / 90, compressed_bits(TEXT[:90])[bits.name] / 90)
