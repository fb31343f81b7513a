"""Reads any place of an `.eem` file by its header, its footer, one group of the index and the windows needed.

The table of groups is searched in the file, 16 bytes a probe. Within a group the records' heads are read one after the
other, 10 bytes each.
"""

from collections.abc import Iterator
from threading import Lock
from types import TracebackType
from typing import BinaryIO, Self

from modeling_eem.codec.container import (
    MAX_HEADER,
    MAX_RECORD_HEAD,
    RUN,
    CodecError,
    DamagedFile,
    Header,
    Kind,
    RecordHead,
    parse_record_head,
    record_number,
)
from modeling_eem.codec.report import Report
from modeling_eem.codec.trailer import ENTRY_BYTES, GROUP, MAX_BLOCK, MAX_FOOTER, Entry, Footer, unpack_block
from modeling_eem.codec.window_decoder import Record, WindowDecoder

_HINT = "--salvage gives what can still be read"


class Layout:
    """Where everything is in a seekable file. `bytes_read` counts the bytes read so far.

    Args:
        header: replaces the header at the beginning of the file.
    """

    def __init__(self, file: BinaryIO, header: Header | None = None) -> None:
        self._file = file
        self._is_seeking = Lock()  # between threads
        self.bytes_read = 0
        self.size = file.seek(0, 2)
        self.header = header if header is not None else Header.from_bytes(self._read(0, MAX_HEADER))
        end = self._read(max(self.size - MAX_FOOTER, 0), MAX_FOOTER)
        self.footer = Footer.from_end(end, self.header)
        self._table = self.size - end[-1] - self.footer.table_length
        self.trailer = self.size - end[-1] - self.footer.trailer_length
        self.first_record = len(self.header.to_bytes())
        if not self.first_record <= self.trailer < self._table + 1:
            raise DamagedFile("the file is damaged or cut short: its trailer is longer than the file.")

    @property
    def windows(self) -> int:
        return self.footer.windows

    def plain_lengths(self, group: int) -> tuple[Entry, list[int]]:
        """The entry of a group and the plain lengths of its windows, verified by their check sum."""
        entry = self._entry(group)
        if self.windows < 2:
            return entry, [self.footer.plain_length] * self.windows
        start = self.trailer + entry.block_offset
        block = self._read(start, min(MAX_BLOCK, self._table - start))
        count = min(GROUP, self.windows - group * GROUP)
        return entry, unpack_block(self.header, entry, count, block)

    def group_at(self, position: int) -> int:
        """The group that holds the plain byte at `position`, which must lie within the file."""
        low, high = 0, self.footer.groups - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._entry(middle).plain_start <= position:
                low = middle
            else:
                high = middle - 1
        return low

    def heads(self, entry: Entry, count: int) -> Iterator[tuple[int, RecordHead]]:
        """Offset and head of the first `count` records of a group."""
        at = entry.record_offset
        for _ in range(count):
            head = parse_record_head(self._read(at, MAX_RECORD_HEAD))
            if head is None or head.kind == Kind.END or at + head.size + head.length > self.trailer:
                raise DamagedFile(f"the file is damaged: no window begins at byte {at}; {_HINT}.")
            yield at, head
            at += head.size + head.length

    def check_place(self) -> None:
        """Check that the last group's windows end at the trailer. If not, another file stands before this one.

        With damage in the heads of that group this cannot be told, and is left to whoever reads those windows.

        Raises:
            DamagedFile: if the windows that the index shows are those of another file.
        """
        group = max(self.footer.groups - 1, 0)
        at = self._entry(group).record_offset
        try:
            for start, head in self.heads(self._entry(group), self.windows - group * GROUP):
                at = start + head.size + head.length
        except DamagedFile:
            return
        if at != self.trailer:
            raise DamagedFile(
                f"the file is damaged, or two files joined: its windows do not end at its index; {_HINT}."
            )

    def record(self, number: int, at: int, head: RecordHead) -> Record:
        """The record of window `number`, verified by its check sum."""
        data = self._read(at, head.size + head.length)
        if record_number(self.header.check, head, data) != number & 0xFFFFFFFF:
            raise DamagedFile(f"window {number} is damaged; {_HINT}.")
        return Record(number, head.kind, head.count, data[head.size :])

    def _entry(self, group: int) -> Entry:
        if group == 0:
            return Entry(0, self.first_record, 1)
        return Entry.from_bytes(self._read(self._table + ENTRY_BYTES * (group - 1), ENTRY_BYTES))

    def _read(self, at: int, size: int) -> bytes:
        if at < 0 or size < 0:
            raise DamagedFile(f"the index of the file is damaged; {_HINT}.")
        with self._is_seeking:
            self._file.seek(at)
            data = self._file.read(size)
            self.bytes_read += len(data)
        return data


def describe(layout: Layout) -> Report:
    """What a file is made of, item by item. It needs no model, reads only heads and does not verify payloads.

    Raises:
        DamagedFile: if the parts of the file do not add up to the whole.
    """
    header = layout.header
    report = Report(header.model_id, header.carry, header_bytes=layout.first_record)
    report.add_trailer(layout.size - layout.trailer, len(layout.footer.to_bytes(header)))
    for group in range(layout.footer.groups):
        entry, lengths = layout.plain_lengths(group)
        for (_, head), length in zip(layout.heads(entry, len(lengths)), lengths):
            report.add(head.kind, head.size + head.length, head.length, length)
    if report.file_bytes != layout.size or report.plain_bytes != layout.footer.plain_length:
        raise DamagedFile(f"the parts of the file do not add up to its length; {_HINT}.")
    return report


class Archive:
    """An `.eem` file opened for random access, by plain bytes or by window. Close it, or use it in a `with`."""

    def __init__(self, file: BinaryIO, layout: Layout, decoder: WindowDecoder) -> None:
        self._file = file
        self._layout = layout
        self._decoder = decoder

    def __len__(self) -> int:
        """Plain bytes of the file."""
        return self._layout.footer.plain_length

    @property
    def windows(self) -> int:
        """Windows of the file."""
        return self._layout.windows

    @property
    def bytes_read(self) -> int:
        """Bytes of the file that were read so far."""
        return self._layout.bytes_read

    def read(self, start: int, length: int) -> bytes:
        """Plain bytes `start` to `start + length`, fewer at the end of the file.

        Raises:
            ValueError: for a negative start or length; DamagedFile if a part that is needed is damaged.
        """
        if start < 0 or length < 0:
            raise ValueError(f"start and length must not be negative: {start}, {length}.")
        stop = min(start + length, len(self))
        if start >= stop:
            return b""
        parts = []
        group = self._layout.group_at(start)
        position = start
        while position < stop:
            plain_start, plain = self._slice(group, position, stop)
            parts.append(plain[position - plain_start : stop - plain_start])
            position = plain_start + len(plain)
            group += 1
        return b"".join(parts)

    def window(self, number: int) -> bytes:
        """Plain bytes of window `number`, from 0.

        Raises:
            IndexError: for a number outside the file.
        """
        if not 0 <= number < self.windows:
            raise IndexError(f"window {number} is outside the file, which has {self.windows}.")
        entry, lengths = self._layout.plain_lengths(number // GROUP)
        return self._windows(number // GROUP, entry, lengths, number % GROUP, number % GROUP + 1)[0]

    def report(self, estimate: bool = False) -> Report:
        """What the file is made of, item by item. The model's estimate of its text, if asked for, decodes it."""
        layout = self._layout
        report = describe(layout)
        if estimate:
            report.estimate_bits = 0.0
            for group in range(layout.footer.groups):
                entry, lengths = layout.plain_lengths(group)
                places = enumerate(layout.heads(entry, len(lengths)), group * GROUP)
                records = [layout.record(number, at, head) for number, (at, head) in places]
                report.estimate_bits += self._decoder.costs_bits(records)
        return report

    def _slice(self, group: int, position: int, stop: int) -> tuple[int, bytes]:
        """The windows of a group that hold plain bytes `position` to `stop`: where they begin, and their bytes."""
        entry, lengths = self._layout.plain_lengths(group)
        begin = entry.plain_start
        first, starts = None, []
        for index, length in enumerate(lengths):
            if begin + length > position and begin < stop:
                first = index if first is None else first
                starts.append(begin)
            begin += length
        if first is None:
            raise DamagedFile(f"the index of the file is damaged: byte {position} is in no window; {_HINT}.")
        return starts[0], b"".join(self._windows(group, entry, lengths, first, first + len(starts)))

    def _windows(self, group: int, entry: Entry, lengths: list[int], first: int, stop: int) -> list[bytes]:
        """Plain bytes of windows `first` to `stop` of a group; windows that they need as context are read too."""
        fresh = first - first % RUN if self._layout.header.carry else first
        records = [
            self._layout.record(group * GROUP + index, at, head)
            for index, (at, head) in enumerate(self._layout.heads(entry, stop))
            if index >= fresh
        ]
        plain = self._decoder.plain(records)
        if [len(data) for data in plain] != lengths[fresh:stop]:
            raise CodecError("a window is not as long as the index says: the file was written wrongly.")
        return plain[first - fresh :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["Archive", "Layout", "describe"]
