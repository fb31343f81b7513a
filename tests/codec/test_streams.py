"""Memory does not grow with the file, both ways; what a hostile file declares is checked before it is believed."""

import random
from collections.abc import Callable
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, CodecError, DamagedFile, IntegerModel
from modeling_eem.codec.byte_windows import unpack_bytes
from modeling_eem.codec.container import Header, Kind, pack_record
from modeling_eem.codec.streams import Source, read_header, read_records
from modeling_eem.codec.text import TokenTable, read_items
from modeling_eem.codec.trailer import Index
from modeling_eem.codec.window_encoder import WindowEncoder, capacity

GOLDEN = Path(__file__).parent / "golden" / "version_1"
STATUS = Path("/proc/self/status")


class Large(RawIOBase):
    """A stream of `size` bytes: noise, zeros and text in turn, a MiB each."""

    def __init__(self, size: int, text: bytes) -> None:
        self._left = size
        draw = random.Random(0)
        self._blocks = [draw.randbytes(1 << 20), bytes(1 << 20)] * 20 + [(text * 200)[: 1 << 20]]
        self._turn = 0

    def read(self, size: int = -1) -> bytes:
        size = min(size, self._left)
        self._left -= size
        self._turn += 1
        return self._blocks[self._turn // 4 % len(self._blocks)][:size]


def _peak_megabytes() -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> None:
        self.count += len(data)


class _Watched(RawIOBase):
    """Bytes, and how many of the writer's there are when the last of them are asked for."""

    def __init__(self, data: bytes, written: _Counter) -> None:
        self._data, self._size, self._written = BytesIO(data), len(data), written
        self.written_before_the_end = 0

    def read(self, size: int = -1) -> bytes:
        if self._data.tell() < self._size:
            self.written_before_the_end = self._written.count
        return self._data.read(size)


def test_bytes_before_the_first_text_are_held_back_up_to_a_limit(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_eem.codec.streams._HELD_BYTES", 1 << 20)
    noise = b"\xff" + random.Random(0).randbytes(1 << 16) * 64
    noise = bytes(byte | 0x80 for byte in noise)  # in no place text
    written = _Counter()
    reader = _Watched(noise, written)
    report = codec.compress_stream(reader, written)
    assert 1 << 20 < reader.written_before_the_end < written.count == report.file_bytes
    assert report.model_id == codec.model_id and not report.text_windows
    blob = codec.compress(noise)
    assert len(blob) == written.count and codec.decompress(blob) == noise
    assert codec.compress(noise[: 1 << 19]) == Codec(None).compress(noise[: 1 << 19])


def test_without_a_model_nothing_is_held_back() -> None:
    written = _Counter()
    reader = _Watched(random.Random(0).randbytes(4 << 20), written)
    Codec(None).compress_stream(reader, written)
    assert reader.written_before_the_end > 2 << 20


class _Sip(RawIOBase):
    """A file without a buffer that takes at most 1,000 bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: Any) -> int:
        self.data += bytes(data[:1000])
        return len(data[:1000])


def test_a_writer_may_take_less_than_it_is_given(codecs: dict[str, Codec], awkward: dict[str, bytes]) -> None:
    for name in ("text in noise", "random"):
        for codec in codecs.values():
            packed, plain = _Sip(), _Sip()
            codec.compress_stream(BytesIO(awkward[name]), packed)
            assert packed.data == codec.compress(awkward[name])
            codec.decompress_stream(BytesIO(packed.data), plain)
            assert plain.data == awkward[name]


def test_a_stream_that_does_not_wait_is_no_end_of_it(codecs: dict[str, Codec]) -> None:
    """`read` of a non-blocking pipe returns None while it is empty: a file was cut off there, with exit code 0."""

    class Slow(RawIOBase):
        parts = iter([b"the sea ", None, b"is wide"])

        def read(self, size: int = -1) -> bytes | None:
            return next(self.parts, b"")

    class Full(RawIOBase):
        def write(self, data: Any) -> int | None:
            return None

    codec = codecs["causal"]
    with pytest.raises(BlockingIOError, match="non-blocking"):
        codec.compress_stream(Slow(), BytesIO())
    with pytest.raises(BlockingIOError, match="non-blocking"):
        codec.compress_stream(BytesIO(b"the sea is wide"), Full())


def test_a_salvage_decodes_nothing_beyond_the_most_output(
    stand_in: Callable[..., Any], text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(stand_in(context=40))
    unpacked: list[int] = []

    def unpack(kind: Kind, length: int, payload: bytes) -> bytes:
        unpacked.append(length)
        return unpack_bytes(kind, length, payload)

    monkeypatch.setattr("modeling_eem.codec.window_decoder.unpack_bytes", unpack)
    blob = Codec(None).compress(bytes(200 << 16))[:-1]
    with pytest.raises(CodecError, match="--max-output allows 1000000"):
        codec.salvage(blob, max_output=1_000_000)
    assert not unpacked
    assert len(codec.salvage(blob, max_output=200 << 16).data) == 200 << 16 and len(unpacked) == 200

    blob = codec.compress(text)[:-1]
    whole, decoded = len(codec.salvage(blob).windows), codec.model.decoded
    with pytest.raises(CodecError, match="--max-output allows 100"):
        codec.salvage(blob, max_output=100)
    assert codec.model.decoded - decoded <= 64 < whole


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, text: bytes) -> None:
    size = 200 << 20
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_megabytes()
    with open(tmp_path / "large.eem", "wb") as file:
        report = Codec(None).compress_stream(Large(size, text), file)
    counter = _Counter()
    with open(tmp_path / "large.eem", "rb") as file:
        Codec(None).decompress_stream(file, counter)
    assert counter.count == report.plain_bytes == size
    assert _peak_megabytes() - before < 60


def test_a_hostile_payload_under_a_right_check_sum_is_refused(text: bytes) -> None:
    """Whoever makes check sums can make a window decode to anything; the hash of the whole still tells."""
    codec = Codec(IntegerModel.from_pretrained(GOLDEN / "eem"))
    blob = (GOLDEN / "eem.eem").read_bytes()
    source = Source(BytesIO(blob))
    header = read_header(source)
    records = list(read_records(source, header))
    trailer = source.peek(1 << 20)
    draw = random.Random(0)
    texts = [record.number for record in records if record.kind.is_text]
    for _ in range(20):
        victim = draw.choice(texts)
        out = bytearray(header.to_bytes())
        for record in records:
            payload = record.payload
            if record.number == victim:
                payload = draw.choice(
                    [draw.randbytes(len(payload)), payload[:-1], payload + b"\1", b"", b"\xff" * 300]
                )
            out += pack_record(header.check, record.number, record.kind, record.count, payload)
        with pytest.raises(ValueError):  # of the coder, which notices most, or of the hash
            codec.decompress_stream(BytesIO(bytes(out) + trailer), BytesIO())


def test_declared_sizes_are_checked_before_they_are_believed(codec: Codec) -> None:
    header = Header(False, codec.model_id)

    def file(kind: Kind, count: int, payload: bytes) -> bytes:
        return header.to_bytes() + pack_record(header.check, 0, kind, count, payload) + Index().trailer(header)

    with pytest.raises(DamagedFile, match="at most 128 fit"):
        codec.decompress_stream(BytesIO(file(Kind.TEXT, 129, b"x")), BytesIO())
    with pytest.raises(DamagedFile, match="has a code, but its model has none"):
        codec.decompress_stream(BytesIO(file(Kind.CODED, 5, b"x")), BytesIO())
    with pytest.raises(DamagedFile, match="declares|decode"):
        codec.decompress_stream(BytesIO(file(Kind.ZSTD, 60_000, b"x")), BytesIO())
    with pytest.raises(CodecError, match="--max-output"):
        codec.decompress_stream(BytesIO(file(Kind.ZSTD, 60_000, b"x")), BytesIO(), max_output=59_999)


def test_a_window_keeps_the_code_that_it_begins_with(stand_in: Callable[..., Any], text: bytes) -> None:
    model = stand_in(has_code=True)
    items = read_items(BytesIO(text), TokenTable(model.backend_tokenizer), capacity(model, False))
    windows = [window for window in WindowEncoder(model, False).encode(items) if window.tokens is not None]
    assert {window.kind.has_code for window in windows} == {True, False}
    for window in windows:
        codes = None if window.code is None else [window.code]
        assert window.kind.has_code == (window.code is not None)
        assert model.encode_windows([window.tokens], [list(window.context)], codes) == [window.payload]
