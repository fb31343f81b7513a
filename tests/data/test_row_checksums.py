"""Rows that were damaged since they were written are not read; neither are the files that describe them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from eem.__main__ import app
from modeling_eem.data.fingerprint import read_fingerprint
from modeling_eem.data.prepare import prepare_rows
from modeling_eem.data.row_checksums import open_rows, verify_rows
from modeling_eem.data.row_options import Launch, RowOptions
from modeling_eem.data.shards import plan_shards
from modeling_eem.entropy.hub_dataset import write_hub_folder
from modeling_eem.files import locked, read_record

COMMITTED = Path(__file__).parents[2] / "tokenizer"
TEXTS = [f"Song {number}: the rain it raineth every day. " * 40 for number in range(120)]
OPTIONS = RowOptions(max_length=64, held_out=20, padding="right")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "songs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def whole(corpus: Path) -> Path:
    folder = corpus.parent / "rows"
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    prepare_rows(plan_shards([str(corpus)], "text", 10**6), tokenizer, folder, OPTIONS, Launch(workers=1))
    return folder


@pytest.fixture
def rows(whole: Path, tmp_path: Path) -> Path:
    return copytree(whole, tmp_path / "rows")


def _arrow(rows: Path, split: str = "train") -> Path:
    return next((rows / split).glob("data-*.arrow"))


def test_whole_rows_open_and_verify(rows: Path) -> None:
    splits = open_rows(rows)
    verify_rows(rows)
    results = json.loads((rows / "results.json").read_text())["splits"]
    assert {split: len(found) for split, found in splits.items()} == {
        split: counts["rows"] for split, counts in results.items()
    }


def _zero_tail(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize(
    "damage",
    [
        _zero_tail,
        lambda data: data[:-8],
        lambda data: data + bytes(8),
        lambda data: b"",
        lambda data: data[:100] + b"!" + data[101:],
    ],
    ids=["zeroed tail", "shorter", "longer", "empty", "a byte of the head"],
)
def test_opening_finds_what_loses_rows(rows: Path, damage: Callable[[bytes], bytes]) -> None:
    path = _arrow(rows)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=str(rows)) as raised:
        open_rows(rows)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_found(rows: Path) -> None:
    _arrow(rows, "held_out").unlink()
    with pytest.raises(ValueError, match="held_out|rows"):
        open_rows(rows)


def test_verifying_finds_any_bit(rows: Path) -> None:
    path, generator = _arrow(rows), random.Random(0)
    data = path.read_bytes()
    assert len(data) > 3 << 16
    for _ in range(20):
        place = generator.randrange(1 << 16, len(data) - (1 << 16))
        flipped = bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        verify_rows(rows, ["held_out"])
        with pytest.raises(ValueError, match="data-.*is not as it was written"):
            verify_rows(rows)
    with pytest.raises(ValueError, match="data-.*is not as it was written"):
        write_hub_folder(rows, rows.parent / "hub")
    assert not (rows.parent / "hub").exists()


def test_the_command_verifies(rows: Path) -> None:
    whole = CliRunner().invoke(app, ["data", "verify", "--rows", str(rows)])
    assert whole.exit_code == 0 and "as written" in whole.output and "train" in whole.output
    path = _arrow(rows)
    data = bytearray(path.read_bytes())
    assert len(data) > 3 << 16  # opening does not read the middle
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = CliRunner().invoke(app, ["data", "verify", "--rows", str(rows)])
    assert damaged.exit_code == 2 and len(damaged.output.splitlines()) == 1
    assert f"{path} is not as it was written" in damaged.output


@pytest.mark.parametrize(
    "name",
    [
        "fingerprint.json",
        "results.json",
        "contents.json",
        "dataset_dict.json",
        "train/state.json",
        "train/dataset_info.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"5",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b'{"splits": 3}',
        b"[" * 100_000,
        b'{"files": {"../x": 1}, "rows": {}}',
    ],
)
def test_damaged_descriptions_name_the_folder(
    rows: Path, corpus: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: bytes
) -> None:
    """Each either is refused in one line that names the folder, or holds nothing that is read."""
    (rows / name).write_bytes(content)
    shards = plan_shards([str(corpus)], "text", 10**6)
    for call in (
        lambda: open_rows(rows),
        lambda: verify_rows(rows),
        lambda: read_fingerprint(rows),
        lambda: prepare_rows(shards, tokenizer, rows, OPTIONS, Launch(workers=1)),
    ):
        try:
            call()
        except ValueError as error:
            assert str(rows) in str(error) and len(str(error).splitlines()) == 1
    if name.startswith(("fingerprint", "contents", "results")):
        with pytest.raises(ValueError, match=name):
            read_record(rows / name, {"tokenizer": str, "files": dict, "documents": int})


def test_splits_are_not_paths(rows: Path) -> None:
    (rows / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "../rows/held_out"]}))
    with pytest.raises(ValueError, match="held_out"):
        open_rows(rows)


# Two starts


def test_a_second_start_is_refused(corpus: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards, output = plan_shards([str(corpus)], "text", 10**6), tmp_path / "rows"
    with locked(output), pytest.raises(ValueError, match="is being written by another process"):
        prepare_rows(shards, tokenizer, output, OPTIONS, Launch(workers=1))
    prepare_rows(shards, tokenizer, output, OPTIONS, Launch(workers=1))


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from modeling_eem.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process"), locked(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    with locked(tmp_path):
        pass
