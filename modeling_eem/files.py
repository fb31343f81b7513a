"""Files that ship, files that are whole or missing, folders that one process writes, and secrets to hide."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub.errors import HFValidationError

try:
    import fcntl
except ImportError:  # Windows, where what killed processes leave is not told from what others write
    fcntl = None

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
    with full_disk_named(path.parent, path), part_beside(path) as part:
        part.write_bytes(data)
        part.replace(path)
    return path


@contextmanager
def part_beside(path: Path, is_folder: bool = False, mode: int = 0o666) -> Iterator[Path]:
    """An empty file or folder of a hidden name beside `path`, for what is not whole yet; at the end it is gone.

    It is locked as long as this process lives. What a killed process left there, whose lock is free, is removed.

    Args:
        mode: permissions of a file, as far as the umask leaves them.
    """
    _remove_abandoned_parts(path.parent.absolute())
    while True:
        name = os.fsencode(path.name)[:100].decode(errors="ignore")  # a name may have 255 bytes
        part = path.with_name(f".{name}.{secrets.token_hex(10)}.part")
        try:
            if is_folder:
                part.mkdir()
            else:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        except OSError as error:
            error.filename = str(path)  # the name that the user knows
            raise
        try:
            lock = _lock_part(part)
        except (BlockingIOError, FileNotFoundError):  # another process took it for abandoned, before it was locked
            continue
        if part.exists():
            break
        _unlock_part(lock)
    try:
        yield part
    finally:
        _unlock_part(lock)
        if is_folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


_PART = re.compile(r"\..+\.[0-9a-f]{20}\.part")


def is_part(name: str) -> bool:
    """Whether a file of this name is what a killed process left of one that it wrote."""
    return _PART.fullmatch(name) is not None


_searched: set[Path] = set()  # once a process: a folder may hold 100,000 files


def _remove_abandoned_parts(folder: Path) -> None:
    if folder in _searched or fcntl is None:
        return
    _searched.add(folder)
    try:
        names = os.listdir(folder)
    except OSError:  # a folder may be written and not listed
        return
    for part in [folder / name for name in names if is_part(name)]:
        with suppress(OSError):  # in use, another user's, or gone by now
            lock = _lock_part(part)
            if lock is not None:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
                _unlock_part(lock)


def _lock_part(part: Path) -> int | None:
    """The open file that holds the lock; None where no lock can be had.

    Raises:
        BlockingIOError: another process has it; FileNotFoundError: it is gone.
    """
    if fcntl is None:
        return None
    lock = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    except OSError:  # a file system without locks
        os.close(lock)
        return None
    return lock


def _unlock_part(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def existing_part(path: Path) -> Path:
    """The path, or the nearest folder above it that there is; a file, where a file is in the way."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


@contextmanager
def folder_at_once(path: Path) -> Iterator[Path]:
    """A folder to fill, whose files and folders then replace those of the same names in `path`; after an error none.

    Raises:
        OSError: for a full disk, with the name that the file would have had in `path`.
    """
    path = Path(os.path.abspath(path))  # "." and ".." have no name of their own
    path.parent.mkdir(parents=True, exist_ok=True)
    with part_beside(path, is_folder=True) as part, full_disk_named(part, becomes=path):
        new, old = part / "new", part / "old"
        new.mkdir()
        old.mkdir()
        yield new
        path.mkdir(exist_ok=True)
        for entry in new.iterdir():
            _replace(entry, path / entry.name, old)


def _replace(source: Path, target: Path, old: Path) -> None:
    """Rename; a folder in the way, which no rename replaces, is moved to `old` first."""
    while True:
        if source.is_dir():
            with suppress(FileNotFoundError, NotADirectoryError):
                target.replace(old / secrets.token_hex(10))
        try:
            source.replace(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process put its own there
                raise


@contextmanager
def full_disk_named(folder: Path, file: Path | None = None, becomes: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into an OSError that names the file and the space.

    Args:
        folder: where it writes.
        file: what it writes; None: the file of the folder that was touched last.
        becomes: the name that a folder in it is to have, by which the files in that are called.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise their own exceptions
        is_full = isinstance(error, OSError) and error.errno in _FULL
        is_named = isinstance(error, OSError) and is_full and str(error.strerror).startswith(_NO_SPACE)
        if (is_named and becomes is None) or not (is_full or _FULL_WORDS.search(str(error))):
            raise
        if isinstance(error, OSError) and is_named:
            file = Path(error.filename)
        name = file or _last_touched(folder)
        if becomes is not None and name.is_relative_to(folder):
            name = becomes.joinpath(*name.relative_to(folder).parts[1:])
        free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
        message = f"{_NO_SPACE} ({free / 1e6:.1f} MB are free): make room, and run the same command again"
        raise OSError(errno.ENOSPC, message, str(name)) from error


def _last_touched(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)


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


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """The last parts of each path, as many as distinguish it from the others."""
    parts = [Path(folder).resolve().parts if Path(folder).exists() else Path(folder).parts for folder in folders]
    names = []
    for number, own in enumerate(parts):
        others = [other for index, other in enumerate(parts) if index != number]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


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
    return [_PATH_WITHIN.sub(lambda path: Path(path.group()).name, word) for word in shown]


# An absolute path behind something else in a word: `NAME=/home/me/x`, `[/home/me/x, ~/y]`, `program -L /home/me/x`,
# `file:///home/me/x`. Its parts may not be empty, so other addresses (`https://host/x`) are none.
_PATH_WITHIN = re.compile(r"""(?<=[=\s,:(\[{"'])(?:(?<=file:)//)?(?:~|/[^\s/,:()\[\]{}"'=]+)/[^\s,()\[\]{}"'=]+""")


def read_record(path: Path, types: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """Read a JSON object that one of our commands wrote, and check its values.

    Args:
        types: each required key → the type of its value.

    Raises:
        ValueError: for a missing or damaged file; it names the file, and the key if one is wrong.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file.") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}): make it again.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; make it again.")
    for key, kind in types.items():
        value = record.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{path} is damaged at {key!r}, which is {value!r}: make it again.")
    return record


def is_path_to_nothing(name: str | Path) -> bool:
    """Whether a name is a path and nothing is there: the Hub's names are NAME or ORG/NAME.

    A name whose ORG is a folder here is taken for a path.
    """
    parts = str(name).split("/")
    is_path = str(name).startswith((".", "/", "~")) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())
    return is_path and not Path(name).exists()


@contextmanager
def readable(name: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a ValueError of one line; OSError if there is none."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, HFValidationError) as error:
        raise OSError(f"{name}: no {what} there.") from error
    except OSError as error:
        if Path(name).exists() and error.errno is not None:
            raise
        if "couldn't connect" in str(error):  # transformers' words, over several lines
            raise OSError(f"{name} is no folder here, and the Hub cannot be reached for it.") from error
        raise OSError(f"{name}: no readable {what} there: {_one_line(error)}") from error
    except Exception as error:
        raise ValueError(f"{name}: the {what} cannot be read, save or copy it again: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
