"""What a damaged file still holds: every undamaged window, and a list of the lost ones.

A window is undamaged if its bytes match its check sum. Records are read one after the other from the header; where
none is found, the next one is searched byte by byte. So flipped, missing and added bytes, a lost header and a lost end
cost only the windows that they hit. If windows carry context, those that follow within 32 are lost too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from modeling_eem.codec.archive import Layout
from modeling_eem.codec.container import (
    RUN,
    CodecError,
    DamagedFile,
    Header,
    Kind,
    RecordHead,
    parse_record_head,
    record_number,
)
from modeling_eem.codec.trailer import GROUP, Index
from modeling_eem.codec.window_decoder import Record, WindowDecoder

_FAR = 1 << 20  # windows that a jump may skip if the file's number of windows is lost
_TRUST = 1 << 16  # places tried × numbers accepted, of 2^32
_SMALLEST_RECORD = 6  # bytes
_HEADER_SEARCH = 1 << 18  # bytes searched for a first window under each header that may be the lost one


@dataclass(frozen=True)
class Lost:
    """Windows `first` to `first + count`, and where their plain bytes were, if the index still shows it."""

    first: int
    count: int
    plain_start: int | None
    plain_length: int | None

    def __str__(self) -> str:
        last = self.first + self.count - 1
        which = f"window {self.first}" if self.count == 1 else f"windows {self.first} to {last}"
        where = "plain bytes unknown"
        if self.plain_length is not None:
            where = f"{self.plain_length} plain bytes"
        if self.plain_start is not None:
            where += f" from {self.plain_start}"
        return f"{which}: {where}"


@dataclass
class Salvage:
    """What was recovered: `windows` by number, `lost` runs of windows, `notes` on damage outside windows.

    `end_is_known` is False if the end of the file is damaged: windows after the last one found may be missing.
    """

    windows: dict[int, bytes] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    end_is_known: bool = True

    @property
    def is_whole(self) -> bool:
        return not self.lost and not self.notes

    @property
    def has_losses(self) -> bool:
        """Whether plain bytes are missing, or may be missing at the end."""
        return bool(self.lost) or not self.end_is_known

    @property
    def data(self) -> bytes:
        """Plain bytes of all recovered windows in order; lost windows leave no gap."""
        return b"".join(self.windows[number] for number in sorted(self.windows))

    def lines(self) -> list[str]:
        """The report in words."""
        found = f"{len(self.windows)} windows recovered, {sum(lost.count for lost in self.lost)} lost"
        end = [] if self.end_is_known else ["the end of the file is damaged: more windows may be missing behind it"]
        return [found, *self.notes, *(f"lost: {lost}" for lost in self.lost), *end]


def salvage(
    blob: bytes,
    headers: Sequence[Header],
    decode_with: Callable[[Header], WindowDecoder],
    max_output: int | None = None,
) -> Salvage:
    """Recover what `blob` holds.

    Args:
        headers: headers that the file may have, in case its own is damaged.
        decode_with: returns the decoder for a header; a CodecError if its model is missing.

    Raises:
        CodecError: if neither the header nor any window shows what file it is, or its model is missing; for more plain
            bytes than `max_output`, before they are decoded if their number is declared.
    """
    result = Salvage()
    header, start = _find_header(blob, headers, result)
    decoder = decode_with(header)
    plan = _Plan.of(blob, header, result)
    records = _find_records(memoryview(blob), header, start, plan.windows, result)
    _decode(_usable(records, header), header, decoder, max_output, result)
    windows = plan.windows
    if windows is None:
        _check_rebuilt_trailer(blob, header, start, records, result)
        windows = max(records, default=-1) + 1
    _note_lost(plan, windows, result)
    return result


@dataclass
class _Plan:
    """What the trailer still shows: the number of windows, and lengths and starts of windows in undamaged groups."""

    windows: int | None = None
    lengths: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(blob: bytes, header: Header, result: Salvage) -> "_Plan":
        plan = _Plan()
        try:
            layout = Layout(BytesIO(blob), header)
        except DamagedFile as error:
            result.notes.append(str(error))
            result.end_is_known = False
            return plan
        plan.windows = layout.windows
        for group in range(layout.footer.groups):
            try:
                entry, lengths = layout.plain_lengths(group)
            except DamagedFile as error:
                result.notes.append(str(error))
                continue
            start = entry.plain_start
            for number, length in enumerate(lengths, group * GROUP):
                plan.lengths[number], plan.starts[number] = length, start
                start += length
        return plan


def _find_header(blob: bytes, headers: Sequence[Header], result: Salvage) -> tuple[Header, int]:
    """The header, and where its records begin. If it is damaged, the check sums of windows show which one fits."""
    try:
        header = Header.from_bytes(blob)
        return header, len(header.to_bytes())
    except DamagedFile as error:
        result.notes.append(str(error))
    view = memoryview(blob)[:_HEADER_SEARCH]
    for header in headers:
        if _search(view, header, 0, 0, _FAR) is not None:
            return header, 0
    raise CodecError("the header is damaged, and no window fits this codec model: give the file's own with --model.")


def _find_records(
    view: memoryview, header: Header, start: int, windows: int | None, result: Salvage
) -> dict[int, tuple[Record, int]]:
    """Undamaged records by number, with their number of bytes in the file. Notes bytes that were put between two."""
    found: dict[int, tuple[Record, int]] = {}
    at, expected = start, 0
    while windows is None or len(found) < windows:
        limit = windows if windows is not None else expected + _FAR
        hit = _search(view, header, at, expected, limit)
        if hit is None:
            break
        if hit[0] > at and hit[1] == expected and expected:
            result.notes.append(f"the {hit[0] - at} bytes before window {expected} belong to no window")
        at, number, head = hit
        end = at + head.size + head.length
        record = Record(number, head.kind, head.count, bytes(view[at + head.size : end]))
        found.setdefault(number, (record, end - at))
        at, expected = end, number + 1
    return found


def _search(
    view: memoryview, header: Header, start: int, expected: int, limit: int
) -> tuple[int, int, RecordHead] | None:
    """Offset, number and head of the first record from `start` on that can be trusted.

    Its number is below `limit`. Also, either another record or the trailer follows it, or few places were tried and
    the skipped bytes have room for the skipped windows: by chance that happens in one search of 50,000, or fewer.
    """
    for at in range(start, len(view)):
        number, head = _record_at(view, header, at)
        if head is None or number >= limit:
            continue
        passed = at - start
        room = min(passed // _SMALLEST_RECORD, _TRUST // (passed + 1))
        if 0 <= number - expected <= max(room, 1):
            return at, number, head
        end = at + head.size + head.length
        follower, following = _record_at(view, header, end)
        if following is not None and follower < limit or view[end : end + 1] == bytes([Kind.END]):
            return at, number, head
    return None


def _record_at(view: memoryview, header: Header, at: int) -> tuple[int, RecordHead | None]:
    """The number that the record at `at` seems to have, and its head; None if no record can be there."""
    head = parse_record_head(view, at)
    if head is None or head.kind == Kind.END or at + head.size + head.length > len(view):
        return -1, None
    return record_number(header.check, head, view[at : at + head.size + head.length]), head


def _usable(records: dict[int, tuple[Record, int]], header: Header) -> list[Record]:
    """Windows that need no context, or whose context was found."""
    usable: list[Record] = []
    for number in sorted(records):
        record = records[number][0]
        if (
            not header.carry
            or not record.kind.is_text
            or number % RUN == 0
            or (usable and usable[-1].number == number - 1)
        ):
            usable.append(record)
    return usable


def _decode(
    usable: list[Record], header: Header, decoder: WindowDecoder, max_output: int | None, result: Salvage
) -> None:
    """Decode windows, a batch of runs at a time. Windows of bytes count towards `max_output` from the beginning."""
    size = sum(record.plain_length for record in usable if not record.kind.is_text)
    _check_size(size, max_output)
    batch: list[Record] = []
    for record, following in zip(usable, [*usable[1:], None]):
        batch.append(record)
        ends_run = following is None or not header.carry or following.number // RUN > record.number // RUN
        if following is None or (ends_run and len(batch) >= decoder.step):
            for decoded, plain in zip(batch, decoder.plain(batch)):
                result.windows[decoded.number] = plain
                size += len(plain) if decoded.kind.is_text else 0
            _check_size(size, max_output)
            batch = []


def _check_size(size: int, max_output: int | None) -> None:
    if max_output is not None and size > max_output:
        raise CodecError(f"{size} plain bytes or more can be recovered: --max-output allows {max_output}.")


def _check_rebuilt_trailer(
    blob: bytes, header: Header, start: int, records: dict[int, tuple[Record, int]], result: Salvage
) -> None:
    """If no window is missing, check whether the trailer follows them; other bytes may come after it."""
    if sorted(result.windows) != list(range(len(records))):
        return
    index = Index()
    for number in range(len(records)):
        index.add(records[number][1], result.windows[number])
    trailer = index.trailer(header)
    at = start + sum(size for _, size in records.values())
    result.end_is_known = blob[at : at + len(trailer)] == trailer


def _note_lost(plan: _Plan, windows: int, result: Salvage) -> None:
    lost = [number for number in range(windows) if number not in result.windows]
    runs: list[list[int]] = []
    for number in lost:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    for run in runs:
        known = all(number in plan.lengths for number in run)
        length = sum(plan.lengths[number] for number in run) if known else None
        result.lost.append(Lost(run[0], len(run), plan.starts.get(run[0]), length))


__all__ = ["Lost", "Salvage", "salvage"]
