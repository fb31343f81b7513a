"""General-purpose compressors, the yardstick for bits per byte: same bytes in, best setting, including container."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence

import brotli
import zstandard

_XZ_DICTIONARY = 1 << 26  # bytes, of xz -9; at least 4,096 are allowed


def _xz_filter(num_bytes: int) -> dict[str, int]:
    """xz -9e with a dictionary no larger than the data: the same stream, without clearing 64 MiB for a short row."""
    dictionary = min(_XZ_DICTIONARY, max(4096, num_bytes))
    return {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}


# gzip's time stamp and file name are left out: a size must depend on the data alone.
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, compresslevel=9, mtime=0),
    "bzip2": lambda data: bz2.compress(data, compresslevel=9),
    "xz": lambda data: lzma.compress(data, filters=[_xz_filter(len(data))]),
    "zstd": lambda data: zstandard.compress(data, level=19),
    "brotli": lambda data: brotli.compress(data, quality=11, lgwin=24),
}


def compressed_bits(data: bytes, names: Sequence[str] = tuple(COMPRESSORS)) -> dict[str, int]:
    """Size in bits of `data` as gzip -9, bzip2 -9, xz -9e, zstd -19 and brotli 11 write it, by name.

    Headers and checksums are included.
    """
    return {name: 8 * len(COMPRESSORS[name](data)) for name in names}
