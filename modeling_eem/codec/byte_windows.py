"""Windows of plain bytes: compressed by zstd if that is shorter, or as they are."""

import zstandard

from modeling_eem.codec.container import MAX_PLAIN, DamagedFile, Kind

_MAGICLESS = zstandard.FORMAT_ZSTD1_MAGICLESS
_QUICK = 3  # the level that shows what needs no model, and what is worth a slower level
_TRIAL = 12  # nearly as short as the best level, ten times as fast
_BEST = 19
_WINDOW_BYTES = 1 << 17  # memory a frame may ask for


def _compressor(level: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, format=_MAGICLESS, window_log=16, write_content_size=False, write_checksum=False, write_dict_id=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def quick_length(data: bytes) -> int:
    """Bytes that zstd at level 3 takes for `data`."""
    return len(_compressor(_QUICK).compress(data))


def trial_length(data: bytes) -> int:
    """About the length of a payload of `data`: an upper bound, within a few bytes, of what `pack_bytes` makes."""
    return min(len(_compressor(_TRIAL).compress(data)), len(data))


def pack_bytes(data: bytes) -> tuple[Kind, bytes]:
    """Kind and payload of a window of 1 to 65,536 bytes: the shorter of zstd (with its count) and raw."""
    if quick_length(data) < len(data):
        packed = _compressor(_BEST).compress(data)
        full = len(data) == MAX_PLAIN
        if len(packed) + (0 if full else 3) < len(data):
            return (Kind.ZSTD_FULL if full else Kind.ZSTD), packed
    return Kind.RAW, data


def unpack_bytes(kind: Kind, length: int, payload: bytes) -> bytes:
    """The `length` plain bytes of a byte window; it never takes more memory than a window may hold.

    Raises:
        DamagedFile: unless the payload is exactly one frame of the declared length.
    """
    if kind == Kind.RAW:
        return payload
    try:
        # zstandard would trust a content size in the frame. The format forbids one, so the limit below holds.
        declared = zstandard.get_frame_parameters(payload, format=_MAGICLESS).content_size
        if declared != zstandard.CONTENTSIZE_UNKNOWN:
            raise DamagedFile("a byte window's frame declares a content size, which the format does not have.")
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES, format=_MAGICLESS)
        plain = reader.decompress(payload, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedFile(f"a byte window does not decode: {error}.") from error
    if len(plain) != length:
        raise DamagedFile(f"a byte window decodes to {len(plain)} bytes, not the {length} that it declares.")
    return plain


__all__ = ["pack_bytes", "quick_length", "trial_length", "unpack_bytes"]
