"""Trainings that are killed, started twice, given spoiled files, or run out of disk.

Seeded, and short as they stand; `ROBUSTNESS=100` runs so many rounds of each. A training either ends with exactly the
weights of one that nothing happened to, or says in one line what is wrong.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))  # processes find `work` by its name
from training_process import work  # noqa: E402

ROUNDS = int(os.environ.get("ROBUSTNESS", "0"))
STEPS = {"max_steps": 8, "save_steps": 2, "eval_steps": 4, "logging_steps": 2, "save_total_limit": 2}

# A server that has imported all that a training needs, and forks a clean process for each.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["modeling_eem.training"])


def rounds(short: int) -> range:
    return range(ROUNDS or short)


def start(path: Path, note: Path, *limit: int) -> BaseProcess:
    process = FORKS.Process(target=work, args=(str(path), str(note), *limit))
    process.start()
    return process


def outcome(process: BaseProcess, note: Path) -> tuple[int | None, str]:
    """Its exit code, and what it said; a hang is a failure."""
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, note.read_text() if note.exists() else ""


@pytest.fixture(scope="module")
def reference(
    run_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The output of a training that nothing happened to, and its run file's values."""
    folder = tmp_path_factory.mktemp("reference")
    values = run_values("masked_mixer", **STEPS, output_dir=str(folder / "out"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    code, text = outcome(start(folder / "tiny.yaml", folder / "note"), folder / "note")
    assert code == 0, text
    return folder / "out", values


@pytest.fixture
def run_file(reference: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**reference[1], "output_dir": str(tmp_path / "out")}))
    return path


def assert_is_the_reference(output: Path, reference: Path) -> None:
    expected = load_file(reference / "model.safetensors")
    found = load_file(output / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (output, reference)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]


def test_kills(reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path) -> None:
    """A training is killed at three moments, and then goes on to the same end."""
    chance = random.Random(0)
    for _ in rounds(1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for _ in range(3):
            process = start(run_file, tmp_path / "note")
            process.join(chance.uniform(0.2, 3.0))
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            code, text = outcome(process, tmp_path / "note")
            assert code in (0, -signal.SIGKILL), text
        code, text = outcome(start(run_file, tmp_path / "note"), tmp_path / "note")
        assert code == 0, text
        assert_is_the_reference(tmp_path / "out", reference[0])
        assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2
        assert not list((tmp_path / "out").glob("deleted-*")) and not list((tmp_path / "out").rglob("*.part"))


def test_double_starts(reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path) -> None:
    """Two at once, with a moment between: one at most trains, the other is told so."""
    chance = random.Random(1)
    for _ in rounds(2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        first = start(run_file, tmp_path / "first")
        first.join(chance.choice([0.0, 0.1, 0.5, 1.5]))
        second = start(run_file, tmp_path / "second")
        found = [outcome(first, tmp_path / "first"), outcome(second, tmp_path / "second")]
        assert sorted(code for code, _ in found) in ([0, 0], [0, 2]), found
        for code, text in found:
            assert code == 0 or "another process" in text or "another training" in text
        assert_is_the_reference(tmp_path / "out", reference[0])


def spoil(file: Path, chance: random.Random) -> str:
    """Change a file in one way or another, and name the way."""
    data = bytearray(file.read_bytes())
    way = chance.choice(["delete", "cut", "zero", "flip", "empty", "list", "number", "mapping", "garbage", "deep"])
    if way == "delete":
        file.unlink()
        return way
    if way == "cut":
        data = data[: chance.randrange(len(data) or 1)]
    elif way == "zero":
        place = chance.randrange(len(data) or 1)
        data[place:] = bytes(len(data) - place)
    elif way == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        other = {"empty": b"", "list": b"[1, 2]", "number": b"3", "mapping": b'{"a": {"b": null}}'}
        data = bytearray(other.get(way, chance.randbytes(200) if way == "garbage" else b"[" * 100_000))
    file.write_bytes(data)
    return way


def test_spoiled_files(reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path) -> None:
    """Another file each round, of checkpoints or of a finished folder. What it trains is right, or it is refused."""
    chance = random.Random(2)
    for number in rounds(6):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        is_finished = number % 2 == 1
        ignored = (
            () if is_finished else ("model*", "config.json", "README.md", "run.yaml", "results.json", "complete.json")
        )
        shutil.copytree(reference[0], tmp_path / "out")
        for name in ignored:
            for file in (tmp_path / "out").glob(name):
                file.unlink()
        files = [file for file in sorted((tmp_path / "out").rglob("*")) if file.is_file() and file.suffix != ".py"]
        names = ("run.yaml", "trainer_state.json", "config.json", "model.safetensors", "complete.json")
        files = [file for file in files if (file.parent == tmp_path / "out" and file.name in names) or not is_finished]
        file = chance.choice(files)
        way = spoil(file, chance)
        code, text = outcome(start(run_file, tmp_path / "note"), tmp_path / "note")
        what = f"round {number}: {file.relative_to(tmp_path)}: {way}: {text}"
        assert code in (0, 2), what
        assert code == 0 or (text and len(text.splitlines()) == 1), what
        if code == 0:
            assert_is_the_reference(tmp_path / "out", reference[0])


def test_full_disks(reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path) -> None:
    """At any size: one line that names a file, and with room again the same end."""
    chance = random.Random(3)
    largest = max(file.stat().st_size for file in reference[0].rglob("*") if file.is_file())
    for _ in rounds(1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        limit = int(largest ** chance.uniform(0.3, 1.0))
        code, text = outcome(start(run_file, tmp_path / "note", limit), tmp_path / "note")
        assert code == 2 and "no space to write it" in text and str(tmp_path / "out") in text, (limit, text)
        assert len(text.splitlines()) == 1
        code, text = outcome(start(run_file, tmp_path / "note"), tmp_path / "note")
        assert code == 0, text
        assert_is_the_reference(tmp_path / "out", reference[0])
