"""The bytes of the format, each field against a plain reading of its specification."""

import random
import zlib
from pathlib import Path

import pytest

from modeling_eem.codec.byte_windows import pack_bytes, unpack_bytes
from modeling_eem.codec.container import (
    MAX_PLAIN,
    DamagedFile,
    Header,
    Kind,
    pack_record,
    pack_varint,
    parse_record_head,
    read_varint,
    record_number,
)
from modeling_eem.codec.trailer import MAX_BLOCK, MAX_FOOTER, Entry, Footer, Index, pack_block, unpack_block

ID = bytes(range(1, 9))


def test_headers_are_as_specified() -> None:
    assert Header().to_bytes() == bytes.fromhex("ee454d 01 00") + zlib.crc32(bytes.fromhex("ee454d0100")).to_bytes(
        4, "little"
    )
    body = bytes.fromhex("ee454d 01 07 0102030405060708 0903")
    assert Header(True, ID, (9, 3)).to_bytes() == body + zlib.crc32(body).to_bytes(4, "little")
    for header in (Header(), Header(True), Header(False, ID), Header(True, ID, (0, 2))):
        assert Header.from_bytes(header.to_bytes() + b"rest") == header


@pytest.mark.parametrize("header", [Header(), Header(True, ID, (0, 2))])
def test_every_flipped_or_missing_bit_of_a_header_is_found(header: Header) -> None:
    good = header.to_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFile):
            Header.from_bytes(bytes(bad))
    for length in range(len(good)):
        with pytest.raises(DamagedFile):
            Header.from_bytes(good[:length])
    newer = bytearray(good)
    newer[3] = 2
    with pytest.raises(DamagedFile, match="format version 2"):
        Header.from_bytes(bytes(newer))


def test_varints_come_back_and_only_the_shortest_form_counts() -> None:
    for value in [0, 1, 127, 128, 16_383, 16_384, 2**48]:
        packed = pack_varint(value)
        assert read_varint(packed + b"\xff", 0, 10) == (value, len(packed))
    assert read_varint(b"\x80\x00", 0, 10)[0] == -1
    assert read_varint(b"\x80\x80\x01", 0, 2)[0] == -1
    assert read_varint(b"\x80", 0, 10)[0] == -1


def test_a_record_is_as_specified() -> None:
    check = Header().check
    record = pack_record(check, 5, Kind.TEXT, 300, b"payload")
    front = bytes([7 << 3 | 3]) + b"\xac\x02"
    expected = zlib.crc32(Header().body() + front + b"payload") ^ (2_654_435_761 * 5 % 2**32)
    assert record == front + expected.to_bytes(4, "little") + b"payload"
    head = parse_record_head(record)
    assert (head.kind, head.length, head.count, head.size) == (Kind.TEXT, 7, 300, 7)
    assert record_number(check, head, record) == 5
    assert parse_record_head(b"\x07").kind == Kind.END
    assert record_number(Header(True).check, head, record) != 5
    assert len(pack_record(check, 0, Kind.TEXT_FULL, 511, bytes(500))) == 500 + 6


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x0f",  # the end of the records with a length
        pack_varint((MAX_PLAIN + 1) << 3 | Kind.RAW) + bytes(4),
        b"\x00" + bytes(4),  # raw without a byte
        b"\x0b\x00" + bytes(4),  # no tokens
        b"\x09" + pack_varint(MAX_PLAIN) + bytes(4),  # a full window as one that is not
        b"\x08\x00\x00\x00",  # cut within the check sum
    ],
)
def test_impossible_record_heads_are_refused(record: bytes) -> None:
    assert parse_record_head(record) is None


def test_blocks_of_the_index_come_back_whatever_the_lengths() -> None:
    draw = random.Random(0)
    header = Header(False, ID)
    cases = [[1], [MAX_PLAIN], [MAX_PLAIN] * 64, [1, MAX_PLAIN] * 32, [2000] * 63 + [7]]
    cases += [[draw.randrange(1, draw.choice([2, 3000, MAX_PLAIN + 1])) for _ in range(64)] for _ in range(50)]
    for lengths in cases:
        entry = Entry(draw.randrange(2**48), draw.randrange(2**48), draw.randrange(2**32))
        block = pack_block(header, entry, lengths)
        assert len(block) <= MAX_BLOCK
        assert unpack_block(header, entry, len(lengths), block + b"following bytes") == lengths
        for wrong in ((Header(), entry), (header, Entry(1, 2, 3))):
            with pytest.raises(DamagedFile):
                unpack_block(*wrong, len(lengths), block)
        at = draw.randrange(len(block))
        with pytest.raises(DamagedFile):
            unpack_block(header, entry, len(lengths), block[:at] + bytes([block[at] ^ 4]) + block[at + 1 :])
    assert Entry.from_bytes(entry.to_bytes()) == entry and len(entry.to_bytes()) == 16


def test_text_windows_take_less_than_two_bytes_of_the_index() -> None:
    draw = random.Random(0)
    index = Index()
    for _ in range(6400):
        index.add(500, bytes(round(draw.gauss(2000, 200))))
    trailer = index.trailer(Header(False, ID))
    assert len(trailer) / 6400 < 1.85
    footer = Footer.from_end(trailer[-MAX_FOOTER:], Header(False, ID))
    assert (footer.windows, footer.groups, footer.plain_length) == (6400, 100, sum(index.lengths))


def test_byte_windows_come_back_or_are_refused() -> None:
    noise = random.Random(0).randbytes(1000)
    for data, kind in (
        (bytes(MAX_PLAIN), Kind.ZSTD_FULL),
        (bytes(500), Kind.ZSTD),
        (noise, Kind.RAW),
        (b"a", Kind.RAW),
    ):
        got, payload = pack_bytes(data)
        assert got == kind and unpack_bytes(kind, len(data), payload) == data
    kind, payload = pack_bytes(bytes(500))
    for length, bad in ((499, payload), (501, payload), (500, payload + b"x"), (500, payload[:-1]), (500, b"")):
        with pytest.raises(DamagedFile):
            unpack_bytes(Kind.ZSTD, length, bad)


def test_a_frame_cannot_ask_for_more_memory_than_a_window() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=True
        )
    ).compress(bytes(10**8))
    with pytest.raises(DamagedFile):
        unpack_bytes(Kind.ZSTD, 500, bomb)


def test_only_the_module_that_specifies_it_knows_the_magic() -> None:
    folder = Path(__file__).parents[2] / "modeling_eem" / "codec"
    assert [path.name for path in folder.glob("*.py") if "\\xeeEM" in path.read_text()] == ["container.py"]
