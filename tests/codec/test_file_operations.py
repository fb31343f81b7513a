"""Commands on files: names, folders, pipes, refusals; a kill leaves the old file; two processes never mix."""

import errno
import io
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, CodecError
from modeling_eem.codec.file_operations import (
    FileOptions,
    FileResult,
    compress_files,
    decompress_files,
    estimate_files,
    list_files,
    test_files,
)
from modeling_eem.codec.whole_files import whole_file


@pytest.fixture(autouse=True)
def model(codec: Codec, monkeypatch: Any) -> None:
    """`--model DIR` and the default model are the stand-in."""
    monkeypatch.setattr(Codec, "from_pretrained", lambda folder, carry=False: Codec(codec.model, carry))
    monkeypatch.setattr(Codec, "default", lambda carry=False: Codec(codec.model, carry))


MODEL = FileOptions(model="stand-in")


def _with(**changes: Any) -> FileOptions:
    return FileOptions(model="stand-in", **changes)


def _quiet(line: str) -> None: ...


def _one(results: list[FileResult]) -> FileResult:
    (result,) = results
    return result


@pytest.fixture
def notes(tmp_path: Path, text: bytes) -> Path:
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    path.chmod(0o640)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


@pytest.mark.parametrize("carry", [False, True])
def test_a_file_goes_and_comes_back(notes: Path, text: bytes, carry: bool) -> None:
    lines: list[str] = []
    packed = _one(compress_files([notes], _with(carry=carry), lines.append))
    assert packed.error is None and packed.target == notes.with_name("notes.txt.eem")
    assert packed.target.stat().st_size == packed.file_bytes
    assert packed.target.stat().st_mtime == 1_000_000_000 and packed.target.stat().st_mode & 0o777 == 0o640
    assert "bits a byte" in lines[-1] and "the model" not in lines[-1]
    assert notes.read_bytes() == text
    notes.unlink()
    back = _one(decompress_files([packed.target], MODEL, _quiet))
    assert back.target == notes and notes.read_bytes() == text and packed.target.exists()
    assert sorted(path.name for path in notes.parent.iterdir()) == ["notes.txt", "notes.txt.eem"]


def test_sources_go_only_when_asked(notes: Path) -> None:
    packed = _one(compress_files([notes], _with(keep=False), _quiet))
    assert not notes.exists() and packed.target.exists()
    decompress_files([packed.target], _with(keep=False), _quiet)
    assert notes.exists() and not packed.target.exists()


def test_nothing_is_overwritten_without_force(notes: Path, text: bytes) -> None:
    target = notes.with_name("notes.txt.eem")
    target.write_bytes(b"mine")
    refused = _one(compress_files([notes], MODEL, _quiet))
    assert "-f overwrites it" in refused.error and target.read_bytes() == b"mine"
    assert compress_files([notes], _with(force=True), _quiet)[0].error is None
    notes.write_bytes(b"newer")
    assert "-f overwrites it" in _one(decompress_files([target], MODEL, _quiet)).error
    assert notes.read_bytes() == b"newer"
    same = _one(compress_files([notes], _with(output=notes, force=True), _quiet))
    assert "same file" in same.error and notes.read_bytes() == b"newer"


def test_folders_are_taken_file_by_file(tmp_path: Path, text: bytes) -> None:
    for name in ("a/one", "a/b/two", "a/three.eem"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text[:2000])
    assert "-r takes each file" in _one(compress_files([tmp_path / "a"], MODEL, _quiet)).line
    results = compress_files([tmp_path / "a"], _with(recursive=True), _quiet)
    assert [result.target.name for result in results] == ["two.eem", "one.eem"]
    (tmp_path / "a/one").unlink()
    (tmp_path / "a/b/two").unlink()
    (tmp_path / "a/three.eem").unlink()
    decompress_files([tmp_path / "a"], _with(recursive=True), _quiet)
    assert (tmp_path / "a/b/two").read_bytes() == (tmp_path / "a/one").read_bytes() == text[:2000]


def test_one_bad_file_does_not_stop_the_others(notes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"some words")
    results = compress_files([tmp_path / "absent", notes, other], MODEL, _quiet)
    assert [result.error is None for result in results] == [False, True, True]
    assert "absent: No such file" in results[0].line
    (tmp_path / "junk.eem").write_bytes(b"junk")
    assert "not an .eem file" in _one(decompress_files([tmp_path / "junk.eem"], MODEL, _quiet)).error
    assert not (tmp_path / "junk").exists()
    assert "does not end in .eem" in _one(decompress_files([notes], MODEL, _quiet)).error


def test_one_output_takes_one_input(notes: Path, tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CodecError, match="several inputs"):
        compress_files([notes, notes], _with(output=tmp_path / "x"), _quiet)
    with pytest.raises(CodecError, match="several files cannot share"):
        compress_files([notes, notes], _with(to_stdout=True), _quiet)
    compress_files([notes], _with(output=tmp_path / "x"), _quiet)
    decompress_files([tmp_path / "x"], _with(output=tmp_path / "y"), _quiet)
    assert (tmp_path / "y").read_bytes() == text


class _Standard:
    """Standard input or output of bytes."""

    def __init__(self, data: bytes = b"", is_terminal: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self.isatty = lambda: is_terminal


def test_pipes_work_and_terminals_get_no_bytes_unasked(monkeypatch: Any, text: bytes, notes: Path) -> None:
    packed, plain = _Standard(), _Standard()
    monkeypatch.setattr(sys, "stdin", _Standard(text))
    monkeypatch.setattr(sys, "stdout", packed)
    assert _one(compress_files([], MODEL, _quiet)).error is None
    monkeypatch.setattr(sys, "stdin", _Standard(packed.buffer.getvalue()))
    monkeypatch.setattr(sys, "stdout", plain)
    assert _one(decompress_files([Path("-")], MODEL, _quiet)).error is None
    assert plain.buffer.getvalue() == text
    monkeypatch.setattr(sys, "stdout", _Standard(is_terminal=True))
    refused = _one(compress_files([notes], _with(to_stdout=True), _quiet))
    assert "terminal" in refused.error and not sys.stdout.buffer.getvalue()
    assert compress_files([notes], _with(to_stdout=True, force=True), _quiet)[0].error is None


def test_testing_and_listing_write_nothing(notes: Path) -> None:
    packed = _one(compress_files([notes], MODEL, _quiet)).target
    before = sorted(notes.parent.iterdir())
    assert _one(test_files([packed], MODEL, _quiet)).error is None
    lines: list[str] = []
    listed = _one(list_files([packed], MODEL, lines.append))
    assert listed.report.file_bytes == packed.stat().st_size and listed.report.estimate_bits is None
    assert lines[0].startswith(f"{packed}: ") and "kB/s" not in lines[0]
    assert any("framing" in line for line in lines[1:])
    assert _one(list_files([packed], MODEL, _quiet, estimate=True)).report.estimate_bits > 0
    estimated = _one(estimate_files([notes], MODEL, _quiet))
    assert estimated.file_bytes == pytest.approx(packed.stat().st_size, rel=0.1)
    assert sorted(notes.parent.iterdir()) == before
    blob = bytearray(packed.read_bytes())
    blob[500] ^= 1
    packed.write_bytes(blob)
    assert "damaged" in _one(test_files([packed], MODEL, _quiet)).error


def test_damage_leaves_no_output_and_salvage_gives_the_rest(notes: Path, text: bytes) -> None:
    packed = _one(compress_files([notes], MODEL, _quiet)).target
    blob = bytearray(packed.read_bytes())
    blob[500] ^= 1
    packed.write_bytes(blob)
    notes.unlink()
    assert "--salvage" in _one(decompress_files([packed], MODEL, _quiet)).error
    assert sorted(path.name for path in notes.parent.iterdir()) == ["notes.txt.eem"]
    lines: list[str] = []
    assert _one(decompress_files([packed], _with(salvage=True), lines.append)).error is None
    assert len(text) * 0.8 < len(notes.read_bytes()) < len(text)
    assert any("lost: window" in line for line in lines)
    salvaged = _one(decompress_files([packed], _with(salvage=True, force=True, keep=False), _quiet))
    assert salvaged.losses and packed.exists()
    packed.write_bytes(blob[:500] + bytes([blob[500] ^ 1]) + blob[501:])
    whole = _one(decompress_files([packed], _with(salvage=True, force=True, keep=False), _quiet))
    assert not whole.losses and not packed.exists() and notes.read_bytes() == text


def test_a_lost_header_of_bytes_alone_needs_no_model(
    tmp_path: Path, monkeypatch: Any, awkward: dict[str, bytes]
) -> None:
    def none(carry: bool = False) -> Codec:
        raise CodecError("this installation has no default codec model")

    monkeypatch.setattr(Codec, "default", none)
    packed = tmp_path / "noise.eem"
    packed.write_bytes(b"\0" * 9 + Codec(None).compress(awkward["random"])[9:])
    assert _one(decompress_files([packed], FileOptions(salvage=True), _quiet)).error is None
    assert (tmp_path / "noise").read_bytes() == awkward["random"]


def test_a_line_says_what_tells_something(
    tmp_path: Path, text: bytes, awkward: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(plain: bytes) -> str:
        (tmp_path / "x").write_bytes(plain)
        return _one(compress_files([tmp_path / "x"], _with(force=True), _quiet)).line.removeprefix(f"{tmp_path}/x: ")

    assert line(b"") == "0 plain bytes, 26 in the file"
    assert "kB/s" not in line(text) and "the model" not in line(text)
    assert "the model coded 0 of 1 window: the rest is shorter with zstd, or not text" in line(awkward["random"])
    monkeypatch.setattr("modeling_eem.codec.file_operations._TIMED_SECONDS", 0)  # however fast the machine
    assert "kB/s; the model coded 0 of 4 windows: " in line(bytes(200_000))
    monkeypatch.setattr("modeling_eem.codec.file_operations._TIMED_SECONDS", 1e9)
    assert "kB/s" not in line(bytes(200_000))
    mixed = line(text[:2000] + awkward["random"])
    assert "the model coded " in mixed and " bytes): the rest is" in mixed


def test_a_file_is_not_compressed_twice_by_mistake(notes: Path, text: bytes) -> None:
    packed = _one(compress_files([notes], MODEL, _quiet)).target
    refused = _one(compress_files([packed], _with(force=True), _quiet))
    assert "ends in .eem already" in refused.error
    assert sorted(path.name for path in notes.parent.iterdir()) == ["notes.txt", "notes.txt.eem"]
    assert _one(compress_files([packed], _with(output=notes.with_name("twice")), _quiet)).error is None


def test_output_has_a_limit(notes: Path) -> None:
    packed = _one(compress_files([notes], MODEL, _quiet)).target
    notes.unlink()
    assert "--max-output allows 100" in _one(decompress_files([packed], _with(max_output=100), _quiet)).error
    assert not notes.exists()


def test_a_large_file_is_told_its_time_first(notes: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("modeling_eem.codec.file_operations._LARGE", 1000)
    lines: list[str] = []
    compress_files([notes], MODEL, lines.append)
    assert "about" in lines[0] and len(lines) == 2


def _write(path: Path, letter: bytes, overwrite: bool, pipe: Connection, killed: bool) -> None:
    try:
        with whole_file(path, overwrite) as file:
            file.write(letter * 500_000)
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            pipe.send("writing")
            pipe.recv()
            file.write(letter * 500_000)
        pipe.send("written")
    except CodecError as error:
        pipe.send(str(error))


def _writer(path: Path, letter: bytes, overwrite: bool, killed: bool = False) -> tuple[BaseProcess, Connection]:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_write, args=(path, letter, overwrite, theirs, killed))
    process.start()
    return process, ours


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.eem"
    path.write_bytes(b"old")
    process, _ = _writer(path, b"a", overwrite=True, killed=True)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_on_one_output_never_mix(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "x.eem"
    writers = [_writer(path, letter, overwrite) for letter in (b"a", b"b")]
    assert [pipe.recv() for _, pipe in writers] == ["writing", "writing"]  # both are in the middle
    ends = []
    for process, pipe in writers:
        pipe.send("go on")
        ends.append(pipe.recv())
        process.join()
    assert ends == ["written", "written" if overwrite else f"{path} exists: -f overwrites it, -o names another file."]
    assert path.read_bytes() == (b"b" if overwrite else b"a") * 1_000_000
    assert [inner.name for inner in tmp_path.iterdir()] == ["x.eem"]


def test_folders_without_links_keep_the_same_promises(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with whole_file(tmp_path / "x", overwrite=False) as file:
        file.write(b"first")
    with pytest.raises(CodecError, match="exists"), whole_file(tmp_path / "y", overwrite=False) as file:
        (tmp_path / "y").write_bytes(b"of another process")
    assert (tmp_path / "x").read_bytes() == b"first" and (tmp_path / "y").read_bytes() == b"of another process"
    assert len(list(tmp_path.iterdir())) == 2


def test_threads_are_those_asked_for(notes: Path, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr("modeling_eem.codec.file_operations.set_num_threads", asked.append)
    compress_files([notes], _with(threads=3), _quiet)
    assert asked == [3]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_file(tmp_path / "x", overwrite=False) as file:
        file.write(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_file(Path(os.devnull), overwrite=True) as file:
        file.write(b"x")
    assert not Path(os.devnull).is_file()


def test_a_source_stays_where_its_output_is_no_file(notes: Path, text: bytes) -> None:
    for work, path in ((compress_files, notes), (decompress_files, None)):
        path = path or _one(compress_files([notes], MODEL, _quiet)).target
        assert path is not None
        result = _one(work([path], _with(keep=False, output=Path(os.devnull)), _quiet))
        assert result.error is None and path.exists()
    fifo = notes.with_name("pipe")
    os.mkfifo(fifo)
    writer = multiprocessing.get_context("fork").Process(target=fifo.write_bytes, args=(text,))
    writer.start()
    packed = _one(compress_files([fifo], _with(keep=False, output=notes.with_name("x")), _quiet))
    writer.join()
    assert packed.plain_bytes == len(text) and fifo.exists()


def test_a_pipe_is_estimated_as_a_file_is(notes: Path, text: bytes) -> None:
    fifo = notes.with_name("pipe")
    os.mkfifo(fifo)
    writer = multiprocessing.get_context("fork").Process(target=fifo.write_bytes, args=(text,))
    writer.start()
    piped, plain = (_one(estimate_files([path], MODEL, _quiet)) for path in (fifo, notes))
    writer.join()
    assert (piped.plain_bytes, piped.file_bytes) == (plain.plain_bytes, plain.file_bytes) and plain.plain_bytes


def test_salvage_keeps_to_the_most_output(notes: Path) -> None:
    packed = _one(compress_files([notes], MODEL, _quiet)).target
    assert packed is not None
    out = notes.with_name("out")
    refused = _one(decompress_files([packed], _with(salvage=True, max_output=10, output=out), _quiet))
    assert "--max-output allows 10" in (refused.error or "") and not out.exists()


def test_what_cannot_be_taken_stops_no_other(notes: Path) -> None:
    folder = notes.with_name("folder")
    folder.mkdir()
    missing, other = notes.with_name("missing"), notes.with_name("other.txt")
    other.write_bytes(b"other")
    results = compress_files([folder, missing, notes, other], MODEL, _quiet)
    assert [result.error is None for result in results] == [False, False, True, True]
    assert "-r takes" in results[0].line
    assert results[1].line == f"{missing}: No such file or directory"  # its name once


def test_a_folder_that_cannot_be_read_is_told(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = notes.with_name("secret")
    secret.mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == secret:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused, packed = compress_files([notes.parent], _with(recursive=True), _quiet)
    assert refused.line == f"{secret}: Permission denied"
    assert packed.error is None and packed.source == notes


def test_an_output_that_cannot_be_made_is_called_by_its_name(notes: Path) -> None:
    out = notes.with_name("nowhere") / "x.eem"
    assert _one(compress_files([notes], _with(output=out), _quiet)).line == (
        f"{notes}: {out}: No such file or directory"
    )


def test_a_name_that_is_not_utf8(notes: Path, text: bytes) -> None:
    odd = Path(os.fsdecode(os.fsencode(notes.parent) + b"/a\xff.txt"))
    odd.write_bytes(text)
    packed = _one(compress_files([odd], MODEL, _quiet))
    assert packed.error is None and packed.target is not None
    odd.unlink()
    assert _one(decompress_files([packed.target], MODEL, _quiet)).error is None and odd.read_bytes() == text


@pytest.mark.parametrize("name, output", [("stdin", Path("x")), ("stdout", Path("-"))])
def test_a_closed_standard_stream(notes: Path, name: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes.parent)
    monkeypatch.setattr(sys, name, None)
    source = Path("-") if name == "stdin" else notes
    result = _one(compress_files([source], _with(output=output), _quiet))
    assert "is closed: name a file" in (result.error or "")


def test_a_listing_needs_a_file() -> None:
    assert "a listing needs a file" in _one(list_files([], FileOptions(), _quiet)).line
