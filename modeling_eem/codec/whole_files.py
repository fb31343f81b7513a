"""Files that are whole or missing: written under another name beside the target, synced, then renamed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from modeling_eem.codec.container import CodecError
from modeling_eem.files import full_disk_named, part_beside

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def whole_file(path: Path, overwrite: bool, source: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to. It becomes `path` when the block ends without an error; after an error it is removed.

    A killed process leaves the old file as it was, and a `.part` beside it that the next one removes. If two processes
    write one path, the last wins with `overwrite`, and the second is refused without it; no file ever mixes both.
    Devices and pipes are written to directly.

    Args:
        source: a file whose permissions and times the new one takes at the end, as far as the system allows. Until
            then only this user can read it.

    Raises:
        CodecError: if `path` exists and may not be overwritten, before the block or at its end.
        OSError: for a full disk, with the file's name.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "wb") as device:
            yield device
        return
    if path.is_dir():
        raise CodecError(f"{path} is a folder: name a file.")
    if path.exists() and not overwrite:
        raise _exists(path)
    if overwrite and path.is_symlink():
        path = Path(os.path.realpath(path))  # what a link leads to is written, and the link stays
    mode = 0o666 if source is None else 0o600
    with full_disk_named(path.parent, path), part_beside(path, mode=mode) as part:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if source is not None:
            with suppress(OSError):  # the bytes are whole: without the source's permissions the file stays private
                _copy_rights(source, part)
        _publish(part, path, overwrite)


def _copy_rights(source: Path, target: Path) -> None:
    """Times, owner where this user may give a file away, and permissions.

    Set-user-ID and set-group-ID do not travel: another owner would lend a program more rights. Nor do a group's rights
    to another group, beyond those of everybody.
    """
    told = source.stat()
    os.utime(target, ns=(told.st_atime_ns, told.st_mtime_ns))
    with suppress(OSError, AttributeError):  # Windows has no owners
        os.chown(target, told.st_uid, told.st_gid)
    mode = stat.S_IMODE(told.st_mode) & 0o777
    if target.stat().st_gid != told.st_gid:
        mode &= 0o707 | mode << 3 & 0o070
    os.chmod(target, mode)


def _publish(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(path)
    else:
        _publish_new(part, path)
    with suppress(OSError):  # the file has its name; some folders cannot be read, some systems sync no folder
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Let a folder's entries reach the disk; Windows opens no folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _publish_new(part: Path, path: Path) -> None:
    """Give `part` its name unless that is taken: a link fails where a rename would overwrite."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise _exists(path) from None
        part.rename(path)


def _exists(path: Path) -> CodecError:
    return CodecError(f"{path} exists: -f overwrites it, -o names another file.")


__all__ = ["whole_file"]
