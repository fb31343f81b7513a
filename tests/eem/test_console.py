"""One-line errors, where output may go, and progress without a terminal."""

import os
import re
import time
from pathlib import Path
from typing import Annotated

import pytest
import typer

from eem import console
from eem.console import Command, check_output, keeps, one_line_errors, progress_bar, waiting


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("two\nlines"), 2, "error: two lines\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "error: a.txt: No such file\n"),
        (
            ModuleNotFoundError("No module named 'datatrove'", name="datatrove.pipeline"),
            2,
            'error: datatrove is not installed: pip install "modeling-eem[prepare]"\n',
        ),
        (ImportError("You need to install liger-kernel"), 2, "error: You need to install liger-kernel\n"),
        (KeyboardInterrupt(), 130, "stopped before anything new was written; the same command starts again.\n"),
    ],
)
def test_what_the_user_can_change_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise error
    assert ended.value.exit_code == code and capsys.readouterr().err == said


def test_what_is_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), one_line_errors():
        raise ModuleNotFoundError("No module named 'modeling_eem.x'", name="modeling_eem.x")
    with pytest.raises(ImportError), one_line_errors():
        raise ImportError("cannot import name 'x' from 'modeling_eem'", name="modeling_eem")
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("x")


def test_ctrl_c_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors(), keeps(lambda: "all of it."):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130 and capsys.readouterr().err == "stopped: all of it.\n"


def test_output_is_a_folder_or_can_become_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_output(tmp_path / "new" / "folder")
    check_output(tmp_path)
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(ValueError, match="file is a file: name a folder"):
            check_output(path)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("reading rows", 1000) as steps:
        for _ in range(40):
            now[0] += 1
            steps.advance(10)
        steps.update(note="late")
    assert capsys.readouterr().err.splitlines() == [
        "reading rows: 150 of 1,000, 1 min 25 s left",
        "reading rows: 300 of 1,000, 1 min 10 s left",
    ]


def test_steps_done_before_say_nothing_of_the_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("eem", 1000) as steps:
        steps.resume(500)
        now[0] += 100
        steps.update(600, "5.1 nats a token")
    assert capsys.readouterr().err == "eem: 600 of 1,000, 6 min 40 s left, 5.1 nats a token\n"


def test_what_comes_once_before_the_first_step_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("compressing", 1000) as steps:
        now[0] += 30  # compiling
        steps.advance(10)
        for _ in range(20):
            now[0] += 1
            steps.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "compressing: 10 of 1,000",
        "compressing: 160 of 1,000, 1 min 24 s left",
    ]


def test_what_belongs_into_a_log_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("eem", 100) as steps:
        for done in (10, 20, 30):
            now[0] += 1
            steps.update(done)
            if done > 10:
                steps.tell(f"loss {done}")
    assert capsys.readouterr().err.splitlines() == [
        "eem: 20 of 100, 8 s left, loss 20",
        "eem: 30 of 100, 7 s left, loss 30",
    ]


def test_quiet_progress_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("rows", 10, quiet=True) as steps:
        now[0] += 100
        steps.advance(5)
    assert capsys.readouterr().err == ""


def test_waiting_says_how_long_it_has_been(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_SECONDS_A_LINE", 0.05)
    said, until = "", time.monotonic() + 60
    with waiting("building"):
        while said.count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert re.fullmatch(r"(building: \d+ s so far\n){2,}", said + capsys.readouterr().err)
    time.sleep(0.1)
    with waiting("building", quiet=True):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_total_may_become_known_on_the_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress_bar("comparing windows") as steps:
        now[0] += 20
        steps.update(10, total=40)
    assert capsys.readouterr().err == "comparing windows: 10 of 40, 1 min left\n"


def test_a_required_option_given_twice_is_refused_unless_it_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    def command(
        config: Annotated[str, typer.Option()],
        data: Annotated[list[str], typer.Option()],
        workers: Annotated[int, typer.Option()] = 1,
    ) -> None:
        print(config, *data, workers)

    app(
        ["--data", "a", "b", "--config", "one", "--workers", "2", "--data", "c", "--workers", "3"],
        standalone_mode=False,
    )
    assert capsys.readouterr().out == "one a b c 3\n"
    for again in (["--config", "two"], ["--config=two"]):
        with pytest.raises(SystemExit) as ended:
            app(["--config", "one", "--data", "a", *again])
        assert ended.value.code == 2 and "--config is given twice" in capsys.readouterr().err


def test_a_command_bounds_what_onednn_keeps_unless_its_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 compiled shapes, each with buffers of its own, took gigabytes."""
    app = typer.Typer()
    found = []

    @app.command(cls=Command)
    def command() -> None:
        found.append([os.environ[name] for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")])

    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    app([], standalone_mode=False)
    assert found == [["7", "256"]]
