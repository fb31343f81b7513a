"""The trailer of an `.eem` file (its bytes: container.py): index in groups of 64 windows, table of groups, footer."""

import hashlib
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_eem.codec.container import DamagedFile, Header, Kind, pack_varint, read_varint

GROUP = 64
ENTRY_BYTES = 16
MAX_FOOTER = 8 + 3 * 10 + 5
MAX_BLOCK = 3 + 1 + GROUP * 5 + 4  # Exp-Golomb of at most 17 bits takes at most 34
_MAX_ORDER = 16


@dataclass(frozen=True)
class Entry:
    """Where a group of windows begins: plain bytes before it, first record in the file, block in the trailer."""

    plain_start: int
    record_offset: int
    block_offset: int

    def to_bytes(self) -> bytes:
        numbers = self.plain_start.to_bytes(6, "little") + self.record_offset.to_bytes(6, "little")
        return numbers + struct.pack("<I", self.block_offset)

    @staticmethod
    def from_bytes(data: bytes) -> "Entry":
        plain_start, record_offset = int.from_bytes(data[:6], "little"), int.from_bytes(data[6:12], "little")
        return Entry(plain_start, record_offset, struct.unpack_from("<I", data, 12)[0])


@dataclass(frozen=True)
class Footer:
    """The last bytes of a file: hash and length of the plain bytes, windows, bytes of the trailer before them."""

    hash: bytes
    plain_length: int
    windows: int
    trailer_length: int

    @property
    def groups(self) -> int:
        return -(-self.windows // GROUP)

    @property
    def table_length(self) -> int:
        return ENTRY_BYTES * max(self.groups - 1, 0)

    def to_bytes(self, header: Header) -> bytes:
        numbers = (self.plain_length, self.windows, self.trailer_length)
        body = self.hash + b"".join(pack_varint(number) for number in numbers)
        check = zlib.crc32(body, header.check)
        return body + struct.pack("<I", check) + bytes([len(body) + 5])

    @staticmethod
    def from_end(end: bytes, header: Header) -> "Footer":
        """Read the footer from the last bytes of a file (MAX_FOOTER of them, or all of a shorter file).

        Raises:
            DamagedFile: if the file does not end with a footer that belongs to `header`.
        """
        length = end[-1] if end else 0
        footer = end[len(end) - length :] if 16 <= length <= len(end) else b""
        numbers, at = [], 8
        while footer and len(numbers) < 3:
            value, at = read_varint(footer, at, 10)
            numbers.append(value)
        if footer and min(numbers) >= 0:
            parsed = Footer(footer[:8], *numbers)
            if parsed.to_bytes(header) == footer:
                return parsed
        raise DamagedFile("the end of the file is damaged, cut off or followed by other bytes.")


class Index:
    """Collects facts about the windows: the encoder writes the trailer from them, the decoder checks it.

    It takes 4 bytes a window and 8 bytes a group in memory.
    """

    def __init__(self) -> None:
        self.lengths = array("I")
        self._record_offsets = array("Q")  # counted from the end of the header
        self._hash = hashlib.blake2b(digest_size=8)
        self.plain_length = 0
        self._offset = 0

    @property
    def windows(self) -> int:
        return len(self.lengths)

    def add(self, record_length: int, plain: bytes) -> None:
        """Note the next window: the bytes of its record and its plain bytes."""
        if self.windows % GROUP == 0:
            self._record_offsets.append(self._offset)
        self._offset += record_length
        self.lengths.append(len(plain))
        self.plain_length += len(plain)
        self._hash.update(plain)

    def trailer(self, header: Header) -> bytes:
        """The whole trailer of a file with this header, from its end byte to the footer's last."""
        out = bytearray([Kind.END])
        table = bytearray()
        plain_start = 0
        if self.windows > 1:
            for group, record_offset in enumerate(self._record_offsets):
                lengths = self.lengths[group * GROUP : (group + 1) * GROUP]
                entry = Entry(plain_start, len(header.to_bytes()) + record_offset, len(out))
                out += pack_block(header, entry, lengths)
                if group:
                    table += entry.to_bytes()
                plain_start += sum(lengths)
        out += table
        footer = Footer(self._hash.digest(), self.plain_length, self.windows, len(out))
        return bytes(out) + footer.to_bytes(header)


def pack_block(header: Header, entry: Entry, lengths: Sequence[int]) -> bytes:
    """The index block of a group: the plain lengths of its windows, and its check sum."""
    base = sorted(lengths)[(len(lengths) - 1) // 2]
    values = [2 * (length - base) - 1 if length > base else 2 * (base - length) for length in lengths]
    order = min(range(_MAX_ORDER + 1), key=lambda order: sum(_code_length(value, order) for value in values))
    bits = 1  # a leading one keeps the zeros after it
    for value in values:
        bits = bits << _code_length(value, order) | value + (1 << order)
    size = bits.bit_length() - 1
    padding = -size % 8
    packed = ((bits ^ 1 << size) << padding).to_bytes((size + padding) // 8, "big")
    body = pack_varint(base) + bytes([order]) + packed
    return body + struct.pack("<I", _block_check(header, entry, body))


def unpack_block(header: Header, entry: Entry, count: int, data: bytes) -> list[int]:
    """Plain lengths of the `count` windows of a group, from its block at the start of `data`.

    Raises:
        DamagedFile: if the block or entry does not belong to this group of this file.
    """
    damaged = DamagedFile(f"the index of the windows from plain byte {entry.plain_start} on is damaged.")
    base, at = read_varint(data, 0, 3)
    if base < 0 or at >= len(data) or data[at] > _MAX_ORDER:
        raise damaged
    order, at = data[at], at + 1
    bits = "".join(f"{byte:08b}" for byte in data[at:])
    lengths, bit = [], 0
    for _ in range(count):
        one = bits.find("1", bit)
        width = one - bit + 1 + order
        if one < 0 or width > _MAX_ORDER + 3 or one + width > len(bits):
            raise damaged
        value = int(bits[one : one + width], 2) - (1 << order)
        bit = one + width
        lengths.append(base + (value + 1) // 2 if value % 2 else base - value // 2)
    end = at + -(-bit // 8)
    if len(data) < end + 4:
        raise damaged
    if struct.unpack_from("<I", data, end)[0] != _block_check(header, entry, data[:end]):
        raise damaged
    return lengths


def _code_length(value: int, order: int) -> int:
    return 2 * (value + (1 << order)).bit_length() - 1 - order


def _block_check(header: Header, entry: Entry, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(entry.to_bytes(), header.check))


__all__ = ["ENTRY_BYTES", "GROUP", "MAX_BLOCK", "MAX_FOOTER", "Entry", "Footer", "Index", "pack_block", "unpack_block"]
