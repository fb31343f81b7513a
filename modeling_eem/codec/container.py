"""The `.eem` file, format version 1: every byte of it.

All integers are little-endian. A varint holds 7 bits a byte, low bits first, the high bit set on all bytes but the
last, in the fewest bytes. CRC is zlib's CRC-32. BLAKE2b-64 is BLAKE2b with a digest of 8 bytes and no key.

    file     = header record* trailer

    header   = magic EE 45 4D | version u8 = 1 | flags u8 | [model id, 8 bytes | [release: major u8, minor u8]]
               | check u32
        flags    bit 0: windows carry context; bit 1: the model id follows; bit 2 (with bit 1): the release follows.
                 Other bits are 0. A file of byte windows alone names no model, unless its records take 16 MiB or more:
                 an encoder that has held back so much must begin to write.
        model id the first 8 bytes of the codec model's hash (over integer weights, tables, tokenizer, window size).
        release  the version of this package that first brought the model as a default: what to install, should the
                 id be unknown here.
        check    CRC of the header before it.

    record   = head varint | [count varint] | check u32 | payload
        head     8 × length of the payload in bytes (at most 65,536) + kind:
                 0 raw          plain bytes, as they are
                 1 zstd         one frame of zstd without its magic number and content size, with a window of at most
                                128 KiB; count = plain bytes
                 2 zstd, full   the same of 65,536 plain bytes, without count
                 3 text         tokens under the causal decoder without a code; count = tokens
                 4 text, full   the same of a full window, without count
                 5 coded        tokens under the decoder with a code, both in the payload; count = tokens
                 6 coded, full  the same of a full window, without count
                 7 (length 0)   no record: the trailer begins
        check    (CRC of header before its check, head, count and payload, one after the other) XOR
                 (2,654,435,761 × number of the window, counted from 0, modulo 2^32). So no window can take another's
                 place, in this file or from one with another header, and a window that is found tells its number.
                 The factor keeps a flipped bit of the check from naming another window of the file.
        A full window holds as many tokens as its model's context n has room for: n - 1 (BOS is never stored), or
        n - 1 - (n - 1) // 2 in a file that carries. Plain bytes of a window: 1 to 65,536.
        The flag of a model with a code is a part of `kind`: it costs no byte, and every record can be read alone.

    carry    = with flag bit 0, the last (n - 1) // 2 tokens of the window before stand between BOS and the window's
               own tokens as context, where that window is text (any of kinds 3 to 6) and the number of this one is
               no multiple of 32. Otherwise there is no context: a fresh start.

    trailer  = end u8 = 7 | [block of a group]* | [entry of a group]* | footer
        Windows are indexed in groups of 64. A file of fewer than two windows has no blocks.
        block    base varint | order u8 | lengths | check u32
                 lengths: for each window of the group, z = 2 d - 1 for d > 0 and -2 d otherwise, where d is its
                 plain length - base; z in Exp-Golomb code of `order` k: let v = z + 2^k, b = bits of v;
                 b - 1 - k zeros, then v in b bits, high bits first. Bits fill bytes from the high bit; the last byte
                 is filled up with zeros. base is the (lower) median of the lengths, order the smallest of 0 … 16
                 that takes the fewest bits.
                 check: CRC of header before its check, entry of the group, block before this.
        entry    16 bytes, one for each group but the first: plain start u48 (plain bytes before the group), file
                 offset of its first record u48, offset of its block from the trailer's start u32. The first group's
                 entry is not stored; it is: 0, length of the header, 1.
        footer   hash, 8 bytes: BLAKE2b-64 of all plain bytes | plain length varint | windows varint
                 | length of the trailer before the footer, varint
                 | check u32: CRC of header before its check, then footer before this | length of the footer u8

Framing, over the payload: a record of a full window takes 2 + 4 bytes (1 + 4 with a payload under 16 bytes, 3 + 4 from
2,048 bytes on), the index about 1.6 bytes a window. A file adds 26 to 43 bytes, once.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"\xeeEM"
VERSION = 1
MAX_PLAIN = 1 << 16  # plain bytes of a window
MAX_PAYLOAD = 1 << 16
RUN = 32  # windows from one fresh start to the next, if windows carry
MODEL_ID_BYTES = 8
MAX_HEADER = 19
MAX_RECORD_HEAD = 10  # the most bytes of a record before its payload

_SPREAD = 2_654_435_761
_GATHER = pow(_SPREAD, -1, 1 << 32)
_CARRY, _NAMES_MODEL, _NAMES_RELEASE = 1, 2, 4


class CodecError(ValueError):
    """An error about a file, its model or a limit, in one line."""


class DamagedFile(CodecError):
    """A file that contradicts its check sums, is cut short, or has extra bytes."""


class WrongModel(CodecError):
    """A file that was made with another model."""


class Kind(IntEnum):
    """The kind of a record: the low three bits of its head."""

    RAW = 0
    ZSTD = 1
    ZSTD_FULL = 2
    TEXT = 3
    TEXT_FULL = 4
    CODED = 5
    CODED_FULL = 6
    END = 7

    @property
    def is_text(self) -> bool:
        return Kind.TEXT <= self <= Kind.CODED_FULL

    @property
    def has_code(self) -> bool:
        return self in (Kind.CODED, Kind.CODED_FULL)

    @property
    def has_count(self) -> bool:
        return self in (Kind.ZSTD, Kind.TEXT, Kind.CODED)


@dataclass(frozen=True)
class Header:
    """The header: whether windows carry context, the model's id (8 bytes) and the release that brought it."""

    carry: bool = False
    model_id: bytes | None = None
    release: tuple[int, int] | None = None

    def body(self) -> bytes:
        """The header before its check sum; every other check sum of the file begins with it."""
        flags = _CARRY * self.carry
        names = b""
        if self.model_id is not None:
            flags |= _NAMES_MODEL
            names = self.model_id
            if self.release is not None:
                flags |= _NAMES_RELEASE
                names += bytes(self.release)
        return MAGIC + bytes([VERSION, flags]) + names

    @property
    def check(self) -> int:
        return zlib.crc32(self.body())

    def to_bytes(self) -> bytes:
        return self.body() + struct.pack("<I", self.check)

    @staticmethod
    def from_bytes(data: bytes) -> "Header":
        """Read the header at the start of `data` (at least MAX_HEADER bytes of the file, or all of a shorter one).

        Raises:
            DamagedFile: for anything except a header of this format version.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise DamagedFile("this is not an .eem file: it does not begin with the format's magic bytes.")
        if len(data) < 9:
            raise DamagedFile("the file is cut short within its header.")
        version, flags = data[3], data[4]
        if version != VERSION:
            raise DamagedFile(
                f"the file has format version {version}; this release reads {VERSION}: install a newer one."
            )
        names_model = bool(flags & _NAMES_MODEL)
        names_release = names_model and bool(flags & _NAMES_RELEASE)
        end = 5 + MODEL_ID_BYTES * names_model + 2 * names_release
        if len(data) < end + 4:
            raise DamagedFile("the file is cut short within its header.")
        model_id = bytes(data[5 : 5 + MODEL_ID_BYTES]) if names_model else None
        release = (data[end - 2], data[end - 1]) if names_release else None
        header = Header(bool(flags & _CARRY), model_id, release)
        if bytes(data[: end + 4]) != header.to_bytes():
            raise DamagedFile("the header is damaged: its check sum is wrong.")
        return header


def pack_varint(value: int) -> bytes:
    """7 bits a byte, low bits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, at: int, max_bytes: int) -> tuple[int, int]:
    """The varint at `at` of `data`, and where it ends; -1 if there is no varint of at most `max_bytes` bytes."""
    value = 0
    for index in range(max_bytes):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return (-1 if byte == 0 and index else value), at + index + 1
    return -1, at


@dataclass(frozen=True)
class RecordHead:
    """The head before a record's payload. `size` counts its bytes, including the check sum."""

    kind: Kind
    length: int  # of the payload
    count: int  # plain bytes of zstd, tokens of text; 0 if the kind stores none
    check: int
    size: int


def pack_record(header_check: int, number: int, kind: Kind, count: int, payload: bytes) -> bytes:
    """A record: head, count (if the kind stores one), check sum and payload."""
    front = pack_varint(len(payload) << 3 | kind)
    if kind.has_count:
        front += pack_varint(count)
    check = zlib.crc32(payload, zlib.crc32(front, header_check)) ^ (_SPREAD * number & 0xFFFFFFFF)
    return front + struct.pack("<I", check) + payload


def parse_record_head(data: bytes | memoryview, at: int = 0) -> RecordHead | None:
    """The head of the record at `at`; None if there is no well-formed head. It checks sizes, not the check sum.

    A head of kind END is the end of the records.
    """
    head, end = read_varint(data, at, 3)
    if head < 0:
        return None
    kind, length = Kind(head & 7), head >> 3
    if kind == Kind.END:
        return RecordHead(kind, 0, 0, 0, 1) if length == 0 else None
    if length > MAX_PAYLOAD or (kind == Kind.RAW and length == 0):
        return None
    count = 0
    if kind.has_count:
        count, end = read_varint(data, end, 3)
        if not 0 < count <= MAX_PLAIN - (kind == Kind.ZSTD):
            return None
    if end + 4 > len(data):
        return None
    (check,) = struct.unpack_from("<I", data, end)
    return RecordHead(kind, length, count, check, end + 4 - at)


def record_number(header_check: int, head: RecordHead, record: bytes | memoryview) -> int:
    """The window number (modulo 2^32) in the check sum of `record` (all of its bytes, parsed to `head`).

    An undamaged window gives its own number; a damaged one gives any number, each with probability 2^-32.
    """
    front = zlib.crc32(record[: head.size - 4], header_check)
    spread = zlib.crc32(record[head.size : head.size + head.length], front) ^ head.check
    return spread * _GATHER & 0xFFFFFFFF


__all__ = [
    "MAX_HEADER",
    "MAX_PAYLOAD",
    "MAX_PLAIN",
    "MAX_RECORD_HEAD",
    "RUN",
    "VERSION",
    "CodecError",
    "DamagedFile",
    "Header",
    "Kind",
    "RecordHead",
    "WrongModel",
    "pack_record",
    "pack_varint",
    "parse_record_head",
    "read_varint",
    "record_number",
]
