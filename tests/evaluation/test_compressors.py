import bz2
import gzip
import lzma
import random
import shutil
import subprocess

import brotli
import pytest
import zstandard

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
