"""Cuts bytes into items: windows of tokens whose bytes are exactly the input's, and runs of bytes that are not text.

A stream is read in blocks, so memory is bounded. Tokens continue from block to block, so only the last window of a run
of text is not full. The same bytes give the same items, however they arrive.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from modeling_eem.byte_level import bytes_of_tokens, is_byte_level
from modeling_eem.codec.byte_windows import quick_length
from modeling_eem.codec.container import MAX_PLAIN

BLOCK = 1 << 18  # bytes read and tokenised at once
_PIECE = 1 << 14  # bytes that zstd judges at once
_SMALLEST_PIECE = 1 << 12  # in a smaller piece a frame's own bytes weigh too much
_TOO_EASY = 80  # zstd makes it 80 times shorter: below 0.1 bits a byte
_WORD = 1024  # characters in which a block's last word must begin

# Bytes that are not UTF-8, as `surrogateescape` decodes them, together with short text between two of them.
_FOREIGN = re.compile("[\udc80-\udcff](?:[^\udc80-\udcff]{0,63}[\udc80-\udcff])*")


@dataclass(frozen=True)
class Item:
    """A window of text (`tokens`, and `data`, their bytes, at most 64 KiB), or plain bytes (`tokens` is None)."""

    data: bytes
    tokens: list[int] | None = None


class Reader(Protocol):
    """Gives bytes; it need not be seekable, and may return less than asked for before its end."""

    def read(self, size: int, /) -> bytes: ...


class TokenTable:
    """A tokenizer as the container uses it: bytes to ids if that loses nothing, and ids to bytes.

    Args:
        vocab_size: the number of tokens that the model has; None: all that the tokenizer has.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if not is_byte_level(tokenizer):
            raise ValueError("the tokenizer is not byte-level: bytes per token need GPT-2's byte alphabet.")
        added = tokenizer.get_added_tokens_decoder()
        held = bytes_of_tokens(tokenizer.get_vocab(), added)
        self._bytes = [held.get(index, b"") for index in range(max(held) + 1)]
        unknown = range(len(self._bytes) if vocab_size is None else vocab_size, len(self._bytes))
        self._refused = frozenset(index for index, token in added.items() if token.special).union(unknown)

    def encode(self, data: bytes) -> list[int] | None:
        """The model's ids, without special tokens, whose bytes are exactly `data` (UTF-8); None if there are none."""
        self._tokenizer.encode_special_tokens = True  # their names in a text are text; a pickled tokenizer forgets it
        ids = self._tokenizer.encode(data.decode(), add_special_tokens=False).ids
        if not self._refused.isdisjoint(ids) or self.decode(ids) != data:
            return None
        return ids

    def decode(self, ids: list[int]) -> bytes:
        """The bytes of tokens."""
        return b"".join(map(self._bytes.__getitem__, ids))


def read_some(reader: Reader, size: int) -> bytes:
    """At most `size` bytes, none at the end. BlockingIOError of a stream that has none yet and does not wait."""
    part = reader.read(size)
    if part is None:
        raise BlockingIOError("the input does not wait for more bytes (it is non-blocking), so its end is unknown.")
    return part


def read_fully(reader: Reader, size: int) -> bytes:
    """`size` bytes, fewer only at the end: a pipe may give less at a time."""
    parts = []
    while size and (part := read_some(reader, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_items(reader: Reader, table: TokenTable | None, capacity: int) -> Iterator[Item]:
    """All bytes of `reader` in order, as windows of at most `capacity` tokens and runs of bytes.

    Without a table everything is bytes.
    """
    if table is None:
        while data := read_fully(reader, BLOCK):
            yield Item(data)
        return
    window = _Cutter(table, capacity)
    for is_text, data in _pieces(reader):
        ids = table.encode(data) if is_text else None
        if ids is None:
            yield from window.rest()
            yield Item(data)
        else:
            yield from window.cut(ids)
    yield from window.rest()


class _Cutter:
    """Cuts the tokens of runs of text into windows of at most `capacity` tokens and 64 KiB."""

    def __init__(self, table: TokenTable, capacity: int) -> None:
        self._table = table
        self._capacity = capacity
        self._tokens: list[int] = []

    def cut(self, ids: list[int]) -> Iterator[Item]:
        tokens = self._tokens + ids
        whole = len(tokens) // self._capacity * self._capacity
        for start in range(0, whole, self._capacity):
            yield from self._items(tokens[start : start + self._capacity])
        self._tokens = tokens[whole:]

    def rest(self) -> Iterator[Item]:
        if self._tokens:
            yield from self._items(self._tokens)
            self._tokens = []

    def _items(self, tokens: list[int]) -> Iterator[Item]:
        data = self._table.decode(tokens)
        if len(data) <= MAX_PLAIN:
            yield Item(data, tokens)
        else:
            middle = len(tokens) // 2
            yield from self._items(tokens[:middle])
            yield from self._items(tokens[middle:])


def _pieces(reader: Reader) -> Iterator[tuple[bool, bytes]]:
    """(is text, bytes) of a stream in order; text is UTF-8 that zstd cannot bring below 0.1 bits a byte."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    rest = ""
    while True:
        data = read_fully(reader, BLOCK)
        is_last = len(data) < BLOCK
        text = rest + decoder.decode(data, is_last)
        cut = len(text) if is_last else _before_last_word(text)
        rest = text[cut:]
        at = 0
        for match in _FOREIGN.finditer(text, 0, cut):
            yield from _judged(text[at : match.start()].encode())
            yield False, match.group().encode("utf-8", "surrogateescape")
            at = match.end()
        yield from _judged(text[at:cut].encode())
        if is_last:
            return


def _before_last_word(text: str) -> int:
    """Where a block's last word (with the space before it) begins: no token crosses that place."""
    for at in range(len(text) - 1, max(len(text) - _WORD, 0), -1):
        if text[at].isspace() and not text[at - 1].isspace():
            return at
    return len(text)


def _judged(text: bytes) -> Iterator[tuple[bool, bytes]]:
    """A run of text; pieces for which zstd at level 3 needs less than 0.1 bits a byte become bytes."""
    start = at = 0
    was_text = True
    while at < len(text):
        end = at + _PIECE if len(text) - at >= _PIECE + _SMALLEST_PIECE else len(text)
        while end < len(text) and text[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        piece = text[at:end]
        is_text = len(piece) < _SMALLEST_PIECE or quick_length(piece) * _TOO_EASY > len(piece)
        if is_text != was_text:
            if at > start:
                yield was_text, text[start:at]
            start, was_text = at, is_text
        at = end
    if at > start:
        yield was_text, text[start:at]


__all__ = ["BLOCK", "Item", "Reader", "TokenTable", "read_fully", "read_items"]
