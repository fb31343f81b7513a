"""Files that ship with the package, and files that are either whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ASSETS = Path(__file__).parent / "assets"
_ASSET = "asset:"


def asset(name: str) -> str:
    """The path behind `asset:NAME`, which names what ships with this package; any other name as it is.

    Raises:
        ValueError: nothing of that name ships.
    """
    if not name.startswith(_ASSET):
        return name
    path = ASSETS / name.removeprefix(_ASSET)
    if not path.exists():
        raise ValueError(f"{name}: nothing of that name ships with modeling-eem; asset:tokenizer does.")
    return str(path)


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) under a temporary name beside `path`, then rename it; folders are made.

    Whoever reads `path` sees the old file or the new one, never half of it.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def folder_at_once(path: Path) -> Iterator[Path]:
    """A folder to fill, whose files then replace those of the same names in `path`; none of them after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder)
        path.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            os.replace(file, path / file.name)
