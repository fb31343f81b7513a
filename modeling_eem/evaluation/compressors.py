"""General-purpose compressors, the yardstick for bits per byte: same bytes in, best setting, container included."""

import bz2
import gzip
import lzma


def compressed_bits(data: bytes) -> dict[str, int]:
    """Size in bits of `data` compressed by gzip -9, bzip2 -9 and xz -9e, headers and checksums included.

    The time stamp and the file name that gzip may store are left out, so that the size depends on the data alone.

    Returns:
        `{"gzip": bits, "bzip2": bits, "xz": bits}`.
    """
    compressed = {
        "gzip": gzip.compress(data, compresslevel=9, mtime=0),
        "bzip2": bz2.compress(data, compresslevel=9),
        "xz": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    return {name: 8 * len(stream) for name, stream in compressed.items()}
