"""Checksums of a folder of rows: damaged rows are not read.

`contents.json` names each Arrow file with its size, its SHA-256 and the SHA-256 of its two ends, and each split with
its number of rows. Opening a folder checks sizes, ends and numbers of rows. That reads 128 KiB a file and finds a file
that was cut off, zeroed at its end or replaced. `verify_rows` reads everything and finds a single changed bit.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetDict, load_from_disk

from modeling_eem.files import read_record, sha256, write_atomically

CONTENTS_FILE = "contents.json"
_END = 1 << 16  # bytes
_AGAIN = "restore it, or prepare the text again"


def record_contents(folder: Path, splits: Sequence[str]) -> None:
    """Write `contents.json` for the Arrow files of `splits`."""
    files = [file for split in splits for file in sorted((folder / split).glob("data-*.arrow"))]
    with ThreadPoolExecutor() as pool:
        whole = list(pool.map(sha256, files))
    content = {
        "files": {
            file.relative_to(folder).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": digest,
                "ends_sha256": _ends_sha256(file),
            }
            for file, digest in zip(files, whole)
        },
        "rows": {split: sum(_count_rows(file) for file in files if file.parent.name == split) for split in splits},
    }
    write_atomically(folder / CONTENTS_FILE, json.dumps(content, indent=1) + "\n")


def open_rows(folder: str | Path) -> DatasetDict:
    """The splits of a folder of `eem data prepare` or `eem entropy`, read from disk as they are needed.

    Raises:
        ValueError: for a folder that is unfinished or damaged: a file is missing, its size or its ends have changed,
            or rows are missing. `verify_rows` finds a change in the middle.
    """
    folder = Path(folder)
    try:
        splits = load_from_disk(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not complete: run `eem data prepare` again to finish it.") from error
    except Exception as error:  # datasets and pyarrow raise many kinds of error on damaged files
        raise ValueError(f"{folder}: its rows cannot be read ({_one_line(error)}): {_AGAIN}.") from error
    if not isinstance(splits, DatasetDict):
        raise ValueError(f"{folder} holds rows without splits: make it with `eem data prepare`.")
    if (folder / CONTENTS_FILE).exists():  # folders of version 0.1 have none
        content = _contents(folder)
        for name, written in content["files"].items():
            _check_file(folder / name, written["bytes"], written["ends_sha256"], _ends_sha256)
        if (found := {split: len(rows) for split, rows in splits.items()}) != content["rows"]:
            raise ValueError(f"{folder} holds {found} rows and was written with {content['rows']}: {_AGAIN}.")
    return splits


def verify_rows(folder: str | Path, splits: Sequence[str] | None = None) -> None:
    """Read every byte of the rows, or only of `splits` if you name some.

    Raises:
        ValueError: for a file that is not as it was written, or a folder without a record of what was written.
    """
    folder = Path(folder)
    if not (folder / CONTENTS_FILE).exists():
        raise ValueError(f"{folder} has no {CONTENTS_FILE} to verify it with: prepare the text again.")
    for name, written in _contents(folder)["files"].items():
        if splits is None or name.partition("/")[0] in splits:
            _check_file(folder / name, written["bytes"], written["sha256"], sha256)


def _contents(folder: Path) -> dict[str, Any]:
    content = read_record(folder / CONTENTS_FILE, {"files": dict, "rows": dict})
    for name, written in content["files"].items():
        is_plain = len(Path(name).parts) == 2 and not Path(name).is_absolute() and ".." not in Path(name).parts
        if not is_plain or not isinstance(written, dict) or written.keys() < {"bytes", "sha256", "ends_sha256"}:
            raise ValueError(f"{folder / CONTENTS_FILE}: damaged at {name!r}: {_AGAIN}.")
    return content


def _check_file(path: Path, num_bytes: int, expected: str, digest: Callable[[Path], str]) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {_AGAIN}.")
    if (size := path.stat().st_size) != num_bytes:
        raise ValueError(f"{path} has {size:,} bytes and was written with {num_bytes:,}: {_AGAIN}.")
    if digest(path) != expected:
        raise ValueError(f"{path} is not as it was written: {_AGAIN}.")


def _ends_sha256(path: Path) -> str:
    with path.open("rb") as file:
        first = file.read(_END)
        file.seek(max(path.stat().st_size - _END, 0))
        return hashlib.sha256(first + file.read()).hexdigest()


def _count_rows(path: Path) -> int:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
        return sum(batch.num_rows for batch in batches)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
