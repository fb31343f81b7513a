"""The command `eem`: what it shows at once, and how it ends."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from eem import old_commands
from eem.__main__ import app

# With the help of each: the commands that it must name, or an example of its own.
COMMANDS = {
    "": "eem quickstart",
    "quickstart": "eem quickstart --output",
    "train": "eem train --config",
    "data": "eem data prepare --data",
    "data prepare": "eem data prepare --data",
    "data publish": "eem data publish --rows",
    "data tokenizer": "eem data tokenizer --data",
    "data verify": "eem data verify --rows",
    "entropy": "eem entropy --model",
    "compress": "eem compress notes.txt",
    "decompress": "eem decompress notes.txt.eem",
    "codec": "eem codec build --model",
    "codec build": "eem codec build --model",
    "evaluate": "eem evaluate bits --model",
    "evaluate bits": "eem evaluate bits --model",
    "evaluate curves": "eem evaluate curves",
    "evaluate quantization": "eem evaluate quantization --model",
    "evaluate entropy-floor": "eem evaluate entropy-floor",
    "evaluate harness": "eem evaluate harness --model",
    "evaluate correlation": "eem evaluate correlation --entropies",
    "view": "eem view runs/eem runs/causal",
}


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="eem")


def _eem(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "eem", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = _run(*command.split(), "--help")
    said = re.sub(r"[\s│]+", " ", result.stdout)
    assert result.exit_code == 0 and f"Usage: eem {command}".strip() in said
    assert f"Example: {COMMANDS[command]}" in said


def test_every_command_is_tested_here() -> None:
    import typer.main

    def names(group: typer.core.TyperGroup, path: str) -> list[str]:
        found = [path.strip()]
        for name, command in group.commands.items():
            more = f"{path} {name}"
            found += names(command, more) if isinstance(command, typer.core.TyperGroup) else [more.strip()]
        return found

    assert sorted(names(typer.main.get_command(app), "")) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["", "train", "evaluate harness", "entropy"])
def test_help_takes_no_second_of_cpu(command: str, tmp_path: Path) -> None:
    """Processor time of the whole process, start and imports included; PyTorch alone takes more."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _eem(*command.split(), "--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_help_imports_neither_the_package_nor_pytorch() -> None:
    code = "import sys, eem.__main__; print(sorted({'torch', 'transformers', 'modeling_eem'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_version_is_shown() -> None:
    assert re.fullmatch(r"modeling-eem \d+\.\d+\.\d+\n", _run("--version").stdout)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evalute"], "No such command 'evalute'. Did you mean 'evaluate'?"),
        (["data", "tokenizer"], "Missing option '--data'."),
        (["data", "prepare", "--dat", "x"], "No such option: --dat"),
        (["quickstart", "--max-steps", "0"], "Invalid value for '--max-steps'"),
        (["data", "prepare", "--data", "x", "--output", "y", "--rows", "z"], "Invalid value for '--rows'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def test_a_group_without_a_command_shows_its_help() -> None:
    result = _run("evaluate")
    assert result.exit_code == 2 and "entropy-floor" in result.stdout and result.stderr == ""


@pytest.mark.parametrize("name", ["data", "entropy", "quickstart", "train"])
def test_old_commands_name_the_new_ones(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/bin/eem-{name}", "--data", "two words"])
    with pytest.raises(SystemExit) as ended:
        vars(old_commands)[f"eem_{name}"]()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: eem-{name} is now `eem {name}`: run `eem {name} --data 'two words'`\n"


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(tmp_path: Path) -> None:
    """Training from an empty folder, stopped once its first checkpoint is there."""
    command = [sys.executable, "-m", "eem", "train", "--config", "asset:configs/quickstart.yaml"]
    command += ["--output_dir", "out", "--save_strategy", "steps", "--save_steps", "1", "--use_cpu", "true"]
    command += ["--max_held_out_rows", "4", "--per_device_train_batch_size", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 300
        while not (tmp_path / "out/checkpoint-1/complete.json").exists() and time.monotonic() < until:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = r"stopped at step \d+; the same command goes on from out/checkpoint-\d+\."
    assert re.fullmatch(kept, said.splitlines()[-1])
