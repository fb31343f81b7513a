"""Memory does not grow with the file, both ways; what a hostile file declares is checked before it is believed."""

import random
from collections.abc import Callable
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, CodecError, DamagedFile, IntegerModel
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
