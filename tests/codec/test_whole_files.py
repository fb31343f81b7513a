"""A file beside its target: private until it is whole, and kept whatever fails once it is."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec.file_operations import FileOptions, compress_files
from modeling_eem.codec.whole_files import whole_file


def _quiet(line: str) -> None: ...


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"\xff" * 1000)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_nobody_else_can_read_a_private_file_while_it_is_written(secret: Path, overwrite: bool) -> None:
    with whole_file(secret.with_name("x"), overwrite, secret) as file:
        assert os.fstat(file.fileno()).st_mode & 0o077 == 0
    assert secret.with_name("x").stat().st_mode & 0o777 == 0o600


def test_permissions_are_those_of_the_source_or_of_any_new_file(secret: Path, tmp_path: Path) -> None:
    secret.chmod(0o644)
    (tmp_path / "plain").write_text("")
    for source, like in ((secret, secret), (None, tmp_path / "plain")):
        with whole_file(tmp_path / "x", True, source) as file:
            file.write(b"x")
        assert (tmp_path / "x").stat().st_mode == like.stat().st_mode


def test_nobody_lends_a_program_their_rights(secret: Path, tmp_path: Path) -> None:
    secret.chmod(0o6755)
    with whole_file(tmp_path / "x", False, secret) as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


def test_what_a_link_leads_to_is_written(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(secret)
    with whole_file(tmp_path / "link", True) as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and secret.read_bytes() == b"new"


def test_what_a_killed_run_left_is_not_compressed(secret: Path, tmp_path: Path) -> None:
    part = tmp_path / f".secret.eem.{'0' * 20}.part"
    part.write_bytes(b"half")
    results = compress_files([tmp_path], FileOptions(recursive=True), _quiet)
    assert [result.source for result in results] == [secret]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.ENOSPC])
def test_a_file_whose_permissions_cannot_be_copied_stays_private(
    secret: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    secret.chmod(0o644)
    monkeypatch.setattr(os, "utime", refuse)
    (result,) = compress_files([secret], FileOptions(), _quiet)
    assert result.error is None and result.target is not None
    assert result.target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("function", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_keeps_the_file(
    secret: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    working = getattr(os, function)

    def refuse(place: Any, *rest: Any, **more: Any) -> Any:
        if stat.S_ISDIR(os.stat(place).st_mode if os.path.exists(place) else 0):
            raise PermissionError(errno.EACCES, "Permission denied")
        return working(place, *rest, **more)

    monkeypatch.setattr(os, function, refuse)
    (result,) = compress_files([secret], FileOptions(keep=False), _quiet)
    assert result.error is None and result.target is not None
    assert result.target.exists() and not secret.exists()
