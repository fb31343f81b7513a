"""What eem entropy checks before and after its work: whose tokenizer it is, and whose files."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from eem.__main__ import app
from modeling_eem.entropy import ESTIMATORS
from modeling_eem.entropy.corpus_run import EntropyRun
from modeling_eem.entropy.corpus_source import Source


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["entropy", *map(str, arguments)])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    Dataset.from_dict({"input_ids": [[0, 7, 8 + number] for number in range(6)]}).save_to_disk(tmp_path / "rows")
    return tmp_path / "rows"


@pytest.fixture
def made(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> list[object]:
    """The arguments of a run in three parts, which is made but for its last file."""
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", tmp_path / "out"]
    assert _run(*arguments, "--rows-a-part", 2).exit_code == 0
    (tmp_path / "out" / "dataset_dict.json").unlink()
    return arguments


def _part(output: Path, number: int) -> Path:
    return output / "train" / f"data-{number:05d}-of-00003.arrow"


def test_a_file_that_is_no_part_of_the_run_is_named(made: list[object], tmp_path: Path) -> None:
    """Its rows came out twice."""
    other = tmp_path / "out" / "train" / "data-00000-of-00001.arrow"
    shutil.copy(_part(tmp_path / "out", 0), other)
    result = _run(*made)
    assert result.exit_code == 2 and f"{other} is no part of this run: remove it" in result.stderr
    assert not (tmp_path / "out" / "dataset_dict.json").exists()
    other.unlink()
    assert _run(*made).exit_code == 0


def test_parts_of_other_rows_are_refused(
    made: list[object], harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = {"input_ids": [[0, 7, 8, 9], [0, 7, 8, 9], [0, 7, 8]]}
    for size in (3, 2):
        rows, output = tmp_path / f"rows-{size}", tmp_path / f"out-{size}"
        Dataset.from_dict({"input_ids": other["input_ids"][:size]}).save_to_disk(rows)
        arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", output]
        assert _run(*arguments, "--rows-a-part", 3).exit_code == 0
        shutil.copy(output / "train" / "data-00000-of-00001.arrow", _part(tmp_path / "out", 1))
        result = _run(*made)
        expected = {
            3: f"{_part(tmp_path / 'out', 1)} holds 3 rows in place of 2",
            2: "holds 20 tokens, not the run's 18",
        }
        assert result.exit_code == 2 and expected[size] in result.stderr, result.stderr


def _with_other_tokenizer(model: Path, folder: Path) -> Path:
    """The same model, beside a tokenizer in which two tokens have changed places."""
    shutil.copytree(model, folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


@pytest.mark.parametrize("method, kind", [("causal", "llama"), ("two_models", "eem")])
def test_models_of_different_tokenizers_are_refused(
    method: str, kind: str, rows: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    model, other = harness_model(kind), _with_other_tokenizer(harness_model(kind), tmp_path / "other")
    arguments = ["--method", method, "--data", rows, "--output", tmp_path / "out", "--model", model, other]
    result = _run(*arguments)
    assert result.exit_code == 2 and f"{model} and {other} have different tokenizers" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "out").exists()
    for file in other.glob("tokenizer*"):
        file.unlink()
    assert _run(*arguments).exit_code == 0, "a model without a tokenizer beside it passes"


def test_a_tokenizer_that_is_not_the_models_is_refused(
    rows: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
    tokenizer.bos_token = "a"
    tokenizer.save_pretrained(tmp_path / "other")
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", tmp_path / "out"]
    result = _run(*arguments, "--tokenizer", tmp_path / "other")
    assert result.exit_code == 2 and "it is not the model's tokenizer" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(
    rows: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its size and its BOS are the model's: rows that were made with it look like the model's own."""
    other = _with_other_tokenizer(harness_model("llama"), tmp_path / "other")
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", tmp_path / "out"]
    result = _run(*arguments, "--tokenizer", other)
    assert result.exit_code == 2 and "has another tokenizer than the rows" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
    assert _run(*arguments, "--tokenizer", harness_model("llama")).exit_code == 0


def test_damaged_entropies_are_not_vouched_for(made: list[object], tmp_path: Path) -> None:
    assert _run(*made).exit_code == 0
    file = _part(tmp_path / "out", 1)
    entropies = load_from_disk(str(tmp_path / "out"))["train"][2]["token_entropies"]  # of the second part
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<f", entropies[1]))] ^= 1
    file.write_bytes(content)
    result = _run(*made)
    assert result.exit_code == 2 and f"{file} is not as it was written" in " ".join(result.stderr.split())


def test_a_mistyped_start_destroys_no_prepared_rows(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    text, other, output = tmp_path / "text.txt", tmp_path / "other.txt", tmp_path / "out"
    text.write_text("A ship came home. " * 20)
    other.write_text("The wind was gone.")
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--output", output, "--data"]
    kept = tmp_path / ".out.rows"
    with pytest.MonkeyPatch.context() as patch:  # killed while it measures
        patch.setattr(Source, "remove", lambda self: None)
        patch.setattr(EntropyRun, "write_data_set", lambda *_: (_ for _ in ()).throw(ValueError("killed")))
        assert _run(*arguments, text).exit_code == 2
    before = {file.name: file.stat().st_mtime_ns for file in kept.rglob("*")}
    for changed in ([*arguments, other], [*arguments, text, "--max-length", 9]):
        result = _run(*changed)
        assert result.exit_code == 2 and "begun with other text or options" in " ".join(result.stderr.split())
        assert {file.name: file.stat().st_mtime_ns for file in kept.rglob("*")} == before
    assert _run(*arguments, text).exit_code == 0 and not kept.exists()
    result = _run(*arguments, other)
    assert result.exit_code == 2 and "was begun with other values of" in " ".join(result.stderr.split())
    assert not kept.exists(), "rows of other text, made for nothing"


def test_text_for_two_models_fits_both(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """The longer model's context was the rows' length, and then refused."""
    (tmp_path / "text.txt").write_text("A ship came home at last, and no one on it spoke a word of rain.")
    models = harness_model("eem", 16), harness_model("eem", 12)
    arguments = ["--method", "two_models", "--data", tmp_path / "text.txt", "--output", tmp_path / "out", "--model"]
    result = _run(*arguments, *models)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, load_from_disk(str(tmp_path / "out"))["train"]["input_ids"])) == 13


@pytest.mark.parametrize("method, kind", [("causal", "llama"), ("sliding", "eem")])
def test_text_slides_in_rows_longer_than_the_context(
    method: str, kind: str, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """It was cut into rows that fit the context, and nothing slid."""
    text = "A ship came home at last, and no one on it spoke a word of rain."
    (tmp_path / "text.txt").write_text(text)
    arguments = ["--model", harness_model(kind), "--method", method, "--data", tmp_path / "text.txt", "--stride", 3]
    result = _run(*arguments, "--output", tmp_path / "out", "--max-length", 4096)
    assert result.exit_code == 0, result.stderr
    (row,) = load_from_disk(str(tmp_path / "out"))["train"].with_format("torch")
    model = AutoModelForCausalLM.from_pretrained(harness_model(kind), dtype="float32")
    expected = ESTIMATORS[method](model, stride=3)([text], AutoTokenizer.from_pretrained(harness_model(kind)))
    assert len(row["input_ids"]) > 16
    torch.testing.assert_close(row["token_entropies"], expected.values[0].float(), atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("options", [(), ("--stride", 8)])
def test_a_teacher_passes_by_rows_without_text(
    options: tuple, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As `--add-eos` makes them: with a stride the run failed in its middle, without one it did not begin."""
    Dataset.from_dict({"input_ids": [[0, 70, 71], [0, 0]]}).save_to_disk(tmp_path / "rows")
    model = harness_model("llama")
    arguments = ["--model", model, "--method", "teacher", "--tokenizer", model, "--data", tmp_path / "rows"]
    result = _run(*arguments, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    first, second = load_from_disk(str(tmp_path / "out"))["train"].with_format("torch")["token_entropies"]
    assert first[1:].isfinite().all() and second.isnan().all()


def test_a_document_that_is_too_long_for_the_teacher_is_found_before_the_work(
    harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """It was met hours later, with an advice that did not help."""
    Dataset.from_dict({"input_ids": [[0, 70, 71], [0, 70, 0, *range(60, 72)]]}).save_to_disk(tmp_path / "long")
    student, teacher = harness_model("llama"), harness_model("llama", 8)
    arguments = ["--model", teacher, "--method", "teacher", "--tokenizer", student, "--output", tmp_path / "out"]
    result = _run(*arguments, "--data", tmp_path / "long")
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2 and re.search(r"row 1 holds a document of \d+ of the teacher's tokens", said)
    assert "--stride 4" in said and "tokens a second" not in said and not (tmp_path / "out").exists()
    assert _run(*arguments, "--data", tmp_path / "long", "--stride", 4).exit_code == 0
