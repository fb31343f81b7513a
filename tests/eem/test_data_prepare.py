"""`eem data prepare` as it is called: kills, bad input, clusters."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from datasets import load_dataset, load_from_disk
from typer.testing import CliRunner

from eem.data import app
from modeling_eem.files import sha256

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
COMMAND = [sys.executable, "-m", "eem", "data"]
LINES = [json.dumps({"text": f"Song {i}. " + "The rain it raineth every day. " * (i % 40)}) for i in range(4000)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "songs.jsonl"
    path.write_text("\n".join(LINES[:200]))
    return path


def _arguments(corpus: Path, output: Path, *more: str) -> list[str]:
    base = ["prepare", "--data", str(corpus), "--tokenizer", str(TOKENIZER), "--output", str(output)]
    return [*base, "--max-length", "64", "--shard-mb", "0.05", "--workers", "1", *more]


def _arrow(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*.arrow")}


def _refused(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("error: ") and "Traceback" not in result.output
    return line


def test_help_has_an_example() -> None:
    assert "eem data prepare --data" in CliRunner().invoke(app, ["prepare", "--help"]).output


def test_table_and_json(corpus: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, _arguments(corpus, tmp_path / "rows", "--rows", "pad", "--held-out", "10"))
    assert result.exit_code == 0, result.output
    assert "held_out" in result.stderr and "MB of text a second" in result.stderr
    data = load_from_disk(tmp_path / "rows")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 190, "held_out": 10}
    results = json.loads((tmp_path / "rows/results.json").read_text())
    assert results["splits"]["train"]["rows"] == 190 and results["documents"] == 200
    assert json.loads((tmp_path / "rows/fingerprint.json").read_text())["rows"] == "pad"


def test_hashing_the_files_is_said(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large corpus it takes minutes, and the bar stood at 0."""

    said = threading.Event()

    def slow(path: str) -> str:
        assert said.wait(60)
        return sha256(path)

    def print_and_tell(*values: object, **options: Any) -> None:
        print(*values, **options)
        said.set()

    monkeypatch.setattr("modeling_eem.data.prepare.sha256", slow)
    monkeypatch.setattr("eem.console._SECONDS_A_LINE", 0.05)
    monkeypatch.setattr("eem.console.print", print_and_tell, raising=False)
    result = CliRunner().invoke(app, _arguments(corpus, tmp_path / "rows"))
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    hashing = [number for number, line in enumerate(lines) if re.fullmatch(r"hashing the files: \d+ s so far", line)]
    rows = [number for number, line in enumerate(lines) if line.startswith("making rows, MB: ")]
    assert hashing and rows and max(hashing) < min(rows)


def test_streamed_data_sets_give_the_rows_of_their_text(corpus: Path, tmp_path: Path) -> None:
    """`datasets` streams and filters a `.jsonl.zst`, and what is left is written: the rows are those of the lines."""
    packed = tmp_path / "songs.jsonl.zst"
    packed.write_bytes(zstandard.compress(corpus.read_bytes()))
    stream = load_dataset("json", data_files=str(packed), split="train", streaming=True, cache_dir=str(tmp_path))
    chosen = stream.filter(lambda row: len(row["text"]) > 100).take(50)
    with zstandard.open(tmp_path / "chosen.jsonl.zst", "wt", encoding="utf-8") as file:
        for row in chosen:
            file.write(json.dumps({"text": row["text"]}) + "\n")
    long = [line for line in LINES[:200] if len(json.loads(line)["text"]) > 100][:50]
    (tmp_path / "plain.jsonl").write_text("\n".join(long))
    for data, output in (("chosen.jsonl.zst", "streamed"), ("plain.jsonl", "plain"), (packed.name, "packed")):
        assert CliRunner().invoke(app, _arguments(tmp_path / data, tmp_path / output)).exit_code == 0
    assert CliRunner().invoke(app, _arguments(corpus, tmp_path / "whole")).exit_code == 0
    rows = {name: load_from_disk(tmp_path / name)["train"] for name in ("streamed", "plain", "packed", "whole")}
    assert len(rows["streamed"]) > 50 and rows["streamed"]["input_ids"] == rows["plain"]["input_ids"]
    assert rows["packed"]["input_ids"] == rows["whole"]["input_ids"]


def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "songs.jsonl"
    corpus.write_text("\n".join(LINES))
    arguments = _arguments(corpus, tmp_path / "killed", "--rows", "stream", "--workers", "2")
    markers = tmp_path / "killed/logs/completions"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*COMMAND, *arguments], start_new_session=True, env=environment)
    deadline = time.monotonic() + 300
    while not (markers.is_dir() and len(list(markers.iterdir())) >= 3):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    done = {path.name for path in markers.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob(f"train/data-{min(done)}*")}
    assert 3 <= len(done) < 40 and before
    with pytest.raises(FileNotFoundError):
        load_from_disk(tmp_path / "killed")

    assert CliRunner().invoke(app, arguments[:-2] + ["--workers", "1"]).exit_code == 0
    assert all(path.stat().st_mtime_ns == modified for path, modified in before.items()), "made again"
    assert not list((tmp_path / "killed").rglob("*.part"))
    whole = [str(tmp_path / "whole") if part == str(tmp_path / "killed") else part for part in arguments]
    assert CliRunner().invoke(app, [*whole[:-2], "--workers", "1"]).exit_code == 0
    assert _arrow(tmp_path / "killed") == _arrow(tmp_path / "whole") != {}
    rows = load_from_disk(tmp_path / "killed").values()
    documents = {number for split in rows for row in split["document_ids"] for number in row}
    assert documents == set(range(4000))


def test_bad_files_and_numbers_leave_no_output(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows"
    files = {"empty.jsonl": b"", "bytes.txt": b"abc \xff", "bad.parquet": b"PAR1nonsense", "short.txt": b"Hello"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def refused(name: str, *more: str) -> str:
        return _refused(_arguments(tmp_path / name, output, "--held-out", "0", *more))

    assert "the corpus holds no document" in refused("empty.jsonl")
    assert "bad.parquet: not a readable parquet file" in refused("bad.parquet")
    assert "less than one row of 64" in refused("short.txt")
    assert not output.exists()
    assert "bytes.txt: not UTF-8 at byte 4" in refused("bytes.txt")
    assert not output.exists()  # so other options may be tried
    assert "the corpus holds no text that can be read: 1 documents" in refused("bytes.txt", "--errors", "skip")
    assert "nowhere.txt: not found" in refused("nowhere.txt")
    for number in ("inf", "nan", "0", "-1"):
        assert "--shard-mb must be a number above 0" in refused("short.txt", "--shard-mb", number)
    assert not output.exists()


def test_other_options_and_foreign_folders(corpus: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, _arguments(corpus, tmp_path / "rows")).exit_code == 0
    before = _arrow(tmp_path / "rows")
    assert "other values of rows" in _refused(_arguments(corpus, tmp_path / "rows", "--rows", "pack"))
    assert _arrow(tmp_path / "rows") == before
    assert "did not make it" in _refused(_arguments(corpus, tmp_path))
    assert CliRunner().invoke(app, _arguments(corpus, tmp_path / "rows")).exit_code == 0


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's: the same path of errors, from the system call up."""
    corpus = tmp_path / "songs.jsonl"
    corpus.write_text("\n".join(LINES[:800]))
    arguments = _arguments(corpus, tmp_path / "rows", "--shard-mb", "10")
    limited = f"ulimit -f 600; exec {sys.executable} -m eem data " + " ".join(arguments)
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'rows'}") and "no space to write it" in line
    assert not list((tmp_path / "rows").rglob("*.part"))
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_slurm_jobs_make_the_rows_of_one_machine(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's commands are stand-ins here that run each task of a job at once, from datatrove's real scripts."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    scripts = {
        "sbatch": r"""
            for script; do :; done
            echo "$@" >> $SLURM_TEST/calls; cat $script >> $SLURM_TEST/calls
            last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' $script)
            for task in $(seq 0 $last); do
                SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash $script >> $SLURM_TEST/log 2>&1
            done
            echo Submitted batch job 7""",
        "srun": r"""
            while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done
            exec "$@" """,
        "scontrol": "echo here",
    }
    for name, text in scripts.items():
        (bin_folder / name).write_text("#!/bin/bash\n" + text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TEST", str(tmp_path))
    where = ["--executor", "slurm", "--slurm-partition", "cpu", "--slurm-time", "01:00:00", "--shard-mb", "0.07"]
    output = tmp_path / "slurm"
    result = CliRunner().invoke(app, _arguments(corpus, output, *where))
    assert result.exit_code == 0, result.output
    assert "2 shards were handed to Slurm" in result.stderr
    calls = (tmp_path / "calls").read_text()
    assert "--partition=cpu" in calls and "--time=01:00:00" in calls and "--array=0-1%1" in calls
    assert "--dependency=afterok:7" in calls

    assert CliRunner().invoke(app, _arguments(corpus, tmp_path / "local", "--shard-mb", "0.07")).exit_code == 0
    assert _arrow(output) == _arrow(tmp_path / "local")
    assert load_from_disk(output).num_rows == load_from_disk(tmp_path / "local").num_rows


def test_clusters_that_are_not_there(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    slurm = ["--executor", "slurm", "--slurm-partition", "cpu"]
    assert "--slurm-time" in _refused(_arguments(corpus, tmp_path / "rows", *slurm))
    assert "no sbatch" in _refused(_arguments(corpus, tmp_path / "rows", *slurm, "--slurm-time", "1:00"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in _refused(_arguments(corpus, tmp_path / "rows", "--executor", "ray"))
    assert not (tmp_path / "rows").exists()
