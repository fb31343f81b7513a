"""Files as documents: nothing changed, little in memory, and errors that say where."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from modeling_eem.data import Document, read_documents
from modeling_eem.data.documents import Span, read_span
from modeling_eem.data.shards import corpus_files

MEBIBYTE = 1 << 20
TEXTS = ["\ufeffIt is\r\n 👍🏽 \x00é\u0301 \u2028", "", "a\rb\n", "  "]
PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
Writer = Callable[[Path, list[str]], None]


class SilentFiles(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *_: object) -> None:
        pass


def _write(path: Path, texts: list[str], column: str = "text") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), column: pa.array(texts, pa.string())}), path)
        return path
    if ".json" in path.name:
        lines = [json.dumps({"id": i, column: text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
        data = "\n".join(lines).encode()
    else:
        data = "".join(texts).encode()
    path.write_bytes(PACKERS.get(path.suffix, bytes)(data))
    return path


def _texts(*paths: Path, **arguments: str) -> list[str]:
    return [document.text for document in read_documents(paths, **arguments)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_documents_are_unchanged(tmp_path: Path, name: str) -> None:
    assert _texts(_write(tmp_path / name, TEXTS)) == TEXTS
    assert _texts(_write(tmp_path / f"b{name}", TEXTS, "body"), text_column="body") == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    "line", ["é👍\r\n", "👍" * 300_000 + "\n", "a👍b"], ids=["short lines", "long lines", "no lines"]
)
def test_a_text_file_is_its_pieces(tmp_path: Path, name: str, line: str) -> None:
    text = "\ufeff" + line * (3 * MEBIBYTE // len(line.encode()))
    pieces = _texts(_write(tmp_path / name, [text]))
    assert "".join(pieces) == text
    assert len(pieces) >= 2 and max(len(piece.encode()) for piece in pieces) <= 2 * MEBIBYTE + 3
    if line.endswith("\n"):
        assert all(piece.endswith(line) for piece in pieces), "cut inside a line"


def test_a_short_text_file_is_one_document(tmp_path: Path) -> None:
    assert _texts(_write(tmp_path / "a.txt", TEXTS)) == ["".join(TEXTS)]
    assert _texts(_write(tmp_path / "empty.txt", [])) == []


@pytest.mark.parametrize(
    "name", ["a.jsonl", "A.JSONL", "a.JSONL.gz", "a.jsonl.zst", "a.json", "a.Json.Zst", "a.PARQUET"]
)
def test_endings_that_corpora_come_with(tmp_path: Path, name: str) -> None:
    if name.lower().endswith("parquet"):
        pq.write_table(pa.table({"text": TEXTS}), tmp_path / name)
    else:
        data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
        (tmp_path / name).write_bytes(PACKERS.get(Path(name).suffix.lower(), bytes)(data))
    assert _texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize("written", [json.dumps, lambda records: json.dumps(records, indent=2)])
def test_a_list_of_json_is_its_records(tmp_path: Path, written: Callable[[list], str]) -> None:
    texts = [*TEXTS, "x" * 3 * MEBIBYTE, "é" * MEBIBYTE]
    (tmp_path / "a.json").write_text(written([{"id": n, "text": text, "n": [1.5e3]} for n, text in enumerate(texts)]))
    assert _texts(tmp_path / "a.json") == texts
    (tmp_path / "b.json").write_text("[]")
    assert _texts(tmp_path / "b.json") == []


def test_a_zstandard_file_of_several_frames_is_all_of_them(tmp_path: Path) -> None:
    parts = [b"one\n" * 300_000, b"", b"two\n"]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(map(zstandard.compress, parts)))
    assert "".join(_texts(tmp_path / "a.txt.zst")).encode() == b"".join(parts)


def test_a_folder_is_its_files_but_hidden_ones(tmp_path: Path) -> None:
    folder = tmp_path / "corpus.parquet"
    for name, text in {
        "b/part-1.jsonl": "y",
        "a.txt": "x",
        "_temporary/c.txt": "no",
        ".d.txt": "no",
        "_SUCCESS": "",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": text}) if name.endswith("jsonl") else text)
    assert _texts(folder) == ["x", "y"]
    assert [Path(file).name for file in corpus_files([str(folder)])] == ["a.txt", "part-1.jsonl"]


@pytest.mark.parametrize(
    "read", [lambda folder: list(read_documents([folder])), lambda folder: corpus_files([str(folder)])]
)
def test_a_saved_data_set_is_no_folder_of_text(read: Callable[[Path], object], tmp_path: Path) -> None:
    """Its JSON files would be read as documents that lack their text."""
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="the folder holds a saved data set, not text"):
        read(tmp_path)


def test_documents_say_where_they_are_from(tmp_path: Path) -> None:
    one = _write(tmp_path / "a.jsonl", ["x", "y"])
    two, three = _write(tmp_path / "b.txt", ["z"]), _write(tmp_path / "c.parquet", ["v", "w"])
    assert list(read_documents([one, str(two), three])) == [
        Document("x", one, 0),
        Document("y", one, 1),
        Document("z", two, 2),
        Document("v", three, 3),
        Document("w", three, 4),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \t\n"])
def test_blank_lines_of_jsonl_are_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ending.join(['{"text": "x"}', '{"text": "y"}', ""]).encode())
    assert _texts(path) == ["x", "y"]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_kind_of_parquet_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS).cast(kind)}), tmp_path / "a.parquet")
    assert _texts(tmp_path / "a.parquet") == TEXTS


def _peak(paths: list[Path]) -> tuple[int, int]:
    """Bytes read, and the most that Python and Arrow held at one time, beyond what they held before."""
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    num_bytes = arrow = 0
    for document in read_documents(paths):
        num_bytes += len(document.text)
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return num_bytes, peak + arrow


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """One row group holds the whole parquet file, as its writers often have it."""
    texts = [random.randbytes(1500).hex() + "\n" for _ in range(32 * MEBIBYTE // 3001)]  # does not compress
    path = _write(tmp_path / name, texts)
    num_bytes, peak = _peak([path])
    assert num_bytes == sum(map(len, texts)) > 30 * MEBIBYTE
    assert peak < 10 * MEBIBYTE


def _raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def _table(**columns: pa.Array) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def _binary_as_text(path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"ab\xff"]).buffers())
    pq.write_table(pa.table({"text": broken}), path)


def _truncated(path: Path) -> None:
    _write(path, ["the sea " * 1000])
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("a.txt", _raw(b"caf\xe9 au lait"), "not UTF-8 at byte 3"),
        ("a.txt", _raw(b"x" * 7 + b"\n\xf0\x9f\x91"), "not UTF-8 at byte 8"),
        ("a.txt", _raw(b"a\xff" * 1 + b"\n" * MEBIBYTE * 2), "not UTF-8 at byte 1"),
        ("a.txt", _raw("é\n".encode() * MEBIBYTE + b"\xff\n"), f"not UTF-8 at byte {3 * MEBIBYTE}"),
        ("a.txt", _raw(b"x" + "👍".encode() * MEBIBYTE + b"\xff" * 9), f"not UTF-8 at byte {4 * MEBIBYTE + 1}"),
        ("a.txt", _raw(b"\xed\xa0\x80"), "not UTF-8 at byte 0"),
        ("a.txt.gz", _raw(gzip.compress(b"0123456789\xff")), "not UTF-8 at byte 10"),
        ("a.txt.gz", _raw(b"not gzip"), "not a whole gzip file"),
        ("a.txt.gz", _raw(gzip.compress(b"x" * 9999)[:-12]), "not a whole gzip file"),
        ("a.txt.gz", _truncated, "not a whole gzip file"),
        ("a.txt.zst", _raw(b"not zstandard"), "not a whole zstandard file"),
        ("a.txt.zst", _raw(zstandard.compress(b"x" * 9999)[:-2]), "not a whole zstandard file"),
        ("a.txt.zst", _raw(zstandard.compress(b"x") + zstandard.compress(b"x" * 9999)[:-2]), "not a whole zstandard"),
        ("a.jsonl.zst", _raw(zstandard.compress(b'{"text": "a"}\n{')), "line 2 is not JSON"),
        ("a.json", _raw(b'[{"text": "a"}, {"text": 5}]'), "record 2, column 'text': text expected, not 5"),
        ("a.json", _raw(b'[{"text": "a"}, {"text": "b"'), "record 2 is not JSON"),
        ("a.json", _raw(b'[{"text": "a"}, '), "the list is cut off behind record 1"),
        ("a.json", _raw(b'[{"text": "a"}] {"text": "b"}'), "more stands behind the list of 1 records"),
        ("a.json", _raw(b'{"text": "a"} nothing'), "record 2 is not JSON"),
        ("a.json", _raw(b'{"text": "\xff"}'), "not UTF-8"),
        ("a.json", _raw(b"[" * 100_000), "record 1"),
        ("a.jsonl", _raw(b'{"text": "a"}\n{"text": "\xff"}'), "not UTF-8 at byte 24"),
        ("a.jsonl", _raw(b'{"text": "a"}\n\n{"text": '), "line 3 is not JSON"),
        ("a.jsonl", _raw(b"[" * 100_000), "line 1"),
        ("a.jsonl", _raw(b'{"text": "a", "n": ' + b"1" * 5000 + b"}"), "line 1"),
        ("a.jsonl", _raw(b'{"body": "a"}'), "line 1 has no column 'text'"),
        ("a.jsonl", _raw(b'["text"]'), "line 1 has no column 'text'"),
        ("a.jsonl", _raw(b'{"text": 5}'), "line 1, column 'text': text expected, not 5"),
        ("a.jsonl", _raw(b'{"text": null}'), "line 1, column 'text': text expected, not None"),
        ("a.jsonl", _raw(b'\n{"text": "a\\ud800"}'), r"line 2 .*surrogate '\\ud800' at character 1"),
        ("a.parquet", _raw(b"no parquet at all"), "not a readable parquet file"),
        ("a.parquet", _raw(b""), "not a readable parquet file"),
        ("a.parquet", _truncated, "not a readable parquet file"),
        ("a.parquet", _table(body=["a"], id=[1]), "no column 'text', only body, id"),
        ("a.parquet", _table(text=[1, 2]), "column 'text' holds int64, not text"),
        ("a.parquet", _table(text=[b"a"]), "column 'text' holds binary, not text"),
        ("a.parquet", _table(text=["a", None]), "row 1, column 'text': text expected, not null"),
        ("a.parquet", _binary_as_text, "row 1 is not UTF-8 at its byte 2"),
    ],
)
def test_errors_name_file_and_place(tmp_path: Path, name: str, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        _texts(tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name)) and len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name, message", [("b.txt", "no such file"), ("empty", "holds no .txt"), ("a.csv", "unknown kind")]
)
def test_bad_names_are_refused_before_reading(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    good = _write(tmp_path / "good.txt", ["a"])
    with pytest.raises(ValueError, match=message):
        read_documents([good, tmp_path / name])
    with pytest.raises(ValueError, match="no file to read"):
        read_documents([])


def test_what_comes_before_an_error_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "y"}\n{')
    documents: Iterator[Document] = read_documents([path])
    assert [next(documents).text, next(documents).text] == ["x", "y"]
    with pytest.raises(ValueError, match="line 3"):
        next(documents)


def test_linked_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.txt").write_text("b")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    assert [document.text for document in read_documents([tmp_path / "corpus"])] == ["a", "b"]


def test_plain_text_is_read_over_any_url(tmp_path: Path) -> None:
    """Files of HTTP, S3 and the Hub have a readline that takes no size."""
    lines = "".join(f"line {number}\n" for number in range(200_000))
    (tmp_path / "long.txt").write_text(lines)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SilentFiles, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        texts = list(read_span(Span(f"http://127.0.0.1:{server.server_port}/long.txt")))
    finally:
        server.shutdown()
        server.server_close()
    assert len(texts) > 1 and "".join(map(str, texts)) == lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_byte_order_mark_before_json_is_no_text(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, ["\ufefffirst", "second"])
    unpacked = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    marked = b"\xef\xbb\xbf" + unpacked
    path.write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert _texts(path) == ["\ufefffirst", "second"], "a mark inside a text stays"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf") if name.endswith(".gz") else b"\xef\xbb\xbf")
    assert _texts(path) == [], "and a mark alone is no text"


def test_an_error_behind_a_byte_order_mark_names_the_byte_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="not UTF-8 at byte 13"):
        _texts(tmp_path / "a.jsonl")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="2 columns are called 'text': rename all but one"):
        _texts(tmp_path / "a.parquet")


def test_a_commands_output_beside_its_text_is_no_text(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", ["x"])
    for name in ("fingerprint.json", "entropies.json"):
        folder = tmp_path / "outputs" / name.removesuffix(".json")
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        (folder / "left_out.txt").write_text("document 3: not text")
    assert [Path(file).name for file in corpus_files([str(tmp_path)])] == ["a.jsonl"]
    assert _texts(tmp_path) == ["x"]
