"""A stream of bytes into a file and back, in bounded memory: a batch of windows, and 4 bytes for every window."""

from collections.abc import Callable, Iterator
from io import BytesIO, RawIOBase
from typing import Protocol

from modeling_eem.codec.container import (
    MAX_HEADER,
    MAX_RECORD_HEAD,
    RUN,
    CodecError,
    DamagedFile,
    Header,
    Kind,
    pack_record,
    parse_record_head,
    record_number,
)
from modeling_eem.codec.report import Report
from modeling_eem.codec.text import Reader, TokenTable, read_items, read_some
from modeling_eem.codec.trailer import Index
from modeling_eem.codec.window_decoder import Record, WindowDecoder
from modeling_eem.codec.window_encoder import Window, WindowEncoder, capacity
from modeling_eem.codec.window_model import WindowModel

_HELD_BYTES = 1 << 24  # of records before the first text, until which the header waits
_CHUNK = 1 << 16
_PENDING_BYTES = 1 << 22

Progress = Callable[[int], None]
"""Called with the number of plain bytes done since the last call."""


class Writer(Protocol):
    """Takes bytes, all of them or the first few, and returns how many; it need not be seekable."""

    def write(self, data: bytes, /) -> int | None: ...


def write_fully(writer: Writer, data: bytes) -> None:
    """Write all of `data`: a writer without a buffer may take less at a time.

    One that returns None took all; only of Python's own raw files it means that none was taken.
    """
    while (taken := writer.write(data)) is not None and taken < len(data):
        data = data[taken:]
    if taken is None and isinstance(writer, RawIOBase):
        raise BlockingIOError("the output does not wait until it can be written to (it is non-blocking).")


def no_progress(done: int) -> None:
    """Shows no progress."""


class Source:
    """A reader of bytes that can look ahead; `taken` counts consumed bytes."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._buffer = b""
        self._at = 0
        self.taken = 0

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end, without consuming them."""
        while len(self._buffer) - self._at < size and (more := read_some(self._reader, _CHUNK)):
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        return self._buffer[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        data = self.peek(size)
        self._at += len(data)
        self.taken += len(data)
        return data


def encode_stream(
    reader: Reader,
    writer: Writer,
    model: WindowModel | None,
    table: TokenTable | None,
    header: Header,
    progress: Progress = no_progress,
) -> Report:
    """Write all bytes of `reader` as an `.eem` file to `writer`, which need not be seekable.

    `header` names the model. A file without windows of text names no model and does not carry. So byte windows before
    the first text are held back, up to 16 MiB of them: then the file names the model, whatever follows.
    """
    full = capacity(model, header.carry) if model is not None else 0
    windows = WindowEncoder(model, header.carry).encode(read_items(reader, table, full))
    output = _Output(writer, Report(code_saved=0 if model is not None and model.has_code else None))
    if model is None:
        output.begin(header)
    for window in windows:
        if not output.has_begun and (window.tokens is not None or output.held_bytes >= _HELD_BYTES):
            output.begin(header)
        output.write(window)
        progress(len(window.data))
    if not output.has_begun:
        output.begin(Header())
    return output.write_trailer()


class _Output:
    """Writes records one after the other, and collects what the trailer and the report need.

    Before `begin` says what the header is, records are held back under a header without a model.
    """

    def __init__(self, writer: Writer, report: Report) -> None:
        self._writer = writer
        self._report = report
        self._held = BytesIO()
        self._header = Header()
        self._index = Index()
        self.has_begun = False

    @property
    def held_bytes(self) -> int:
        return self._held.tell()

    def write(self, window: Window) -> None:
        record = pack_record(self._header.check, self._index.windows, window.kind, window.count, window.payload)
        write_fully(self._writer if self.has_begun else self._held, record)
        self._index.add(len(record), window.data)
        self._report.add(window.kind, len(record), len(window.payload), len(window.data))
        if window.kind.has_code and self._report.code_saved is not None:
            self._report.code_saved += window.causal_length - len(window.payload)

    def begin(self, header: Header) -> None:
        """Write the header, and the records held back with its check sum."""
        write_fully(self._writer, header.to_bytes())
        self._held.seek(0)
        for record in read_records(Source(self._held), self._header, self._index.windows):
            packed = pack_record(header.check, record.number, record.kind, record.count, record.payload)
            write_fully(self._writer, packed)
        self._held.close()
        self._header, self.has_begun = header, True
        self._report.header_bytes = len(header.to_bytes())
        self._report.model_id, self._report.carry = header.model_id, header.carry

    def write_trailer(self) -> Report:
        trailer = self._index.trailer(self._header)
        write_fully(self._writer, trailer)
        self._report.add_trailer(len(trailer), trailer[-1])
        return self._report


def read_header(source: Source) -> Header:
    """The header, consumed from the source. DamagedFile if there is none."""
    header = Header.from_bytes(source.peek(MAX_HEADER))
    source.take(len(header.to_bytes()))
    return header


def read_records(source: Source, header: Header, stop: int | None = None) -> Iterator[Record]:
    """Verified records in order, up to the trailer's first byte (not consumed), or `stop` records.

    Raises:
        DamagedFile: for a record that is not the next one, or cut short.
    """
    number = 0
    while number != stop:
        front = source.peek(MAX_RECORD_HEAD)
        head = parse_record_head(front)
        if head is None:
            raise DamagedFile(_damaged(number, len(front) < MAX_RECORD_HEAD))
        if head.kind == Kind.END:
            return
        record = source.take(head.size + head.length)
        if len(record) < head.size + head.length:
            raise DamagedFile(_damaged(number, True))
        if record_number(header.check, head, record) != number & 0xFFFFFFFF:
            raise DamagedFile(_damaged(number, False))
        yield Record(number, head.kind, head.count, record[head.size :])
        number += 1


def _damaged(number: int, is_short: bool) -> str:
    what = f"the file is cut short in window {number}" if is_short else f"window {number} is damaged"
    return f"{what}: --salvage gives what can still be read."


def decode_stream(
    source: Source,
    writer: Writer,
    header: Header,
    decoder: WindowDecoder,
    max_output: int | None = None,
    progress: Progress = no_progress,
) -> int:
    """Write the plain bytes of a file, after its header, to `writer`; returns how many.

    Windows are verified before they are decoded, the whole only at the end: trust the output once this returns.

    Raises:
        DamagedFile: for damage, missing or trailing bytes.
        CodecError: for more plain bytes than `max_output`, before they are decoded if their number is declared.
    """
    index = Index()
    pending: list[tuple[Record, int]] = []
    texts = waiting = 0

    def flush() -> None:
        for (_, size), plain in zip(pending, decoder.plain([record for record, _ in pending])):
            index.add(size, plain)
            if max_output is not None and index.plain_length > max_output:
                raise _too_long(max_output)
            write_fully(writer, plain)
            progress(len(plain))
        pending.clear()

    before = source.taken
    for record in read_records(source, header):
        may_flush = not header.carry or record.number % RUN == 0
        if may_flush and (texts >= decoder.step or waiting >= _PENDING_BYTES):
            flush()
            texts = waiting = 0
        declared = 0 if record.kind.is_text else record.plain_length
        waiting += declared + len(record.payload)
        texts += record.kind.is_text
        if max_output is not None and index.plain_length + declared > max_output:
            raise _too_long(max_output)
        pending.append((record, source.taken - before))
        before = source.taken
    flush()
    _check_trailer(source, index.trailer(header))
    return index.plain_length


def _too_long(max_output: int) -> CodecError:
    return CodecError(f"the file holds more than the {max_output} plain bytes that --max-output allows.")


def _check_trailer(source: Source, expected: bytes) -> None:
    actual = source.take(len(expected))
    if actual != expected:
        if expected.startswith(actual):
            raise DamagedFile("the file is cut short in its trailer; all windows before it are whole.")
        raise DamagedFile("index, length or hash at the end of the file do not match its windows.")
    if source.peek(1):
        raise DamagedFile("other bytes follow the end of the file: cut them off.")


__all__ = [
    "Progress",
    "Reader",
    "Source",
    "Writer",
    "decode_stream",
    "encode_stream",
    "no_progress",
    "read_header",
    "read_records",
    "write_fully",
]
