"""One process at a time in an output folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, until the body ends; the system lets go of it where the process dies.

    Raises:
        ValueError: while another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is being written by another process: wait for it, or choose another."
            ) from error
        # Who held it before may have removed the file between our opening and our locking it.
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise ValueError(f"{folder} was just being written by another process: start again.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
