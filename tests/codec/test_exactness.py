"""Payloads and tokens are the same whatever the instruction set, the threads and the number of windows at once."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_eem.codec import IntegerModel

MakeModel = Callable[[str], IntegerModel]
STUDY = Path(__file__).parents[2] / "studies" / "codec_exactness"
sys.path.append(str(STUDY))
from exactness_environments import FAST, PLAIN, can_run  # noqa: E402

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def payloads(folder: Path, decoder: str, environment: dict[str, str], at_once: int, threads: int) -> tuple[str, ...]:
    """Hashes of the payloads that a process in `environment` writes, and reads back."""
    command = [sys.executable, str(STUDY / "exactness_worker.py"), str(folder), decoder, str(at_once), str(threads)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == 0
    return tuple(result["payloads"])


def test_two_environments_write_the_same(integer_model: MakeModel, tmp_path: Path) -> None:
    integer_model("taps").save_pretrained(tmp_path)
    hashes = {
        payloads(tmp_path, "Plain", PLAIN["SSE4.1"], at_once=7, threads=1),
        payloads(tmp_path, "Fast" if HAS_NUMBA else "Plain", {}, at_once=64, threads=2),
    }
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "taps", "odd"])
def test_every_environment_writes_the_same(integer_model: MakeModel, kind: str, tmp_path: Path) -> None:
    integer_model(kind).save_pretrained(tmp_path)
    cells = list(itertools.product(["Plain"], PLAIN.values(), (64,), (1, 2)))
    cells += list(itertools.product(["Plain"], [PLAIN["SSE4.1"]], (1, 7), (1, 2)))
    if HAS_NUMBA:
        cells += list(itertools.product(["Fast"], filter(can_run, FAST.values()), (1, 7, 64), (1, 2)))
    hashes = {(name, tuple(cell.items()), *rest): payloads(tmp_path, name, cell, *rest) for name, cell, *rest in cells}
    assert len(set(hashes.values())) == 1, hashes
