"""eem entropy as its users run it: rows or text in, the same rows with their entropies out."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from eem.__main__ import app
from eem.entropy import entropy
from eem.method_options import METHODS
from modeling_eem.data import check_fingerprint
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.entropy import ESTIMATORS, CausalEntropy, ExactEntropy
from modeling_eem.files import locked
from modeling_eem.training.training_text import DataArguments, PreparedRows

WORDS = ["the", "sea", "was", "calm", "and", "wind", "gone", "a", "ship", "came", "home", "at", "last", "no", "rain"]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["entropy", *map(str, arguments)])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = (" ".join(WORDS[i % 7 : i % 7 + 3 + i % 11]) for i in range(40))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def rows(text: Path, harness_model: Callable[..., Path]) -> Path:
    """What `eem data prepare` makes of the text."""
    tokenizer = AutoTokenizer.from_pretrained(harness_model("eem"))
    options = RowOptions(max_length=16, held_out=5)
    prepare_rows(plan_shards([str(text)], "text", 10_000), tokenizer, text.parent / "rows", options, Launch(workers=1))
    return text.parent / "rows"


@pytest.fixture(scope="module")
def causal(rows: Path, harness_model: Callable[..., Path]) -> Path:
    """The rows with the causal model's entropies, made in parts of seven rows."""
    output = rows.parent / "causal"
    result = _run(
        "--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", output,
        "--rows-a-part", 7, "--max-hours", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "tokens a second" in result.stderr and "mean nats a token" in result.stdout
    return output


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.arrow")}


def test_rows_are_kept_and_get_what_the_estimator_measures(
    rows: Path, causal: Path, harness_model: Callable[..., Path]
) -> None:
    before, after = load_from_disk(str(rows)), load_from_disk(str(causal))
    assert set(after) == {"train", "held_out"}
    estimator = CausalEntropy(AutoModelForCausalLM.from_pretrained(harness_model("llama"), dtype="float32"))
    for split in after:
        assert after[split].remove_columns("token_entropies").to_dict() == before[split].to_dict()
        for row in after[split].with_format("torch"):
            expected = estimator(input_ids=row["input_ids"][None]).values[0].float()
            torch.testing.assert_close(row["token_entropies"], expected, atol=1e-5, rtol=0, equal_nan=True)
    made = json.loads((causal / "results.json").read_text())["splits"]["train"]
    assert made["rows"] == len(after["train"]) and made["scored"] == made["tokens"] - made["rows"]
    assert made["mean"] == pytest.approx(
        torch.cat([*after["train"].with_format("torch")["token_entropies"]]).nanmean()
    )


def test_training_takes_the_rows(causal: Path, harness_model: Callable[..., Path]) -> None:
    model = harness_model("llama")
    check_fingerprint(causal, AutoTokenizer.from_pretrained(model))
    prepared = PreparedRows(DataArguments(tokenizer=str(model), train_rows=str(causal)))
    assert "token_entropies" in prepared.columns


def test_several_checkpoints_give_a_column_each(
    rows: Path, causal: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """`token_entropies_1` is the earlier model's; `token_entropies` is what the later one alone gives."""
    model = AutoModelForCausalLM.from_pretrained(harness_model("llama"), dtype="float32")
    with torch.no_grad():
        model.lm_head.weight.mul_(0)  # an early model: all tokens are equally likely
    early = tmp_path / "early"
    shutil.copytree(harness_model("llama"), early)
    model.save_pretrained(early)
    output = tmp_path / "stages"
    result = _run(
        "--model", early, harness_model("llama"), "--method", "causal", "--data", rows, "--output", output,
        "--rows-a-part", 7,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    alone, stages = load_from_disk(str(causal)), load_from_disk(str(output))
    uniform = torch.tensor(float(model.config.vocab_size)).log().item()
    for split in alone:
        assert str(stages[split].remove_columns("token_entropies_1").to_dict()) == str(
            alone[split].to_dict()
        )  # NaN too
        first = torch.tensor([value for row in stages[split]["token_entropies_1"] for value in row[1:]])
        torch.testing.assert_close(first, torch.full_like(first, uniform))
    results = json.loads((output / "results.json").read_text())["splits"]["train"]
    assert results["stages"] == {"token_entropies_1": pytest.approx(uniform), "token_entropies": results["mean"]}
    assert "stages" not in json.loads((causal / "results.json").read_text())["splits"]["train"]


def test_what_is_finished_is_not_made_again(
    rows: Path, causal: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    before = _files(causal)
    lost = sorted((causal / "train").glob("*.arrow"))[1]
    kept = {name: (causal / name).stat().st_mtime_ns for name in before if causal / name != lost}
    lost.unlink()
    (causal / "dataset_dict.json").unlink()
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", causal]
    assert _run(*arguments).exit_code == 0
    assert _files(causal) == before
    assert {name: (causal / name).stat().st_mtime_ns for name in kept} == kept
    assert _run(*arguments).exit_code == 0, "a complete folder stays as it is"

    other = [*arguments[:1], harness_model("masked_mixer"), *arguments[2:]]
    for changed, what in ((other, "model_sha256"), ([*arguments, "--stride", 3], "options")):
        result = _run(*changed)
        assert result.exit_code == 2 and f"other values of {what}" in result.stderr
    assert _files(causal) == before


def test_text_becomes_rows_first(text: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    model = harness_model("eem")
    result = _run("--model", model, "--method", "exact", "--data", text, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the rows of the text are gone"
    made = load_from_disk(str(tmp_path / "out"))["train"].with_format("torch")
    estimator = ExactEntropy(AutoModelForCausalLM.from_pretrained(model, dtype="float32"))
    for row in (made[0], made[len(made) - 1]):
        expected = estimator(input_ids=row["input_ids"][None]).values[0].float()
        torch.testing.assert_close(row["token_entropies"], expected, atol=1e-4, rtol=0, equal_nan=True)


def test_one_short_sentence_is_measured(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A short one.")
    arguments = ("--model", harness_model("eem"), "--method", "exact", "--data", tmp_path / "short.txt")
    result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    (row,) = load_from_disk(str(tmp_path / "out"))["train"]
    assert len(row["token_entropies"]) == len(row["input_ids"]) < 16


def test_padded_and_packed_rows(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    model = harness_model("llama")
    estimator = CausalEntropy(AutoModelForCausalLM.from_pretrained(model, dtype="float32"))
    padded = {"input_ids": [[1, 1, 0, 5, 6], [0, 7, 8, 9, 4]], "attention_mask": [[0, 0, 1, 1, 1], [1] * 5]}
    packed = {"input_ids": [[0, 5, 6, 0, 7], [0, 7, 8, 9, 4]], "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]}
    a, b, c = (estimator(input_ids=torch.tensor([ids])).values[0] for ids in ([0, 5, 6], [0, 7, 8, 9, 4], [0, 7]))
    nan = torch.full((2,), torch.nan, dtype=torch.float64)
    for name, columns, expected in (("padded", padded, [[nan, a], [b]]), ("packed", packed, [[a, c], [b]])):
        Dataset.from_dict(columns).save_to_disk(tmp_path / name)
        output = tmp_path / f"{name}-entropy"
        result = _run("--model", model, "--method", "causal", "--data", tmp_path / name, "--output", output)
        assert result.exit_code == 0, result.stderr
        made = load_from_disk(str(output))["train"].with_format("torch")["token_entropies"]
        for values, row in zip(made, expected):
            torch.testing.assert_close(values, torch.cat(row).float(), atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["rows", pytest.param("text", marks=pytest.mark.slow)])
def test_what_would_take_too_long_is_not_begun(
    rows: Path, text: Path, harness_model: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    data = {"rows": rows, "text": text}[kind]
    arguments = ["--model", harness_model("eem"), "--method", "exact", "--data", data]
    result = _run(*arguments, "--output", tmp_path / "out", "--max-hours", 1e-9)
    assert result.exit_code == 2 and "tokens are left" in result.stderr
    assert "more than --max-hours 1e-09: raise that, or use fewer rows" in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line(rows: Path, causal: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    eem, llama = harness_model("eem"), harness_model("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    Dataset.from_dict({"input_ids": [[0, 5], [0]]}).save_to_disk(tmp_path / "short")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": ""}\n')
    good = {"--model": llama, "--method": "causal", "--data": rows, "--output": tmp_path / "out"}
    for changes, message in (
        ({"--method": "exat"}, "did you mean 'exact'"),
        ({"--method": "exact"}, "needs an entropy estimation model"),
        ({"--model": eem}, "CausalEntropy needs a causal language model"),
        ({"--model": tmp_path / "none"}, "none"),
        ({"--method": "regression"}, "not trained as a token classifier"),
        ({"--method": "two_models", "--model": eem}, "takes 2 models, not 1"),
        ({"--metric": "l1"}, "metric: not an option of the method causal"),
        ({"--data": tmp_path / "text"}, "no column input_ids"),
        ({"--data": tmp_path / "short"}, "row 1 holds no token to score"),
        ({"--data": causal}, "has token_entropies already"),
        ({"--data": tmp_path / "none.jsonl"}, "not found"),
        ({"--data": tmp_path / "empty.jsonl"}, "the corpus holds no text that can be read"),
        ({"--data": f"{rows} {tmp_path / 'short'}"}, f"{rows} holds rows, and is not the only name of --data"),
        ({"--output": tmp_path / "mine"}, "eem entropy did not make it"),
        ({"--max-length": 8}, "and --max-length cannot change them"),
        ({"--text-column": "text", "--errors": "skip"}, "and --text-column, --errors cannot change them"),
        ({"--model": harness_model("llama", 8)}, "more than the model's 8"),
    ):
        result = _run(*(part for pair in (good | changes).items() for word in pair for part in str(word).split()))
        assert result.exit_code == 2, changes
        error = result.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_help_needs_no_torch() -> None:
    code = "import sys; from eem.__main__ import app; app(['entropy', '--help'], standalone_mode=False); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'modeling_eem')))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_option_of_an_estimator_is_the_commands() -> None:
    assert tuple(ESTIMATORS) == METHODS
    parameters = inspect.signature(entropy).parameters
    shown = " ".join(_run("--help").stdout.split())
    for option in (option for kind in ESTIMATORS.values() for option in kind.options):
        assert f"--{option.name.replace('_', '-')}" in shown
        assert parameters[option.name].default is None


def test_splits_whose_names_are_paths(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """The neighbour's rows were overwritten."""
    rows, neighbour = tmp_path / "rows", tmp_path / "neighbour"
    Dataset.from_dict({"input_ids": [[0, 5, 6]]}).save_to_disk(neighbour)
    before = {file: file.read_bytes() for file in neighbour.iterdir()}
    DatasetDict({"train": Dataset.from_dict({"input_ids": [[0, 7, 8]]})}).save_to_disk(rows)
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows]
    for name in ("../neighbour", str(neighbour), "a/b", "..", ".hidden"):
        target = rows / name
        if not target.exists():
            shutil.copytree(rows / "train", target)
        (rows / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
        result = _run(*arguments, "--output", tmp_path / "out")
        assert result.exit_code == 2 and "has no plain name" in result.stderr, name
        assert not (tmp_path / "out").exists()
    assert {file: file.read_bytes() for file in neighbour.iterdir()} == before


def test_text_with_a_bad_line_leaves_nothing_and_may_be_mended(
    harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    good = [json.dumps({"text": " ".join(WORDS)}) for _ in range(4)]
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", text]
    text.write_text("\n".join([*good, json.dumps({"text": 7}), ""]))
    result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "--errors skip" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]
    skipped = _run(*arguments, "--errors", "skip", "--output", tmp_path / "skipped")
    assert skipped.exit_code == 0, skipped.stderr
    assert "documents left out: 1; left_out.txt names each" in " ".join(skipped.stdout.split())
    made = json.loads((tmp_path / "skipped" / "results.json").read_text())
    assert (made["documents"], made["skipped"]) == (4, 1)
    (line,) = (tmp_path / "skipped" / "left_out.txt").read_text().splitlines()
    assert line.startswith("document 4 is left out: ") and "text expected, not 7" in line
    text.write_text("\n".join([*good, ""]))
    mended = _run(*arguments, "--output", tmp_path / "out")
    assert mended.exit_code == 0, mended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "skipped", "text.jsonl"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["skipped"] == 0
    assert not (tmp_path / "out" / "left_out.txt").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-length", 0], "max_length must lie between 2 and"),
        (["--max-length", 64], "--max-length 64 is more than the model's 16 tokens"),
        (["--text-column", ""], "no column ''"),
        (["--stride", 3], "a method that slides needs rows longer than the model's 16 tokens: pass --max-length"),
        (["--stride", 3, "--max-length", 16], "needs rows longer than the model's 16 tokens"),
    ],
)
def test_text_that_is_refused_leaves_nothing(
    options: list, message: str, text: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", text, "--output", tmp_path / "out"]
    result = _run(*arguments, *options)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_teachers_rows_go_on_with_the_same_tokenizers_only(
    harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows without a fingerprint say nothing of their tokenizer."""
    Dataset.from_dict({"input_ids": [[0, 70, 71, 72]] * 6}).save_to_disk(tmp_path / "rows")
    tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(words))
    model, output = harness_model("llama"), tmp_path / "out"
    arguments = ["--model", model, "--method", "teacher", "--data", tmp_path / "rows", "--output", output]
    first = _run(*arguments, "--tokenizer", model, "--rows-a-part", 2)
    assert first.exit_code == 0, first.stderr
    assert _run(*arguments, "--tokenizer", model).exit_code == 0
    other = _run(*arguments, "--tokenizer", tmp_path / "other")
    assert other.exit_code == 2 and "was begun with other values of tokenizers" in other.stderr


def test_rows_of_other_text_that_a_killed_start_left(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    text, model = tmp_path / "text.txt", harness_model("llama")
    text.write_text("A ship came home.")
    options = RowOptions(max_length=16, held_out=0, may_be_short=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    prepare_rows(plan_shards([str(text)], "text", 10_000), tokenizer, tmp_path / ".out.rows", options)
    text.write_text("The wind was gone, and no one came home.")
    result = _run("--model", model, "--method", "causal", "--data", text, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    ids = load_from_disk(str(tmp_path / "out"))["train"]["input_ids"]
    assert "The wind was gone" in tokenizer.decode(ids[0])


def test_one_process_an_output(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", rows]
        result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "is being written by another process" in result.stderr


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", '{"method": 7}', "{}", "\x00"])
def test_damaged_records_are_named(
    content: str, rows: Path, causal: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["--model", harness_model("llama"), "--method", "causal"]
    output, broken = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (causal, rows))
    (output / "entropies.json").write_text(content)
    (broken / "fingerprint.json").write_text(content)
    for name, data, out in (("entropies", rows, output), ("fingerprint", broken, tmp_path / "out")):
        result = _run(*arguments, "--data", data, "--output", out)
        assert result.exit_code == 2, result.exception
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert f"{name}.json" in line and "damaged" in line


def test_a_damaged_tokenizer_beside_the_rows_is_not_copied(
    rows: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(rows, tmp_path / "rows")
    file = tmp_path / "rows" / "tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text().replace(",", "-", 1))
    arguments = ["--model", harness_model("llama"), "--method", "causal", "--data", tmp_path / "rows"]
    result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "tokenizer cannot be read" in " ".join(result.stderr.split())
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_a_part_that_was_cut_off_is_named(rows: Path, causal: Path, harness_model: Callable, tmp_path: Path) -> None:
    output = Path(shutil.copytree(causal, tmp_path / "out"))
    part = sorted((output / "train").glob("*.arrow"))[0]
    part.write_bytes(part.read_bytes()[:100])
    result = _run("--model", harness_model("llama"), "--method", "causal", "--data", rows, "--output", output)
    assert result.exit_code == 2 and f"{part} is damaged: remove it" in result.stderr


def test_what_is_no_number_names_row_and_token(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """Rows were left out as "not scored", with exit code 0."""
    model = AutoModelForCausalLM.from_pretrained(harness_model("llama"))
    with torch.no_grad():
        model.lm_head.weight[5] = 3e38  # finite, so it is loaded; its products are not
    model.save_pretrained(tmp_path / "model")
    Dataset.from_dict({"input_ids": [[0, 7, 8], [0, 7, 5, 9]]}).save_to_disk(tmp_path / "rows")
    arguments = ["--method", "causal", "--data", tmp_path / "rows", "--output", tmp_path / "out"]
    result = _run("--model", tmp_path / "model", *arguments)
    assert result.exit_code == 2
    assert re.search(r"row \d of train, token \d: the model gives (nan|inf)", " ".join(result.stderr.split()))


def _command(model: Path, rows: Path, output: Path) -> list[str]:
    arguments = ["--model", model, "--method", "exact", "--data", rows, "--output", output, "--rows-a-part", 2]
    return ["-m", "eem", "entropy", *map(str, arguments)]


@pytest.mark.slow
def test_killed_and_started_again(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """Killed with SIGKILL twice, each time after some parts; then the same files as without."""
    model = harness_model("eem")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *_command(model, rows, tmp_path / "whole")], check=True, env=environment)
    output = tmp_path / "killed"
    for parts in (1, 4):
        process = subprocess.Popen([sys.executable, *_command(model, rows, output)], env=environment)
        while process.poll() is None and len(_files(output)) < parts:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "dataset_dict.json").exists(), "it was killed before its end"
    subprocess.run([sys.executable, *_command(model, rows, output)], check=True, env=environment)
    assert _files(output) == _files(tmp_path / "whole")
    assert load_from_disk(str(output))["train"].num_rows == load_from_disk(str(rows))["train"].num_rows


@pytest.mark.slow
def test_two_processes_make_the_files_of_one(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    model = harness_model("eem")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([sys.executable, *_command(model, rows, tmp_path / "one")], check=True, env=environment)
    both = [sys.executable, *torchrun, *_command(model, rows, tmp_path / "two")]
    subprocess.run(both, check=True, env=environment)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert load_from_disk(str(tmp_path / "two"))["train"].num_rows == load_from_disk(str(rows))["train"].num_rows
