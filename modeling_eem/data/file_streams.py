"""Streams from files, one block in memory at a time: the bytes of a `.zst`, and the values of a `.json`."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

_BLOCK = 1 << 20  # bytes
_BETWEEN = re.compile(r"[\s,]*")
_NUMBER_MAY_GO_ON = "-+.0123456789eE"


class ZstandardFile(io.RawIOBase):
    """The bytes inside a zstandard file of any number of frames; EOFError if the last frame is cut off.

    `zstandard`'s own reader takes a cut-off file for a shorter one.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._frame = file, None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._file.read(_BLOCK >> 3)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            self._ready = memoryview(self._unpack(packed))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _unpack(self, packed: bytes) -> bytes:
        out = []
        while packed:
            if self._frame is None:
                # Long windows (zstd --long=31) are allowed.
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            out.append(self._frame.decompress(packed))
            packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return b"".join(out)


class BrokenJsonError(ValueError):
    """A file does not hold JSON values."""


def json_values(file: BinaryIO) -> Iterator[Any]:
    """The values of one list, or values one after another, with line breaks anywhere.

    Raises:
        BrokenJsonError: for anything else, with the number of the value.
        UnicodeDecodeError: for bytes that are not UTF-8.
    """
    decoder, parse = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
    text, place, number, is_list, ended = "", 0, 0, None, False
    while not ended:
        block = file.read(max(_BLOCK, len(text) - place))  # as much again: a long value is parsed only a few times
        ended = not block
        text, place = text[place:] + decoder.decode(block, final=ended), 0
        if is_list is None:  # nothing was read before
            text = text.removeprefix("\ufeff")
        while True:
            between = _BETWEEN.match(text, place)
            assert between is not None  # it may be empty
            place = between.end()
            if is_list is None and place < len(text):
                is_list = text[place] == "["
                place += is_list
                continue
            if place == len(text) or (is_list and text[place] == "]"):
                break
            try:
                value, end = parse(text, place)
            except (ValueError, RecursionError) as error:
                if not ended:
                    break
                raise BrokenJsonError(f"record {number + 1} is not JSON: {error}.") from error
            if end == len(text) and not ended and text[end - 1] in _NUMBER_MAY_GO_ON:
                break
            place, number = end, number + 1
            yield value
    if is_list and text[place : place + 1] != "]":
        raise BrokenJsonError(f"the list is cut off behind record {number}.")
    if is_list and text[place + 1 :].strip():
        raise BrokenJsonError(f"more stands behind the list of {number} records: write all in one list.")
