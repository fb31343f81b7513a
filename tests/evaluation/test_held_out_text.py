"""Rows to score: nothing lost, the same from files and from a prepared folder, and what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk
from tokenizers import normalizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from modeling_eem.data import Row
from modeling_eem.data.prepare import prepare_rows
from modeling_eem.data.row_options import RowOptions
from modeling_eem.data.shards import corpus_files, plan_shards
from modeling_eem.data.tokenizer import encode_text, token_byte_lengths
from modeling_eem.evaluation.held_out_text import held_out_rows, row_bytes
from modeling_eem.files import asset

TEXTS = ["Call me Ishmael. Some years ago, never mind how long. " * 3, "Whale 👍!", "The sea. " * 40]
N = 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")


@pytest.fixture(scope="module")
def config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=1, max_position_embeddings=N)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """All documents of a corpus held out but its last; rows stored at N tokens, filled up on the left."""
    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "training text " * 20]))
    options = RowOptions(rows="windows", max_length=N, padding="left", held_out=len(TEXTS))
    prepare_rows(plan_shards(corpus_files([str(path)]), "text", 10**6), tokenizer, folder / "rows", options)
    return folder / "rows"


def test_windows_hold_every_byte(text: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig) -> None:
    rows = held_out_rows([text], tokenizer, config, "windows", N)
    assert b"".join(row_bytes(rows, tokenizer)) == "".join(TEXTS).encode()
    assert [row["num_bytes"] for row in rows] == [len(data) for data in row_bytes(rows, tokenizer)]


def test_text_that_ships_is_named_as_an_asset(tokenizer: PreTrainedTokenizerBase, config: LlamaConfig) -> None:
    name = "asset:quickstart/validation.jsonl.gz"
    named, found = (held_out_rows([Path(path)], tokenizer, config, "pad", N) for path in (name, asset(name)))
    assert named == found and len(named) > 1


def test_full_rows_are_those_of_pad_that_fill_the_context(
    text: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    padded, full = (held_out_rows([text], tokenizer, config, choice, N) for choice in ("pad", "full"))
    assert len(padded) == 3 and full == [row for row in padded if len(row["input_ids"]) == N]
    assert 0 < len(full) < 3


def test_a_prepared_folder_gives_the_rows_of_its_files(
    text: Path, prepared: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    from_files: list[Row] = held_out_rows([text], tokenizer, config, "windows", N)
    assert held_out_rows([prepared], tokenizer, config, "windows", N) == from_files


def test_text_that_a_tokenizer_alters_at_equal_length_is_refused(
    text: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    lowering = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    lowering.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert token_byte_lengths(lowering)[encode_text(lowering, TEXTS[0])].sum() == len(TEXTS[0].encode())
    with pytest.raises(ValueError, match=r"held_out.jsonl: document 0: .*alters the text \('Call me .*'call me"):
        held_out_rows([text], lowering, config, "windows", N)


def test_a_folder_of_text_is_its_files(
    text: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    rows = held_out_rows([text], tokenizer, config, "windows", N)
    (tmp_path / "corpus.parquet").mkdir()
    for number, part in enumerate((TEXTS[:2], TEXTS[2:])):
        pq.write_table(pa.table({"text": part}), tmp_path / "corpus.parquet" / f"part-{number}.snappy.parquet")
    assert held_out_rows([tmp_path / "corpus.parquet"], tokenizer, config, "windows", N) == rows


def test_what_does_not_fit_is_refused(
    text: Path, prepared: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    lossy = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    lossy.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "Sea."}\n')
    for arguments, message in [
        (([tmp_path / "missing.txt"], tokenizer, config, "windows", N), "missing.txt: no such file"),
        (([tmp_path / "empty.jsonl"], tokenizer, config, "windows", N), "empty.jsonl holds no text"),
        (([text, tmp_path / "empty.jsonl"], tokenizer, config, "windows", N), "empty.jsonl holds no text"),
        (([short], tokenizer, config, "full", N), "no document fills a row of 16"),
        (([tmp_path / "folder"], tokenizer, config, "windows", N), "holds no .txt, .jsonl"),
        (([prepared, text], tokenizer, config, "windows", N), "not both"),
        (([prepared], tokenizer, config, "windows", N - 1), "up to 16 tokens"),
        (([prepared], tokenizer, config, "stream", N), "with --rows stream, or name text"),
        (([prepared], tokenizer, config, "full", N), "are 'windows', and this needs 'pad'"),
        (([prepared], lossy, config, "windows", N), "made with another tokenizer"),
    ]:
        with pytest.raises(ValueError, match=message):
            held_out_rows(*arguments)


def _change(name: str, value: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A value of a row, in a column of one number or at the second real token's place, becomes another."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if name == "num_bytes":
            return {name: value}
        place = row["attention_mask"].index(1) + (0 if name == "input_ids" and value != 10**6 else 1)
        return {name: [value if at == place else old for at, old in enumerate(row[name])]}

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (_change("attention_mask", 0), "attention_mask with a hole"),
        (_change("input_ids", 300), "does not begin with BOS"),
        (_change("input_ids", 10**6), "ids of no token"),
        (_change("num_bytes", -5), "claims -5 bytes and holds"),
        (_change("num_bytes", 3), "claims 3 bytes and holds"),
    ],
)
def test_rows_that_prepare_would_not_make_are_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
    prepared: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: LlamaConfig,
) -> None:
    """Written anew, so that no hash tells: each row is looked at."""
    load_from_disk(prepared).map(change).save_to_disk(tmp_path / "rows")
    shutil.copy(prepared / "fingerprint.json", tmp_path / "rows")
    with pytest.raises(ValueError, match=f"held-out row 0 .*{message}"):
        held_out_rows([tmp_path / "rows"], tokenizer, config, "windows", N)


def test_a_flipped_bit_of_held_out_rows_is_found(
    prepared: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "rows")
    path = next((folder / "held_out").glob("data-*.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not as it was written"):
        held_out_rows([folder], tokenizer, config, "windows", N)


def test_text_that_is_named_twice_is_refused(
    text: Path, tokenizer: PreTrainedTokenizerBase, config: LlamaConfig, tmp_path: Path
) -> None:
    """Twice the documents would make the interval narrower by a root of two."""
    (tmp_path / "link.jsonl").symlink_to(text)
    for data in ([text, text], [text, tmp_path], [text, tmp_path / "link.jsonl"]):
        with pytest.raises(ValueError, match="is named twice"):
            held_out_rows(data, tokenizer, config, "windows", N)
