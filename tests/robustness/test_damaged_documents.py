"""Damaged text files: an error of one line that names the file, or what is right for the text that is there now.

Any text is valid, so what is right is said by plain readers of whole files: Python's, zstandard's, pyarrow's.
"""

import io
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from damage import damage
from datasets import load_from_disk
from processes import emptied, rounds, run
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_eem.data.tokenizer import token_bytes

# What may be wrong with text that can be read.
TOO_LITTLE = re.compile(r"no document|no text|holds no tokens|yields only \d+ tokens|not fill|less than one row")


def texts_of(path: Path) -> list[str] | None:
    """The documents of a file; None where it holds something else."""
    try:
        texts = list(READERS[path.name.partition(".")[2]](path.read_bytes()))
        return [text for text in texts if text.encode() is not None]
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        EOFError,
        zstandard.ZstdError,
        pa.ArrowException,
        OSError,
    ):
        return None


def of_txt(data: bytes) -> Iterator[str]:
    if data:
        yield data.decode()


def of_jsonl(data: bytes) -> Iterator[str]:
    for line in data.split(b"\n"):
        if line.strip():
            yield text_of(json.loads(line.decode()))


def of_json(data: bytes) -> Iterator[str]:
    """A list, or values one after another; more or fewer commas between them are let pass."""
    text, parse = data.decode(), json.JSONDecoder().raw_decode
    is_list = text.lstrip(" \t\r\n,").startswith("[")
    place = text.index("[") + 1 if is_list else 0
    while True:
        place = len(text) - len(text[place:].lstrip(" \t\r\n,\v\f\x1c\x1d\x1e\x1f\x85\xa0"))
        if place == len(text):
            if is_list:
                raise ValueError("cut off")
            return
        if is_list and text[place] == "]":
            if text[place + 1 :].strip():
                raise ValueError("more behind the list")
            return
        value, place = parse(text, place)
        yield text_of(value)


def of_zst(data: bytes) -> Iterator[str]:
    plain = b""
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        plain += frame.decompress(data)
        if not frame.eof:
            raise EOFError
        data = frame.unused_data
    yield from of_jsonl(plain)


def of_parquet(data: bytes) -> Iterator[str]:
    for text in pq.read_table(io.BytesIO(data), columns=["text"])["text"].to_pylist():
        yield text_of({"text": text})


def text_of(record: dict[str, str]) -> str:
    if not isinstance(record["text"], str):
        raise TypeError("no text")
    return record["text"]


READERS: dict[str, Callable[[bytes], Iterator[str]]] = {
    "txt": of_txt,
    "jsonl": of_jsonl,
    "json": of_json,
    "jsonl.zst": of_zst,
    "parquet": of_parquet,
}


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(models["causal"])


def words(command: str, data: Path, model: Path) -> list[object]:
    given: dict[str, list[object]] = {
        "prepare": ["data", "prepare", "--tokenizer", model, "--max-length", 16, "--held-out", 0, "--workers", 1],
        "tokenizer": ["data", "tokenizer", "--vocab-size", 258, "--validation", data],
        "bits": ["evaluate", "bits", "--model", model],
    }
    return [*given[command], "--data", data, "--output", "out"]


def assert_is_of(texts: list[str], command: str, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a command left is of these texts."""
    full = {index: text.encode() for index, text in enumerate(texts) if text}
    if command == "prepare":
        found: dict[int, bytes] = {}
        for row in load_from_disk(str(output))["train"]:
            for index, held in zip(row["document_ids"][1:], token_bytes(tokenizer, row["input_ids"][1:])):
                found[index] = found.get(index, b"") + held
        assert found == full
    elif command == "bits":
        (model,) = json.loads((output / "bits.json").read_text())["models"]
        assert (model["documents"], model["num_bytes"]) == (len(full), sum(map(len, full.values())))
    else:
        (counts,) = json.loads((output / "statistics.json").read_text())["held_out"].values()
        assert counts["documents"] == len(texts)
        assert (counts["characters"], counts["bytes"]) == (sum(map(len, texts)), sum(map(len, full.values())))


def test_a_damaged_document_is_named_or_read_right(
    documents: dict[str, Path], models: dict[str, Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chance = random.Random("documents")
    for attempt in rounds(12, 5):
        with attempt:
            kind, command = chance.choice(sorted(READERS)), chance.choice(["prepare", "prepare", "tokenizer", "bits"])
            folder = emptied(tmp_path / "round")
            data = Path(shutil.copy(documents[kind], folder / f"notes.{kind}"))
            how = damage(data, chance)
            texts = texts_of(data)
            result = run(words(command, data, models["causal"]), folder)
            what = f"{command} of {kind}: {how}: {result}"
            if texts is None:
                assert str(data) in result.error, what
            elif result.code != 0:
                assert TOO_LITTLE.search(result.error), what
            if result.code == 0:
                assert texts is not None, what
                assert_is_of(texts, command, folder / "out", tokenizer)
            elif command != "prepare":  # which keeps what is done, for a start with `--errors skip`
                assert not [path for path in (folder / "out").rglob("*") if path.name != ".lock"], what
