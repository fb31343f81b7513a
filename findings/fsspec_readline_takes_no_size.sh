#!/usr/bin/env bash
# Expected: a file that fsspec opens in binary mode is an io.IOBase, whose readline(size) reads at most `size` bytes of a line, as open()'s
#   does, whatever the file system. Code that bounds its memory for long lines calls it so.
# Happens: AbstractBufferedFile, which HTTP, S3 and the Hub's files are made of, has a readline() that takes no argument: TypeError. A
#   local file and a file in memory take it. A compressed one over the same file system takes it too, because gzip's file is around it.
# Version: fsspec 2026.9.0.
# Seen: local b'abc', memory b'abc', buffered TypeError, gzip around buffered b'abc'
. "$(dirname "$0")/_environment.sh"
packages fsspec==2026.9.0
python - <<'PY'
import gzip
import io

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

content = b"abcdef\nghi\n"


class Remote(AbstractFileSystem):
    """A file system as HTTP's and S3's are made: files by AbstractBufferedFile, bytes by ranges."""

    protocol = "example"

    def __init__(self, stored, **kwargs):
        super().__init__(**kwargs)
        self.stored = stored

    def info(self, path, **kwargs):
        return {"name": path, "size": len(self.stored), "type": "file"}

    def _open(self, path, mode="rb", **kwargs):
        return File(self, path, mode, size=len(self.stored))


class File(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.stored[start:end]


def read(file):
    assert isinstance(file, io.IOBase)
    try:
        return file.readline(3)
    except TypeError as error:
        return type(error).__name__


with open("local.txt", "wb") as file:
    file.write(content)
with fsspec.open("memory://memory.txt", "wb") as file:
    file.write(content)
seen = {}
for name, url in (("local", "file://local.txt"), ("memory", "memory://memory.txt")):
    with fsspec.open(url.replace("file://", ""), "rb") as file:
        seen[name] = read(file)
seen["buffered"] = read(Remote(content).open("x", "rb"))
seen["gzip around buffered"] = read(gzip.GzipFile(fileobj=Remote(gzip.compress(content)).open("x", "rb")))
print(seen)
assert seen == {"local": b"abc", "memory": b"abc", "buffered": "TypeError", "gzip around buffered": b"abc"}
PY
