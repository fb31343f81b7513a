"""Random access reads little, and the same bytes that a whole decode gives."""

import random
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, DamagedFile, WrongModel, registry
from modeling_eem.codec.container import Header, Kind, pack_record
from modeling_eem.codec.trailer import Index


@pytest.mark.parametrize("way", ["bytes", "causal", "carry", "code and carry"])
def test_any_slice_is_that_of_the_plain_bytes(codecs: dict[str, Codec], awkward: dict[str, bytes], way: str) -> None:
    data = awkward["text"][:7000] + awkward["random"] + awkward["text"] + awkward["other script"]
    draw = random.Random(0)
    with codecs[way].open(BytesIO(codecs[way].compress(data))) as archive:
        assert len(archive) == len(data)
        for _ in range(40):
            start, length = draw.randrange(len(data) + 5), draw.choice([0, 1, 50, 4000])
            assert archive.read(start, length) == data[start : start + length]
        assert archive.read(len(data), 5) == b""
        with pytest.raises(ValueError, match="negative"):
            archive.read(-1, 5)
        for number in (-1, archive.windows):
            with pytest.raises(IndexError, match="outside the file"):
                archive.window(number)


def test_a_class_opens_files_of_default_models(
    codec: Codec, text: bytes, awkward: dict[str, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "x.eem"
    path.write_bytes(Codec(None).compress(awkward["random"]))
    with Codec.open(path) as archive:
        assert archive.read(5, 10) == awkward["random"][5:15]
    path.write_bytes(codec.compress(text))
    with pytest.raises(WrongModel, match="not a default of this release"):
        Codec.open(path)
    release = registry.Release(codec.model_id, tmp_path, (0, 1))
    monkeypatch.setattr("modeling_eem.codec.codec.release_of", {release.id: release}.get)
    monkeypatch.setattr("modeling_eem.codec.codec._load", lambda folder: codec.model)
    with Codec.open(str(path)) as archive:
        assert archive.read(5000, 100) == text[5000:5100]


class Repeated:
    """A model of windows that all hold one text, so that a large archive is written at once."""

    def __init__(self, codec: Codec, plain: bytes, payload_length: int) -> None:
        self.context, self.has_code, self.id = 512, False, "0123456789abcdef"
        self.backend_tokenizer, self.vocab_size = codec.model.backend_tokenizer, codec.model.vocab_size
        self._tokens = codec._table.encode(plain)
        self.payload_length = payload_length

    def decode_windows(self, payloads: list[bytes], lengths: list[int], *_: Any) -> list[list[int]]:
        assert all(len(payload) == self.payload_length for payload in payloads)
        return [self._tokens for _ in payloads]


def test_one_window_of_an_archive_of_100_mb_takes_less_than_16_kb(codec: Codec, text: bytes, tmp_path: Path) -> None:
    plain = text[:1200]
    model = Repeated(codec, plain, 300)
    model.context = len(model._tokens) + 1
    header, index = Header(False, bytes.fromhex(model.id)), Index()
    windows = 100_000_000 // len(plain)
    path = tmp_path / "large.eem"
    with open(path, "wb") as file:
        file.write(header.to_bytes())
        for number in range(windows):
            record = pack_record(header.check, number, Kind.TEXT_FULL, 0, number.to_bytes(300, "little"))
            file.write(record)
            index.add(len(record), plain)
        file.write(index.trailer(header))
    draw = random.Random(0)
    for position in [0, 1, windows * len(plain) - 1] + [draw.randrange(windows * len(plain)) for _ in range(20)]:
        with Codec(model).open(path) as archive:
            assert archive.read(position, 1) == plain[position % len(plain) :][:1]
            assert archive.bytes_read < 16_000
    with Codec(model).open(path) as archive:
        report = archive.report()
    assert report.framing_bytes_per_window < 8 and report.file_bytes == path.stat().st_size


def test_a_wrong_index_is_found_not_followed(codec: Codec, text: bytes) -> None:
    """Every byte of the trailer, changed: the slice that is read is right, or refused."""
    blob = codec.compress(text)
    with codec.open(BytesIO(blob)) as archive:
        trailer = archive._layout.trailer
    refused = 0
    for at in range(trailer, len(blob)):
        bad = blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :]
        try:
            with codec.open(BytesIO(bad)) as archive:
                assert archive.read(9000, 100) == text[9000:9100]
        except DamagedFile:
            refused += 1
    assert refused > 20


def test_threads_may_share_an_archive(codec: Codec, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(400_000)
    path = tmp_path / "x.eem"
    path.write_bytes(codec.compress(data))
    places = [random.Random(number).randrange(len(data)) for number in range(200)]
    with codec.open(path) as archive, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda at: archive.read(at, 100), places)) == [data[at : at + 100] for at in places]


def test_a_file_is_closed_when_it_is_refused(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "x.eem"
    path.write_bytes(b"no file of ours")
    with open(path, "rb") as file:
        with pytest.raises(DamagedFile):
            codec.open(file)
        assert file.closed
