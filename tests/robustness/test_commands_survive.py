"""Commands that are killed, started twice, or run out of disk: what they leave in the end is what nothing leaves.

`eem train` has the same in `test_training_survives.py`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Subject, Undisturbed, contents, emptied, kill_somewhere, rounds, succeeded

COMMANDS = [
    "data prepare",
    "data tokenizer",
    "entropy",
    "entropy of text",
    "codec build",
    "compress",
    "decompress",
    "evaluate bits",
]


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(command: str, subjects: dict[str, Subject]) -> Subject:
    return subjects[command]


@pytest.fixture
def end(command: str, undisturbed: Callable[[str], Undisturbed]) -> Undisturbed:
    return undisturbed(command)


def test_a_killed_command_ends_the_same_when_repeated(
    command: str, subject: Subject, end: Undisturbed, tmp_path: Path
) -> None:
    """The same command, run again after a kill or two, leaves the same; of killed starts nothing is left."""
    chance = random.Random(f"kills {command}")
    for attempt in rounds(1):
        with attempt as number:
            folder = emptied(tmp_path / "kills")
            for _ in range(chance.choice([1, 1, 2])):
                kill_somewhere(subject.start(folder), end, folder, chance)
            succeeded(subject.start(folder).result())
            assert contents(folder) == end.contents, number


def test_two_starts_at_once_never_mix(command: str, subject: Subject, end: Undisturbed, tmp_path: Path) -> None:
    """Two at once, a moment apart: both end well and alike, or one is told in a line that another is at work."""
    chance = random.Random(f"twice {command}")
    for attempt in rounds(1, 0.5):
        with attempt as number:
            folder, is_forced = emptied(tmp_path / "twice"), chance.random() < 0.5
            first = subject.start(folder, is_forced=is_forced)
            first.process.join(chance.choice([0, chance.uniform(0, end.seconds)]))
            second = subject.start(folder, is_forced=is_forced)
            results = [first.result(), second.result()]
            assert sorted(result.code for result in results) in ([0, 0], [0, 2]), (number, results)
            for result in results:
                assert result.code == 0 or str(folder / "out") in result.error, (number, result)
            assert contents(folder) == end.contents, number


def test_a_full_disk_is_told_and_spoils_nothing(
    command: str, subject: Subject, end: Undisturbed, tmp_path: Path
) -> None:
    """At any size: a line that names the file; what was there stays; and with room again the same end."""
    chance = random.Random(f"full {command}")
    for attempt in rounds(1, 0.2):
        with attempt as number:
            folder = emptied(tmp_path / "full")
            if subject.earlier is not None and chance.random() < 0.7:
                subject.earlier(folder)
            before = contents(folder)
            limit = int(end.largest ** chance.uniform(0, 1)) - 1
            result = subject.start(folder, limit).result()
            assert "no space to write it" in result.error and str(folder) in result.error, (number, limit, result)
            if not subject.is_resumed:
                assert contents(folder) == before, (number, limit)
            succeeded(subject.start(folder).result())
            assert contents(folder) == end.contents, (number, limit)
