"""What the robustness tests share: commands in processes of their own, and what must be left of disturbed ones.

`ROBUSTNESS=N` makes long rounds of all: N kills and N / 2 double starts a command, N / 5 sizes of a full disk, 20 N
damaged inputs over all kinds. Everything is seeded.
"""

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROUNDS = int(os.environ.get("ROBUSTNESS", "0"))
HANG = 120  # seconds: a hundred times what any of these commands takes
SIGKILL = -signal.SIGKILL

# A server that has imported all that the commands need, and forks a clean process for each.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "eem.__main__",
        "modeling_eem.training",
        "modeling_eem.entropy.corpus_source",
        "modeling_eem.entropy.registry",
        "modeling_eem.data.pipeline",
        "modeling_eem.evaluation.bits_table",
        "modeling_eem.evaluation.held_out_text",
        "modeling_eem.codec.file_operations",
        "modeling_eem.codec.build",
        "modeling_eem.codec.fast_decoder",
    ]
)
# Told before an error, on the way to it.
_PROGRESS = re.compile(
    r"[\d,]+ tokens a second; .*|.*: about .* for .* bytes|.*: \d+ s so far|[^/]*: [\d,]+( of [\d,]+)?(, .*)?"
)


@dataclass(frozen=True)
class Round:
    """A round of a test, `with round as number`: what fails in it is kept, and the next round begins."""

    number: int
    failures: list[str]

    def __enter__(self) -> int:
        return self.number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, AssertionError):
            self.failures.append(f"round {self.number}: {error}")
        return isinstance(error, AssertionError)


def rounds(short: int, share: float = 1) -> Iterator[Round]:
    """The rounds of a test: `short` in CI, else `share` of those asked for. In the end all failures are told."""
    failures: list[str] = []
    total = max(1, round(ROUNDS * share)) if ROUNDS else short
    for number in range(total):
        yield Round(number, failures)
    assert not failures, f"{len(failures)} of {total} rounds:\n" + "\n\n".join(failures)


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (negative for a signal) and what it said."""

    code: int
    out: str
    err: str

    @property
    def is_error(self) -> bool:
        return self.code == 2

    @property
    def error(self) -> str:
        """What a command that was refused says, which is one line."""
        lines = [line for line in self.err.splitlines() if not _PROGRESS.fullmatch(line)]
        assert self.code == 2, self
        assert len(lines) == 1 and "Traceback" not in self.out, self
        return lines[0].removeprefix("error: ")


def _command(arguments: list[str], folder: str, out: Connection, err: Connection, file_limit: int | None) -> None:
    """Run `eem` in this process, in a folder; no file of its grows beyond the limit, as on a full disk."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.chdir(folder)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.argv = ["eem", *arguments]
    from eem.__main__ import main

    main()


class Started:
    """A command under way."""

    def __init__(self, arguments: Iterable[object], folder: Path, file_limit: int | None = None) -> None:
        pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
        self._readers = [reader for reader, _ in pipes]
        given = [str(argument) for argument in arguments]
        self.process: BaseProcess = FORKS.Process(
            target=_command, args=(given, str(folder), *(writer for _, writer in pipes), file_limit)
        )
        self.process.start()
        for _, writer in pipes:
            writer.close()

    @property
    def is_over(self) -> bool:
        return self.process.exitcode is not None

    def kill(self) -> None:
        if not self.is_over and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)

    def result(self) -> Result:
        """Wait for its end; a hang is a failure."""
        said = {reader.fileno(): b"" for reader in self._readers}
        order, end = list(said), time.monotonic() + HANG
        left = list(said)
        while left:
            ready, _, _ = select.select(left, [], [], max(0, end - time.monotonic()))
            if not ready:
                self.kill()
                raise AssertionError(f"it hangs: {said}")
            for place in ready:
                data = os.read(place, 1 << 16)
                said[place] += data
                if not data:
                    left.remove(place)
        self.process.join(HANG)
        assert self.process.exitcode is not None
        out, err = (said[place].decode(errors="replace") for place in order)
        for reader in self._readers:
            reader.close()
        return Result(self.process.exitcode, out, err)


def run(arguments: Iterable[object], folder: Path, file_limit: int | None = None) -> Result:
    return Started(arguments, folder, file_limit).result()


def succeeded(result: Result) -> Result:
    assert result.code == 0, result
    return result


Contents = dict[str, Any]
# Of a start, not of what it makes: times, versions, machines.
_OF_A_START = {"provenance", "seconds", "mb_per_second"}
_LOGS = ("logs", ".lock")


def contents(folder: Path) -> Contents:
    """Every file below a folder, as it must be again: byte by byte but for locks, logs, and the records of a start."""
    found: Contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part in _LOGS for part in name.parts):
            found[name.as_posix()] = _without_start(path)
    return found


def _without_start(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        record = json.loads(data)
        if isinstance(record, dict) and record.keys() & _OF_A_START:
            return {key: value for key, value in record.items() if key not in _OF_A_START}
    if path.name == "bits.md":  # whose last line and first note say where it was made
        return [line for line in data.decode().splitlines() if line.startswith("|")]
    return data


@dataclass(frozen=True)
class Subject:
    """A command with an output.

    Attributes:
        arguments: given the folder that it writes to, its words.
        forced: words that let it overwrite, where it needs any.
        is_resumed: whether a start that was stopped leaves parts, with which the next goes on.
        earlier: writes an earlier output of the same kind to a folder; None for a command that refuses to have one.
    """

    arguments: Callable[[Path], list[object]]
    forced: tuple[str, ...] = ()
    is_resumed: bool = False
    earlier: Callable[[Path], None] | None = None

    def start(self, folder: Path, file_limit: int | None = None, is_forced: bool = True) -> Started:
        return Started([*self.arguments(folder), *(self.forced if is_forced else ())], folder, file_limit)


@dataclass(frozen=True)
class Undisturbed:
    """What a command left to which nothing happened, the seconds it took, and how often its folder changed."""

    contents: Contents
    seconds: float
    changes: int
    largest: int

    @classmethod
    def of(cls, subject: Subject, folder: Path) -> "Undisturbed":
        began = time.monotonic()
        started = subject.start(folder)
        changes = watch_changes(folder, started)
        succeeded(started.result())
        seconds = time.monotonic() - began
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
        return cls(contents(folder), seconds, changes, max(sizes))


def watch_changes(folder: Path, started: Started, at_most: int | None = None) -> int:
    """Count how often the names below a folder change until a command ends, or until they changed `at_most` times."""
    changes, before = 0, _names(folder)
    while not started.is_over and changes != at_most:
        if (now := _names(folder)) != before:
            changes, before = changes + 1, now
        time.sleep(0.001)
    return changes


def _names(folder: Path) -> set[str]:
    found: set[str] = set()
    for where, folders, files in os.walk(folder):
        found.update(os.path.join(where, name) for name in (*folders, *files))
    return found


def kill_somewhere(started: Started, undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Result:
    """Kill a command at any moment, or just behind a change in its folder: in the middle of its writing."""
    if chance.random() < 0.4:
        started.process.join(chance.uniform(0, undisturbed.seconds))
    else:
        watch_changes(folder, started, chance.randint(1, max(1, undisturbed.changes)))
        time.sleep(chance.choice([0, 0, 0.001, 0.005]))
    started.kill()
    result = started.result()
    assert result.code in (0, SIGKILL), result
    return result


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
