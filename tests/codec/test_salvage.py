"""A file that holds another `.eem` file, or is joined to one: salvage gives no windows of another file as its own."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from modeling_eem.codec import Codec, DamagedFile
from modeling_eem.codec.archive import Layout
from modeling_eem.codec.container import Header
from modeling_eem.codec.file_operations import FileOptions, decompress_files
from modeling_eem.codec.window_encoder import _merged


@dataclass
class Backup:
    """A tar of notes, compressed; one of them is an older `.eem` file, which one of the windows holds as it is."""

    codec: Codec
    blob: bytes
    windows: list[bytes]
    places: list[range]
    holder: int


@pytest.fixture(scope="module")
def backup(stand_in: Callable[..., Any], text: bytes) -> Backup:
    codec = Codec(stand_in())
    older = codec.compress(text[4000:])
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("a.txt", text[:2000]), ("old.eem", older), ("b.txt", text[2000:4000])):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with patch("modeling_eem.codec.window_encoder._mended", _merged):  # a file so small would be one window of bytes
        blob = codec.compress(file.getvalue())
    with codec.open(io.BytesIO(blob)) as archive:
        windows = [archive.window(number) for number in range(archive.windows)]
    layout = Layout(io.BytesIO(blob))
    entry, lengths = layout.plain_lengths(0)
    places = [range(at, at + head.size + head.length) for at, head in layout.heads(entry, len(lengths))]
    holder = next(number for number, place in enumerate(places) if older[200:300] in blob[place.start : place.stop])
    assert len(Layout(io.BytesIO(older)).plain_lengths(0)[1]) > holder + 2 and holder + 2 < len(windows)
    return Backup(codec, blob, windows, places, holder)


def _flipped(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


@pytest.mark.parametrize("place", ["head", "first byte", "last byte"])
def test_a_damaged_window_that_holds_an_older_file_is_lost_alone(backup: Backup, place: str) -> None:
    record = backup.places[backup.holder]
    at = {"head": record.start + 1, "first byte": record.start + 10, "last byte": record.stop - 1}[place]
    result = backup.codec.salvage(_flipped(backup.blob, at))
    kept = {number: plain for number, plain in enumerate(backup.windows) if number != backup.holder}
    assert result.windows == kept and [(lost.first, lost.count) for lost in result.lost] == [(backup.holder, 1)]
    assert result.has_losses


def test_two_damaged_windows_in_a_row_are_lost_alone(backup: Backup) -> None:
    damaged = {backup.holder, backup.holder + 1}
    blob = _flipped(_flipped(backup.blob, backup.places[backup.holder].stop - 1), backup.places[max(damaged)].stop - 1)
    result = backup.codec.salvage(blob)
    assert result.windows == {n: plain for n, plain in enumerate(backup.windows) if n not in damaged}


def test_a_window_of_another_length_than_the_index_says_is_lost(codec: Codec, text: bytes) -> None:
    """The older file has one window, so that no second one shows whose it is."""
    older = codec.compress(text[:200])
    with patch("modeling_eem.codec.window_encoder._mended", _merged):
        blob = codec.compress(older + text[3000:5000])
    with codec.open(io.BytesIO(blob)) as archive:
        kept = {number: archive.window(number) for number in range(1, archive.windows)}
    result = codec.salvage(_flipped(blob, len(Header.from_bytes(blob).to_bytes())))
    assert result.windows == kept and [(lost.first, lost.count) for lost in result.lost] == [(0, 1)]


def test_a_source_of_which_another_file_was_read_stays(backup: Backup, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Codec, "from_pretrained", lambda folder, carry=False: backup.codec)
    path = tmp_path / "notes.tar.eem"
    path.write_bytes(_flipped(backup.blob, backup.places[backup.holder].stop - 1))
    options = FileOptions(model="stand-in", salvage=True, keep=False)
    (result,) = decompress_files([path], options, lambda line: None)
    assert result.error is None and result.losses and path.exists()


def test_joined_files_are_not_taken_for_one(codec: Codec, text: bytes, awkward: dict[str, bytes]) -> None:
    """The index of the last file is at the end: its windows are given, and that others were left out is said."""
    one, two = codec.compress(text[:5000]), codec.compress(text[5000:9000])
    for first, last, plain in ((one, two, text[5000:9000]), (two, one, text[:5000])):
        result = codec.salvage(first + last)
        assert result.data == plain and result.has_losses
        assert any("another .eem file" in line for line in result.lines())
    other = codec.salvage(one + Codec(None).compress(awkward["random"]))  # its header is another
    assert other.data == text[:5000] and other.has_losses
    assert not codec.salvage(one).has_losses and codec.salvage(one).is_whole


def test_a_whole_that_misses_its_hash_is_doubtful(codec: Codec, awkward: dict[str, bytes]) -> None:
    """Two files whose windows are as long as each other's."""
    noise = awkward["random"]
    one, two = (Codec(None).compress(data) for data in (noise[:1000], noise[1000:2000]))
    place = Layout(io.BytesIO(one))
    mixed = one[: place.trailer] + two[place.trailer :]
    result = Codec(None).salvage(mixed)
    assert not result.lost and result.has_losses and any("does not match its hash" in line for line in result.lines())


@pytest.mark.parametrize("sizes", [(1000, 1000), (70 << 16, 70 << 16), (70 << 16, 1000), (1000, 0)])
def test_random_access_refuses_joined_files(awkward: dict[str, bytes], sizes: tuple[int, int]) -> None:
    codec = Codec(None)
    noise = awkward["random"] * 2000
    first, last = (codec.compress(noise[start : start + size]) for start, size in zip((0, 1000), sizes))
    with codec.open(io.BytesIO(last)) as archive:
        assert archive.read(0, sizes[1]) == noise[1000 : 1000 + sizes[1]]
    with pytest.raises(DamagedFile, match="two files joined"):
        codec.open(io.BytesIO(first + last))
