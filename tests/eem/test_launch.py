"""Two processes of one launch share the work; what is wrong is said once, whoever finds it, and both end with 2."""

import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from datasets import Dataset, load_from_disk

from eem import launch
from modeling_eem.files import locked

sys.path.append(str(Path(__file__).parent))  # processes find `command` by its name
from launched_process import command, entropy_at_speed  # noqa: E402

# A server that has imported what a command needs, and forks a clean process for each.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["modeling_eem.training", "modeling_eem.entropy"])


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _launch(folder: Path, arguments: list[object], limits: tuple[int | None, int | None] = (None, None)) -> str:
    """What two processes say in all; both must end by themselves, with 2."""
    codes, said = _end(folder, arguments, command, limits)
    assert codes == [2, 2], said
    assert "Traceback" not in said
    return said


def _end(folder: Path, arguments: list[object], target: Callable[..., None], own: Sequence[Any]) -> tuple[list, str]:
    """How two processes end, and what they say in all; `own` is what each of them gets beside the arguments."""
    port, notes = _free_port(), [folder / f"said-{rank}" for rank in range(2)]
    given = [str(argument) for argument in arguments]
    processes = [
        FORKS.Process(target=target, args=(rank, port, str(note), given, its_own))
        for rank, (note, its_own) in enumerate(zip(notes, own))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, "".join(note.read_text() for note in notes)


def _rows(folder: Path, *rows: list[int]) -> Path:
    Dataset.from_dict({"input_ids": list(rows)}).save_to_disk(folder / "rows")
    return folder / "rows"


def _entropy(model: Path, rows: Path, output: Path) -> list[object]:
    return ["entropy", "--model", model, "--method", "causal", "--data", rows, "--output", output, "--rows-a-part", 4]


def test_a_row_that_the_main_process_refuses(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    rows = _rows(tmp_path, [0, 7, 8], [0, 7, 5000])
    said = _launch(tmp_path, _entropy(harness_model("llama"), rows, tmp_path / "out"))
    assert said.count("error: ") == said.count("row 1 holds id 5000") == 1, said
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_for_the_second_process(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """The main one waits for parts that never come."""
    rows = _rows(tmp_path, *([0, 7, 8 + number] for number in range(16)))
    arguments = _entropy(harness_model("llama"), rows, tmp_path / "out")
    said = _launch(tmp_path, arguments, (None, 100))
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "out/train/data-0000" in errors[0], said  # the limit cuts what it says, too
    assert not (tmp_path / "out" / "dataset_dict.json").exists()


def test_processes_of_different_speeds_cut_the_rows_alike(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """Each cut them by its own speed: rows were missing, others came out twice."""
    ids = [[0, 5 + number // 20, 5 + number % 20] for number in range(200)]
    rows, output = _rows(tmp_path, *ids), tmp_path / "out"
    arguments = [
        "entropy",
        "--model",
        harness_model("llama"),
        "--method",
        "causal",
        "--data",
        rows,
        "--output",
        output,
    ]
    codes, said = _end(tmp_path, arguments, entropy_at_speed, (1.16, 1.21))  # a minute is 23 or 24 rows: nine parts
    assert codes == [0, 0], said
    assert load_from_disk(str(output))["train"]["input_ids"][:] == ids


def test_an_output_that_is_taken(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Only the main process holds the lock."""
    with locked(tmp_path / "out"):
        said = _launch(tmp_path, ["train", "--config", write_run("masked_mixer")])
    assert said.count("error: ") == said.count("is being written by another") == 1, said


def test_what_both_find(write_run: Callable[..., Path], tmp_path: Path) -> None:
    said = _launch(tmp_path, ["train", "--config", write_run("masked_mixer"), "--learning_rate", "fast"])
    assert said.count("error: ") == said.count("error: command line: ") == 1, said


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["data", "prepare", "--data", "x.txt", "--output", "out"], "this command runs in one process"),
        (
            ["evaluate", "bits", "--model", "m", "--data", "x.txt", "--output", "out"],
            "this command runs in one process",
        ),
        (["entropy", "--model", "m"], "Missing option"),
        (["train", "--config"], "requires an argument"),
    ],
)
def test_wrong_usage_is_said_once(arguments: list[object], error: str, tmp_path: Path) -> None:
    said = _launch(tmp_path, arguments)
    assert said.count("error: ") == said.count(error) == 1, said


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The second of two connected processes; the counts that they share."""
    counts: dict[str, int] = {}

    class Store:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def add(self, key: str, amount: int) -> int:
            counts[key] = counts.get(key, 0) + amount
            return counts[key]

    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "TCPStore", Store)
    return counts


def test_each_mistake_is_said_by_whoever_finds_it_first(connected: dict[str, int]) -> None:
    assert launch.is_first_to_say("a") and not launch.is_first_to_say("a")
    assert launch.is_first_to_say("b")


def test_a_process_that_was_killed_is_spoken_of(connected: dict[str, int]) -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert "without an error message" in (launch.lost_process(closed) or "")
    launch.is_first_to_say("a")
    assert launch.lost_process(closed) == ""
    assert launch.lost_process(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize("asked", [0, 1])
def test_the_counts_may_go_while_they_are_read(
    asked: int, connected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process hosts them: it may end between this one's connection and its question, or between two."""
    add = dist.TCPStore.add

    def gone(store: Any, key: str, amount: int) -> int:
        if len(connected) >= asked:
            raise dist.DistNetworkError("Connection reset by peer")
        return add(store, key, amount)

    monkeypatch.setattr(dist.TCPStore, "add", gone)
    assert not launch.is_first_to_say("a")
    connected.clear()
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert (launch.lost_process(closed) == "") == (asked == 0)
