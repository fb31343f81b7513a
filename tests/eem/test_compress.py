"""eem compress, decompress and codec build as their users run them, from a trained model to a file and back."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from eem.__main__ import app
from modeling_eem.codec import Codec

TEXT = "The sea was calm and the wind was gone. A ship came home at last. " * 8


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def codec(harness_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec model of a tiny causal mixer."""
    folder = tmp_path_factory.mktemp("codec")
    (folder / "calibration.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    build = ["--model", harness_model("masked_mixer"), "--calibration", folder / "calibration.jsonl"]
    result = _run("codec", "build", *build, "--output", folder / "model")
    assert result.exit_code == 0, result.output
    assert "bits a byte in integers" in result.stdout and not list(folder.glob(".model*"))
    return folder / "model"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


def test_a_file_goes_and_comes_back(codec: Path, notes: Path) -> None:
    result = _run("compress", "--model", codec, notes)
    packed = notes.with_name("notes.txt.eem")
    assert result.exit_code == 0 and "bits a byte" in result.stderr and result.stdout == ""
    assert Codec.from_pretrained(codec).decompress(packed.read_bytes()) == TEXT.encode()
    for command in (["decompress"], ["compress", "-d"]):
        result = _run(*command, "--model", codec, "-o", notes.with_name("again"), "-f", packed)
        assert result.exit_code == 0, result.output
        assert notes.with_name("again").read_text() == TEXT


def test_options_are_passed_on(codec: Path, notes: Path) -> None:
    packed = notes.with_name("x")
    assert _run("compress", "--model", codec, "--carry", "--rm", "-T", 1, "-o", packed, notes).exit_code == 0
    assert not notes.exists()
    result = _run("compress", "-l", packed)
    assert result.exit_code == 0 and "plain bytes" in result.stdout and result.stderr == ""
    assert _run("decompress", "--model", codec, "-t", packed).exit_code == 0
    result = _run("decompress", "--model", codec, "-c", packed)
    assert result.stdout == TEXT
    result = _run("decompress", "--model", codec, "--max-output", 10, "-o", notes, packed)
    assert result.exit_code == 2 and "--max-output allows 10" in result.stderr
    assert not notes.exists()


def test_an_estimate_writes_nothing(codec: Path, notes: Path) -> None:
    result = _run("compress", "--model", codec, "--estimate", notes)
    assert result.exit_code == 0 and "about" in result.stdout and list(notes.parent.iterdir()) == [notes]


@pytest.mark.parametrize(
    "given, said",
    [
        (["-d", "--estimate"], "--estimate is for compressing"),
        (["-t", "--estimate"], "--estimate is for compressing"),
        (["--estimate", "--carry"], "--carry is not in an estimate"),
        (["--estimate", "-o", "x"], "--output names a file, and nothing is written"),
        (["-t", "-o", "x"], "--output names a file, and nothing is written"),
        (["-c", "-o", "x"], "--output and -c name two outputs"),
    ],
)
def test_options_that_nothing_would_read(
    given: list[str], said: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(notes.parent)
    result = _run("compress", *given, notes)
    assert result.exit_code == 2 and said in result.stderr and list(notes.parent.iterdir()) == [notes]


def test_a_folder_among_files(codec: Path, notes: Path) -> None:
    result = _run("compress", "--model", codec, notes.parent, notes)
    assert result.exit_code == 2 and "-r takes each file" in result.stderr
    assert notes.with_name("notes.txt.eem").exists()


@pytest.mark.parametrize("content", ["[]", "{bad"])
def test_a_codec_folder_with_a_damaged_config(content: str, codec: Path, notes: Path) -> None:
    model = notes.with_name("model")
    Codec.from_pretrained(codec).save_pretrained(model)
    (model / "config.json").write_text(content)
    result = _run("compress", "--model", model, notes)
    assert result.exit_code == 2 and "config.json is damaged" in result.stderr and "Traceback" not in result.output


def test_a_damaged_file_is_salvaged(codec: Path, notes: Path) -> None:
    data = random.Random(0).randbytes(200_000)  # four windows
    notes.write_bytes(data)
    packed = notes.with_name("notes.txt.eem")
    assert _run("compress", "--model", codec, notes).exit_code == 0
    blob = bytearray(packed.read_bytes())
    blob[len(blob) // 2] ^= 1
    packed.write_bytes(blob)
    refused = _run("decompress", "--model", codec, "-f", packed)
    assert refused.exit_code == 2 and notes.read_bytes() == data
    out = notes.with_name("saved")
    salvaged = _run("decompress", "--model", codec, "--salvage", "-o", out, packed)
    assert salvaged.exit_code == 3 and "lost" in salvaged.stderr
    assert data.startswith(out.read_bytes()[:60_000]) and 100_000 < len(out.read_bytes()) < len(data)


def test_standard_input_to_standard_output(codec: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eem", "compress", "--model", str(codec)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    packed = subprocess.run(command, input=TEXT.encode(), cwd=tmp_path, env=environment, capture_output=True)
    assert packed.returncode == 0, packed.stderr
    assert Codec.from_pretrained(codec).decompress(packed.stdout) == TEXT.encode()


def _closed_at_once(command: list[str], both: bool = False) -> tuple[int, str]:
    """The exit code and standard error of a command whose reader closes after one byte."""
    errors = subprocess.STDOUT if both else subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    said = b"" if process.stderr is None else process.stderr.read()
    return process.wait(), said.decode()


@pytest.mark.parametrize("is_buffered", [True, False])
def test_a_reader_that_stops_early_ends_the_command_quietly(tmp_path: Path, is_buffered: bool) -> None:
    noise = random.Random(0).randbytes(3_000_000)
    packed = tmp_path / "x.eem"
    packed.write_bytes(Codec(None).compress(noise))
    python = [sys.executable] if is_buffered else [sys.executable, "-u"]
    assert _closed_at_once([*python, "-m", "eem", "decompress", "-c", str(packed), str(packed)]) == (141, "")


def test_a_reader_of_a_long_listing_that_stops_early(tmp_path: Path) -> None:
    (tmp_path / "x.eem").write_bytes(Codec(None).compress(b"\xff" * 100))
    listing = [sys.executable, "-m", "eem", "compress", "-l", *[str(tmp_path / "x.eem")] * 1000]
    assert _closed_at_once(listing) == (141, "")
    (tmp_path / "y.eem").write_bytes(b"junk")
    errors = [sys.executable, "-m", "eem", "compress", "-t", *[str(tmp_path / "y.eem")] * 3000]
    assert _closed_at_once(errors, both=True) == (141, "")


@pytest.mark.parametrize("option", ["-l", "--estimate"])
def test_names_that_are_not_utf8_are_listed(codec: Path, tmp_path: Path, option: str) -> None:
    names = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) for name in (b"a\xff.eem", b"b\xfe.eem")]
    for name in names:
        name.write_bytes(Codec(None).compress(b"\xff" * 100))
    command = [sys.executable, "-m", "eem", "compress", option, "--model", str(codec), *map(str, names)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "a\\udcff.eem: " in done.stdout and "b\\udcfe.eem: " in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compress", "nowhere.txt"], "nowhere.txt: No such file"),
        (["compress", "."], ".: it is a folder: -r takes each file in it"),
        (["compress", "--salvage", "x.eem"], "--salvage is for decompressing: add -d."),
        (["compress", "-d", "--carry", "x.eem"], "--carry is for compressing: leave it out."),
        (["compress", "-l", "nowhere.eem"], "error: nowhere.eem: "),
    ],
)
def test_bad_input_is_one_line(
    codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments, "--model", codec)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "tests/nowhere", "a/b/nowhere"])
def test_a_name_of_nothing_is_refused_before_the_hub_is_asked(
    notes: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(notes.parent)
    Path("tests").mkdir()
    monkeypatch.setattr("modeling_eem.codec.codec.ModelHubMixin.from_pretrained", None)
    result = _run("compress", "--model", name, notes)
    assert result.exit_code == 2 and f"{name} holds no codec model: " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_name_that_the_hub_does_not_give_is_named(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub.")

    monkeypatch.setattr("modeling_eem.codec.codec.ModelHubMixin.from_pretrained", offline)
    result = _run("compress", "--model", "org/nowhere", notes)
    assert result.exit_code == 2 and "org/nowhere is no folder here, and the Hub gave no codec model" in result.stderr


def test_a_codec_model_is_replaced_by_force_alone(
    harness_model: Callable[..., Path], notes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build = ["codec", "build", "--model", harness_model("masked_mixer"), "--calibration", notes, "--output", out]
    assert _run(*build).exit_code == 0
    before = (out / "codec.json").read_bytes()
    notes.write_text(TEXT.upper())
    refused = _run(*build)
    assert refused.exit_code == 2 and refused.stderr == f"error: {out} holds a codec model already: -f replaces it.\n"
    assert (out / "codec.json").read_bytes() == before
    assert _run(*build, "-f").exit_code == 0 and (out / "codec.json").read_bytes() != before
    (out / "codec.json").unlink()
    refused = _run(*build, "-f")
    assert refused.exit_code == 2 and "is not empty, and holds no codec model" in refused.stderr


def test_the_line_about_an_eem_says_that_codes_are_left_out(
    harness_model: Callable[..., Path], notes: Path, tmp_path: Path
) -> None:
    eem = shutil.copytree(harness_model("eem"), tmp_path / "model")
    config = json.loads((eem / "config.json").read_text())
    (eem / "config.json").write_text(json.dumps({**config, "code_dtype": "int8"}))
    for model, is_said in ((eem, True), (harness_model("masked_mixer"), False)):
        made = ["--model", model, "--output", tmp_path / f"of-{model.name}"]
        result = _run("codec", "build", *made, "--calibration", notes)
        assert result.exit_code == 0 and ("both without codes" in result.stdout) == is_said, result.output


def test_the_card_runs_in_its_folder(codec: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(codec)
    exec(Path("README.md").read_text().split("```python\n")[1].split("```")[0], {})
    assert "our Union is strong" in capsys.readouterr().out


def test_a_model_that_no_codec_can_be_made_of_is_refused(
    harness_model: Callable[..., Path], notes: Path, tmp_path: Path
) -> None:
    for model in (harness_model("llama"), tmp_path / "nowhere"):
        result = _run("codec", "build", "--model", model, "--calibration", notes, "--output", tmp_path / "out")
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
