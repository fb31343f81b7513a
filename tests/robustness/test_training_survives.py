"""Trainings that are killed, started twice, given spoiled files, or run out of disk.

A training either ends with exactly the
weights of one that nothing happened to, or says in one line what is wrong.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import spoil
from processes import SIGKILL, Started, rounds, succeeded
from safetensors.torch import load_file

STEPS = {"max_steps": 8, "save_steps": 2, "eval_steps": 4, "logging_steps": 2, "save_total_limit": 2}


def train(path: Path, file_limit: int | None = None) -> Started:
    return Started(["train", "--config", path], path.parent, file_limit)


@pytest.fixture(scope="module")
def reference(
    run_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The output of a training that nothing happened to, and its run file's values."""
    folder = tmp_path_factory.mktemp("reference")
    values = run_values("masked_mixer", **STEPS, output_dir=str(folder / "out"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    succeeded(train(folder / "tiny.yaml").result())
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


def test_a_killed_training_resumes_to_the_same_end(
    reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    """A training is killed at three moments, and then goes on to the same end."""
    chance = random.Random(0)
    for attempt in rounds(1):
        with attempt:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            for _ in range(3):
                started = train(run_file)
                started.process.join(chance.uniform(0.2, 3.0))
                started.kill()
                result = started.result()
                assert result.code in (0, SIGKILL), result
            succeeded(train(run_file).result())
            assert_is_the_reference(tmp_path / "out", reference[0])
            assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2
            assert not list((tmp_path / "out").glob("deleted-*")) and not list((tmp_path / "out").rglob("*.part"))


def test_of_two_starts_one_at_most_trains(
    reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    """Two at once, with a moment between: one at most trains, the other is told so."""
    chance = random.Random(1)
    for attempt in rounds(2, 0.5):
        with attempt:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            first = train(run_file)
            first.process.join(chance.choice([0.0, 0.1, 0.5, 1.5]))
            found = [train(run_file).result(), first.result()]
            assert sorted(result.code for result in found) in ([0, 0], [0, 2]), found
            for result in found:
                assert result.code == 0 or "another process" in result.error or "another training" in result.error
            assert_is_the_reference(tmp_path / "out", reference[0])


def test_a_spoiled_file_is_refused_or_trained_right(
    reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    """Another file each round, of checkpoints or of a finished folder. What it trains is right, or it is refused."""
    chance = random.Random(2)
    for attempt in rounds(6):
        with attempt as number:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            is_finished = number % 2 == 1
            ignored = (
                ()
                if is_finished
                else ("model*", "config.json", "README.md", "run.yaml", "results.json", "complete.json")
            )
            shutil.copytree(reference[0], tmp_path / "out")
            for name in ignored:
                for file in (tmp_path / "out").glob(name):
                    file.unlink()
            files = [file for file in sorted((tmp_path / "out").rglob("*")) if file.is_file() and file.suffix != ".py"]
            names = ("run.yaml", "trainer_state.json", "config.json", "model.safetensors", "complete.json")
            files = [
                file for file in files if (file.parent == tmp_path / "out" and file.name in names) or not is_finished
            ]
            file = chance.choice(files)
            way = spoil(file, chance)
            result = train(run_file).result()
            what = f"{file.relative_to(tmp_path)}: {way}: {result}"
            assert result.code == 0 or result.error, what
            if result.code == 0:
                assert_is_the_reference(tmp_path / "out", reference[0])


def test_a_training_resumes_after_a_full_disk(
    reference: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    """At any size: one line that names a file, and with room again the same end."""
    chance = random.Random(3)
    largest = max(file.stat().st_size for file in reference[0].rglob("*") if file.is_file())
    for attempt in rounds(1, 0.2):
        with attempt:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            limit = int(largest ** chance.uniform(0.3, 1.0))
            result = train(run_file, limit).result()
            assert "no space to write it" in result.error and str(tmp_path / "out") in result.error, (limit, result)
            succeeded(train(run_file).result())
            assert_is_the_reference(tmp_path / "out", reference[0])
