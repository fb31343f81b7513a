"""What a damaged file still holds: every undamaged window, and a list of the lost ones.

A window is undamaged if its bytes match its check sum. Records are read one after the other from the header; where
none is found, the next one is searched byte by byte. So flipped, missing and added bytes, a lost header and a lost end
cost only the windows that they hit. If windows carry context, those that follow within 32 are lost too.

A window's bytes may themselves hold an older `.eem` file, and two files may have been joined. Their records look like
this file's own, so records are taken in runs: a run that contradicts a better placed one is another file's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from modeling_eem.codec.archive import Layout
from modeling_eem.codec.container import (
    MAGIC,
    RUN,
    CodecError,
    DamagedFile,
    Header,
    Kind,
    RecordHead,
    parse_record_head,
    record_number,
)
from modeling_eem.codec.trailer import GROUP, Footer, Index
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
    `is_doubtful` is True if windows were left out that may be another file's, or if the whole misses its hash.
    """

    windows: dict[int, bytes] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    end_is_known: bool = True
    is_doubtful: bool = False

    @property
    def is_whole(self) -> bool:
        return not self.lost and not self.notes

    @property
    def has_losses(self) -> bool:
        """Whether plain bytes are missing, may be missing at the end, or may be those of another file."""
        return bool(self.lost) or not self.end_is_known or self.is_doubtful

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
    plan = _Plan.from_file(blob, header, result)
    records = _own_records(_find_runs(memoryview(blob), header, start, plan, result), plan, result)
    _decode(_usable(records, header), header, decoder, max_output, result)
    windows = plan.windows
    if windows is None:
        _check_rebuilt_trailer(blob, header, start, records, result)
        windows = max(records, default=-1) + 1
    _drop_strangers(plan, result)
    _note_lost(plan, windows, result)
    _check_whole(plan, result)
    return result


@dataclass
class _Plan:
    """What the trailer still shows: where it begins, its footer, and lengths and starts of windows in whole groups."""

    trailer: int | None = None
    footer: Footer | None = None
    lengths: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)

    @property
    def windows(self) -> int | None:
        return self.footer.windows if self.footer is not None else None

    @staticmethod
    def from_file(blob: bytes, header: Header, result: Salvage) -> "_Plan":
        plan = _Plan()
        try:
            layout = Layout(BytesIO(blob), header)
        except DamagedFile as error:
            result.notes.append(str(error))
            result.end_is_known = False
            return plan
        plan.trailer, plan.footer = layout.trailer, layout.footer
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


@dataclass
class _Run:
    """Records of one file that follow each other, by number, with their sizes in the file; `end` is where they end."""

    end: int
    records: dict[int, tuple[Record, int]] = field(default_factory=dict)


def _find_runs(view: memoryview, header: Header, start: int, plan: _Plan, result: Salvage) -> list[_Run]:
    """All undamaged records. A new run begins where the next one had to be searched: it may be another file's."""
    runs = [_Run(start)]
    at, expected = start, 0
    while at != plan.trailer:
        limit = plan.windows if plan.windows is not None else expected + _FAR
        landing = _behind_damage(view, header, at, expected, limit, plan)
        if landing is not None:
            at, expected = landing
            runs[-1].end = at
            continue
        hit = _search(view, header, at, expected, limit)
        if hit is None:
            break
        if hit[0] > at and hit[1] == expected and expected:
            result.notes.append(f"the {hit[0] - at} bytes before window {expected} belong to no window")
        if hit[:2] != (at, expected):
            runs.append(_Run(at))
        at, number, head = hit
        end = at + head.size + head.length
        record = Record(number, head.kind, head.count, bytes(view[at + head.size : end]))
        runs[-1].records[number] = record, end - at
        runs[-1].end = end
        at, expected = end, number + 1
    return runs


def _behind_damage(
    view: memoryview, header: Header, at: int, expected: int, limit: int, plan: _Plan
) -> tuple[int, int] | None:
    """Where the damaged records that begin at `at` end, and the number of the record there; None if nothing shows it.

    A search would begin within a damaged record, and could find a file that its payload holds.
    """
    number, head = _record_at(view, header, at)
    if 0 <= number < limit:
        return None
    while head is not None:
        at, expected = at + head.size + head.length, expected + 1
        if at == plan.trailer and expected == limit:
            return at, expected
        number, head = _record_at(view, header, at)
        if number == expected:
            return at, expected
    return None


def _own_records(runs: Sequence[_Run], plan: _Plan, result: Salvage) -> dict[int, tuple[Record, int]]:
    """The records of this file by number: first those before its trailer, then the others in the order of the file.

    A run that holds another record for a number that is taken is another file's, and is left out.
    """
    found: dict[int, tuple[Record, int]] = {}
    for run in sorted(runs, key=lambda run: run.end != plan.trailer):
        if all(found.get(number, known) == known for number, known in run.records.items()):
            found |= run.records
        else:
            result.is_doubtful = True
            result.notes.append(f"{len(run.records)} windows of another .eem file, which this one holds, are left out")
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
    if result.end_is_known and blob[at + len(trailer) :].startswith(MAGIC):
        result.is_doubtful = True
        result.notes.append("another .eem file follows, which is left out: cut it off, and decompress it by itself")


def _drop_strangers(plan: _Plan, result: Salvage) -> None:
    """Drop windows that are not as long as the index says: they come from a file within a lost window."""
    for number, length in plan.lengths.items():
        if number in result.windows and len(result.windows[number]) != length:
            del result.windows[number]


def _check_whole(plan: _Plan, result: Salvage) -> None:
    """If no window is missing, compare the whole with the length and hash that the footer holds."""
    if plan.footer is None or result.lost:
        return
    length, digest = 0, hashlib.blake2b(digest_size=8)
    for _, plain in sorted(result.windows.items()):
        length += len(plain)
        digest.update(plain)
    if (length, digest.digest()) != (plan.footer.plain_length, plan.footer.hash):
        result.is_doubtful = True
        result.notes.append("the whole does not match its hash: windows of another file may be among these")


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
