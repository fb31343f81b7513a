"""Rows on disk: what they hold, that workers, kills and restarts change nothing, and what is refused."""

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, load_from_disk
from datatrove.executor import RayPipelineExecutor
from tokenizers import normalizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from modeling_eem import EEMConfig
from modeling_eem.data import (
    CausalCollator,
    RowFormat,
    encode_text,
    pack,
    pad,
    pipeline,
    read_documents,
    stream,
    windows,
)
from modeling_eem.data.documents import read_span
from modeling_eem.data.fingerprint import check_fingerprint, read_fingerprint, tokenizer_fingerprint
from modeling_eem.data.prepare import Launch, Progress, RowOptions, prepare_rows
from modeling_eem.data.shards import corpus_files, plan_shards

TEXTS = [f"{'The rain it raineth every day. ' * (i % 7 * 3)}Song {i}: é👍 <|endoftext|>\n" for i in range(60)]
HERE = Launch(workers=1)
OPTIONS = RowOptions(max_length=32, shard_bytes=2500, held_out=0.2)
MODES = {"windows": windows, "pad": pad, "stream": stream, "pack": pack}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """60 documents in a jsonl and a parquet file; some are empty."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ["", *TEXTS[:30]]]
    (folder / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    pq.write_table(pa.table({"id": range(31), "text": [*TEXTS[30:], ""]}), folder / "b.parquet", row_group_size=8)
    return corpus_files([str(folder)])


@pytest.fixture
def make(files: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., DatasetDict]:
    def make(options: RowOptions = OPTIONS, launch: Launch = HERE, output: str = "rows") -> DatasetDict:
        shards = plan_shards(files, options.text_column, options.shard_bytes)
        assert len(shards) > 4
        prepare_rows(shards, tokenizer, tmp_path / output, options, launch)
        return load_from_disk(tmp_path / output)

    return make


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.arrow"))}


def _documents(data: DatasetDict, split: str) -> set[int]:
    return {document for row in data[split]["document_ids"] for document in row if document >= 0}


# What the rows hold


@pytest.mark.parametrize("mode", ["windows", "pad"])
def test_rows_are_those_of_the_row_modes(
    make: Callable[..., DatasetDict], files: list[str], tokenizer: PreTrainedTokenizerFast, mode: str
) -> None:
    """Modes that join nothing: shards leave no trace, and a document's number is that of `read_documents`."""
    data = make(replace(OPTIONS, rows=mode, add_eos=True, held_out=5))
    row_format = RowFormat.from_tokenizer(tokenizer, 32, add_eos=True)
    documents = [(document.index, encode_text(tokenizer, document.text)) for document in read_documents(files)]
    for split, part in (("held_out", documents[:5]), ("train", documents[5:])):
        expected = list(MODES[mode](part, row_format))
        assert [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in expected] == data[split].to_list()


@pytest.mark.parametrize("mode", ["stream", "pack"])
def test_joined_rows_lose_nothing(
    make: Callable[..., DatasetDict], files: list[str], tokenizer: PreTrainedTokenizerFast, mode: str
) -> None:
    data = make(replace(OPTIONS, rows=mode))
    texts: dict[int, list[int]] = {}
    for row in [*data["train"], *data["held_out"]]:
        assert len(row["input_ids"]) <= 32
        for token, document in zip(row["input_ids"], row["document_ids"]):
            texts.setdefault(document, []).append(token)
    decoded = {number: tokenizer.decode(ids, skip_special_tokens=True) for number, ids in sorted(texts.items())}
    assert decoded == {document.index: document.text for document in read_documents(files) if document.text}
    assert not _documents(data, "train") & _documents(data, "held_out")


@pytest.mark.parametrize(
    ("padding", "mode"), [("left", "pad"), ("right", "windows"), ("left", "stream"), ("right", "pack")]
)
def test_padding_is_what_the_collator_drops(
    make: Callable[..., DatasetDict], tokenizer: PreTrainedTokenizerFast, padding: str, mode: str
) -> None:
    plain = make(replace(OPTIONS, rows=mode))["train"]
    padded = make(replace(OPTIONS, rows=mode, padding=padding), output="padded")["train"]
    assert {len(row["input_ids"]) for row in padded} == {32}
    short = next(row for row in padded if not all(row["attention_mask"]))
    end = 0 if padding == "left" else -1
    assert (short["input_ids"][end], short["document_ids"][end]) == (tokenizer.pad_token_id, -1)
    assert padded["num_bytes"] == plain["num_bytes"]
    collator = CausalCollator(tokenizer.pad_token_id, len(tokenizer), 32, padding_side=padding)
    for a, b in zip(plain, padded):
        expected, actual = collator([a]), collator([b])
        assert expected.keys() == actual.keys()
        assert ("position_ids" in actual) == ("attention_mask" not in actual) == (mode == "pack")
        assert all((expected[name] == actual[name]).all() for name in expected)


def test_results_count_what_is_there(make: Callable[..., DatasetDict], tmp_path: Path) -> None:
    data = make()
    results = json.loads((tmp_path / "rows/results.json").read_text())
    for split, counts in results["splits"].items():
        assert counts["rows"] == len(data[split])
        assert counts["tokens"] == sum(map(sum, data[split]["attention_mask"]))
        assert counts["bytes"] == counts["text_bytes"] == sum(data[split]["num_bytes"])
    assert results["documents"] == 60 and results["bytes"] == len("".join(TEXTS).encode())
    assert results["seconds"] > 0 and results["mb_per_second"] > 0


# Held out


def test_the_first_documents_are_held_out(make: Callable[..., DatasetDict]) -> None:
    data = make(replace(OPTIONS, held_out=40))
    assert max(_documents(data, "held_out")) < 40 <= min(_documents(data, "train"))
    assert list(make(replace(OPTIONS, held_out=0), output="all")) == ["train"]


def test_a_share_follows_from_the_text(
    make: Callable[..., DatasetDict], files: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Not from a document's place: reversed, the corpus has the same documents held out."""

    def texts(data: DatasetDict) -> set[str]:
        return {tokenizer.decode(row, skip_special_tokens=True) for row in data["held_out"]["input_ids"]}

    held_out = texts(make(replace(OPTIONS, max_length=512)))
    assert 3 <= len(held_out) <= 25
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed(TEXTS)))
    options = replace(OPTIONS, max_length=512)
    prepare_rows(plan_shards([str(backwards)], "text", 10**9), tokenizer, tmp_path / "turned", options, HERE)
    assert texts(load_from_disk(tmp_path / "turned")) == held_out


# Workers, interruptions, restarts


@pytest.mark.parametrize("mode", ["stream", "pack"])
def test_any_number_of_workers_makes_the_same_files(
    make: Callable[..., DatasetDict], tmp_path: Path, mode: str
) -> None:
    make(replace(OPTIONS, rows=mode), output="one")
    make(replace(OPTIONS, rows=mode), Launch(workers=2), output="two")
    assert _files(tmp_path / "one") == _files(tmp_path / "two") != {}


def test_an_interrupted_start_is_resumed(
    make: Callable[..., DatasetDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third shard fails after its rows were half written: two are kept, nothing is there twice."""
    make(output="whole")
    write, done = pipeline.write_rows, []

    def fail(path: Path, rows: Any, columns: Any) -> Any:
        if "data-00002" in path.name and path.parent.name == "train":
            rows = (row if number < 1 else 1 / 0 for number, row in enumerate(rows))
        done.append(path.name)
        return write(path, rows, columns)

    monkeypatch.setattr(pipeline, "write_rows", fail)
    with pytest.raises(ZeroDivisionError):
        make()
    assert not (tmp_path / "rows/dataset_dict.json").exists()
    assert not list((tmp_path / "rows").rglob("*.part"))
    monkeypatch.setattr(pipeline, "write_rows", lambda path, *rest: done.append(path.name) or write(path, *rest))
    done.clear()
    make()
    assert not {name for name in done if name < "data-00002"}, "finished shards were made again"
    assert _files(tmp_path / "rows") == _files(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(make: Callable[..., DatasetDict], tmp_path: Path) -> None:
    make()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").rglob("*")}
    make()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").rglob("*")} == times


def test_progress_counts_bytes_and_documents_to_the_end(
    files: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    shards = plan_shards(files, "text", 2000)
    prepare_rows(shards, tokenizer, tmp_path / "rows", OPTIONS, HERE, seen.append)
    assert (seen[0].shard_bytes, seen[0].documents) == (0, 0)
    assert (seen[-1].shard_bytes, seen[-1].documents) == (sum(shard.num_bytes for shard in shards), 60)
    assert seen[-1].mb_per_second > 0


# What is refused


@pytest.mark.parametrize(
    "change", [{"rows": "pad"}, {"max_length": 16}, {"held_out": 3}, {"padding": "left"}, {"shard_bytes": 3000}]
)
def test_other_options_over_the_same_output(
    make: Callable[..., DatasetDict], tmp_path: Path, change: dict[str, Any]
) -> None:
    make()
    before = _files(tmp_path / "rows")
    with pytest.raises(ValueError, match=f"other values of .*{next(iter(change))}"):
        make(replace(OPTIONS, **change))
    assert _files(tmp_path / "rows") == before


def test_what_is_not_ours_is_left_alone(make: Callable[..., DatasetDict], tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/thesis.tex").touch()
    with pytest.raises(ValueError, match="did not make it"):
        make()
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["thesis.tex"]


def test_the_model_must_fit(
    make: Callable[..., DatasetDict],
    tokenizer: PreTrainedTokenizerFast,
    trained: PreTrainedTokenizerFast,
    eem_config: Callable[..., EEMConfig],
    tmp_path: Path,
) -> None:
    make(replace(OPTIONS, rows="pack"))
    folder = tmp_path / "rows"
    assert read_fingerprint(folder)["tokenizer"] == tokenizer_fingerprint(tokenizer)
    check_fingerprint(folder, tokenizer)
    check_fingerprint(folder, AutoTokenizer.from_pretrained(folder / "tokenizer"))
    check_fingerprint(folder, LlamaConfig(vocab_size=8000))
    with pytest.raises(ValueError, match="another tokenizer"):
        check_fingerprint(folder, trained)
    with pytest.raises(ValueError, match="8,000 tokens, and the model has 40"):
        check_fingerprint(folder, LlamaConfig(vocab_size=40))
    eem = eem_config()
    eem.decoder_config.vocab_size = eem.encoder_config.vocab_size = 8000
    with pytest.raises(ValueError, match="packed"):
        check_fingerprint(folder, eem)
    with pytest.raises(ValueError, match="eem data prepare"):
        check_fingerprint(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 62}, "takes all 62 documents"),
        ({"rows": "heap"}, "rows must be one of windows, pad"),
        ({"padding": "both"}, "padding must be"),
        ({"errors": "hide"}, "errors must be"),
        ({"held_out": 1.5}, "share below 1 or a number"),
        ({"shard_bytes": 0}, "shard_bytes"),
        ({"max_length": 1}, "max_length"),
        ({"max_length": 10**12}, "max_length must lie between 2 and"),
        ({"held_out": float("nan")}, "share below 1 or a number"),
        ({"held_out": float("inf")}, "share below 1 or a number"),
        ({"max_length": 10**6}, "less than one row"),
        ({"text_column": "body"}, "no column 'body'"),
    ],
)
def test_bad_options_leave_nothing(
    make: Callable[..., DatasetDict], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(replace(OPTIONS, **change))
    assert not (tmp_path / "rows").exists()


def test_padding_needs_a_token(files: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = plan_shards(files, "text", 2000)
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        prepare_rows(shards, bare, tmp_path / "rows", replace(OPTIONS, padding="left"), HERE)
    prepare_rows(shards, bare, tmp_path / "rows", OPTIONS, HERE)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jsonl"
    good = [json.dumps({"text": text}).encode() for text in TEXTS]
    path.write_bytes(b"\n".join([*good[:3], b'{"text": "\xff"}', *good[3:], b"{", b'{"text": "\\ud800"}']))
    return path


@pytest.mark.parametrize("errors", ["stop", "skip"])
def test_a_document_that_the_tokenizer_alters(errors: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """At the same number of bytes, which is all that was compared before."""
    lowering = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    lowering.backend_tokenizer.normalizer = normalizers.Lowercase()
    path = tmp_path / "corpus.jsonl"
    texts = ["all is low. " * 20, "And Some Is High. " * 20, "low again. " * 20]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = replace(OPTIONS, held_out=0, errors=errors)
    arguments = plan_shards([str(path)], "text", 10**6), lowering, tmp_path / "rows", options, HERE
    if errors == "stop":
        with pytest.raises(ValueError, match=r"document 1: the tokenizer alters the text \('And .*and "):
            prepare_rows(*arguments)
        return
    results = prepare_rows(*arguments)
    assert (results["documents"], results["skipped"]) == (2, 1)
    assert results["text_bytes"] == results["bytes"] == sum(map(len, (texts[0], texts[2])))
    documents = load_from_disk(tmp_path / "rows")["train"]["document_ids"]
    assert {number for row in documents for number in row} == {0, 2}


@pytest.mark.parametrize("held_out", [0, 0.5, 5])
def test_unreadable_documents_are_skipped_or_stop_it(
    broken: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, held_out: float
) -> None:
    shards, output = plan_shards([str(broken)], "text", 500), tmp_path / "rows"
    options = replace(OPTIONS, held_out=held_out)
    offset = broken.read_bytes().index(b"\xff")
    with pytest.raises(ValueError, match=f"broken.jsonl: not UTF-8 at byte {offset}.*--errors skip"):
        prepare_rows(shards, tokenizer, output, options, HERE)
    results = prepare_rows(shards, tokenizer, output, replace(options, errors="skip"), HERE)
    assert (results["documents"], results["skipped"]) == (60, 3)
    log = "".join(path.read_text() for path in (output / "logs/logs").iterdir())
    assert f"not UTF-8 at byte {offset}" in log and "line 62 is not JSON" in log and "surrogate" in log


def test_ray_makes_the_same_files(
    files: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """datatrove's executor as it would be run; without Ray, as far as it can be built."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    launch = Launch(executor="ray", workers=2)
    executor = pipeline.shard_executor([], tmp_path, 3, launch)
    assert isinstance(executor, RayPipelineExecutor) and (executor.world_size, executor.workers) == (3, 2)
    monkeypatch.undo()
    pytest.importorskip("ray")
    shards = plan_shards(files, "text", 2500)
    prepare_rows(shards, tokenizer, tmp_path / "ray", OPTIONS, launch)
    prepare_rows(shards, tokenizer, tmp_path / "here", OPTIONS, HERE)
    assert _files(tmp_path / "ray") == _files(tmp_path / "here") != {}


def test_a_full_disk(make: Callable[..., DatasetDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pipeline.write_rows

    def full(path: Path, rows: Any, columns: Any) -> Any:
        if "data-00003" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, rows, columns)

    monkeypatch.setattr(pipeline, "write_rows", full)
    with pytest.raises(OSError, match="no space to write it .* run the same command again"):
        make()
    monkeypatch.setattr(pipeline, "write_rows", write)
    make()


# Where the text is


def test_names_stand_for_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z.txt", "b/a.jsonl.gz", "c.parquet", "notes.md"):
        (tmp_path / name).touch()
    found = [str(tmp_path / name) for name in ("b/a.jsonl.gz", "b/z.txt", "c.parquet")]
    assert corpus_files([str(tmp_path)]) == found
    assert corpus_files([found[2], str(tmp_path / "b")]) == [found[2], *found[:2]]
    assert corpus_files([f"file://{tmp_path}/b"]) == [f"file://{path}" for path in found[:2]]
    for name in ("nowhere", "notes.md", "nowhere://a", "hf://models/a/b"):
        with pytest.raises(ValueError, match=name):
            corpus_files([str(tmp_path / name) if name == "notes.md" else name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no .txt"):
        corpus_files([str(tmp_path / "empty")])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_shards_are_the_documents_of_the_file(tmp_path: Path, name: str, files: list[str]) -> None:
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("".join(f"{i} é\n" * 60_000 for i in range(12)))
    elif name == "a.parquet":
        shutil.copy(files[1], path)
    else:
        data = Path(files[0]).read_bytes()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    shards = plan_shards([str(path)], "text", 1500 if name != "a.txt" else 2 << 20)
    assert (len(shards) == 1) == name.endswith(".gz")
    texts = [text for shard in shards for text in read_span(shard.span)]
    assert texts == [document.text for document in read_documents([path])]
    assert [shard.first_document for shard in shards] == [
        sum(shard.num_documents for shard in shards[:i]) for i in range(len(shards))
    ]
    assert sum(shard.num_documents for shard in shards) == len(texts)


@pytest.mark.parametrize("data", [b"", b"not a parquet file"])
def test_a_broken_parquet_file_is_named(tmp_path: Path, files: list[str], data: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(data or Path(files[1]).read_bytes()[:-100])
    with pytest.raises(ValueError, match="bad.parquet: not a readable parquet"):
        plan_shards([str(path)], "text", 1000)


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="no document"):
        plan_shards([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")], "text", 1000)


def test_an_edit_of_the_same_size_is_noticed(
    make: Callable[..., DatasetDict], files: list[str], tmp_path: Path
) -> None:
    make()
    path = Path(files[0])
    path.write_text(path.read_text().replace("Song 1:", "Sing 1:"))
    with pytest.raises(ValueError, match="other values of files_sha256"):
        make()


def test_linked_folders_are_in_the_corpus(tmp_path: Path) -> None:
    for name in ("corpus/a.txt", "real/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path)
    assert [Path(file).name for file in corpus_files([str(tmp_path / "corpus")])] == ["a.txt", "b.txt", "b.txt"]
