import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modeling_eem import files
from modeling_eem.files import (
    HIDDEN,
    command_without_secrets,
    folder_at_once,
    full_disk_named,
    locked,
    part_beside,
    sha256,
    without_secrets,
    write_atomically,
)


def test_writes_text_and_bytes_into_folders_that_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert write_atomically(path, "naïve\r\n") == path
    assert path.read_bytes() == "naïve\r\n".encode()
    write_atomically(str(path), b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the old name, which could be foreseen, nor the new one if it were."""
    victim = write_atomically(tmp_path / "victim", "mine")
    (tmp_path / f".file.{os.getpid()}.part").symlink_to(victim)
    write_atomically(tmp_path / "file", "new")
    assert victim.read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / ".other.known.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "other", "new")
    assert victim.read_text() == "mine"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    path = write_atomically(tmp_path / "file", "")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".file.{'0a' * 10}.part").write_text("half")
    (tmp_path / f".folder.{'0b' * 10}.part").mkdir()
    foreign = write_atomically(tmp_path / "new" / ".file.part", "mine").replace(tmp_path / ".file.part")
    with part_beside(tmp_path / "file") as part, part_beside(tmp_path / "folder", is_folder=True) as folder:
        assert set(tmp_path.glob(".*")) == {foreign, part, folder}
        monkeypatch.setattr("modeling_eem.files._searched", set())  # as another process
        write_atomically(tmp_path / "file", "whole")
        assert set(tmp_path.glob(".*")) == {foreign, part, folder}
    assert set(tmp_path.glob(".*")) == {foreign}


def test_a_folder_at_once_replaces_files_and_folders_of_its_names(tmp_path: Path) -> None:
    for names in (["a", "sub/b", "sub/c"], ["a", "sub/b"]):
        with folder_at_once(tmp_path / "out") as folder:
            (folder / "sub").mkdir()
            for name in names:
                (folder / name).write_text(f"one of {len(names)}")
        (tmp_path / "out" / "own").write_text("kept")
    found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"out/a": "one of 2", "out/sub/b": "one of 2", "out/own": "kept"}
    with pytest.raises(RuntimeError), folder_at_once(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out/a").read_text() == "one of 2" and [path.name for path in tmp_path.iterdir()] == ["out"]


# A full disk: no file may grow past a limit, which the system reports as it does a full one.


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_as_the_folder_will_be(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError, match="no space to write it") as failed, folder_at_once(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/file").write_bytes(b"x" * 2**17)
    assert failed.value.filename == str(tmp_path / "out/sub/file") and not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path, small_files: None) -> None:
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(OSError, match=r"no space to write it \([\d.]+ MB are free\): make room") as failed:
        write_atomically(path, b"x" * 2**17)
    assert failed.value.errno == errno.ENOSPC and failed.value.filename == str(path)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_what_libraries_raise_on_a_full_disk_is_named(tmp_path: Path, small_files: None, library: str) -> None:
    import torch
    from safetensors.torch import save_file

    values = torch.zeros(2**16)
    with pytest.raises(OSError, match="no space to write it") as failed, full_disk_named(tmp_path):
        if library == "torch":
            torch.save(values, tmp_path / "values")
        else:
            save_file({"values": values}, tmp_path / "values")
    assert failed.value.filename.startswith(str(tmp_path))


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError), full_disk_named(tmp_path):
        raise KeyError("no space")


# One writer


HOLD = """
import sys, time
from modeling_eem.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_a_kill_frees_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="out is being written by another process: wait"), locked(folder):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    began = time.monotonic()
    for _ in range(2):  # and it may be taken again
        with locked(folder):
            assert time.monotonic() - began < 5


def test_a_hash_is_of_the_contents(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", "abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# What does not leave this machine

TOKEN = "hf_" + "aBcD" * 8


@pytest.mark.parametrize(
    "value, shown",
    [
        ({"hub_token": "anything"}, {"hub_token": HIDDEN}),
        (
            {"api_key": "x", "WANDB_API_KEY": "y", "password": "z"},
            dict.fromkeys(("api_key", "WANDB_API_KEY", "password"), HIDDEN),
        ),
        ({"hub_token": None, "token_loss": "hinge"}, {"hub_token": None, "token_loss": "hinge"}),
        ({"tokenizer": "org/name", "pad_token_id": 0}, {"tokenizer": "org/name", "pad_token_id": 0}),
        ([f"see {TOKEN}."], [f"see {HIDDEN}."]),
        ("https://me:pw@host/a.txt?key=abc&x=1", f"https://{HIDDEN}@host/a.txt?key={HIDDEN}&x=1"),
        ("/home/someone/texts/a.txt", "a.txt"),
        ("~/texts/a.txt", "a.txt"),
        ("texts/a.txt", "texts/a.txt"),
        (2e-4, 2e-4),
    ],
)
def test_what_is_shown_holds_no_secret_and_no_place(value: Any, shown: Any) -> None:
    assert without_secrets(value) == shown


def test_a_command_is_shown_without_them() -> None:
    given = ["--config", "/home/me/run.yaml", "--hub_token", "abc", f"--hub_token={TOKEN}", "--learning_rate", "1e-3"]
    shown = ["--config", "run.yaml", "--hub_token", HIDDEN, f"--hub_token={HIDDEN}", "--learning_rate", "1e-3"]
    assert command_without_secrets(given) == shown


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("arm=qemu -L /home/me/root /home/me/root/bin/python3", "arm=qemu -L root python3"),
        ("[/home/me/a.jsonl, ~/b.jsonl]", "[a.jsonl, b.jsonl]"),
        ("name=/home/me/model", "name=model"),
        ("https://host/org/name", "https://host/org/name"),
        ("file:///home/me/model", "file:model"),
        ("{path:/home/me/model}", "{path:model}"),
        ("org/name", "org/name"),
        ("and/or, /either", "and/or, /either"),
        ("1 / 2", "1 / 2"),
    ],
)
def test_no_path_within_a_word_is_shown(word: str, shown: str) -> None:
    assert command_without_secrets(["--option", word]) == ["--option", shown]


def test_the_current_folder_is_filled_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with folder_at_once(Path(".")) as folder:
        (folder / "file").write_text("new")
    assert [file.name for file in tmp_path.rglob("*")] == ["here", "file"]


def test_a_long_name_of_wide_characters(tmp_path: Path) -> None:
    assert write_atomically(tmp_path / ("語" * 80), "x").read_text() == "x"


def test_a_part_that_another_process_locks_first_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, tried = files._lock_part, []

    def taken_once(part: Path) -> int | None:
        tried.append(part)
        if len(tried) == 1:
            raise BlockingIOError
        return lock(part)

    monkeypatch.setattr(files, "_lock_part", taken_once)
    with part_beside(tmp_path / "file") as part:
        assert part == tried[1] != tried[0] and part.exists()
