"""eem data tokenizer as its users run it: files in, a folder out, one line and exit code 2 for what is wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import typer
from click.testing import Result
from transformers import AutoTokenizer
from typer.testing import CliRunner

from eem.console import one_line_errors
from eem.data import app
from modeling_eem.data import encode_text

LINES = [f"The {word} of the sea, the {word} of the rain.\n" for word in ("rest", "roar", "taste", "smell", "sight")]


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["tokenizer", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("".join(LINES))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": line, "body": line * 2}) + "\n" for line in LINES))
    pq.write_table(pa.table({"text": LINES}), tmp_path / "c.parquet")
    (tmp_path / "held_out.txt").write_text("The sea, thé rain.")
    return tmp_path


def _folder(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_files_become_a_tokenizer_and_its_statistics(files: Path) -> None:
    out = files / "new" / "tokenizer"
    data = [files / name for name in ("a.txt", "b.jsonl", "c.parquet")]
    result = _run("--data", *data, "--validation", files / "held_out.txt", "--vocab-size", 270, "--output", out)
    assert result.exit_code == 0, result.stderr
    assert "held_out.txt" in result.stdout and "270 tokens" in result.stdout
    assert {path.name for path in out.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "statistics.json"}
    assert {path.name for path in out.parent.iterdir()} == {"tokenizer"}, "nothing is left beside the output"
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = encode_text(tokenizer, "The sea, thé rain.")
    assert len(tokenizer) == 270 and tokenizer.decode(ids) == "The sea, thé rain."
    counts = {"documents": 1, "characters": 18, "bytes": 19, "tokens": len(ids)}
    statistics = json.loads((out / "statistics.json").read_text())
    assert statistics == {"tokenizers": tokenizers.__version__, "held_out": {"held_out.txt": counts}}


def test_all_files_are_read_and_the_same_files_give_the_same_tokenizer(files: Path) -> None:
    for output, names in {"one": ["a.txt"], "two": ["a.txt", "d.txt"], "again": ["a.txt", "d.txt"]}.items():
        (files / "d.txt").write_text("quixotic " * 50)
        result = _run("--data", *(files / name for name in names), "--vocab-size", 264, "--output", files / output)
        assert result.exit_code == 0, result.stderr
    assert _folder(files / "two") == _folder(files / "again") != _folder(files / "one")


def test_list_options_take_what_follows_however_they_are_written(files: Path) -> None:
    a, b, out = files / "a.txt", files / "b.jsonl", ["--vocab-size", 264, "--output"]
    for name, arguments in {
        "many": ["--data", a, b, *out, files / "many"],
        "each": ["--data", a, *out, files / "each", "--data", b],
        "equals": [f"--data={a}", b, *out, files / "equals"],
        "last": [*out, files / "last", "--data", a, b],
    }.items():
        assert _run(*arguments).exit_code == 0, name
        assert _folder(files / name) == _folder(files / "many"), name


def test_the_text_column_may_have_another_name(files: Path) -> None:
    body = ["--text-column", "body", "--vocab-size", 264, "--validation", files / "b.jsonl"]
    assert _run("--data", files / "b.jsonl", *body, "--output", files / "out").exit_code == 0
    held_out = json.loads((files / "out" / "statistics.json").read_text())["held_out"]["b.jsonl"]
    assert held_out["characters"] == 2 * len("".join(LINES)) and held_out["documents"] == len(LINES)


def test_validation_files_of_one_name_are_told_apart(files: Path) -> None:
    (files / "more").mkdir()
    (files / "more" / "a.txt").write_text("rain")
    both = [files / "a.txt", files / "more" / "a.txt"]
    arguments = ["--data", files / "a.txt", "--validation", *both, "--vocab-size", 264, "--output", files / "out"]
    assert _run(*arguments).exit_code == 0
    held_out = json.loads((files / "out" / "statistics.json").read_text())["held_out"]
    assert {name: count["characters"] for name, count in held_out.items()} == {
        str(both[0]): len("".join(LINES)),
        str(both[1]): 4,
    }


def test_what_else_is_in_the_folder_stays(files: Path) -> None:
    (files / "out").mkdir()
    (files / "out" / "README.md").write_text("How it was made")
    (files / "out" / "tokenizer.json").write_text("old")
    assert _run("--data", files / "a.txt", "--vocab-size", 264, "--output", files / "out").exit_code == 0
    assert (files / "out" / "README.md").read_text() == "How it was made"
    assert len(AutoTokenizer.from_pretrained(files / "out")) == 264


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "{}/missing.txt"], "missing.txt: no such file"),
        (["--data", "{}/a.txt", "{}/missing.txt"], "missing.txt: no such file"),
        (["--data", "{}/table.csv"], "table.csv: unknown kind of file"),
        (["--data", "{}/empty.txt"], "no text: give at least one document"),
        (["--data", "{}/blank.jsonl"], "no text: give at least one document"),
        (["--data", "{}/b.jsonl", "--text-column", "story"], "b.jsonl: line 1 has no column 'story'"),
        (["--data", "{}/c.parquet", "--text-column", "story"], "c.parquet: no column 'story', only text"),
        (["--data", "{}/a.txt", "{}/latin.txt"], "latin.txt: not UTF-8 at byte 3"),
        (["--data", "{}/broken.parquet"], "broken.parquet: not a readable parquet file"),
        (["--data", "{}/a.txt", "--vocab-size", "257"], "vocab_size must be at least 258"),
        (["--data", "{}/a.txt", "--vocab-size", "8000"], "the corpus yields only"),
        (["--data", "{}/a.txt", "--validation", "{}/missing.txt"], "missing.txt: no such file"),
        (["--data", "{}/a.txt", "--validation", "{}/latin.txt"], "latin.txt: not UTF-8 at byte 3"),
        (["--data", "{}/a.txt", "--validation", "{}/empty.txt"], "no text: give at least one document"),
    ],
)
@pytest.mark.parametrize("there", [True, False], ids=["output is there", "output is new"])
def test_bad_input_is_one_line_and_nothing_is_written(
    files: Path, arguments: list[str], message: str, there: bool
) -> None:
    (files / "latin.txt").write_bytes(b"caf\xe9")
    (files / "broken.parquet").write_bytes((files / "c.parquet").read_bytes()[:-9])
    (files / "blank.jsonl").write_text('\n{"text": ""}\n')
    for name in ("table.csv", "empty.txt"):
        (files / name).touch()
    if there:
        (files / "out").mkdir()
        (files / "out" / "tokenizer.json").write_text("old")
    before = _folder(files)
    vocab_size = [] if "--vocab-size" in arguments else ["--vocab-size", "264"]
    result = _run(*(text.format(files) for text in arguments), *vocab_size, "--output", files / "out")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert _folder(files) == before and (files / "out").exists() == there


@pytest.mark.parametrize("name", ["latin.txt", "empty.txt", "other.jsonl"])
def test_validation_files_are_read_before_training(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "latin.txt").write_bytes(b"caf\xe9")
    (files / "empty.txt").touch()
    (files / "other.jsonl").write_text('{"story": "x"}\n')
    monkeypatch.setattr("modeling_eem.data.train_tokenizer", lambda *_: pytest.fail("trained"))
    result = _run("--data", files / "a.txt", "--validation", files / name, "--output", files / "out")
    assert result.exit_code == 2 and name in result.stderr


def test_an_output_that_cannot_be_is_said_before_training(files: Path) -> None:
    result = _run("--data", files / "a.txt", "--vocab-size", 8000, "--output", files / "b.jsonl")
    assert result.exit_code == 2 and "b.jsonl is a file: name a folder" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--data"], ["--data", "a.txt"], ["--output", "x"], ["--data", "a", "-x"]])
def test_an_incomplete_command_exits_with_code_two(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["tokenizer", "--help"])
    assert result.exit_code == 0 and "Example:" in result.stdout and "--vocab-size" in result.stdout


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("two\n  lines"), "error: two lines\n"),
        (PermissionError(13, "Permission denied", "a/b"), "error: a/b: Permission denied\n"),
        (OSError("disk is full"), "error: disk is full\n"),
    ],
)
def test_errors_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised, one_line_errors():
        raise error
    assert raised.value.exit_code == 2 and capsys.readouterr().err == line


def test_programmers_errors_are_not_swallowed() -> None:
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a bug")
