"""Files that ship, files that are whole or missing, folders that one process writes, and secrets to hide."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
HIDDEN = "<hidden>"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A full disk in the words of libraries that write through Rust and C++: safetensors, tokenizers, torch.
_FULL_WORDS = re.compile(
    r"No space left|File too large|quota exceeded|os error (27|28|122)\b|PytorchStreamWriter|inline_container"
    r"|iostream error",
    re.I,
)
_NO_SPACE = "no space to write it"
_SECRET_NAME = re.compile(
    r"(^|[._-])(?<!(?:bos|eos|pad|unk|cls|sep)[._-])"  # tokens of text are not secrets
    r"(token|secret|password|passwd|credentials?|(api|access|secret)[_-]?key)$",
    re.I,
)
_SECRET_VALUES = (
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[\w-]{12,}"), HIDDEN),
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), HIDDEN),
    (re.compile(r"([?&][\w-]*(?:token|secret|password|signature|key)=)[^&\s]+", re.I), rf"\1{HIDDEN}"),
)

ASSETS = Path(__file__).parent / "assets"
_ASSET = "asset:"


def asset(name: str) -> str:
    """The path of `asset:NAME`, a file or folder that ships with this package; any other name stays as it is.

    Raises:
        ValueError: if nothing of that name ships.
    """
    if not name.startswith(_ASSET):
        return name
    path = ASSETS / name.removeprefix(_ASSET)
    if not path.exists():
        raise ValueError(f"{name}: nothing of that name ships with modeling-eem; asset:tokenizer does.")
    return str(path)


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) under a temporary name beside `path`, then rename it; folders are made.

    A reader of `path` sees the old file or the new one, never half of it. Nobody can predict the temporary name, and
    a file or link of that name is never followed or overwritten.

    Returns:
        `path`.

    Raises:
        OSError: with the file's name; for a full disk also with the free space.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with full_disk_named(path.parent, path), open(temporary, "xb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def folder_at_once(path: Path) -> Iterator[Path]:
    """A folder to fill. Its files then replace those of the same names in `path`; after an error none does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder)
        path.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            os.replace(file, path / file.name)


@contextmanager
def full_disk_named(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into an OSError that names the file and the free space.

    Args:
        folder: where the library writes.
        file: the file that it writes; None: the folder's newest file.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise their own exceptions
        is_full = isinstance(error, OSError) and error.errno in _FULL
        is_named = isinstance(error, OSError) and is_full and str(error.strerror).startswith(_NO_SPACE)
        if is_named or not (is_full or _FULL_WORDS.search(str(error))):
            raise
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        name = file or max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)
        free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
        message = f"{_NO_SPACE} ({free / 1e6:.1f} MB are free): make room, and run the same command again"
        raise OSError(errno.ENOSPC, message, str(name)) from error


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process, even a killed one.

    Raises:
        ValueError: if another process has the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another process: wait until that ends, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_unlocked(folder: str | Path) -> None:
    """ValueError if `locked` would refuse a folder. It writes nothing; a missing folder is free."""
    if (Path(folder) / LOCK_FILE).exists():
        with locked(folder):
            pass


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_secrets(value: Any, name: str = "") -> Any:
    """A value of plain types, made fit to be shown and pushed. What looks like a secret, by its key or its value, is
    hidden; an absolute path of this machine becomes its last name."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if _SECRET_NAME.search(name) and value:
        return HIDDEN
    text = value
    for pattern, shown in _SECRET_VALUES:
        text = pattern.sub(shown, text)
    is_path = os.path.isabs(text) or text.startswith("~")
    return (Path(text).name or text) if is_path else text


def command_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line's words, with `without_secrets` applied to each value of `--name value` and `--name=value`."""
    shown: list[str] = []
    name = ""
    for word in arguments:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            shown.append(name + equals + without_secrets(value, name))
        else:
            shown.append(without_secrets(word, name))
    return shown
