"""Tiny inputs of every command, and the commands that are disturbed."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

sys.path.append(str(Path(__file__).parent))  # the tests, and their processes, find `processes` by its name
from processes import Subject, Undisturbed, run, succeeded  # noqa: E402

TEXT = "the sea was calm and a ship came over it from far away with grey sails at dawn while we slept"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(TEXT.split(), k=draw.randrange(4, 30))) + ", naïve.\n" for _ in range(40)]


@pytest.fixture(scope="session")
def documents(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same texts in each kind of file; in `.txt` all of them are one document."""
    folder = tmp_path_factory.mktemp("documents")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "notes.jsonl").write_text(lines)
    (folder / "notes.json").write_text(json.dumps([{"text": text} for text in texts], indent=1))
    (folder / "notes.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (folder / "notes.txt").write_text("".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "notes.parquet", row_group_size=16)
    return {path.name.removeprefix("notes."): path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def models(harness_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a causal model and an entropy estimation model whose code has a format, with their tokenizer."""
    eem = tmp_path_factory.mktemp("models") / "eem"
    shutil.copytree(harness_model("eem"), eem)
    config = json.loads((eem / "config.json").read_text())
    (eem / "config.json").write_text(json.dumps({**config, "code_dtype": "int8"}))
    return {"causal": harness_model("masked_mixer"), "eem": eem}


@pytest.fixture(scope="session")
def made(
    documents: dict[str, Path], models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What commands leave for others: `rows`, their `entropies`, a `codec` model of an EEM, and a `packed` file."""
    folder = tmp_path_factory.mktemp("made")
    made = {name: folder / name for name in ("rows", "entropies", "codec")}
    made["packed"] = folder / "notes.eem"
    words: list[list[object]] = [
        prepare_words(documents["jsonl"], models["causal"], made["rows"]),
        entropy_words(made["rows"], models["causal"], made["entropies"]),
        ["codec", "build", "--model", models["eem"], "--calibration", documents["jsonl"], "--output", made["codec"]],
        ["compress", "--model", made["codec"], "-T", 1, "-o", made["packed"], documents["txt"]],
    ]
    for given in words:
        succeeded(run(given, folder))
    return made


def prepare_words(data: Path, tokenizer: Path, output: Path) -> list[object]:
    sizes = ["--max-length", 16, "--shard-mb", 0.001, "--held-out", 5, "--workers", 1]
    return ["data", "prepare", "--data", data, "--tokenizer", tokenizer, "--output", output, *sizes]


def entropy_words(rows: Path, model: Path, output: Path) -> list[object]:
    what = ["--method", "causal", "--rows-a-part", 20]
    return ["entropy", "--model", model, "--data", rows, "--output", output, *what]


@pytest.fixture(scope="session")
def subjects(documents: dict[str, Path], models: dict[str, Path], made: dict[str, Path]) -> dict[str, Subject]:
    """The commands that leave something, each with a folder `out`, or a file in it, as its output."""
    text, causal = documents["jsonl"], models["causal"]
    other = documents["jsonl"].parent / "other.txt"
    other.write_text("what was there before, of another text altogether. " * 9)

    def another(words: Callable[[Path, Path], list[object]]) -> Callable[[Path], None]:
        return lambda folder: void(succeeded(run(words(other, folder / "out"), folder)))

    def tokenizer(data: Path, out: Path) -> list[object]:
        return ["data", "tokenizer", "--data", data, "--validation", data, "--vocab-size", 270, "--output", out]

    def build(data: Path, out: Path) -> list[object]:
        return ["codec", "build", "--model", models["eem"], "--calibration", data, "--output", out]

    def bits(data: Path, out: Path) -> list[object]:
        what = ["--model", models["eem"], "--baseline", causal, "--rows", "windows", "--context", 12]
        return ["evaluate", "bits", *what, "--data", data, "--output", out]

    def compress(data: Path, out: Path) -> list[object]:
        return ["compress", "--model", made["codec"], "-T", 1, "-o", out, data]

    def decompress(packed: Path, out: Path) -> list[object]:
        return ["decompress", "--model", made["codec"], "-T", 1, "-o", out, packed]

    def older(folder: Path) -> None:
        (folder / "out").write_text("what was there before")

    return {
        "data prepare": Subject(lambda f: prepare_words(text, causal, f / "out"), is_resumed=True),
        "data tokenizer": Subject(lambda f: tokenizer(text, f / "out"), earlier=another(tokenizer)),
        "entropy": Subject(lambda f: entropy_words(made["rows"], causal, f / "out"), is_resumed=True),
        "entropy of text": Subject(lambda f: entropy_words(text, causal, f / "out"), is_resumed=True),
        "codec build": Subject(lambda f: build(text, f / "out"), ("-f",), earlier=another(build)),
        "compress": Subject(lambda f: compress(documents["txt"], f / "out"), ("-f",), earlier=older),
        "decompress": Subject(lambda f: decompress(made["packed"], f / "out"), ("-f",), earlier=older),
        "evaluate bits": Subject(lambda f: bits(text, f / "out"), earlier=another(bits)),
    }


def void(_: Any) -> None:
    """Nothing, of anything."""


@pytest.fixture(scope="session")
def undisturbed(
    subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """What a command leaves to which nothing happens."""
    known: dict[str, Undisturbed] = {}

    def make(name: str) -> Undisturbed:
        if name not in known:
            known[name] = Undisturbed.of(subjects[name], tmp_path_factory.mktemp("undisturbed"))
        return known[name]

    return make
